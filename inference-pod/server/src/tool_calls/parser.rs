//! Text in, text and calls out.

use super::call_scanner::{CallScanner, Progress};
use super::{HERMES_CLOSE, HERMES_OPEN, LLAMA_TAG, ToolSyntax};

/// What a piece of text turns out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToolEvent {
    /// Text.
    Text(String),
    /// A call begins.
    Begin {
        /// Number of the call, from 0.
        index: u32,
        /// The function.
        name: String,
    },
    /// More of a call's arguments.
    Arguments {
        /// Number of the call.
        index: u32,
        /// Text to append.
        text: String,
    },
}

/// Finds calls in the text of one answer.
pub struct ToolParser {
    syntax: ToolSyntax,
    /// Functions there are; a call of another is text.
    names: Vec<String>,
    parallel: bool,
    place: Place,
    /// Text that is not decided yet.
    held: String,
    calls: u32,
    events: Vec<ToolEvent>,
}

enum Place {
    /// Text that a call may follow.
    Text,
    /// In a call.
    Call(Box<Call>),
    /// After a call in Hermes' syntax, before its closing tag.
    Close,
    /// After a call in Llama 3's syntax.
    Between,
    /// Nothing is a call any more.
    Plain,
}

struct Call {
    scanner: CallScanner,
    /// All of it as it was written, while it may still turn out to be text.
    written: String,
    begun: bool,
    /// A further call where only one is wanted: read and forgotten.
    muted: bool,
}

/// Whether there is more to do with what is held.
#[derive(PartialEq, Eq)]
enum Turn {
    Again,
    Wait,
}

impl ToolParser {
    /// A parser of an answer in which these functions may be called, several times or once.
    pub fn new(syntax: ToolSyntax, names: Vec<String>, parallel: bool) -> Self {
        Self {
            syntax,
            names,
            parallel,
            place: Place::Text,
            held: String::new(),
            calls: 0,
            events: Vec::new(),
        }
    }

    /// Whether a call has begun.
    pub fn has_calls(&self) -> bool {
        self.calls > 0
    }

    /// Takes a piece of text.
    pub fn push(&mut self, piece: &str) -> Vec<ToolEvent> {
        self.held.push_str(piece);
        while self.turn() == Turn::Again {}
        std::mem::take(&mut self.events)
    }

    /// What is left when nothing more comes: a call that was never complete is text, unless it has begun already.
    pub fn finish(&mut self) -> Vec<ToolEvent> {
        let held = std::mem::take(&mut self.held);
        match std::mem::replace(&mut self.place, Place::Plain) {
            Place::Call(call) => {
                if !call.begun && !call.muted {
                    self.text(&call.written);
                    self.text(&held);
                }
            }
            Place::Close | Place::Between => {}
            // White space after a call separates it from nothing.
            Place::Text if self.calls > 0 && held.trim().is_empty() => {}
            Place::Text | Place::Plain => self.text(&held),
        }
        std::mem::take(&mut self.events)
    }

    fn text(&mut self, text: &str) {
        if text.is_empty() {
            return;
        }
        match self.events.last_mut() {
            Some(ToolEvent::Text(last)) => last.push_str(text),
            _ => self.events.push(ToolEvent::Text(text.to_owned())),
        }
    }

    fn turn(&mut self) -> Turn {
        match &self.place {
            Place::Plain => {
                let held = std::mem::take(&mut self.held);
                self.text(&held);
                Turn::Wait
            }
            Place::Text if self.syntax == ToolSyntax::Hermes => self.look_for_tag(),
            Place::Text | Place::Between => self.look_for_object(),
            Place::Call(_) => self.read_call(),
            Place::Close => self.look_for_close(),
        }
    }

    /// Hermes: a call begins at its tag. What may be one's beginning is held, and so is white space that may lie before it.
    fn look_for_tag(&mut self) -> Turn {
        if let Some(start) = self.held.find(HERMES_OPEN) {
            let rest = self.held.split_off(start + HERMES_OPEN.len());
            let before = std::mem::replace(&mut self.held, rest);
            self.text(before[..start].trim_end());
            self.begin(&before[before[..start].trim_end().len()..]);
            return Turn::Again;
        }
        let undecided = unfinished(&self.held, HERMES_OPEN);
        let decided = self.held[..self.held.len() - undecided].trim_end().len();
        let rest = self.held.split_off(decided);
        let text = std::mem::replace(&mut self.held, rest);
        self.text(&text);
        Turn::Wait
    }

    /// Llama 3: a call begins where the answer begins, or after another call.
    fn look_for_object(&mut self) -> Turn {
        let is_between = |c: char| c.is_whitespace() || (self.calls > 0 && c == ';');
        let rest = self.held.trim_start_matches(is_between);
        let rest = rest.strip_prefix(LLAMA_TAG).map_or(rest, |rest| rest.trim_start());
        if rest.is_empty() || (rest.len() < LLAMA_TAG.len() && LLAMA_TAG.starts_with(rest)) {
            return Turn::Wait;
        }
        if rest.starts_with('{') {
            let rest = rest.to_owned();
            let before = self.held[..self.held.len() - rest.len()].to_owned();
            self.held = rest;
            self.begin(&before);
        } else {
            self.place = Place::Plain;
        }
        Turn::Again
    }

    fn begin(&mut self, written: &str) {
        self.place = Place::Call(Box::new(Call {
            scanner: CallScanner::new(),
            written: written.to_owned(),
            begun: false,
            muted: self.calls > 0 && !self.parallel,
        }));
    }

    fn read_call(&mut self) -> Turn {
        let Place::Call(call) = &mut self.place else { return Turn::Wait };
        let mut read = 0;
        let mut progress = Progress::More;
        for letter in self.held.chars() {
            progress = call.scanner.push(letter);
            if progress == Progress::NoCall {
                break;
            }
            read += letter.len_utf8();
            if progress == Progress::Done {
                break;
            }
        }
        let rest = self.held.split_off(read);
        let written = std::mem::replace(&mut self.held, rest);
        if !call.begun {
            call.written.push_str(&written);
        }
        if let Some(name) = call.scanner.name() {
            if !self.names.iter().any(|known| known == name) {
                progress = Progress::NoCall;
            } else if !call.muted {
                let index = if call.begun { self.calls - 1 } else { self.calls };
                if !call.begun {
                    call.begun = true;
                    self.calls += 1;
                    self.events.push(ToolEvent::Begin { index, name: name.to_owned() });
                }
                let text = call.scanner.take_arguments();
                if !text.is_empty() {
                    self.events.push(ToolEvent::Arguments { index, text });
                }
            }
        }
        match progress {
            Progress::More => Turn::Wait,
            Progress::Done => {
                self.place = if self.syntax == ToolSyntax::Hermes { Place::Close } else { Place::Between };
                Turn::Again
            }
            Progress::NoCall => {
                // What has been sent as a call stays one, broken off where it broke.
                if !call.begun && !call.muted {
                    let written = std::mem::take(&mut call.written);
                    self.text(&written);
                }
                self.place = if self.syntax == ToolSyntax::Hermes { Place::Text } else { Place::Plain };
                Turn::Again
            }
        }
    }

    fn look_for_close(&mut self) -> Turn {
        let rest = self.held.trim_start();
        if rest.is_empty() || (rest.len() < HERMES_CLOSE.len() && HERMES_CLOSE.starts_with(rest)) {
            return Turn::Wait;
        }
        if let Some(rest) = rest.strip_prefix(HERMES_CLOSE) {
            self.held = rest.to_owned();
        }
        self.place = Place::Text;
        Turn::Again
    }
}

/// Length of the longest end of `text` that begins `tag` without being all of it. Tags are ASCII.
fn unfinished(text: &str, tag: &str) -> usize {
    (1..tag.len()).rev().find(|&length| text.ends_with(&tag[..length])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parser(syntax: ToolSyntax, parallel: bool) -> ToolParser {
        ToolParser::new(syntax, vec!["f".into(), "get_weather".into()], parallel)
    }

    /// The text and the calls of an answer that comes in these pieces.
    fn read(mut parser: ToolParser, pieces: &[&str]) -> (String, Vec<(String, String)>) {
        let (mut text, mut calls) = (String::new(), Vec::<(String, String)>::new());
        let mut events: Vec<ToolEvent> = pieces.iter().flat_map(|piece| parser.push(piece)).collect();
        events.extend(parser.finish());
        for event in events {
            match event {
                ToolEvent::Text(new) => text.push_str(&new),
                ToolEvent::Begin { index, name } => {
                    assert_eq!(index as usize, calls.len());
                    calls.push((name, String::new()));
                }
                ToolEvent::Arguments { index, text } => calls[index as usize].1.push_str(&text),
            }
        }
        (text, calls)
    }

    fn call(name: &str, arguments: &str) -> (String, String) {
        (name.to_owned(), arguments.to_owned())
    }

    const ONE: &str = r#"{"city": "Paris, \"FR\" }", "days": [1, {"a": 2}]}"#;

    /// What a model writes, and the text and the calls in it.
    type Case = (String, &'static str, Vec<(String, String)>);

    fn hermes_cases() -> Vec<Case> {
        let whole = format!("<tool_call>\n{{\"name\": \"get_weather\", \"arguments\": {ONE}}}\n</tool_call>");
        vec![
            (whole.clone(), "", vec![call("get_weather", ONE)]),
            (format!("I look.\n\n{whole}\n"), "I look.", vec![call("get_weather", ONE)]),
            (
                format!("{whole}\n<tool_call>\n{{\"arguments\": {{}}, \"name\": \"f\"}}\n</tool_call>"),
                "",
                vec![call("get_weather", ONE), call("f", "{}")],
            ),
            (r#"<tool_call>{"name": "f"}</tool_call>"#.into(), "", vec![call("f", "{}")]),
            (
                r#"<tool_call>{"name": "f", "arguments": "{\"a\": 1}"}</tool_call> done"#.into(),
                " done",
                vec![call("f", r#"{"a": 1}"#)],
            ),
            (
                r#"<tool_call>{"id": 7, "type": "function", "x": [1], "name": "f", "arguments": {}}"#.into(),
                "",
                vec![call("f", "{}")],
            ),
            // Broken off in its arguments: what has been sent stands.
            (r#"<tool_call>{"name": "f", "arguments": {"a"#.into(), "", vec![call("f", r#"{"a"#)]),
            // No calls: text as it was written.
            ("a < b <tool_cal> c  ".into(), "a < b <tool_cal> c  ", vec![]),
            ("x <tool_call>\nnothing</tool_call>".into(), "x <tool_call>\nnothing</tool_call>", vec![]),
            (
                r#"<tool_call>{"name": "unknown", "arguments": {}}</tool_call>"#.into(),
                r#"<tool_call>{"name": "unknown", "arguments": {}}</tool_call>"#,
                vec![],
            ),
            (r#"<tool_call>{"name": 5}"#.into(), r#"<tool_call>{"name": 5}"#, vec![]),
            (r#" <tool_call>{"na"#.into(), r#" <tool_call>{"na"#, vec![]),
        ]
    }

    fn llama_cases() -> Vec<Case> {
        let whole = format!("{{\"name\": \"get_weather\", \"parameters\": {ONE}}}");
        vec![
            (whole.clone(), "", vec![call("get_weather", ONE)]),
            (format!("<|python_tag|>{whole}"), "", vec![call("get_weather", ONE)]),
            (
                format!("\n{whole}; {{\"type\": \"function\", \"name\": \"f\", \"parameters\": {{}}}}"),
                "",
                vec![call("get_weather", ONE), call("f", "{}")],
            ),
            ("It is {\"name\": \"f\"}".into(), "It is {\"name\": \"f\"}", vec![]),
            (r#"{"name": "Ann", "parameters": {}}"#.into(), r#"{"name": "Ann", "parameters": {}}"#, vec![]),
            (r#"{"a": 1}"#.into(), r#"{"a": 1}"#, vec![]),
            ("<|python_tag|>print(1)".into(), "<|python_tag|>print(1)", vec![]),
            (" {\"name".into(), " {\"name", vec![]),
        ]
    }

    #[test]
    fn calls_are_found_and_everything_else_is_text() {
        for (syntax, cases) in [(ToolSyntax::Hermes, hermes_cases()), (ToolSyntax::Llama3, llama_cases())] {
            for (written, text, calls) in cases {
                assert_eq!(read(parser(syntax, true), &[&written]), (text.to_owned(), calls), "{written}");
            }
        }
    }

    #[test]
    fn further_calls_are_left_out_where_one_is_wanted() {
        let two = r#"<tool_call>{"name": "f"}</tool_call><tool_call>{"name": "get_weather"}</tool_call>"#;
        assert_eq!(read(parser(ToolSyntax::Hermes, false), &[two]).1, [call("f", "{}")]);
        let two = r#"{"name": "f"};{"name": "get_weather"}"#;
        assert_eq!(read(parser(ToolSyntax::Llama3, false), &[two]).1, [call("f", "{}")]);
    }

    #[test]
    fn arguments_come_while_they_are_written() {
        let mut parser = parser(ToolSyntax::Hermes, true);
        assert!(parser.push("<tool_call>{\"name\": \"f\", \"arguments\":").is_empty());
        assert_eq!(
            parser.push(" {\"a\": "),
            [
                ToolEvent::Begin { index: 0, name: "f".into() },
                ToolEvent::Arguments { index: 0, text: "{\"a\": ".into() }
            ]
        );
        assert_eq!(parser.push("1}"), [ToolEvent::Arguments { index: 0, text: "1}".into() }]);
        assert!(parser.push("}</tool_call>").is_empty() && parser.finish().is_empty());
    }

    proptest! {
        #[test]
        fn cutting_text_differently_changes_nothing(
            which in 0_usize..20,
            hermes: bool,
            cuts in prop::collection::vec(0_usize..200, 0..12),
        ) {
            let (syntax, cases) =
                if hermes { (ToolSyntax::Hermes, hermes_cases()) } else { (ToolSyntax::Llama3, llama_cases()) };
            let (written, text, calls) = &cases[which % cases.len()];
            let mut borders: Vec<usize> = cuts.into_iter().map(|cut| cut.min(written.len())).collect();
            borders.extend([0, written.len()]);
            borders.sort_unstable();
            let pieces: Vec<&str> = borders.windows(2).map(|pair| &written[pair[0]..pair[1]]).collect();
            prop_assert_eq!(read(parser(syntax, true), &pieces), ((*text).to_owned(), calls.clone()));
        }

        /// What one pod has told of an answer and what another tells that is given its beginning is what one pod tells.
        #[test]
        fn whoever_goes_on_with_half_an_answer_tells_the_other_half(
            which in 0_usize..20,
            hermes: bool,
            cuts in prop::collection::vec(0_usize..200, 0..12),
            broken in 0_usize..200,
        ) {
            let (syntax, cases) =
                if hermes { (ToolSyntax::Hermes, hermes_cases()) } else { (ToolSyntax::Llama3, llama_cases()) };
            let (written, text, calls) = &cases[which % cases.len()];
            let broken = broken.min(written.len());
            let mut borders: Vec<usize> = cuts.into_iter().map(|cut| cut.min(written.len())).collect();
            borders.extend([0, broken, written.len()]);
            borders.sort_unstable();
            let pieces = |from: usize, to: usize| {
                let within = borders.iter().copied().filter(move |at| (from..=to).contains(at)).collect::<Vec<_>>();
                within.windows(2).map(|pair| written[pair[0]..pair[1]].to_owned()).collect::<Vec<_>>()
            };
            let mut first = parser(syntax, true);
            let mut told: Vec<ToolEvent> = pieces(0, broken).iter().flat_map(|piece| first.push(piece)).collect();
            let mut second = parser(syntax, true);
            second.push(&written[..broken]);
            told.extend(pieces(broken, written.len()).iter().flat_map(|piece| second.push(piece)));
            told.extend(second.finish());
            let (mut found, mut found_calls) = (String::new(), Vec::<(String, String)>::new());
            for event in told {
                match event {
                    ToolEvent::Text(new) => found.push_str(&new),
                    ToolEvent::Begin { index, name } => {
                        prop_assert_eq!(index as usize, found_calls.len(), "no call begins twice");
                        found_calls.push((name, String::new()));
                    }
                    ToolEvent::Arguments { index, text } => found_calls[index as usize].1.push_str(&text),
                }
            }
            prop_assert_eq!((found, found_calls), ((*text).to_owned(), calls.clone()));
        }

        #[test]
        fn no_text_is_lost_or_makes_it_panic(text in "[<>|/tool_ca{}\":,fname \\\\é]{0,60}", hermes: bool) {
            let syntax = if hermes { ToolSyntax::Hermes } else { ToolSyntax::Llama3 };
            let (found, calls) = read(parser(syntax, true), &[&text]);
            prop_assert!(!calls.is_empty() || found == text);
        }
    }
}
