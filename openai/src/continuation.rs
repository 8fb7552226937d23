//! How a stream is told so that it can go on at another pod: what gateway and pods say to one another beside OpenAI's API.
//!
//! The gateway asks with [`RESUMABLE`]; a pod that knows it answers with the same header and writes a [`Note`] before each
//! event: a comment of server-sent events, one line, which the gateway takes out again and every other client ignores.
//! Bodies stay as clients wrote them, and nothing has to be read as JSON on the way. When the pod dies, another one is asked
//! with `resume_token_ids`, [`CONTINUES`] and [`IF_REVISION`]. Used by the gateway and the inference pod; pure.

use std::fmt;

/// Asks a pod for notes; on its answer: they are there.
pub const RESUMABLE: &str = "x-fairlead-resumable";
/// The answer has begun elsewhere: its [`Continued`]. What only an answer's beginning has is not sent again.
pub const CONTINUES: &str = "x-fairlead-continues";
/// The revision that must answer. A pod of another one says 412 `revision_mismatch`.
pub const IF_REVISION: &str = "x-fairlead-if-revision";
/// The code of that refusal.
pub const REVISION_MISMATCH: &str = "revision_mismatch";

/// Longest name of an answer that is taken over.
const LONGEST_ID: usize = 128;

/// What stays the same in all chunks of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Continued {
    /// Its name, such as `chatcmpl-…`.
    pub id: String,
    /// Unix seconds.
    pub created: u64,
}

impl Continued {
    /// From the header's value.
    pub fn parse(value: &str) -> Option<Self> {
        let (id, created) = value.split_once(' ')?;
        let fits = (1..=LONGEST_ID).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic());
        Some(Self { id: fits.then(|| id.to_owned())?, created: created.parse().ok()? })
    }
}

impl fmt::Display for Continued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.id, self.created)
    }
}

/// What a pod tells of the event that follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// The stream begins.
    Begun {
        /// What its chunks have in common.
        answer: Continued,
        /// Tokens of the prompt.
        prompt_tokens: u64,
    },
    /// New tokens of an answer.
    Tokens {
        /// Number of the answer.
        choice: u32,
        /// The tokens, those that ended it included.
        ids: Vec<u32>,
        /// Whether it ends with them.
        ended: bool,
    },
}

impl Note {
    /// Reads a line without its end; `None` where it is none of ours.
    pub fn parse(line: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(line.strip_prefix(b": ")?).ok()?;
        let (kind, rest) = text.split_once(' ')?;
        match kind {
            "answer" => {
                let (answer, prompt_tokens) = rest.rsplit_once(' ')?;
                Some(Self::Begun {
                    answer: Continued::parse(answer)?,
                    prompt_tokens: prompt_tokens.parse().ok()?,
                })
            }
            "tokens" | "ended" => {
                let mut numbers = rest.split(' ').map(str::parse::<u32>);
                let choice = numbers.next()?.ok()?;
                let ids = numbers.collect::<Result<_, _>>().ok()?;
                Some(Self::Tokens { choice, ids, ended: kind == "ended" })
            }
            _ => None,
        }
    }
}

/// One line, its end included.
impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Begun { answer, prompt_tokens } => writeln!(f, ": answer {answer} {prompt_tokens}"),
            Self::Tokens { choice, ids, ended } => {
                write!(f, ": {} {choice}", if *ended { "ended" } else { "tokens" })?;
                ids.iter().try_for_each(|id| write!(f, " {id}"))?;
                f.write_str("\n")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_read_as_it_was_written() {
        let answer = Continued { id: "chatcmpl-1".to_owned(), created: 1_700_000_000 };
        for note in [
            Note::Begun { answer, prompt_tokens: 12 },
            Note::Tokens { choice: 3, ids: vec![0, u32::MAX], ended: false },
            Note::Tokens { choice: 0, ids: vec![], ended: true },
        ] {
            let line = note.to_string();
            let line = line.strip_suffix('\n').expect("one line");
            assert!(line.starts_with(':') && !line.contains('\n'), "a comment");
            assert_eq!(Note::parse(line.as_bytes()), Some(note));
        }
    }

    #[test]
    fn what_is_no_note_is_none() {
        for line in [
            "",
            ":",
            ": keep-alive",
            ": tokens",
            ": tokens x",
            ": tokens 0 -1",
            ": tokens 0 4294967296",
            ": answer",
            ": answer a b 1",
            ": answer a 1",
            "data: {}",
            ": tokens 0  1",
        ] {
            assert_eq!(Note::parse(line.as_bytes()), None, "{line:?}");
        }
        assert_eq!(Continued::parse("chatcmpl\u{e9} 1"), None);
        assert_eq!(Continued::parse(&format!("{} 1", "x".repeat(129))), None);
    }
}
