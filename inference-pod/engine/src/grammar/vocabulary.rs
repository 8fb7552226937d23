//! A model's tokens as grammars see them: bytes, names of special tokens, and those that end an answer.

use std::collections::BTreeSet;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};

use crate::sampling::TokenMask;

/// Longer tokens are never allowed: toktrie's tree is no deeper than this.
const LONGEST_TOKEN: usize = 1000;
/// toktrie's tree has no room for token numbers from here on.
const MOST_TOKENS: usize = 1 << 22;

/// What one token stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VocabularyToken {
    /// These bytes of text.
    Text(Vec<u8>),
    /// No text, but a name: `<|eot_id|>`. Only a grammar that names it allows it.
    Special(String),
    /// Nothing: a row of the model that its tokenizer does not use.
    Unused,
}

/// Why a vocabulary cannot be used with grammars.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VocabularyError {
    /// Without one an answer of a given form could not end.
    #[error("the model has no end-of-sequence token, so that answers of a given form cannot end")]
    NoEnd,
    /// llguidance does not take it.
    #[error("the model's vocabulary cannot be used with grammars: {0}")]
    Unusable(String),
}

/// The tokens of one model.
pub(super) struct Vocabulary {
    pub(super) env: TokEnv,
    /// Tokens that end an answer.
    pub(super) ends: Arc<TokenMask>,
    /// Tokens that stand for something.
    used: TokenMask,
}

impl Vocabulary {
    /// `tokens` by their numbers; `ends` are those that end an answer.
    pub(super) fn new(tokens: &[VocabularyToken], ends: &[u32]) -> Result<Self, VocabularyError> {
        let known = |end: &&u32| (**end as usize) < tokens.len();
        let ends: Vec<u32> =
            ends.iter().filter(known).copied().collect::<BTreeSet<u32>>().into_iter().collect();
        let Some(&first_end) = ends.first() else { return Err(VocabularyError::NoEnd) };
        if tokens.len() > MOST_TOKENS {
            return Err(VocabularyError::Unusable(format!("it has {} tokens", tokens.len())));
        }
        let words: Vec<Vec<u8>> = tokens
            .iter()
            .enumerate()
            .map(|(id, token)| word(token, ends.binary_search(&(id as u32)).is_ok()))
            .collect();
        let used = mask(words.len(), (0..words.len()).filter(|&id| !words[id].is_empty()));
        let info = TokRxInfo::new(words.len() as u32, first_end);
        // toktrie checks what it builds by panicking.
        let trie = std::panic::catch_unwind(AssertUnwindSafe(|| {
            TokTrie::from(&info, &words).with_eos_tokens(&ends)
        }))
        .map_err(|_| VocabularyError::Unusable("its tokens do not fit into a tree".to_owned()))?;
        Ok(Self {
            env: Arc::new(ApproximateTokEnv::new(trie)),
            ends: Arc::new(mask(words.len(), ends.iter().map(|&end| end as usize))),
            used,
        })
    }

    pub(super) fn is_end(&self, token: u32) -> bool {
        self.ends.allows(token)
    }

    /// Whether a token stands for anything.
    pub(super) fn is_used(&self, token: u32) -> bool {
        self.used.allows(token)
    }
}

/// A token as toktrie wants it: special ones behind a byte that no text has.
fn word(token: &VocabularyToken, is_end: bool) -> Vec<u8> {
    let special = |name: &[u8]| [&[TokTrie::SPECIAL_TOKEN_MARKER], name].concat();
    let word = match token {
        VocabularyToken::Special(name) => special(name.as_bytes()),
        VocabularyToken::Text(bytes) if is_end => special(bytes),
        VocabularyToken::Unused if is_end => special(b"<|end|>"),
        VocabularyToken::Text(bytes) if bytes.first() == Some(&TokTrie::SPECIAL_TOKEN_MARKER) => Vec::new(),
        VocabularyToken::Text(bytes) => bytes.clone(),
        VocabularyToken::Unused => Vec::new(),
    };
    if word.len() > LONGEST_TOKEN { Vec::new() } else { word }
}

fn mask(tokens: usize, allowed: impl Iterator<Item = usize>) -> TokenMask {
    let mut words = vec![0; tokens.div_ceil(32)];
    for token in allowed {
        words[token / 32] |= 1 << (token % 32);
    }
    TokenMask { words }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_tokens_and_bytes_that_are_no_text_stay_apart_from_text() {
        let text = |bytes: &[u8]| VocabularyToken::Text(bytes.to_vec());
        let tokens = [
            text(b"a"),
            VocabularyToken::Special("<|x|>".to_owned()),
            VocabularyToken::Unused,
            text(&[0xff]),
            text(&[b'y'; LONGEST_TOKEN + 1]),
            text(b"</s>"),
        ];
        let vocabulary = Vocabulary::new(&tokens, &[5, 99]).unwrap();
        let used: Vec<u32> = (0..7).filter(|&token| vocabulary.is_used(token)).collect();
        assert_eq!(used, [0, 1, 5]);
        let ends: Vec<u32> = (0..100).filter(|&token| vocabulary.is_end(token)).collect();
        assert_eq!(ends, [5]);
        assert_eq!(vocabulary.env.tok_trie().token(1), b"\xff<|x|>");
        assert_eq!(Vocabulary::new(&tokens, &[99]).err(), Some(VocabularyError::NoEnd));
    }
}
