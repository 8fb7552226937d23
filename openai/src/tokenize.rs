//! `/tokenize` and `/detokenize`, in vLLM's shapes.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::chat::ChatPrompt;
use crate::error::ApiError;
use crate::fields::Fields;
use crate::generation::{GenerationOptions, parse_model, parse_token_ids};
use crate::json::{Json, json_of, parse_json};

/// Most tokens in one request to `/detokenize`.
pub const MAX_DETOKENIZE: usize = 1 << 20;

/// A request to `/tokenize`.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenizeRequest {
    /// The model the client names.
    pub model: String,
    /// What to tokenize.
    pub input: TokenizeInput,
    /// Whether the tokens come with what they are written as.
    pub return_token_strs: bool,
    unsupported: Option<ApiError>,
}

/// What to tokenize.
#[derive(Clone, Debug, PartialEq)]
pub enum TokenizeInput {
    /// A text, with the tokens that the model wants around it or without.
    Text {
        /// The text.
        prompt: String,
        /// Whether the model's special tokens are added.
        add_special_tokens: bool,
    },
    /// A conversation, through the chat template.
    Chat {
        /// The conversation.
        prompt: ChatPrompt,
        /// Whether the model's special tokens are added; templates write their own.
        add_special_tokens: bool,
    },
}

impl TokenizeRequest {
    /// Reads a request body.
    ///
    /// # Errors
    /// 400 naming the field and the remedy.
    pub fn from_slice(body: &[u8]) -> Result<Self, ApiError> {
        Self::from_json(&parse_json(body)?)
    }

    /// Reads a request that is a value already.
    ///
    /// # Errors
    /// 400 naming the field and the remedy.
    pub fn from_value(value: &Value) -> Result<Self, ApiError> {
        Self::from_json(&json_of(value))
    }

    /// Reads a request that is JSON already.
    ///
    /// # Errors
    /// 400 naming the field and the remedy.
    pub fn from_json(value: &Json<'_>) -> Result<Self, ApiError> {
        let fields = Fields::root(value)?;
        let model = parse_model(&fields)?;
        Self::parse(&fields, model)
    }

    /// Reads a request body at who has one model, `only`: to name it is up to the client.
    ///
    /// # Errors
    /// 400 naming the field and the remedy.
    pub fn from_slice_for(body: &[u8], only: &str) -> Result<Self, ApiError> {
        let value = parse_json(body)?;
        let fields = Fields::root(&value)?;
        let model = fields.string("model")?.unwrap_or(only).to_owned();
        Self::parse(&fields, model)
    }

    fn parse(fields: &Fields<'_>, model: String) -> Result<Self, ApiError> {
        let add_special_tokens = fields.boolean("add_special_tokens")?;
        let mut unsupported = None;
        let input = match (fields.string("prompt")?, fields.get("messages")) {
            (Some(_), Some(_)) => {
                return Err(ApiError::invalid(
                    "prompt",
                    "prompt and messages are both there; send one of them",
                ));
            }
            (Some(prompt), None) => TokenizeInput::Text {
                prompt: prompt.to_owned(),
                add_special_tokens: add_special_tokens.unwrap_or(true),
            },
            (None, Some(_)) => {
                let mut options = GenerationOptions::default();
                let prompt = ChatPrompt::parse(fields, &mut options)?;
                unsupported = options.unsupported();
                TokenizeInput::Chat { prompt, add_special_tokens: add_special_tokens.unwrap_or(false) }
            }
            (None, None) => {
                return Err(ApiError::invalid(
                    "prompt",
                    "prompt is required: send a string, or messages instead",
                ));
            }
        };
        let return_token_strs = fields.boolean("return_token_strs")?.unwrap_or(false);
        Ok(Self { model, input, return_token_strs, unsupported })
    }

    /// The first field that our server would have to ignore, as the 400 that the pod answers.
    pub fn unsupported(&self) -> Option<ApiError> {
        self.unsupported.clone()
    }
}

/// The answer of `/tokenize`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenizeAnswer {
    /// Number of tokens.
    pub count: usize,
    /// Longest sequence that the model takes, in tokens.
    pub max_model_len: u32,
    /// The tokens.
    pub tokens: Vec<u32>,
    /// What each is written as, where asked for; null otherwise.
    pub token_strs: Option<Vec<String>>,
}

/// A request to `/detokenize`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DetokenizeRequest {
    /// The model the client names.
    pub model: String,
    /// The tokens, at most [`MAX_DETOKENIZE`].
    pub tokens: Vec<u32>,
}

impl DetokenizeRequest {
    /// Reads a request body.
    ///
    /// # Errors
    /// 400 naming the field and the remedy.
    pub fn from_slice(body: &[u8]) -> Result<Self, ApiError> {
        Self::from_json(&parse_json(body)?)
    }

    /// Reads a request that is a value already.
    ///
    /// # Errors
    /// 400 naming the field and the remedy.
    pub fn from_value(value: &Value) -> Result<Self, ApiError> {
        Self::from_json(&json_of(value))
    }

    /// Reads a request that is JSON already.
    ///
    /// # Errors
    /// 400 naming the field and the remedy.
    pub fn from_json(value: &Json<'_>) -> Result<Self, ApiError> {
        let fields = Fields::root(value)?;
        let model = parse_model(&fields)?;
        Self::parse(&fields, model)
    }

    /// Reads a request body at who has one model, `only`: to name it is up to the client.
    ///
    /// # Errors
    /// 400 naming the field and the remedy.
    pub fn from_slice_for(body: &[u8], only: &str) -> Result<Self, ApiError> {
        let value = parse_json(body)?;
        let fields = Fields::root(&value)?;
        let model = fields.string("model")?.unwrap_or(only).to_owned();
        Self::parse(&fields, model)
    }

    fn parse(fields: &Fields<'_>, model: String) -> Result<Self, ApiError> {
        if fields.get("tokens").is_none() {
            return Err(ApiError::invalid("tokens", "tokens is required: send an array of token ids"));
        }
        Ok(Self { model, tokens: parse_token_ids(fields, "tokens", MAX_DETOKENIZE)? })
    }
}

/// The answer of `/detokenize`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DetokenizeAnswer {
    /// The text, special tokens included.
    pub prompt: String,
}
