//! `/v1/embeddings`: request and answer.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::completion::Prompt;
use crate::error::ApiError;
use crate::fields::{Fields, wrong};
use crate::generation::{parse_model, to_u32, token_ids};
use crate::json::{Json, json_of, parse_json};

/// Most inputs in one request.
pub const MAX_INPUTS: usize = 2048;

/// How numbers of an embedding are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EncodingFormat {
    /// As a list of numbers.
    #[default]
    Float,
    /// As base64 of their bytes: f32, little-endian.
    Base64,
}

/// What becomes of an input that is too long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Truncation {
    /// The request is refused.
    #[default]
    Refuse,
    /// It is cut to what the model takes.
    ToModel,
    /// It is cut to so many tokens, special tokens included, and to what the model takes.
    To(u32),
}

impl Truncation {
    /// Reads `truncate` (true or false) and vLLM's `truncate_prompt_tokens` (-1: what the model takes).
    pub(crate) fn parse(fields: &Fields<'_>) -> Result<Self, ApiError> {
        let whole = fields.boolean("truncate")?.unwrap_or(false);
        match fields.integer("truncate_prompt_tokens", -1..=i64::from(u32::MAX))? {
            None if whole => Ok(Self::ToModel),
            None => Ok(Self::Refuse),
            Some(-1) => Ok(Self::ToModel),
            Some(0) => Err(ApiError::invalid(
                "truncate_prompt_tokens",
                "truncate_prompt_tokens must be at least 1, or -1 for what the model takes, but is 0",
            )),
            Some(tokens) => Ok(Self::To(to_u32(tokens))),
        }
    }
}

/// An embedding request whose shape, types and ranges are right.
#[derive(Clone, Debug, PartialEq)]
pub struct EmbeddingRequest {
    /// The model the client names.
    pub model: String,
    /// At least one input; each gets an embedding, in order.
    pub inputs: Vec<Prompt>,
    /// How numbers are written.
    pub encoding_format: EncodingFormat,
    /// Numbers wanted of each embedding, where fewer than the model makes.
    pub dimensions: Option<u32>,
    /// What becomes of inputs that are too long.
    pub truncation: Truncation,
    /// The client's own user.
    pub user: Option<String>,
}

impl EmbeddingRequest {
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
        Ok(Self {
            model: parse_model(&fields)?,
            inputs: parse_inputs(&fields)?,
            encoding_format: parse_format(&fields)?,
            dimensions: fields.integer("dimensions", 1..=i64::from(u32::MAX))?.map(to_u32),
            truncation: Truncation::parse(&fields)?,
            user: fields.string("user")?.map(str::to_owned),
        })
    }
}

fn parse_format(fields: &Fields<'_>) -> Result<EncodingFormat, ApiError> {
    match fields.get("encoding_format") {
        None => Ok(EncodingFormat::Float),
        Some(Json::Str(format)) if format == "float" => Ok(EncodingFormat::Float),
        Some(Json::Str(format)) if format == "base64" => Ok(EncodingFormat::Base64),
        Some(other) => Err(wrong("encoding_format", "\"float\" or \"base64\"", other)),
    }
}

fn parse_inputs(fields: &Fields<'_>) -> Result<Vec<Prompt>, ApiError> {
    let expected = "a string, an array of strings, an array of token ids, or an array of such arrays";
    let items = match fields.get("input") {
        None => return Err(ApiError::invalid("input", format!("input is required: send {expected}"))),
        Some(Json::Str(text)) => return Ok(vec![Prompt::Text(text.to_string())]),
        Some(Json::Array(items)) => items,
        Some(other) => return Err(wrong("input", expected, other)),
    };
    match items.first() {
        None => return Err(ApiError::invalid("input", format!("input is an empty array; send {expected}"))),
        Some(Json::Number(_)) => return Ok(vec![Prompt::Tokens(token_ids(items, "input")?)]),
        Some(_) => {}
    }
    if items.len() > MAX_INPUTS {
        let message =
            format!("input has {} inputs, but at most {MAX_INPUTS} are allowed; send fewer", items.len());
        return Err(ApiError::invalid("input", message));
    }
    let parse = |(index, item): (usize, &Json<'_>)| match item {
        Json::Str(text) => Ok(Prompt::Text(text.to_string())),
        Json::Array(ids) if ids.is_empty() => Err(ApiError::invalid(
            format!("input[{index}]"),
            format!("input[{index}] is an empty array; send at least one token id"),
        )),
        Json::Array(ids) => Ok(Prompt::Tokens(token_ids(ids, &format!("input[{index}]"))?)),
        other => Err(wrong(format!("input[{index}]"), "a string or an array of token ids", other)),
    };
    items.iter().enumerate().map(parse).collect()
}

/// The answer to an embedding request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EmbeddingList {
    /// Always `list`.
    pub object: String,
    /// One for each input, in order.
    pub data: Vec<EmbeddingObject>,
    /// The model's public name.
    pub model: String,
    /// Tokens read.
    pub usage: EncodingUsage,
}

/// One embedding.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EmbeddingObject {
    /// Always `embedding`.
    pub object: String,
    /// Number of the input that it is of.
    pub index: u32,
    /// Its numbers.
    pub embedding: Embedding,
}

/// The numbers of an embedding, as the request wanted them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Embedding {
    /// As a list.
    Float(Vec<f32>),
    /// As base64 of f32, little-endian.
    Base64(String),
}

/// Tokens that a request read; it wrote none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EncodingUsage {
    /// Tokens of all inputs, special tokens included.
    pub prompt_tokens: u64,
    /// The same.
    pub total_tokens: u64,
}

impl EncodingUsage {
    /// Counts for inputs of so many tokens.
    pub fn new(tokens: u64) -> Self {
        Self { prompt_tokens: tokens, total_tokens: tokens }
    }
}
