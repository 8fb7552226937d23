//! The error of the API: one status, one JSON body, the same from the gateway and from a pod.

use serde::{Deserialize, Serialize};

/// An error as clients see it. Its message names the field that is wrong and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// HTTP status.
    pub status: u16,
    /// What is wrong and the remedy, for a person.
    pub message: String,
    /// Class of the error, such as `invalid_request_error`; OpenAI's `type`.
    pub kind: String,
    /// The request's field that is wrong, as a path such as `messages[0].content`.
    pub param: Option<String>,
    /// A word for programs, such as `context_length_exceeded`.
    pub code: Option<String>,
    /// Seconds to wait before another try; sent as the header `Retry-After`, not in the body.
    pub retry_after: Option<u32>,
}

/// The JSON body of an error answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// The error itself.
    pub error: ErrorDetail,
}

/// What stands under `error` in an error answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorDetail {
    /// See [`ApiError::message`].
    pub message: String,
    /// See [`ApiError::kind`].
    #[serde(rename = "type")]
    pub kind: String,
    /// See [`ApiError::param`].
    pub param: Option<String>,
    /// See [`ApiError::code`].
    pub code: Option<String>,
}

impl ApiError {
    /// An error with a status, a class and a message, and nothing else yet.
    pub fn new(status: u16, kind: &str, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
            kind: kind.to_owned(),
            param: None,
            code: None,
            retry_after: None,
        }
    }

    /// 400: the field `param` is wrong.
    pub fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(400, "invalid_request_error", message).with_param(param)
    }

    /// 400: the request as a whole is wrong.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "invalid_request_error", message)
    }

    /// 404: no such model here.
    pub fn model_not_found(model: &str, remedy: &str) -> Self {
        Self::new(
            404,
            "invalid_request_error",
            format!("model: there is no model \"{}\"; {remedy}", clip(model)),
        )
        .with_param("model")
        .with_code("model_not_found")
    }

    /// 404: no such path, at who serves models for every task.
    pub fn path_not_found(path: &str) -> Self {
        Self::path_not_found_among(
            path,
            &[
                "/v1/chat/completions",
                "/v1/completions",
                "/v1/embeddings",
                "/v1/rerank",
                "/tokenize",
                "/detokenize",
                "/v1/models",
            ],
        )
    }

    /// 404: no such path, where there are these.
    pub fn path_not_found_among(path: &str, paths: &[&str]) -> Self {
        let message = format!("there is nothing at {}; the API has {}", clip(path), listed(paths));
        Self::new(404, "invalid_request_error", message).with_code("not_found")
    }

    /// 405: the path exists, but not for this method.
    pub fn method_not_allowed(method: &str, path: &str, allowed: &str) -> Self {
        Self::new(
            405,
            "invalid_request_error",
            format!("{} does not take {method}; use {allowed}", clip(path)),
        )
        .with_code("method_not_allowed")
    }

    /// 413: the body is larger than the server reads.
    pub fn too_large(limit_bytes: usize) -> Self {
        Self::new(
            413,
            "invalid_request_error",
            format!("the request body is larger than {limit_bytes} bytes; send a shorter prompt"),
        )
        .with_code("request_too_large")
    }

    /// 429: too many requests wait already.
    pub fn overloaded(message: impl Into<String>, retry_after: u32) -> Self {
        let mut error = Self::new(429, "rate_limit_error", message).with_code("queue_full");
        error.retry_after = Some(retry_after);
        error
    }

    /// 503: not able to answer now, but later or elsewhere.
    pub fn unavailable(code: &str, message: impl Into<String>, retry_after: u32) -> Self {
        let mut error = Self::new(503, "service_unavailable_error", message).with_code(code);
        error.retry_after = Some(retry_after);
        error
    }

    /// 504: the time that the client gave has passed.
    pub fn deadline_passed(message: impl Into<String>) -> Self {
        Self::new(504, "timeout_error", message).with_code("deadline_passed")
    }

    /// 500: our fault.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(500, "internal_server_error", message)
    }

    /// 400: the prompt leaves no room for an answer. `param` is `messages` or `prompt`.
    pub fn prompt_too_long(param: &str, prompt_tokens: usize, max_model_len: u32) -> Self {
        let message = format!(
            "{param}: the prompt has {prompt_tokens} tokens, but this model takes {max_model_len} tokens in all, the answer \
             included; shorten the prompt"
        );
        Self::invalid(param, message).with_code("context_length_exceeded")
    }

    /// 400: the prompt fits, but not with as long an answer as the field `param` asks for.
    pub fn answer_too_long(param: &str, asked: u32, prompt_tokens: usize, max_model_len: u32) -> Self {
        let room = (max_model_len as usize).saturating_sub(prompt_tokens);
        let message = format!(
            "{param} is {asked}, but the prompt has {prompt_tokens} tokens and this model takes {max_model_len} tokens in all; \
             lower {param} to {room}, or shorten the prompt"
        );
        Self::invalid(param, message).with_code("context_length_exceeded")
    }

    /// The same error, about the field `param`.
    #[must_use]
    pub fn with_param(mut self, param: impl Into<String>) -> Self {
        self.param = Some(param.into());
        self
    }

    /// The same error, with a word for programs.
    #[must_use]
    pub fn with_code(mut self, code: &str) -> Self {
        self.code = Some(code.to_owned());
        self
    }

    /// The JSON body.
    pub fn body(&self) -> ErrorBody {
        ErrorBody {
            error: ErrorDetail {
                message: self.message.clone(),
                kind: self.kind.clone(),
                param: self.param.clone(),
                code: self.code.clone(),
            },
        }
    }

    /// The JSON body as text; also what a stream that fails midway sends in a `data:` line.
    pub fn to_json(&self) -> String {
        // Four strings always serialize; the fallback keeps the shape should that ever change.
        serde_json::to_string(&self.body()).unwrap_or_else(|_| {
            r#"{"error":{"message":"internal error","type":"internal_server_error"}}"#.to_owned()
        })
    }
}

/// `a, b and c`.
fn listed(names: &[&str]) -> String {
    match names {
        [before @ .., last] if !before.is_empty() => format!("{} and {last}", before.join(", ")),
        _ => names.concat(),
    }
}

/// Shortens what a client sent before it is quoted back.
pub(crate) fn clip(text: &str) -> String {
    const LONGEST: usize = 128;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
