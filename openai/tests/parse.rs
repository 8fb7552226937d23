//! What clients may send, and what they are told when it is wrong.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use fairlead_openai::chat::MessageContent;
use fairlead_openai::{ApiError, ChatCompletionRequest, CompletionRequest, Prompt};
use proptest::prelude::*;
use serde_json::{Value, json};

fn chat(extra: Value) -> Result<ChatCompletionRequest, ApiError> {
    let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
    for (key, value) in extra.as_object().unwrap() {
        body[key] = value.clone();
    }
    ChatCompletionRequest::from_value(&body)
}

fn completion(extra: Value) -> Result<CompletionRequest, ApiError> {
    let mut body = json!({"model": "m", "prompt": "hi"});
    for (key, value) in extra.as_object().unwrap() {
        body[key] = value.clone();
    }
    CompletionRequest::from_value(&body)
}

#[test]
fn reads_a_full_chat_request() {
    let request = chat(json!({
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        ],
        "stream": true, "stream_options": {"include_usage": true}, "stop": "END", "seed": -7, "temperature": 0.5,
        "top_p": 0.9, "top_k": 40, "max_tokens": 5, "max_completion_tokens": 6, "logprobs": true, "top_logprobs": 3,
        "ignore_eos": true, "n": 1, "user": "u", "tools": [], "response_format": {"type": "text"}, "unknown": 1,
        "frequency_penalty": 0, "logit_bias": {}, "presence_penalty": null,
    }))
    .unwrap();
    assert_eq!(request.unsupported(), None);
    assert_eq!(request.messages[1].content.as_ref().map(MessageContent::text), Some("a\nb".to_owned()));
    assert_eq!(request.options.max_tokens, Some(6));
    assert_eq!(request.options.stop, ["END"]);
    assert_eq!(request.options.seed, Some(-7));
    assert_eq!(request.options.top_k, Some(40));
    assert!(request.options.stream && request.options.include_usage && request.options.ignore_eos);
    assert!(request.logprobs);
    assert_eq!(request.top_logprobs, 3);
}

#[test]
fn reads_every_kind_of_prompt() {
    let prompts = |prompt: Value| completion(json!({ "prompt": prompt })).unwrap().prompts;
    assert_eq!(prompts(json!("a")), [Prompt::Text("a".into())]);
    assert_eq!(prompts(json!(["a", "b"])), [Prompt::Text("a".into()), Prompt::Text("b".into())]);
    assert_eq!(prompts(json!([1, 2])), [Prompt::Tokens(vec![1, 2])]);
    assert_eq!(prompts(json!([[1], [2, 3]])), [Prompt::Tokens(vec![1]), Prompt::Tokens(vec![2, 3])]);
}

#[test]
fn names_the_wrong_field_and_the_remedy() {
    let cases: Vec<(Value, &str, &str)> = vec![
        (json!({"max_tokens": -1}), "max_tokens", "max_tokens must be an integer of at least 1, but is -1"),
        (json!({"max_tokens": 1.5}), "max_tokens", "but is 1.5"),
        (json!({"max_completion_tokens": 0}), "max_completion_tokens", "at least 1, but is 0"),
        (json!({"temperature": 2.5}), "temperature", "temperature must be a number from 0 to 2, but is 2.5"),
        (json!({"temperature": "hot"}), "temperature", "but is the string \"hot\""),
        (json!({"top_p": 0}), "top_p", "top_p must be above 0"),
        (json!({"top_k": -2}), "top_k", "at least -1"),
        (json!({"messages": []}), "messages", "messages is empty; send at least one message"),
        (json!({"messages": null}), "messages", "messages is required"),
        (json!({"messages": "hi"}), "messages", "messages must be an array"),
        (json!({"messages": [1]}), "messages[0]", "messages[0] must be an object, but is 1"),
        (
            json!({"messages": [{"role": "user", "content": 5}]}),
            "messages[0].content",
            "messages[0].content must be a string or an array of text parts, but is 5",
        ),
        (json!({"messages": [{"role": "user"}]}), "messages[0].content", "is required"),
        (
            json!({"messages": [{"role": "king", "content": ""}]}),
            "messages[0].role",
            "but is the string \"king\"",
        ),
        (json!({"messages": [{"content": ""}]}), "messages[0].role", "messages[0].role is required"),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "text"}]}]}),
            "messages[0].content[0].text",
            "is required",
        ),
        (json!({"model": ""}), "model", "GET /v1/models"),
        (json!({"model": 5}), "model", "model must be a string, but is 5"),
        (json!({"stream": "yes"}), "stream", "stream must be true or false"),
        (json!({"stream_options": {"include_usage": true}}), "stream_options", "set stream to true"),
        (json!({"stop": ["a", ""]}), "stop[1]", "non-empty string"),
        (json!({"stop": ["a", "b", "c", "d", "e"]}), "stop", "at most 4"),
        (json!({"stop": 5}), "stop", "stop must be a non-empty string or an array"),
        (json!({"seed": 0.5}), "seed", "seed must be an integer, but is 0.5"),
        (json!({"top_logprobs": 2}), "top_logprobs", "set logprobs to true"),
        (json!({"logprobs": true, "top_logprobs": 21}), "top_logprobs", "from 0 to 20"),
        (json!({"n": 0}), "n", "from 1 to 128"),
        (json!({"tools": {}}), "tools", "tools must be an array"),
        (json!({"response_format": {}}), "response_format.type", "is required"),
    ];
    for (extra, param, message) in cases {
        let error = chat(extra.clone()).expect_err(&extra.to_string());
        assert_eq!(error.status, 400, "{extra}");
        assert_eq!(error.param.as_deref(), Some(param), "{extra}");
        assert!(error.message.contains(message), "{extra}: {}", error.message);
        assert!(error.message.contains(param), "{extra}: {}", error.message);
    }
    let cases: Vec<(Value, &str, &str)> = vec![
        (json!({"prompt": null}), "prompt", "prompt is required"),
        (json!({"prompt": []}), "prompt", "empty array"),
        (json!({"prompt": [[]]}), "prompt[0]", "empty array"),
        (json!({"prompt": [1, "a"]}), "prompt[1]", "a token id"),
        (json!({"prompt": ["a", 1]}), "prompt[1]", "a string or an array of token ids"),
        (json!({"prompt": [-1]}), "prompt[0]", "but is -1"),
        (json!({"max_tokens": 0}), "max_tokens", "at least 1"),
        (json!({"logprobs": true}), "logprobs", "an integer from 0 to 20, but is true"),
    ];
    for (extra, param, message) in cases {
        let error = completion(extra.clone()).expect_err(&extra.to_string());
        assert_eq!(error.param.as_deref(), Some(param), "{extra}");
        assert!(error.message.contains(message), "{extra}: {}", error.message);
    }
    assert_eq!(completion(json!({"max_tokens": 0, "echo": true})).unwrap().options.max_tokens, Some(0));
}

#[test]
fn malformed_json_is_placed_by_line_and_column() {
    let error = ChatCompletionRequest::from_slice(b"{\n  \"model\": ,\n}").unwrap_err();
    assert_eq!(error.status, 400);
    assert!(error.message.contains("line 2 column 12"), "{}", error.message);
    assert!(ChatCompletionRequest::from_slice(b"").unwrap_err().message.contains("empty"));
    assert!(ChatCompletionRequest::from_slice(b"[1]").unwrap_err().message.contains("must be a JSON object"));
    let deep = "[".repeat(100_000);
    assert_eq!(ChatCompletionRequest::from_slice(deep.as_bytes()).unwrap_err().status, 400);
}

#[test]
fn what_the_engine_cannot_do_parses_but_is_named_as_unsupported() {
    let image = json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]);
    let call = json!([{"role": "assistant", "content": null, "tool_calls": [{"id": "1"}]}]);
    for (extra, param) in [
        (json!({"tools": [{"type": "function"}]}), "tools"),
        (json!({"tool_choice": "required"}), "tool_choice"),
        (json!({"response_format": {"type": "json_object"}}), "response_format"),
        (json!({"frequency_penalty": 0.5}), "frequency_penalty"),
        (json!({"presence_penalty": -0.5}), "presence_penalty"),
        (json!({"repetition_penalty": 1.1}), "repetition_penalty"),
        (json!({"min_p": 0.1}), "min_p"),
        (json!({"logit_bias": {"5": 1}}), "logit_bias"),
        (json!({"n": 2}), "n"),
        (json!({ "messages": image }), "messages[0].content[0].type"),
        (json!({ "messages": call }), "messages[0].tool_calls"),
    ] {
        let error = chat(extra.clone()).unwrap().unsupported().expect(param);
        assert_eq!((error.status, error.param.as_deref()), (400, Some(param)), "{extra}");
        assert!(error.message.starts_with(param), "{}", error.message);
    }
    for (extra, param) in [(json!({"best_of": 2}), "best_of"), (json!({"suffix": "x"}), "suffix")] {
        assert_eq!(completion(extra).unwrap().unsupported().unwrap().param.as_deref(), Some(param));
    }
}

#[test]
fn errors_have_openais_shape() {
    let error = ApiError::context_length_exceeded("messages", 90, 20, 100);
    let body: Value = serde_json::from_str(&error.to_json()).unwrap();
    assert_eq!(body["error"]["type"], "invalid_request_error");
    assert_eq!(body["error"]["param"], "messages");
    assert_eq!(body["error"]["code"], "context_length_exceeded");
    let message = body["error"]["message"].as_str().unwrap();
    assert!(["90", "20", "100"].iter().all(|number| message.contains(number)), "{message}");
    let long = ApiError::model_not_found(&"é".repeat(5000), "x");
    assert!(long.message.len() < 600);
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
        prop_oneof!["user", "text", "none"].prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 48, 6, |inner| {
        let key = prop_oneof![
            Just("model"),
            Just("messages"),
            Just("prompt"),
            Just("role"),
            Just("content"),
            Just("type"),
            Just("text"),
            Just("stop"),
            Just("seed"),
            Just("max_tokens"),
            Just("temperature"),
            Just("top_k"),
            Just("logprobs"),
            Just("stream"),
            Just("stream_options"),
            Just("tools"),
            Just("response_format"),
            Just("n"),
            Just("echo"),
        ];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::vec((key, inner), 0..8)
                .prop_map(|pairs| Value::Object(pairs.into_iter().map(|(k, v)| (k.to_owned(), v)).collect())),
        ]
    })
}

#[test]
fn a_body_of_very_many_values_is_refused_before_they_are_made() {
    let completion = |prompt: String| {
        CompletionRequest::from_slice(format!(r#"{{"model": "m", "prompt": {prompt}}}"#).as_bytes())
    };
    let most = 1 << 20;
    for value in ["1", "{}", "[]", r#""""#] {
        let error = completion(format!("[{}]", vec![value; most].join(","))).unwrap_err();
        assert_eq!((error.status, error.code.as_deref()), (400, Some("too_many_values")), "{value}");
    }
    assert!(completion(format!("[{}]", vec!["1"; most - 100].join(","))).is_ok());
    // Within a string they are text.
    assert!(completion(format!(r#""{}""#, r#"\",[{"#.repeat(most))).is_ok());
}

proptest! {
    #[test]
    fn no_json_makes_parsing_panic(mut value in any_json(), fill in any::<bool>()) {
        if fill && let Some(object) = value.as_object_mut() {
            object.insert("model".into(), json!("m"));
        }
        let chat = ChatCompletionRequest::from_value(&value).err();
        for error in chat.into_iter().chain(CompletionRequest::from_value(&value).err()) {
            prop_assert_eq!(error.status, 400);
            prop_assert!(!error.message.is_empty());
        }
    }

    #[test]
    fn no_bytes_make_parsing_panic(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
        let _ = ChatCompletionRequest::from_slice(&bytes);
        let _ = CompletionRequest::from_slice(&bytes);
    }
}
