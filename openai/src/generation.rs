//! What chat and plain completions have in common: how to generate, when to stop, how to send it.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::ApiError;
use crate::fields::{Fields, describe, wrong};

/// Most stop strings in one request, as for OpenAI.
pub const MAX_STOP_STRINGS: usize = 4;
/// Most alternatives reported for each token.
pub const MAX_LOGPROBS: u32 = 20;

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model ended it, or a stop string was met.
    Stop,
    /// `max_tokens` or the model's length was reached.
    Length,
    /// The model wants a tool called.
    ToolCalls,
    /// A filter cut it.
    ContentFilter,
}

/// Options common to `/v1/chat/completions` and `/v1/completions`. `None` means that the client left it open.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationOptions {
    /// Most tokens to generate (`max_tokens`, or `max_completion_tokens` of the chat API).
    pub max_tokens: Option<u32>,
    /// 0 to 2; 0 takes the likeliest token.
    pub temperature: Option<f32>,
    /// Above 0, at most 1.
    pub top_p: Option<f32>,
    /// Keep this many likeliest tokens; 0 keeps all (vLLM's extension, whose -1 becomes 0).
    pub top_k: Option<u32>,
    /// Seed of the random choices.
    pub seed: Option<i64>,
    /// Strings that end the answer; not part of it.
    pub stop: Vec<String>,
    /// Tokens that end the answer (vLLM's extension).
    pub stop_token_ids: Vec<u32>,
    /// Do not end at the end-of-sequence token (vLLM's extension, for benchmarks).
    pub ignore_eos: bool,
    /// Send the answer as server-sent events.
    pub stream: bool,
    /// Send a last chunk with the usage (`stream_options.include_usage`).
    pub include_usage: bool,
    /// The caller's own name for its end user.
    pub user: Option<String>,
    /// Fields that ask for what our engine does not do yet, in the order of their appearance here.
    unsupported: Vec<UnsupportedField>,
}

#[derive(Clone, Debug, PartialEq)]
struct UnsupportedField {
    param: String,
    message: String,
}

impl GenerationOptions {
    pub(crate) fn parse(fields: &Fields<'_>, smallest_max_tokens: i64) -> Result<Self, ApiError> {
        let most = i64::from(u32::MAX);
        let mut options = Self {
            max_tokens: fields.integer("max_tokens", smallest_max_tokens..=most)?.map(to_u32),
            temperature: fields.number("temperature", 0.0..=2.0)?.map(|value| value as f32),
            top_p: fields.number("top_p", 0.0..=1.0)?.map(|value| value as f32),
            top_k: fields.integer("top_k", -1..=most)?.map(to_u32),
            seed: fields.integer("seed", i64::MIN..=i64::MAX)?,
            stop: parse_stop(fields)?,
            stop_token_ids: parse_token_ids(fields, "stop_token_ids")?,
            ignore_eos: fields.boolean("ignore_eos")?.unwrap_or(false),
            stream: fields.boolean("stream")?.unwrap_or(false),
            include_usage: false,
            user: fields.string("user")?.map(str::to_owned),
            unsupported: Vec::new(),
        };
        if options.top_p == Some(0.0) {
            return Err(ApiError::invalid(
                "top_p",
                "top_p must be above 0 and at most 1, but is 0; use temperature 0",
            ));
        }
        if let Some(stream_options) = fields.object("stream_options")? {
            if !options.stream {
                return Err(ApiError::invalid(
                    "stream_options",
                    "stream_options is for streams only; set stream to true or leave it out",
                ));
            }
            options.include_usage = stream_options.boolean("include_usage")?.unwrap_or(false);
        }
        options.parse_unsupported(fields)?;
        Ok(options)
    }

    /// The first field that our engine would have to ignore, as the 400 that the pod answers.
    pub fn unsupported(&self) -> Option<ApiError> {
        let field = self.unsupported.first()?;
        Some(ApiError::invalid(field.param.clone(), field.message.clone()).with_code("unsupported_parameter"))
    }

    pub(crate) fn refuse(&mut self, param: impl Into<String>, remedy: &str) {
        let param = param.into();
        let message = format!("{param} is not supported by this model's server yet; {remedy}");
        self.unsupported.push(UnsupportedField { param, message });
    }

    fn parse_unsupported(&mut self, fields: &Fields<'_>) -> Result<(), ApiError> {
        for key in ["n", "best_of"] {
            if fields.integer(key, 1..=128)?.is_some_and(|count| count > 1) {
                self.refuse(key, "leave it out or set it to 1, and send the request several times");
            }
        }
        for key in ["frequency_penalty", "presence_penalty"] {
            if fields.number(key, -2.0..=2.0)?.is_some_and(|penalty| penalty != 0.0) {
                self.refuse(key, "leave it out or set it to 0");
            }
        }
        if fields.number("repetition_penalty", 0.0..=f64::MAX)?.is_some_and(|penalty| penalty != 1.0) {
            self.refuse("repetition_penalty", "leave it out or set it to 1");
        }
        if fields.number("min_p", 0.0..=1.0)?.is_some_and(|threshold| threshold != 0.0) {
            self.refuse("min_p", "leave it out or set it to 0");
        }
        if fields.integer("min_tokens", 0..=i64::from(u32::MAX))?.is_some_and(|count| count != 0) {
            self.refuse("min_tokens", "leave it out or set it to 0");
        }
        if fields.object("logit_bias")?.is_some_and(|biases| biases.len() > 0) {
            self.refuse("logit_bias", "leave it out");
        }
        for key in ["tools", "functions"] {
            if fields.array(key)?.is_some_and(|tools| !tools.is_empty()) {
                self.refuse(key, "leave it out and describe the tools in a message");
            }
        }
        if let Some(choice) = fields.get("tool_choice") {
            match choice {
                Value::String(word) if word == "none" || word == "auto" => {}
                Value::String(_) | Value::Object(_) => self.refuse("tool_choice", "leave it out"),
                other => return Err(wrong("tool_choice", "a string or an object", other)),
            }
        }
        if let Some(format) = fields.object("response_format")? {
            match format.string("type")? {
                Some("text") => {}
                Some(_) => self.refuse("response_format", "leave it out or set its type to \"text\""),
                None => {
                    return Err(ApiError::invalid(
                        "response_format.type",
                        "response_format.type is required: set it to \"text\" or leave response_format out",
                    ));
                }
            }
        }
        for key in ["structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar"] {
            if fields.get(key).is_some() {
                self.refuse(key, "leave it out");
            }
        }
        Ok(())
    }
}

/// Reads an array of token ids under `key`; absent is empty.
pub(crate) fn parse_token_ids(fields: &Fields<'_>, key: &str) -> Result<Vec<u32>, ApiError> {
    let Some(items) = fields.array(key)? else { return Ok(Vec::new()) };
    token_ids(items, &fields.name(key))
}

pub(crate) fn token_ids(items: &[Value], path: &str) -> Result<Vec<u32>, ApiError> {
    items
        .iter()
        .enumerate()
        .map(|(index, item)| {
            item.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(|| {
                wrong(format!("{path}[{index}]"), "a token id (an integer of at least 0)", item)
            })
        })
        .collect()
}

fn parse_stop(fields: &Fields<'_>) -> Result<Vec<String>, ApiError> {
    let expected = "a non-empty string or an array of up to 4 of them";
    let stops = match fields.get("stop") {
        None => Vec::new(),
        Some(Value::String(text)) if !text.is_empty() => vec![text.clone()],
        Some(Value::Array(items)) => items
            .iter()
            .enumerate()
            .map(|(index, item)| match item {
                Value::String(text) if !text.is_empty() => Ok(text.clone()),
                other => Err(wrong(format!("stop[{index}]"), "a non-empty string", other)),
            })
            .collect::<Result<_, _>>()?,
        Some(other) => {
            return Err(ApiError::invalid(
                "stop",
                format!("stop must be {expected}, but is {}", describe(other)),
            ));
        }
    };
    if stops.len() > MAX_STOP_STRINGS {
        return Err(ApiError::invalid(
            "stop",
            format!(
                "stop has {} strings, but at most {MAX_STOP_STRINGS} are allowed; send fewer",
                stops.len()
            ),
        ));
    }
    Ok(stops)
}

/// A checked integer as u32; -1, which vLLM's clients send for "all", becomes 0.
pub(crate) fn to_u32(value: i64) -> u32 {
    u32::try_from(value).unwrap_or(0)
}

/// Reads the required field `model`.
pub(crate) fn parse_model(fields: &Fields<'_>) -> Result<String, ApiError> {
    match fields.string("model")? {
        Some(model) if !model.is_empty() => Ok(model.to_owned()),
        _ => Err(ApiError::invalid(
            "model",
            "model is required: name one of the models that GET /v1/models lists",
        )),
    }
}
