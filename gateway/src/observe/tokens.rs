//! Reads from the bytes of an answer when its tokens come and how many there were, without parsing it: a few searches an event.
//!
//! A search for `"content":"` cannot be fooled by text that holds the same letters: within a JSON string its quotes are escaped.

use std::sync::LazyLock;

use memchr::memmem::Finder;

/// What the pieces of an answer come under, in chats and in completions.
static PIECES: LazyLock<[Finder<'static>; 4]> = LazyLock::new(|| {
    [
        Finder::new(r#""content":"#),
        Finder::new(r#""text":"#),
        Finder::new(r#""reasoning_content":"#),
        Finder::new(r#""tool_calls":"#),
    ]
});
static USAGE: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(r#""completion_tokens":"#));

/// What was read of a stream so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tokens {
    /// Events that brought a piece of the answer: a token each, or a few.
    pub pieces: u64,
    /// What the answer says of itself.
    pub usage: Option<u64>,
    /// An event told of an error.
    pub error: bool,
}

impl Tokens {
    /// Reads whole events as they are passed on; how many of them brought a piece.
    pub fn read_events(&mut self, events: &[u8]) -> u64 {
        let mut pieces = 0;
        for line in events.split(|byte| *byte == b'\n') {
            let Some(data) = line.strip_prefix(b"data:") else { continue };
            let data = data.trim_ascii();
            if data.starts_with(br#"{"error""#) {
                self.error = true;
            }
            if has_piece(data) {
                pieces += 1;
            }
            self.read_usage(data);
        }
        self.pieces += pieces;
        pieces
    }

    /// Reads an answer that came whole.
    pub fn read_whole(&mut self, body: &[u8]) {
        self.read_usage(body);
    }

    /// Tokens of the answer, as far as they are known.
    pub fn count(&self) -> Option<u64> {
        self.usage.or((self.pieces > 0).then_some(self.pieces))
    }

    fn read_usage(&mut self, data: &[u8]) {
        let Some(at) = USAGE.find_iter(data).last() else { return };
        let digits = data[at + USAGE.needle().len()..].trim_ascii_start();
        let end = digits.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(digits.len());
        let number = std::str::from_utf8(&digits[..end]).ok().and_then(|text| text.parse().ok());
        self.usage = number.or(self.usage);
    }
}

/// Whether an event holds text that is not empty, or a part of a tool call.
fn has_piece(data: &[u8]) -> bool {
    PIECES.iter().any(|key| {
        key.find_iter(data).any(|at| {
            let value = data[at + key.needle().len()..].trim_ascii_start();
            matches!(value, [b'"', next, ..] if *next != b'"')
                || (key.needle().starts_with(br#""tool_calls""#) && value.starts_with(b"[{"))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(events: &str) -> Tokens {
        let mut tokens = Tokens::default();
        tokens.read_events(events.as_bytes());
        tokens
    }

    #[test]
    fn pieces_are_told_from_what_surrounds_them() {
        for (event, pieces) in [
            (r#"{"choices":[{"delta":{"role":"assistant","content":""}}]}"#, 0),
            (r#"{"choices":[{"delta":{"content":"Hi"}}]}"#, 1),
            (r#"{"choices": [{"delta": {"content": " there"}}]}"#, 1),
            (r#"{"choices":[{"delta":{"content":null},"finish_reason":"stop"}]}"#, 0),
            (r#"{"choices":[{"delta":{"reasoning_content":"hm"}}]}"#, 1),
            (r#"{"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"arguments":""}}]}}]}"#, 1),
            (r#"{"choices":[{"text":"a","logprobs":{"content":[{"token":"a"}]}}]}"#, 1),
            (r#"{"choices":[{"delta":{"content":""},"logprobs":{"content":[]}}]}"#, 0),
            // A model that writes of JSON: the outer value is what counts.
            (r#"{"choices":[{"delta":{"content":"\"content\":\"x\""}}]}"#, 1),
            (r#"{"id":"\"content\":\"x\"","choices":[{"delta":{}}]}"#, 0),
            ("[DONE]", 0),
        ] {
            assert_eq!(read(&format!("data: {event}\n\n")).pieces, pieces, "{event}");
        }
        assert_eq!(
            read(": keep-alive\n\nevent: x\r\ndata:{\"text\":\"a\"}\r\n\r\ndata: {\"text\":\"b\"}\n\n")
                .pieces,
            2
        );
    }

    #[test]
    fn usage_is_read_where_it_is_told() {
        let event =
            r#"data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens": 42,"total_tokens":49}}"#;
        assert_eq!(read(&format!("{event}\n\n")).count(), Some(42));
        let mut tokens = Tokens::default();
        tokens.read_whole(br#"{"choices":[{"message":{"content":"\"completion_tokens\":9"}}],"usage":{"completion_tokens":3}}"#);
        assert_eq!(tokens.count(), Some(3));
        assert_eq!(read("data: {\"usage\":null,\"text\":\"a\"}\n\n").count(), Some(1), "no usage: pieces");
        assert_eq!(
            read("data: {\"usage\":{\"completion_tokens\":99999999999999999999999}}\n\n").count(),
            None
        );
        assert_eq!(Tokens::default().count(), None);
    }

    #[test]
    fn an_error_in_the_middle_is_seen() {
        assert!(read("data: {\"text\":\"a\"}\n\ndata: {\"error\":{\"message\":\"no memory\"}}\n\n").error);
        assert!(!read("data: {\"text\":\"{\\\"error\\\"\"}\n\n").error);
    }
}
