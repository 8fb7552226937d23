//! Texts to an encoder's inputs: special tokens, pairs, and what is too long.

use fairlead_engine::encoder::EncoderInput;
use fairlead_openai::{ApiError, Prompt};

use crate::tokenizer::{CodecError, TextCodec, TextTokens};

/// Longest text that is tokenized, in bytes, even where only its beginning is wanted: tokens take many times its size.
const MAX_TEXT_BYTES: usize = 1 << 20;

/// Makes inputs of at most so many tokens.
pub struct InputBuilder<'a> {
    codec: &'a TextCodec,
    most: usize,
    cut: bool,
}

impl<'a> InputBuilder<'a> {
    pub(super) fn new(codec: &'a TextCodec, most: usize, cut: bool) -> Self {
        Self { codec, most, cut }
    }

    /// A text, with the special tokens that the model wants around it, or tokens as they are.
    ///
    /// # Errors
    /// 400 naming `param` where it is too long, or holds tokens that the model does not have.
    pub fn prompt(&self, prompt: &Prompt, param: &str) -> Result<EncoderInput, ApiError> {
        match prompt {
            Prompt::Text(text) => {
                let text = self.tokenize(text, param)?;
                self.join(text, None, param)
            }
            Prompt::Tokens(tokens) => self.tokens(tokens, param),
        }
    }

    /// The tokens of a text that goes into several pairs.
    ///
    /// # Errors
    /// 400 naming `param` where it is too long to look at.
    pub fn tokenize(&self, text: &str, param: &str) -> Result<TextTokens, ApiError> {
        if text.len() > MAX_TEXT_BYTES {
            let message = format!(
                "{param} has {} bytes, at most {MAX_TEXT_BYTES} are read; send its beginning",
                text.len()
            );
            return Err(ApiError::invalid(param, message).with_code("context_length_exceeded"));
        }
        self.codec.tokenize(text).map_err(codec_error)
    }

    /// A query and a document, as a cross-encoder reads them: where both are cut, the longer one first.
    ///
    /// # Errors
    /// 400 naming `param` where they are too long together.
    pub fn pair(&self, query: &TextTokens, document: &str, param: &str) -> Result<EncoderInput, ApiError> {
        let document = self.tokenize(document, param)?;
        self.join(query.clone(), Some(document), param)
    }

    fn join(
        &self,
        text: TextTokens,
        pair: Option<TextTokens>,
        param: &str,
    ) -> Result<EncoderInput, ApiError> {
        let needed = self.codec.joined_len(&text, pair.as_ref());
        if needed > self.most && !self.cut {
            return Err(self.too_long(needed, param));
        }
        let (tokens, token_types) = self.codec.join(text, pair, self.most).map_err(codec_error)?;
        if tokens.is_empty() {
            return Err(ApiError::invalid(param, format!("{param} has no tokens; send some text")));
        }
        if tokens.len() > self.most {
            return Err(ApiError::invalid(
                "truncate_prompt_tokens",
                format!(
                    "truncate_prompt_tokens leaves {} tokens, but the special tokens alone are more; raise it",
                    self.most
                ),
            ));
        }
        Ok(EncoderInput { tokens, token_types })
    }

    fn tokens(&self, tokens: &[u32], param: &str) -> Result<EncoderInput, ApiError> {
        let vocabulary = self.codec.vocab_size();
        if let Some((index, token)) = tokens.iter().enumerate().find(|(_, token)| **token >= vocabulary) {
            let most = vocabulary.saturating_sub(1);
            let message = format!(
                "{param}: token {index} is {token}, but this model's tokens are 0 to {most}; send only those"
            );
            return Err(ApiError::invalid(param, message));
        }
        if tokens.len() > self.most && !self.cut {
            return Err(self.too_long(tokens.len(), param));
        }
        let tokens = tokens.iter().take(self.most).copied().collect();
        Ok(EncoderInput { tokens, token_types: Vec::new() })
    }

    fn too_long(&self, tokens: usize, param: &str) -> ApiError {
        let message = format!(
            "{param} has {tokens} tokens, but this model takes {}; shorten it, or set truncate to true to have it cut",
            self.most
        );
        ApiError::invalid(param, message).with_code("context_length_exceeded")
    }
}

fn codec_error(error: CodecError) -> ApiError {
    ApiError::internal(error.to_string())
}
