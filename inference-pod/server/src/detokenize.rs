//! Tokens to text as they come, without ever sending half a character.
//!
//! A token's text depends on its neighbours (spaces, characters of several tokens), so a small window of tokens is decoded
//! again and again and what is new at its end is sent. The pieces put together are the decoding of all tokens at once.

use std::sync::Arc;

use crate::tokenizer::{CodecError, TextCodec};

/// Stands for bytes that are no character, or not yet one.
const REPLACEMENT: char = '\u{fffd}';
/// Tokens of a prompt that decide how its continuation is written.
const CONTEXT_TOKENS: usize = 6;
/// Tokens that may wait for a character to be complete. More than any character has: then it is none.
const MOST_PENDING: usize = 8;
/// Of those, the ones that may still be a character's beginning.
const MAY_BEGIN: usize = 4;

/// The text of one growing sequence.
pub struct Detokenizer {
    codec: Arc<TextCodec>,
    /// Whether special tokens are part of the text.
    special_tokens: bool,
    /// Tokens of the last piece sent, and all after them.
    window: Vec<u32>,
    /// Bytes of the window's text that have been sent.
    sent: usize,
    /// Tokens at the window's begin that the last piece ended with.
    settled: usize,
}

impl Detokenizer {
    /// Text that stands for itself, such as an assistant's turn, with the special tokens in it or without.
    pub fn new(codec: Arc<TextCodec>, special_tokens: bool) -> Self {
        Self { codec, special_tokens, window: Vec::new(), sent: 0, settled: 0 }
    }

    /// Text that continues `prompt`: a word that follows another keeps the space before it.
    ///
    /// # Errors
    /// [`CodecError`].
    pub fn continuing(
        codec: Arc<TextCodec>,
        special_tokens: bool,
        prompt: &[u32],
    ) -> Result<Self, CodecError> {
        let window = prompt[prompt.len().saturating_sub(CONTEXT_TOKENS)..].to_vec();
        let sent = stable(&codec.decode_with(&window, special_tokens)?).len();
        let settled = window.len();
        Ok(Self { codec, special_tokens, window, sent, settled })
    }

    fn decode(&self, tokens: &[u32]) -> Result<String, CodecError> {
        self.codec.decode_with(tokens, self.special_tokens)
    }

    /// Adds a token; returns what can be sent now.
    ///
    /// # Errors
    /// [`CodecError`].
    pub fn push(&mut self, token: u32) -> Result<String, CodecError> {
        self.window.push(token);
        let text = self.decode(&self.window)?;
        let whole = stable(&text);
        let mut new = whole.get(self.sent..).unwrap_or_default().to_owned();
        if !new.is_empty() {
            self.sent = whole.len();
        }
        if !new.is_empty() && whole.len() == text.len() {
            // Everything so far is sent: the tokens before the last piece can go.
            let rest = self.window[self.settled..].to_vec();
            let text = self.decode(&rest)?;
            // Special tokens alone are no context: what follows would be written as if it began a text.
            if !text.is_empty() {
                self.sent = text.len();
                self.settled = rest.len();
                self.window = rest;
            }
        }
        if self.window.len() - self.settled > MOST_PENDING {
            new.push_str(&self.give_up(&text)?);
        }
        Ok(new)
    }

    /// Settles tokens that will never be a character, so that neither the window nor what the client waits for grows.
    fn give_up(&mut self, text: &str) -> Result<String, CodecError> {
        let last = self.window.len().saturating_sub(MAY_BEGIN);
        for cut in (self.settled + 1..=last).rev() {
            let (head, tail) = (self.decode(&self.window[..cut])?, self.decode(&self.window[cut..])?);
            // Only between characters: there the two parts are the whole.
            if tail.is_empty() || text.strip_prefix(&head) != Some(&tail) {
                continue;
            }
            let new = head.get(self.sent..).unwrap_or_default().to_owned();
            let ahead = self.sent.saturating_sub(head.len());
            self.window.drain(..self.settled);
            self.settled = cut - self.settled;
            self.sent = self.decode(&self.window[..self.settled])?.len() + ahead;
            return Ok(new);
        }
        Ok(String::new())
    }

    /// What is left when no token comes any more: bytes that never became a character.
    ///
    /// # Errors
    /// [`CodecError`].
    pub fn finish(&mut self) -> Result<String, CodecError> {
        let text = self.decode(&self.window)?;
        let rest = text.get(self.sent..).unwrap_or_default().to_owned();
        self.sent = text.len();
        Ok(rest)
    }
}

/// The text without what may still become a character.
pub fn stable(text: &str) -> &str {
    text.trim_end_matches(REPLACEMENT)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    /// A tokenizer whose tokens are the 256 bytes and a few merges, written GPT-2's way.
    fn byte_level() -> Arc<TextCodec> {
        let mut vocabulary = serde_json::Map::new();
        let printable = |byte: u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
        let mut next = 0x100;
        for byte in 0..256_u32 {
            let c = if printable(byte) {
                byte
            } else {
                next += 1;
                next - 1
            };
            vocabulary.insert(char::from_u32(c).unwrap().to_string(), json!(byte));
        }
        vocabulary.insert("th".into(), json!(256));
        let codec = json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
            "added_tokens": [{"id": 257, "content": "<|end|>", "special": true, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false}],
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
            "post_processor": null,
            "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
            "model": {"type": "BPE", "vocab": Value::Object(vocabulary), "merges": ["t h"]},
        });
        Arc::new(TextCodec::from_bytes(codec.to_string().as_bytes(), 258).unwrap())
    }

    /// A tokenizer in the manner of Llama 2: `▁` for spaces, bytes where there is no token.
    fn sentence_piece() -> Arc<TextCodec> {
        let words = ["<unk>", "▁Hello", "▁world", "▁", "H", "i", "!", "é"];
        let mut vocabulary: Vec<Value> = words.iter().map(|word| json!([word, -1.0])).collect();
        vocabulary.extend((0..256).map(|byte| json!([format!("<0x{byte:02X}>"), -5.0])));
        let codec = json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "added_tokens": [],
            "pre_tokenizer": null, "post_processor": null,
            "decoder": {"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ]},
            "model": {"type": "Unigram", "unk_id": 0, "vocab": vocabulary, "byte_fallback": true},
        });
        Arc::new(TextCodec::from_bytes(codec.to_string().as_bytes(), 264).unwrap())
    }

    fn pieces(codec: &Arc<TextCodec>, ids: &[u32]) -> Vec<String> {
        let mut stream = Detokenizer::new(Arc::clone(codec), false);
        let mut pieces: Vec<String> = ids.iter().map(|id| stream.push(*id).unwrap()).collect();
        pieces.push(stream.finish().unwrap());
        pieces
    }

    #[test]
    fn a_character_of_several_tokens_comes_whole() {
        let ids: Vec<u32> = "a€b".bytes().map(u32::from).collect();
        assert_eq!(pieces(&byte_level(), &ids), ["a", "", "", "€", "b", ""]);
        let bytes: Vec<u32> = "€".bytes().map(|byte| u32::from(byte) + 8).collect();
        assert_eq!(pieces(&sentence_piece(), &bytes), ["", "", "€", ""]);
    }

    #[test]
    fn what_never_becomes_a_character_comes_at_the_end() {
        assert_eq!(pieces(&byte_level(), &[97, 0xe2, 0x82]), ["a", "", "", "\u{fffd}"]);
        assert_eq!(pieces(&byte_level(), &[0xe2, 97]), ["", "\u{fffd}a", ""]);
    }

    #[test]
    fn spaces_between_words_stay_and_the_first_goes() {
        assert_eq!(pieces(&sentence_piece(), &[1, 2, 6]), ["Hello", " world", "!", ""]);
        let mut continued = Detokenizer::continuing(sentence_piece(), false, &[1]).unwrap();
        assert_eq!(continued.push(2).unwrap(), " world");
    }

    #[test]
    fn endless_nonsense_is_sent_as_it_comes() {
        for (codec, byte) in [(byte_level(), 0xa1), (sentence_piece(), 8 + 0xa1)] {
            let mut stream = Detokenizer::new(codec, false);
            let mut sent = 0;
            for count in 1..5_000 {
                sent += stream.push(byte).unwrap().chars().count();
                assert!(count - sent <= MOST_PENDING, "{count} tokens, {sent} characters");
                assert!(
                    stream.window.len() <= 4 * MOST_PENDING,
                    "every token costs a look at {}",
                    stream.window.len()
                );
            }
        }
    }

    #[test]
    fn special_tokens_are_left_out() {
        assert_eq!(pieces(&byte_level(), &[97, 257, 98]).concat(), "ab");
        assert_eq!(byte_level().token_text(257), "<|end|>");
        let mut shown = Detokenizer::new(byte_level(), true);
        let pieces: Vec<String> = [97, 257, 98].into_iter().map(|id| shown.push(id).unwrap()).collect();
        assert_eq!(pieces, ["a", "<|end|>", "b"]);
    }

    #[test]
    fn bytes_of_tokens_are_exact() {
        let codec = byte_level();
        for byte in 0..=255_u8 {
            assert_eq!(codec.token_bytes(u32::from(byte)), [byte]);
        }
        assert_eq!(codec.token_bytes(256), b"th");
        assert_eq!(codec.token_bytes(9999), b"");
        assert_eq!(sentence_piece().token_bytes(2), b" world");
        assert_eq!(sentence_piece().token_bytes(8 + 0xe2), [0xe2]);
    }

    proptest! {
        #[test]
        fn pieces_put_together_are_the_whole(text in "\\PC{0,30}", tail in prop::collection::vec(prop_oneof![0_u32..258, 128_u32..256], 0..40)) {
            let codec = byte_level();
            let mut ids: Vec<u32> = codec.encode(&text, false).unwrap();
            ids.extend(tail);
            prop_assert_eq!(pieces(&codec, &ids).concat(), codec.decode(&ids).unwrap());
        }

        #[test]
        fn text_comes_back_whole_from_fallback_bytes(text in "[Hié€ ]{0,20}") {
            let codec = sentence_piece();
            // One byte token for each byte, a word now and then.
            let mut ids = vec![1];
            for c in text.chars() {
                match c {
                    'H' => ids.push(4),
                    'i' => ids.push(5),
                    ' ' => ids.push(3),
                    c => ids.extend(c.to_string().bytes().map(|byte| u32::from(byte) + 8)),
                }
            }
            prop_assert_eq!(pieces(&codec, &ids).concat(), format!("Hello{text}"));
        }
    }
}
