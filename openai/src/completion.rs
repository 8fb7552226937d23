//! `/v1/completions`: request and answer; stream chunks have the answer's shape.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::ApiError;
use crate::fields::{Fields, wrong};
use crate::generation::{FinishReason, GenerationOptions, MAX_LOGPROBS, parse_model, to_u32, token_ids};
use crate::json::{Json, json_of, parse_json};
use crate::unsupported;
use crate::usage::Usage;

/// Most prompts in one request.
pub const MAX_PROMPTS: usize = 2048;

/// One prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// Text, to be tokenized with the model's special tokens.
    Text(String),
    /// Token ids, taken as they are.
    Tokens(Vec<u32>),
}

/// A completion request whose shape, types and ranges are right.
#[derive(Clone, Debug, PartialEq)]
pub struct CompletionRequest {
    /// The model the client names.
    pub model: String,
    /// At least one prompt; each gets `n` choices, in order.
    pub prompts: Vec<Prompt>,
    /// How to generate and send.
    pub options: GenerationOptions,
    /// Report log-probabilities, with this many alternatives for each token, 0 to 20.
    pub logprobs: Option<u32>,
    /// Begin the answer with the prompt.
    pub echo: bool,
}

impl CompletionRequest {
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
        let prompts = parse_prompts(&fields)?;
        let echo = fields.boolean("echo")?.unwrap_or(false);
        // `echo` with no new tokens scores a prompt: what evaluation harnesses ask for.
        let mut options = GenerationOptions::parse(&fields, 0, None)?;
        if options.max_tokens == Some(0) && !echo {
            return Err(ApiError::invalid(
                "max_tokens",
                "max_tokens must be an integer of at least 1, but is 0; 0 is for echo: true, which then only scores the prompt",
            ));
        }
        fields.string("suffix")?;
        unsupported::refuse(&fields, unsupported::OF_COMPLETIONS, &mut options);
        let logprobs = fields.integer("logprobs", 0..=i64::from(MAX_LOGPROBS))?.map(to_u32);
        check_together(&prompts, &options, echo)?;
        Ok(Self { model, prompts, options, logprobs, echo })
    }

    /// The first field that our engine would have to ignore, as the 400 that the pod answers.
    pub fn unsupported(&self) -> Option<ApiError> {
        self.options.unsupported()
    }
}

/// What the fields must be to one another.
fn check_together(prompts: &[Prompt], options: &GenerationOptions, echo: bool) -> Result<(), ApiError> {
    let answers = prompts.len().saturating_mul(options.n as usize);
    if answers > MAX_PROMPTS {
        let message = format!(
            "n: {} prompts with {} answers each make {answers}, but at most {MAX_PROMPTS} are allowed; send fewer",
            prompts.len(),
            options.n
        );
        return Err(ApiError::invalid("n", message));
    }
    if options.n > 1 && options.max_tokens == Some(0) {
        return Err(ApiError::invalid(
            "n",
            "n asks for several answers, but max_tokens 0 for none; set n to 1",
        ));
    }
    let invalid = |message: &str| Err(ApiError::invalid("resume_token_ids", message));
    if !options.resume_token_ids.is_empty() && prompts.len() > 1 {
        return invalid("resume_token_ids goes on with one answer, but there are several prompts; send one");
    }
    if !options.resume_token_ids.is_empty() && echo {
        return invalid("resume_token_ids sends only what is new, echo the prompt as well; leave echo out");
    }
    Ok(())
}

fn parse_prompts(fields: &Fields<'_>) -> Result<Vec<Prompt>, ApiError> {
    let expected = "a string, an array of strings, an array of token ids, or an array of such arrays";
    let items = match fields.get("prompt") {
        None => return Err(ApiError::invalid("prompt", format!("prompt is required: send {expected}"))),
        Some(Json::Str(text)) => return Ok(vec![Prompt::Text(text.to_string())]),
        Some(Json::Array(items)) => items,
        Some(other) => return Err(wrong("prompt", expected, other)),
    };
    let prompts = match items.first() {
        None => {
            return Err(ApiError::invalid("prompt", format!("prompt is an empty array; send {expected}")));
        }
        Some(Json::Number(_)) => return Ok(vec![Prompt::Tokens(token_ids(items, "prompt")?)]),
        Some(_) => {
            items.iter().enumerate().map(|(index, item)| parse_prompt(item, format!("prompt[{index}]")))
        }
    };
    if items.len() > MAX_PROMPTS {
        let message =
            format!("prompt has {} prompts, but at most {MAX_PROMPTS} are allowed; send fewer", items.len());
        return Err(ApiError::invalid("prompt", message));
    }
    prompts.collect()
}

fn parse_prompt(item: &Json<'_>, path: String) -> Result<Prompt, ApiError> {
    match item {
        Json::Str(text) => Ok(Prompt::Text(text.to_string())),
        Json::Array(ids) if ids.is_empty() => Err(ApiError::invalid(
            path.clone(),
            format!("{path} is an empty array; send at least one token id"),
        )),
        Json::Array(ids) => Ok(Prompt::Tokens(token_ids(ids, &path)?)),
        other => Err(wrong(path, "a string or an array of token ids", other)),
    }
}

/// The answer to a completion request, and each chunk of a streamed one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Completion {
    /// Name of this answer, `cmpl-…`; the same in every chunk.
    pub id: String,
    /// Always `text_completion`.
    pub object: String,
    /// Unix seconds.
    pub created: u64,
    /// The model's public name.
    pub model: String,
    /// `n` for each prompt; in a chunk, one with what is new.
    pub choices: Vec<CompletionChoice>,
    /// Token counts. In a stream with `include_usage`: null in all chunks but the last, or with `continuous_usage_stats` in
    /// none; otherwise absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Option<Usage>>,
}

/// One answer, or what is new in it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CompletionChoice {
    /// Its number: with `n` answers to each prompt, those to the first come first.
    pub index: u32,
    /// Its text.
    pub text: String,
    /// Log-probabilities, when asked for.
    pub logprobs: Option<CompletionLogprobs>,
    /// Why it ended; null in all chunks but the last.
    pub finish_reason: Option<FinishReason>,
    /// Its new tokens, with `return_token_ids`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<u32>>,
    /// The prompt's tokens, with `return_token_ids`; in a stream in the choice's first chunk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_token_ids: Option<Vec<u32>>,
}

/// Log-probabilities, one entry in each list for each token.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CompletionLogprobs {
    /// Texts of the tokens.
    pub tokens: Vec<String>,
    /// Natural logarithms of their probabilities; null for a prompt's first token.
    pub token_logprobs: Vec<Option<f32>>,
    /// The likeliest tokens in each place; null for a prompt's first token.
    pub top_logprobs: Vec<Option<Map<String, Value>>>,
    /// Where each token's text begins in the answer's text, in characters.
    pub text_offset: Vec<u64>,
}
