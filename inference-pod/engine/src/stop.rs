//! Stop strings in a stream of text pieces: found across piece borders, and never sent in part.
//!
//! The server feeds each new piece of decoded text and sends what comes back. Text that may be the beginning of a stop
//! string is held back until the next piece decides.

/// Looks for stop strings in text that arrives in pieces.
#[derive(Clone, Debug, Default)]
pub struct StopMatcher {
    stops: Vec<String>,
    held: String,
    shows_stop: bool,
}

/// What may be sent after a piece.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Released {
    /// Text that is not part of a stop string, or, where they are shown, ends with the one that was met.
    pub text: String,
    /// A stop string was met; everything after it is dropped.
    pub stopped: bool,
}

impl StopMatcher {
    /// A matcher for these strings; empty ones are ignored.
    pub fn new(stops: &[String]) -> Self {
        let stops = stops.iter().filter(|stop| !stop.is_empty()).cloned().collect();
        Self { stops, held: String::new(), shows_stop: false }
    }

    /// The same matcher; the string that is met is shown or not.
    #[must_use]
    pub fn showing(self, shows_stop: bool) -> Self {
        Self { shows_stop, ..self }
    }

    /// Adds a piece of text.
    pub fn push(&mut self, piece: &str) -> Released {
        if self.stops.is_empty() {
            return Released { text: piece.to_owned(), stopped: false };
        }
        self.held.push_str(piece);
        // The one that is complete first wins, as if the text came letter by letter; so pieces do not matter.
        let found = self
            .stops
            .iter()
            .filter_map(|stop| self.held.find(stop).map(|start| (start + stop.len(), start)));
        if let Some((end, start)) = found.min() {
            self.held.truncate(if self.shows_stop { end } else { start });
            return Released { text: std::mem::take(&mut self.held), stopped: true };
        }
        let kept = self.stops.iter().map(|stop| unfinished(&self.held, stop)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - kept);
        Released { text: std::mem::replace(&mut self.held, rest), stopped: false }
    }

    /// The text still held back, for when nothing more comes.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Length of the longest end of `text` that begins `stop` without being all of it.
fn unfinished(text: &str, stop: &str) -> usize {
    (1..stop.len())
        .rev()
        .filter(|&length| stop.is_char_boundary(length))
        .find(|&length| text.ends_with(&stop[..length]))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (Vec<String>, bool) {
        let mut matcher = StopMatcher::new(&stops.iter().map(|stop| (*stop).to_owned()).collect::<Vec<_>>());
        let mut sent = Vec::new();
        for piece in pieces {
            let released = matcher.push(piece);
            sent.push(released.text);
            if released.stopped {
                return (sent, true);
            }
        }
        sent.push(matcher.finish());
        (sent, false)
    }

    #[test]
    fn a_stop_string_is_found_across_pieces_and_never_shown() {
        assert_eq!(
            run(&["END"], &["one E", "N", "D two"]),
            (vec!["one ".into(), "".into(), "".into()], true)
        );
    }

    #[test]
    fn a_stop_string_may_be_shown() {
        let mut matcher = StopMatcher::new(&["END".to_owned()]).showing(true);
        assert_eq!(matcher.push("one E"), Released { text: "one ".into(), stopped: false });
        assert_eq!(matcher.push("NDS"), Released { text: "END".into(), stopped: true });
    }

    #[test]
    fn held_text_is_sent_when_it_turns_out_harmless() {
        assert_eq!(run(&["END"], &["E", "NX"]), (vec!["".into(), "ENX".into(), "".into()], false));
        assert_eq!(run(&["END"], &["E"]), (vec!["".into(), "E".into()], false));
    }

    #[test]
    fn the_first_of_several_counts_and_characters_stay_whole() {
        assert_eq!(run(&["b", "ab"], &["xab"]), (vec!["x".into()], true));
        assert_eq!(
            run(&["é!"], &["caf", "é", "?"]),
            (vec!["caf".into(), "".into(), "é?".into(), "".into()], false)
        );
    }

    proptest! {
        #[test]
        fn cutting_text_differently_changes_nothing(
            text in "[abc]{0,40}",
            stops in prop::collection::vec("[abc]{1,4}", 0..4),
            cuts in prop::collection::vec(0_usize..40, 0..10),
        ) {
            let mut borders: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            borders.extend([0, text.len()]);
            borders.sort_unstable();
            let pieces: Vec<&str> = borders.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect();
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            let (sent, stopped) = run(&stops, &pieces);
            // Read letter by letter: the first stop string to be complete wins, and of those the longest.
            let found = (0..=text.len()).find_map(|end| {
                let met = stops.iter().filter(|stop| text[..end].ends_with(**stop));
                met.map(|stop| end - stop.len()).min()
            });
            prop_assert_eq!(stopped, found.is_some());
            prop_assert_eq!(sent.concat(), &text[..found.unwrap_or(text.len())]);
        }
    }
}
