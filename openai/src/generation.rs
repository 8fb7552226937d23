//! What chat and plain completions have in common: how to generate, when to stop, how to send it.

use serde::{Deserialize, Serialize};

use crate::error::ApiError;
use crate::fields::{Fields, wrong};
use crate::json::Json;
use crate::output_form::{self, RequestedForm};
use crate::sampling::SamplingFields;
use crate::unsupported;

/// Most stop strings in one request. OpenAI takes 4, but benchmarks of code send more.
pub const MAX_STOP_STRINGS: usize = 16;
/// Longest stop string in bytes: as much text may have to be held back.
pub const MAX_STOP_BYTES: usize = 1024;
/// Most stop tokens in one request.
pub const MAX_STOP_TOKENS: usize = 1024;
/// Most alternatives reported for each token.
pub const MAX_LOGPROBS: u32 = 20;
/// Most answers to one prompt.
pub const MAX_CHOICES: u32 = 128;
/// Longest `cache_salt` in bytes.
pub const MAX_CACHE_SALT: usize = 256;
/// How far `priority` reaches from 0. One step is a head start of 1024 requests: with a further reach one client could keep
/// all others waiting.
pub const MAX_PRIORITY: i32 = 8;
/// Most tokens of an answer that is resumed.
pub const MAX_RESUMED: usize = 1 << 20;

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
    /// Whether it came as `max_completion_tokens`.
    pub newer_max_tokens: bool,
    /// Fewest tokens to generate before the answer may end by itself (vLLM's extension); at most `max_tokens`.
    pub min_tokens: u32,
    /// Answers to each prompt, 1 to 128; 0 stands for 1.
    pub n: u32,
    /// How tokens are chosen.
    pub sampling: SamplingFields,
    /// Strings that end the answer.
    pub stop: Vec<String>,
    /// Tokens that end the answer (vLLM's extension).
    pub stop_token_ids: Vec<u32>,
    /// Whether the string that ended the answer is part of it (`include_stop_str_in_output`, vLLM's extension).
    pub include_stop: bool,
    /// Do not end at the end-of-sequence token (vLLM's extension, for benchmarks).
    pub ignore_eos: bool,
    /// What form the answer must have.
    pub form: Option<RequestedForm>,
    /// Send the answer as server-sent events.
    pub stream: bool,
    /// Send a last chunk with the usage (`stream_options.include_usage`).
    pub include_usage: bool,
    /// Send the usage so far with every chunk (`stream_options.continuous_usage_stats`, vLLM's extension).
    pub continuous_usage: bool,
    /// Send the ids of prompt and answer (vLLM's extension).
    pub return_token_ids: bool,
    /// The answer's tokens so far, where it was begun elsewhere: only what follows is sent (our extension).
    pub resume_token_ids: Vec<u32>,
    /// Requests share cached prefixes only with those of the same salt (vLLM's extension).
    pub cache_salt: Option<String>,
    /// Smaller goes first, -8 to 8; 0 where left open (vLLM's extension).
    pub priority: i32,
    /// The caller's own name for its end user.
    pub user: Option<String>,
    /// Fields that ask for what our engine does not do, in the order in which they were met.
    unsupported: Vec<UnsupportedField>,
}

#[derive(Clone, Debug, PartialEq)]
struct UnsupportedField {
    param: String,
    message: String,
}

impl GenerationOptions {
    /// Reads them; `max_tokens` may come under a newer name, which goes before the old one.
    pub(crate) fn parse(
        fields: &Fields<'_>,
        smallest_max_tokens: i64,
        newer_max_tokens: Option<u32>,
    ) -> Result<Self, ApiError> {
        let most = i64::from(u32::MAX);
        let flag = |key: &str| -> Result<bool, ApiError> { Ok(fields.boolean(key)?.unwrap_or(false)) };
        let max_tokens = fields.integer("max_tokens", smallest_max_tokens..=most)?.map(to_u32);
        let mut options = Self {
            max_tokens: newer_max_tokens.or(max_tokens),
            newer_max_tokens: newer_max_tokens.is_some(),
            min_tokens: fields.integer("min_tokens", 0..=most)?.map_or(0, to_u32),
            n: fields.integer("n", 1..=i64::from(MAX_CHOICES))?.map_or(1, to_u32),
            sampling: SamplingFields::parse(fields)?,
            stop: parse_stop(fields)?,
            stop_token_ids: parse_token_ids(fields, "stop_token_ids", MAX_STOP_TOKENS)?,
            include_stop: flag("include_stop_str_in_output")?,
            ignore_eos: flag("ignore_eos")?,
            form: None,
            stream: flag("stream")?,
            include_usage: false,
            continuous_usage: false,
            return_token_ids: flag("return_token_ids")?,
            resume_token_ids: parse_token_ids(fields, "resume_token_ids", MAX_RESUMED)?,
            cache_salt: parse_cache_salt(fields)?,
            priority: fields
                .integer("priority", i64::from(-MAX_PRIORITY)..=i64::from(MAX_PRIORITY))?
                .and_then(|priority| i32::try_from(priority).ok())
                .unwrap_or(0),
            user: fields.string("user")?.map(str::to_owned),
            unsupported: Vec::new(),
        };
        unsupported::refuse(fields, unsupported::OF_BOTH, &mut options);
        options.form = output_form::parse(fields, &mut options)?;
        options.parse_stream_options(fields)?;
        // Choosing the best of several is for beam search of old; sending them all is what `n` does.
        let best_of = fields.integer("best_of", 1..=i64::from(MAX_CHOICES))?.map(to_u32);
        if best_of.is_some_and(|count| count != options.n) {
            options.refuse("best_of", "leave it out or set it to n, and choose among the n answers");
        }
        options.check()?;
        Ok(options)
    }

    fn parse_stream_options(&mut self, fields: &Fields<'_>) -> Result<(), ApiError> {
        let Some(stream_options) = fields.object("stream_options")? else { return Ok(()) };
        if !self.stream {
            return Err(ApiError::invalid(
                "stream_options",
                "stream_options is for streams only; set stream to true or leave it out",
            ));
        }
        self.include_usage = stream_options.boolean("include_usage")?.unwrap_or(false);
        let continuous = stream_options.boolean("continuous_usage_stats")?.unwrap_or(false);
        if continuous && !self.include_usage {
            return Err(ApiError::invalid(
                "stream_options.continuous_usage_stats",
                "stream_options.continuous_usage_stats says how often the usage comes, and include_usage whether; set \
                 include_usage to true too, or leave it out",
            ));
        }
        self.continuous_usage = continuous;
        Ok(())
    }

    /// What the fields must be to one another.
    fn check(&self) -> Result<(), ApiError> {
        if let Some(most) = self.max_tokens {
            if self.min_tokens > most {
                let message = format!(
                    "min_tokens is {}, but at most {most} tokens are asked for ({}); lower it",
                    self.min_tokens,
                    self.max_tokens_field()
                );
                return Err(ApiError::invalid("min_tokens", message));
            }
            if !self.resume_token_ids.is_empty() && self.resume_token_ids.len() >= most as usize {
                let message = format!(
                    "resume_token_ids has {} tokens, so that of {most} ({}) none is left; do not resume it",
                    self.resume_token_ids.len(),
                    self.max_tokens_field()
                );
                return Err(ApiError::invalid("resume_token_ids", message));
            }
        }
        if let Some(RequestedForm { param, .. }) = self.form {
            self.check_end(param)?;
        }
        if !self.resume_token_ids.is_empty() && self.n > 1 {
            return Err(ApiError::invalid(
                "resume_token_ids",
                "resume_token_ids goes on with one answer, but n asks for several; set n to 1",
            ));
        }
        Ok(())
    }

    /// Checks that nothing delays the end of an answer whose form the field `param` gives: it ends where the form does.
    pub(crate) fn check_end(&self, param: &str) -> Result<(), ApiError> {
        if self.ignore_eos {
            return Err(ApiError::invalid(
                "ignore_eos",
                format!(
                    "ignore_eos lets an answer go on, but one of a given form ({param}) ends where the form ends; leave it \
                     out"
                ),
            ));
        }
        if self.min_tokens > 0 {
            return Err(ApiError::invalid(
                "min_tokens",
                format!(
                    "min_tokens is {}, but an answer of a given form ({param}) may end earlier; leave it out",
                    self.min_tokens
                ),
            ));
        }
        Ok(())
    }

    /// The field that the most tokens came by, or would come by.
    pub fn max_tokens_field(&self) -> &'static str {
        if self.newer_max_tokens { "max_completion_tokens" } else { "max_tokens" }
    }

    /// The first field that our engine would have to ignore, as the 400 that the pod answers.
    pub fn unsupported(&self) -> Option<ApiError> {
        let field = self.unsupported.first()?;
        Some(ApiError::invalid(field.param.clone(), field.message.clone()).with_code("unsupported_parameter"))
    }

    pub(crate) fn refuse(&mut self, param: impl Into<String>, remedy: &str) {
        let param = param.into();
        let message = format!("{param} is not supported by this model's server; {remedy}");
        self.unsupported.push(UnsupportedField { param, message });
    }
}

fn parse_cache_salt(fields: &Fields<'_>) -> Result<Option<String>, ApiError> {
    let Some(salt) = fields.string("cache_salt")? else { return Ok(None) };
    if salt.is_empty() || salt.len() > MAX_CACHE_SALT {
        let message = format!(
            "cache_salt must have 1 to {MAX_CACHE_SALT} bytes, but has {}; leave it out to share with all who have none",
            salt.len()
        );
        return Err(ApiError::invalid("cache_salt", message));
    }
    Ok(Some(salt.to_owned()))
}

/// Reads an array of at most `most` token ids under `key`; absent is empty.
pub(crate) fn parse_token_ids(fields: &Fields<'_>, key: &str, most: usize) -> Result<Vec<u32>, ApiError> {
    let Some(items) = fields.array(key)? else { return Ok(Vec::new()) };
    let path = fields.name(key);
    if items.len() > most {
        let message =
            format!("{path} has {} tokens, but at most {most} are allowed; send fewer", items.len());
        return Err(ApiError::invalid(path, message));
    }
    token_ids(items, &path)
}

pub(crate) fn token_ids(items: &[Json<'_>], path: &str) -> Result<Vec<u32>, ApiError> {
    items
        .iter()
        .enumerate()
        .map(|(index, item)| {
            item.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(|| {
                wrong(format!("{path}[{index}]"), "a token id (an integer from 0 to 4294967295)", item)
            })
        })
        .collect()
}

fn parse_stop(fields: &Fields<'_>) -> Result<Vec<String>, ApiError> {
    let stops = match fields.get("stop") {
        None => Vec::new(),
        Some(Json::Str(text)) if !text.is_empty() => vec![text.to_string()],
        Some(Json::Array(items)) => items
            .iter()
            .enumerate()
            .map(|(index, item)| match item {
                Json::Str(text) if !text.is_empty() => Ok(text.to_string()),
                other => Err(wrong(format!("stop[{index}]"), "a non-empty string", other)),
            })
            .collect::<Result<_, _>>()?,
        Some(other) => {
            let expected = format!("a non-empty string or an array of up to {MAX_STOP_STRINGS} of them");
            return Err(wrong("stop", &expected, other));
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
    if let Some(long) = stops.iter().find(|stop| stop.len() > MAX_STOP_BYTES) {
        return Err(ApiError::invalid(
            "stop",
            format!(
                "stop has a string of {} bytes, but at most {MAX_STOP_BYTES} are allowed; shorten it",
                long.len()
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
