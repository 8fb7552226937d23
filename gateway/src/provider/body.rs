//! What of a request goes to a provider. Pure.
//!
//! Fields that only our pods know are left out where the answer can do without them, and refused where it would be another
//! one. Who the end user is stays here.

use fairlead_openai::ApiError;
use serde_json::Value;

use crate::metrics::Api;
use crate::rewrite::{Change, rewritten};

/// Hints that providers do not know, and what says whose request it is.
const LEFT_OUT: [&str; 24] = [
    "add_generation_prompt",
    "add_special_tokens",
    "cache_salt",
    "chat_template_kwargs",
    "ignore_eos",
    "include_stop_str_in_output",
    "length_penalty",
    "metadata",
    "min_p",
    "min_tokens",
    "priority",
    "prompt_cache_key",
    "prompt_cache_retention",
    "repetition_penalty",
    "return_token_ids",
    "return_tokens_as_token_ids",
    "safety_identifier",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "stop_token_ids",
    "store",
    "top_k",
    "truncate_prompt_tokens",
    "user",
];
/// Without these the answer would be another one.
const REFUSED: [&str; 4] = ["continue_final_message", "echo", "resume_token_ids", "structured_outputs"];

/// The body for a provider that calls the model so.
///
/// # Errors
/// 400 for what a provider cannot do.
pub fn body(api: Api, body: &[u8], model: &str) -> Result<Vec<u8>, ApiError> {
    match api {
        Api::ChatCompletions | Api::Completions | Api::Embeddings => {}
        _ => {
            let message = "this model is served by a provider, which has no such API; ask another model";
            return Err(ApiError::new(400, "invalid_request_error", message).with_code("unsupported_task"));
        }
    }
    let fields: serde_json::Map<String, Value> = serde_json::from_slice(body).map_err(unreadable)?;
    let asks = |name: &str| match fields.get(name) {
        None | Some(Value::Null | Value::Bool(false)) => false,
        Some(Value::Array(items)) => !items.is_empty(),
        Some(_) => true,
    };
    if let Some(field) = REFUSED.into_iter().find(|field| asks(field)) {
        return Err(unsupported(field));
    }
    if api == Api::Completions && has_tokens(fields.get("prompt")) {
        let message = "prompt is of token ids, but this model is served by a provider with tokens of its own; send text";
        return Err(ApiError::invalid("prompt", message).with_code("unsupported_parameter"));
    }
    let mut changes: Vec<Change<'_>> = LEFT_OUT.iter().chain(&REFUSED).map(|field| (*field, None)).collect();
    changes.push(("model", Some(Value::from(model).to_string())));
    if let Some(Value::Object(options)) = fields.get("stream_options") {
        let mut options = options.clone();
        if options.remove("continuous_usage_stats").is_some() {
            changes.push(("stream_options", Some(Value::Object(options).to_string())));
        }
    }
    rewritten(body, &changes).map_err(unreadable)
}

fn unsupported(field: &str) -> ApiError {
    let message =
        format!("{field} is not supported by this model's provider; leave it out, or ask another model");
    ApiError::invalid(field, message).with_code("unsupported_parameter")
}

fn unreadable(error: serde_json::Error) -> ApiError {
    ApiError::bad_request(format!("the request body is not valid JSON: {error}; correct it there"))
}

/// Whether a prompt is of token ids, alone or among several.
fn has_tokens(prompt: Option<&Value>) -> bool {
    let Some(Value::Array(items)) = prompt else { return false };
    items.iter().any(|item| item.is_number() || item.is_array())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn sent(api: Api, request: &Value) -> Result<Value, ApiError> {
        let body = body(api, request.to_string().as_bytes(), "gpt-x")?;
        Ok(serde_json::from_slice(&body).expect("JSON"))
    }

    #[test]
    fn what_only_our_pods_know_and_who_asks_stays_here() {
        let request = json!({"model": "chat", "messages": [], "temperature": 0.5, "top_k": 5, "user": "ann", "cache_salt": "x",
            "echo": false, "structured_outputs": null, "stream_options": {"include_usage": true, "continuous_usage_stats": true},
            "tools": [{"user": 1}]});
        let expected = json!({"model": "gpt-x", "messages": [], "temperature": 0.5,
            "stream_options": {"include_usage": true}, "tools": [{"user": 1}]});
        assert_eq!(sent(Api::ChatCompletions, &request).expect("a body"), expected);
    }

    #[test]
    fn what_would_be_another_answer_is_refused_by_name() {
        for (api, request, param) in [
            (Api::ChatCompletions, json!({"structured_outputs": {"regex": "a"}}), "structured_outputs"),
            (Api::ChatCompletions, json!({"resume_token_ids": [1]}), "resume_token_ids"),
            (Api::Completions, json!({"echo": true}), "echo"),
            (Api::Completions, json!({"prompt": [1, 2]}), "prompt"),
            (Api::Completions, json!({"prompt": [[1], [2]]}), "prompt"),
        ] {
            let error = sent(api, &request).expect_err("refused");
            assert_eq!((error.status, error.param.as_deref()), (400, Some(param)), "{error}");
        }
        assert_eq!(
            sent(Api::Tokenize, &json!({})).expect_err("refused").code.as_deref(),
            Some("unsupported_task")
        );
    }
}
