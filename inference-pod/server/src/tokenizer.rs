//! tokenizer.json: text to tokens, tokens to text, and the bytes behind one token.
//!
//! Owns the only [`Tokenizer`] of the process. Streaming is [`crate::detokenize`]'s business.

mod encoder_input;

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::path::Path;

use fairlead_engine::grammar::VocabularyToken;
use fairlead_model::ModelError;
use tokenizers::Tokenizer;

pub use encoder_input::TextTokens;

/// The file this module reads.
pub const TOKENIZER_FILE: &str = "tokenizer.json";

/// How a vocabulary writes bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Alphabet {
    /// GPT-2's: each byte is a printable character.
    ByteLevel,
    /// SentencePiece's: plain text with `▁` for a space and `<0x0A>` for a byte.
    SentencePiece,
}

/// A model's tokenizer.
pub struct TextCodec {
    tokenizer: Tokenizer,
    alphabet: Alphabet,
    byte_of: HashMap<char, u8>,
    /// Tokens that the model's embedding has a row for.
    vocab_size: u32,
    longest_token: usize,
}

/// Text could not be tokenized, or tokens not be read.
#[derive(Debug, thiserror::Error)]
#[error("the model's tokenizer failed: {0}")]
pub struct CodecError(String);

impl TextCodec {
    /// Reads tokenizer.json in `dir`.
    ///
    /// # Errors
    /// [`ModelError::Invalid`] naming the file.
    pub fn load(dir: &Path, vocab_size: u32) -> Result<Self, ModelError> {
        let invalid = |problem: String| ModelError::invalid(TOKENIZER_FILE, problem);
        let bytes = std::fs::read(dir.join(TOKENIZER_FILE)).map_err(|error| {
            invalid(format!("cannot be read ({error}); a model's folder must hold its fast tokenizer"))
        })?;
        Self::from_bytes(&bytes, vocab_size)
    }

    /// Reads a tokenizer from the text of its file.
    ///
    /// # Errors
    /// [`ModelError::Invalid`] naming the file.
    pub fn from_bytes(bytes: &[u8], vocab_size: u32) -> Result<Self, ModelError> {
        let invalid = |problem: String| ModelError::invalid(TOKENIZER_FILE, problem);
        let value: serde_json::Value = serde_json::from_slice(bytes)
            .map_err(|error| invalid(format!("is not JSON ({error}); fetch or save it again")))?;
        let mut tokenizer = guarded(|| Tokenizer::from_bytes(bytes)).map_err(|CodecError(error)| {
            invalid(format!("is not a tokenizer ({error}); fetch or save it again"))
        })?;
        // Both would change prompts behind the client's back.
        tokenizer.with_padding(None);
        tokenizer
            .with_truncation(None)
            .map_err(|error| invalid(format!("cannot be used without truncation: {error}")))?;
        let decoder = value["decoder"].to_string();
        let is_byte_level = decoder.contains("\"ByteLevel\"");
        let alphabet = if is_byte_level { Alphabet::ByteLevel } else { Alphabet::SentencePiece };
        let longest_token = tokenizer.get_vocab(true).keys().map(String::len).max().unwrap_or(0);
        Ok(Self { tokenizer, alphabet, byte_of: byte_level_alphabet(), vocab_size, longest_token })
    }

    /// Bytes of the longest token; no token stands for more.
    pub fn longest_token(&self) -> usize {
        self.longest_token
    }

    /// Tokens the model knows.
    pub fn vocab_size(&self) -> u32 {
        self.vocab_size
    }

    /// Text to tokens; with the tokens that the model wants around a text (such as BOS), or, for a rendered chat
    /// template, which has them in its text, without.
    ///
    /// # Errors
    /// [`CodecError`].
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, CodecError> {
        let encoding = guarded(|| self.tokenizer.encode_fast(text, add_special_tokens))?;
        self.known(encoding.get_ids().to_vec())
    }

    /// The same tokens, if the model has them all.
    fn known(&self, ids: Vec<u32>) -> Result<Vec<u32>, CodecError> {
        match ids.iter().find(|&&id| id >= self.vocab_size) {
            Some(id) => Err(CodecError(format!(
                "it makes token {id}, but the model has {} tokens; tokenizer.json and config.json do not belong together",
                self.vocab_size
            ))),
            None => Ok(ids),
        }
    }

    /// Tokens to text, special tokens left out.
    ///
    /// # Errors
    /// [`CodecError`].
    pub fn decode(&self, ids: &[u32]) -> Result<String, CodecError> {
        self.decode_with(ids, false)
    }

    /// Tokens to text, special tokens left out or not.
    ///
    /// # Errors
    /// [`CodecError`].
    pub fn decode_with(&self, ids: &[u32], special_tokens: bool) -> Result<String, CodecError> {
        guarded(|| self.tokenizer.decode(ids, !special_tokens))
    }

    /// A token as the vocabulary writes it; empty for a number that is no token.
    pub fn token_name(&self, id: u32) -> String {
        self.tokenizer.id_to_token(id).unwrap_or_default()
    }

    /// The bytes of one token; empty for a number that is no token.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        let Some(token) = self.tokenizer.id_to_token(id) else { return Vec::new() };
        if self.tokenizer.get_added_vocabulary().is_special_token(&token) {
            return token.into_bytes();
        }
        match self.alphabet {
            Alphabet::ByteLevel => token
                .chars()
                .flat_map(|c| match self.byte_of.get(&c) {
                    Some(byte) => vec![*byte],
                    None => c.to_string().into_bytes(),
                })
                .collect(),
            Alphabet::SentencePiece => match byte_token(&token) {
                Some(byte) => vec![byte],
                None => token.replace('▁', " ").into_bytes(),
            },
        }
    }

    /// What each of the model's tokens stands for, for grammars.
    pub fn vocabulary(&self) -> Vec<VocabularyToken> {
        let added = self.tokenizer.get_added_vocabulary();
        let token = |id| match self.tokenizer.id_to_token(id) {
            None => VocabularyToken::Unused,
            Some(token) if added.is_special_token(&token) => VocabularyToken::Special(token),
            Some(_) => VocabularyToken::Text(self.token_bytes(id)),
        };
        (0..self.vocab_size).map(token).collect()
    }

    /// The text of one token; inexact where it is a part of a character.
    pub fn token_text(&self, id: u32) -> String {
        String::from_utf8_lossy(&self.token_bytes(id)).into_owned()
    }

    /// Whether a special token is written `text`.
    pub fn is_special(&self, text: &str) -> bool {
        self.tokenizer.get_added_vocabulary().is_special_token(text)
    }

    /// The number of the token that is written `text`.
    pub fn token_id(&self, text: &str) -> Option<u32> {
        self.tokenizer.token_to_id(text)
    }
}

/// Calls the tokenizers crate, which panics over some broken tokenizer.json files: when it reads them, or only when their
/// parts are used.
fn guarded<T>(work: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, CodecError> {
    match std::panic::catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result.map_err(|error| CodecError(error.to_string())),
        Err(_) => Err(CodecError("its tokenizer.json contradicts itself; fetch or save it again".to_owned())),
    }
}

/// `<0x0A>` is the byte 10.
fn byte_token(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
}

/// GPT-2's writing of bytes: printable ones as themselves, the others as characters from U+0100 on.
fn byte_level_alphabet() -> HashMap<char, u8> {
    let is_printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let mut next = 0x100_u32;
    let mut alphabet = HashMap::with_capacity(256);
    for byte in 0..=255_u8 {
        if is_printable(byte) {
            alphabet.insert(char::from(byte), byte);
        } else {
            if let Some(c) = char::from_u32(next) {
                alphabet.insert(c, byte);
            }
            next += 1;
        }
    }
    alphabet
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Found by fuzzing: over both the tokenizers crate panics.
    #[test]
    fn files_that_contradict_themselves_are_errors() {
        let file = |decoder: &str, post_processor: &str| {
            format!(
                r#"{{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,
                "pre_tokenizer":null,"post_processor":{post_processor},"decoder":{decoder},"model":{{"type":"BPE",
                "dropout":null,"unk_token":null,"continuing_subword_prefix":null,"end_of_word_suffix":null,
                "fuse_unk":false,"byte_fallback":false,"ignore_merges":false,"vocab":{{"a":0}},"merges":[]}}}}"#
            )
        };
        let cut = file("{\"type\":\"Fuse\"},#", "null");
        assert!(TextCodec::from_bytes(cut.as_bytes(), 1).is_err());
        let nameless = file(
            "null",
            r#"{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<s>","type_id":0}},
            {"Sequence":{"id":"A","type_id":0}}],"pair":[{"Sequence":{"id":"A","type_id":0}},
            {"Sequence":{"id":"B","type_id":1}}],"special_tokens":{}}"#,
        );
        if let Ok(codec) = TextCodec::from_bytes(nameless.as_bytes(), 1) {
            assert!(codec.encode("a", true).is_err());
            assert_eq!(codec.encode("a", false).unwrap(), [0]);
        }
    }
}
