//! Tokens as encoders read them: one text or a pair, with special tokens around them, cut to a length.

use tokenizers::utils::truncation::{
    TruncationDirection, TruncationParams, TruncationStrategy, truncate_encodings,
};
use tokenizers::{Encoding, PostProcessor as _};

use super::{CodecError, TextCodec, guarded};

/// A text's own tokens, without special ones.
#[derive(Clone)]
pub struct TextTokens(Encoding);

impl TextCodec {
    /// A text's own tokens, to be joined with another's or with special ones.
    ///
    /// # Errors
    /// [`CodecError`].
    pub fn tokenize(&self, text: &str) -> Result<TextTokens, CodecError> {
        guarded(|| self.tokenizer.encode_fast(text, false)).map(TextTokens)
    }

    /// Tokens that [`TextCodec::join`] makes where nothing is cut.
    pub fn joined_len(&self, text: &TextTokens, pair: Option<&TextTokens>) -> usize {
        text.0.len() + pair.map_or(0, |pair| pair.0.len()) + self.special_tokens(pair.is_some())
    }

    /// Puts special tokens around a text or a pair, cut to `most` tokens in all: of a pair the longer text first, as
    /// transformers does by default. Returns tokens and, for each, which text it belongs to.
    ///
    /// # Errors
    /// [`CodecError`].
    pub fn join(
        &self,
        text: TextTokens,
        pair: Option<TextTokens>,
        most: usize,
    ) -> Result<(Vec<u32>, Vec<u8>), CodecError> {
        let failed = |error: tokenizers::Error| CodecError(error.to_string());
        let params = TruncationParams {
            direction: TruncationDirection::Right,
            max_length: most.saturating_sub(self.special_tokens(pair.is_some())),
            strategy: TruncationStrategy::LongestFirst,
            stride: 0,
        };
        let pair = pair.map(|TextTokens(mut pair)| {
            // Tokenized alone, it does not know yet that it is the second.
            pair.set_type_ids(vec![1; pair.len()]);
            pair
        });
        let (text, pair) = truncate_encodings(text.0, pair, &params).map_err(failed)?;
        let joined = guarded(|| self.tokenizer.post_process(text, pair, true))?;
        let types = joined.get_type_ids().iter().map(|kind| u8::try_from(*kind).unwrap_or(u8::MAX)).collect();
        Ok((self.known(joined.get_ids().to_vec())?, types))
    }

    fn special_tokens(&self, is_pair: bool) -> usize {
        self.tokenizer.get_post_processor().map_or(0, |processor| processor.added_tokens(is_pair))
    }
}
