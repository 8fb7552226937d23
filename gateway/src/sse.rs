//! Server-sent events as bytes: where events end, and whether a stream has said its last word. Pure.
//!
//! Complete events pass at once and uncopied; what comes after the last complete one is held until the rest of it is here.
//! So a stream that breaks can always be ended with an event of ours that clients can read.

use bytes::{Bytes, BytesMut};

/// Longest piece of an event that is held; a longer one is passed on as it comes.
const MOST_HELD: usize = 1 << 20;

/// Cuts a stream of bytes at the ends of events.
#[derive(Debug, Default)]
pub struct EventFramer {
    held: BytesMut,
    finished: bool,
    cut: bool,
}

impl EventFramer {
    /// Takes what has come and gives what can be passed on, possibly nothing.
    pub fn push(&mut self, data: Bytes) -> Bytes {
        if self.held.is_empty() {
            // The usual case: whole events in one piece.
            let end = events_end(&data);
            if end == data.len() {
                return self.passed(data);
            }
            self.held.extend_from_slice(&data[end..]);
            return match self.held.len() {
                length if length > MOST_HELD => self.flush(data.slice(..end)),
                _ => self.passed(data.slice(..end)),
            };
        }
        self.held.extend_from_slice(&data);
        let end = events_end(&self.held);
        let complete = self.held.split_to(end).freeze();
        if self.held.len() > MOST_HELD { self.flush(complete) } else { self.passed(complete) }
    }

    /// What is still held when the stream has ended by itself.
    pub fn rest(&mut self) -> Bytes {
        let rest = self.held.split().freeze();
        if rest.is_empty() { rest } else { self.passed(rest) }
    }

    /// Whether the last event passed on was `[DONE]` or an error, after which nothing more is to be expected.
    pub fn is_finished(&self) -> bool {
        self.finished
    }

    /// What must be sent before an event of our own, so that it does not become part of an unfinished one.
    pub fn separator(&self) -> &'static str {
        if self.cut { "\n\n" } else { "" }
    }

    fn passed(&mut self, events: Bytes) -> Bytes {
        if !events.is_empty() {
            self.cut = events_end(&events) != events.len();
            self.finished = last_event_finishes(&events);
        }
        events
    }

    fn flush(&mut self, complete: Bytes) -> Bytes {
        let mut all = BytesMut::from(complete.as_ref());
        all.extend_from_slice(&self.held);
        self.held.clear();
        self.passed(all.freeze())
    }
}

/// The end of the last complete event: just behind an empty line. Lines end in LF or CR LF.
fn events_end(bytes: &[u8]) -> usize {
    let mut end = bytes.len();
    while let Some(newline) = bytes[..end].iter().rposition(|byte| *byte == b'\n') {
        let before = &bytes[..newline];
        if before.ends_with(b"\n") || before.ends_with(b"\n\r") {
            return newline + 1;
        }
        end = newline;
    }
    0
}

fn last_event_finishes(events: &[u8]) -> bool {
    let text = events.trim_ascii_end();
    let line = text.iter().rposition(|byte| *byte == b'\n').map_or(text, |newline| &text[newline + 1..]);
    let Some(data) = line.strip_prefix(b"data:") else { return false };
    let data = data.trim_ascii_start();
    data == b"[DONE]" || data.starts_with(br#"{"error""#)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn complete_events_pass_uncopied() {
        let mut framer = EventFramer::default();
        let data = Bytes::from_static(b"data: a\n\ndata: b\r\n\r\n");
        assert_eq!(framer.push(data.clone()).as_ptr(), data.as_ptr());
        assert_eq!(framer.separator(), "");
    }

    #[test]
    fn an_incomplete_event_waits_for_its_end() {
        let mut framer = EventFramer::default();
        assert_eq!(framer.push(Bytes::from_static(b"data: a\n\ndata: b")), "data: a\n\n");
        assert_eq!(framer.push(Bytes::from_static(b"c\n")), "");
        assert_eq!(framer.push(Bytes::from_static(b"\ndata")), "data: bc\n\n");
        assert_eq!(framer.rest(), "data");
    }

    #[test]
    fn an_event_too_long_to_hold_passes_in_pieces_and_is_closed_before_ours() {
        let mut framer = EventFramer::default();
        let big = Bytes::from(vec![b'x'; MOST_HELD + 1]);
        assert_eq!(framer.push(big.clone()), big);
        assert_eq!(framer.separator(), "\n\n");
    }

    #[test]
    fn the_last_word() {
        for (events, last) in [
            ("data: {}\n\ndata: [DONE]\n\n", true),
            ("data:[DONE]\r\n\r\n", true),
            ("data: {\"error\":{}}\n\n", true),
            ("data: {\"choices\":[]}\n\n", false),
            (": keep-alive\n\n", false),
            ("data: [DONE]\n\ndata: {}\n\n", false),
        ] {
            let mut framer = EventFramer::default();
            framer.push(Bytes::from_static(events.as_bytes()));
            assert_eq!(framer.is_finished(), last, "{events:?}");
        }
    }

    proptest! {
        #[test]
        fn no_byte_is_lost_or_moved(pieces in prop::collection::vec("[ab\r\n]{0,6}", 0..20)) {
            let mut framer = EventFramer::default();
            let mut passed = Vec::new();
            for piece in &pieces {
                let out = framer.push(Bytes::copy_from_slice(piece.as_bytes()));
                prop_assert!(out.is_empty() || out.ends_with(b"\n\n") || out.ends_with(b"\n\r\n"));
                passed.extend_from_slice(&out);
            }
            passed.extend_from_slice(&framer.rest());
            prop_assert_eq!(passed, pieces.concat().into_bytes());
        }
    }
}
