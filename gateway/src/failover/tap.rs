//! Takes a pod's notes out of its stream of events, and remembers what it has told. Pure.
//!
//! Is given complete events only (see `sse`), so what has passed is exactly what the notes say has passed.

use bytes::{Bytes, BytesMut};
use fairlead_openai::continuation::{Continued, Note};
use fairlead_openai::error::ErrorBody;

/// Errors in a stream that are the pod's own: another pod can go on. The client's (a deadline, a form) come again anywhere.
const POD_ERRORS: [&str; 4] = ["engine_dead", "draining", "not_ready", "queue_full"];

/// What a stream has told so far.
#[derive(Debug, Default)]
pub struct Tap {
    begun: Option<(Continued, u64)>,
    tokens: Vec<u32>,
    ended: bool,
    usage_sent: bool,
    forgets: bool,
}

/// What of some events goes on to the client.
#[derive(Debug, PartialEq, Eq)]
pub struct Tapped {
    /// These bytes; may be empty.
    pub pass: Bytes,
    /// The pod itself says, after them, that it cannot go on. Its own event is not among them.
    pub failure: Option<PodError>,
}

/// A pod's error in a stream that has begun.
#[derive(Debug, PartialEq, Eq)]
pub struct PodError {
    /// Its words.
    pub message: String,
    /// The event, for when nobody else can go on.
    pub event: Bytes,
}

impl Tap {
    /// Takes complete events and gives what is for the client. Uncopied where the notes come before all else, as they do
    /// while each event arrives by itself.
    pub fn take(&mut self, events: &Bytes) -> Tapped {
        let mut kept = Pieces::new(events);
        let mut start = 0;
        // Whether the event so far consists of nothing but notes.
        let mut only_notes = false;
        while start < events.len() {
            let end = events[start..]
                .iter()
                .position(|byte| *byte == b'\n')
                .map_or(events.len(), |at| start + at + 1);
            let line = events[start..end].trim_ascii_end();
            if line.first() == Some(&b':')
                && let Some(note) = Note::parse(line)
            {
                self.remember(note);
                only_notes = true;
            } else if line.is_empty() && only_notes {
                // The end of an event that is all ours.
                only_notes = false;
            } else {
                only_notes = false;
                if let Some(message) = pod_error(line) {
                    return Tapped {
                        pass: kept.done(),
                        failure: Some(PodError { message, event: events.slice(start..) }),
                    };
                }
                if self.ended && !line.is_empty() && self.told_all_before(line) {
                    self.usage_sent = true;
                }
                kept.keep(start, end);
            }
            start = end;
        }
        Tapped { pass: kept.done(), failure: None }
    }

    /// What the stream's chunks have in common, and the prompt's tokens; `None` while no note has come.
    pub fn begun(&self) -> Option<&(Continued, u64)> {
        self.begun.as_ref()
    }

    /// The answer's tokens.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Whether the answer is complete, and only the stream's own last words may be missing.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// Whether the counts have been sent.
    pub fn usage_sent(&self) -> bool {
        self.usage_sent
    }

    /// Remembers no more tokens: there is no room for them.
    pub fn forget(&mut self) {
        self.tokens = Vec::new();
        self.forgets = true;
    }

    /// A new stream goes on where the last one ended.
    pub fn goes_on(&mut self) {
        self.ended = false;
    }

    fn remember(&mut self, note: Note) {
        match note {
            Note::Begun { answer, prompt_tokens } => {
                self.begun.get_or_insert((answer, prompt_tokens));
            }
            Note::Tokens { ids, ended, .. } => {
                if !self.forgets {
                    self.tokens.extend(ids);
                }
                self.ended |= ended;
            }
        }
    }

    /// Behind the answer's last event come its counts, and then `[DONE]`.
    fn told_all_before(&self, line: &[u8]) -> bool {
        line.strip_prefix(b"data:").is_some_and(|data| {
            let data = data.trim_ascii_start();
            data.starts_with(b"{") && contains(data, br#""choices":[]"#)
        })
    }
}

fn contains(text: &[u8], what: &[u8]) -> bool {
    text.windows(what.len()).any(|window| window == what)
}

/// The words of an error event that is the pod's own fault.
fn pod_error(line: &[u8]) -> Option<String> {
    let data = line.strip_prefix(b"data:")?.trim_ascii_start();
    if !data.starts_with(br#"{"error""#) {
        return None;
    }
    let ErrorBody { error } = serde_json::from_slice(data).ok()?;
    let own = error.code.as_deref().is_some_and(|code| POD_ERRORS.contains(&code))
        || (error.code.is_none() && error.kind == "internal_server_error");
    own.then_some(error.message)
}

/// Pieces of a buffer that are kept, put together without copying where they are one.
struct Pieces<'a> {
    whole: &'a Bytes,
    ranges: Vec<(usize, usize)>,
}

impl<'a> Pieces<'a> {
    fn new(whole: &'a Bytes) -> Self {
        Self { whole, ranges: Vec::new() }
    }

    fn keep(&mut self, start: usize, end: usize) {
        match self.ranges.last_mut() {
            Some((_, last)) if *last == start => *last = end,
            _ => self.ranges.push((start, end)),
        }
    }

    fn done(self) -> Bytes {
        match self.ranges.as_slice() {
            [] => Bytes::new(),
            [(start, end)] => self.whole.slice(*start..*end),
            ranges => {
                let mut joined = BytesMut::with_capacity(self.whole.len());
                ranges.iter().for_each(|(start, end)| joined.extend_from_slice(&self.whole[*start..*end]));
                joined.freeze()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(tap: &mut Tap, events: &str) -> String {
        let tapped = tap.take(&Bytes::copy_from_slice(events.as_bytes()));
        assert_eq!(tapped.failure, None);
        String::from_utf8(tapped.pass.to_vec()).expect("UTF-8")
    }

    #[test]
    fn notes_are_taken_out_and_remembered() {
        let mut tap = Tap::default();
        let first = Bytes::from_static(b": answer cmpl-1 7 3\n: tokens 0 5\ndata: {\"a\":1}\n\n");
        let passed = tap.take(&first).pass;
        assert_eq!(passed, "data: {\"a\":1}\n\n");
        assert_eq!(passed.as_ptr(), first[first.len() - passed.len()..].as_ptr(), "uncopied");
        assert_eq!(tap.begun(), Some(&(Continued { id: "cmpl-1".to_owned(), created: 7 }, 3)));
        // Tokens whose text is not whole yet have no event of their own.
        assert_eq!(take(&mut tap, ": tokens 0 6\n\n"), "");
        assert_eq!(
            take(&mut tap, ": tokens 0 7\ndata: x\n\n: keep-alive\n\n: ended 0 8 9\ndata: y\n\n"),
            "data: x\n\n: keep-alive\n\ndata: y\n\n"
        );
        assert_eq!(tap.tokens(), [5, 6, 7, 8, 9]);
        assert!(tap.has_ended() && !tap.usage_sent());
        assert_eq!(
            take(&mut tap, "data: {\"choices\":[],\"usage\":{}}\n\n"),
            "data: {\"choices\":[],\"usage\":{}}\n\n"
        );
        assert!(tap.usage_sent());
    }

    #[test]
    fn a_stream_without_notes_passes_as_it_is() {
        let mut tap = Tap::default();
        for events in
            ["data: {\"choices\":[]}\r\n\r\n", ": ping\n\n", "data: [DONE]\n\n", "event: x\ndata: 1\n\n"]
        {
            assert_eq!(take(&mut tap, events), events);
        }
        assert!(tap.begun().is_none() && !tap.has_ended() && !tap.usage_sent());
    }

    #[test]
    fn a_pods_own_failure_is_held_back_and_a_clients_is_not() {
        let mut tap = Tap::default();
        let event = |kind: &str, code: &str| {
            format!(
                "data: {{\"error\":{{\"message\":\"m\",\"type\":\"{kind}\",\"param\":null,\"code\":{code}}}}}\n\n"
            )
        };
        let dead = event("service_unavailable_error", "\"engine_dead\"");
        let tapped = tap.take(&Bytes::from(format!(": tokens 0 1\ndata: a\n\n{dead}")));
        assert_eq!(tapped.pass, "data: a\n\n");
        let failure = tapped.failure.expect("it failed");
        assert_eq!((failure.message.as_str(), failure.event), ("m", Bytes::from(dead)));
        assert!(tap.take(&Bytes::from(event("internal_server_error", "null"))).failure.is_some());
        for (kind, code) in [("timeout_error", "\"deadline_passed\""), ("invalid_request_error", "null")] {
            let event = event(kind, code);
            assert_eq!(take(&mut tap, &event), event);
        }
    }

    #[test]
    fn what_is_forgotten_takes_no_room() {
        let mut tap = Tap::default();
        take(&mut tap, ": tokens 0 1 2 3\n\n");
        tap.forget();
        assert_eq!(take(&mut tap, ": tokens 0 4\ndata: x\n\n"), "data: x\n\n");
        assert!(tap.tokens().is_empty());
    }
}
