//! Several answers, answers of a given form and calls of tools, by a real model on a real pod.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod pod;

use pod::{Pod, make_model, usage};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

fn chat(extra: Value) -> Value {
    let mut body =
        json!({"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 120});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

/// A model whose chat template writes calls of tools as Qwen's does.
async fn pod_with_tools() -> Pod {
    let model = make_model();
    let template = "{{ bos_token }}{% for tool in tools or [] %}{{ tool.function.name }}\n{% endfor %}\
        {% for message in messages %}{{ message.role }}: {{ message.content }}{% for call in message.tool_calls or [] %}\
        <tool_call>\n{{ call.function | tojson }}\n</tool_call>{% endfor %}\n{% endfor %}";
    std::fs::write(model.path().join("chat_template.jinja"), template).unwrap();
    Pod::start_with(model, &[], &[]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn several_answers_are_those_of_seeds_in_a_row() {
    let pod = Pod::start(&[]).await;
    let sampled = |extra: Value| {
        let mut body = chat(json!({"temperature": 1.3, "max_tokens": 12, "ignore_eos": true}));
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        body
    };
    let (status, several) = pod.ask(CHAT, sampled(json!({"seed": 7, "n": 3}))).await;
    assert_eq!(status, 200, "{several}");
    let choices = several["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 3);
    for (index, choice) in choices.iter().enumerate() {
        assert_eq!(choice["index"], index);
        let (_, alone) = pod.ask(CHAT, sampled(json!({"seed": 7 + index}))).await;
        assert_eq!(choice["message"], alone["choices"][0]["message"]);
    }
    // The prompt is read once.
    assert_eq!(several["usage"], usage(13, 36));

    // In a stream the answers take turns.
    let options = json!({"include_usage": true});
    let body = sampled(json!({"seed": 7, "n": 3, "stream": true, "stream_options": options}));
    let chunks = pod.stream(CHAT, body).await;
    let mut texts = vec![String::new(); 3];
    for choice in chunks.iter().filter_map(|chunk| chunk["choices"].get(0)) {
        let index = usize::try_from(choice["index"].as_u64().unwrap()).unwrap();
        texts[index].push_str(choice["delta"]["content"].as_str().unwrap_or_default());
    }
    for (text, choice) in texts.iter().zip(choices) {
        assert_eq!(*text, choice["message"]["content"]);
    }
    assert_eq!(chunks.last().unwrap()["usage"], several["usage"]);

    // Several prompts, several answers each, with echo and log-probabilities.
    let body = json!({"model": "tiny", "prompt": ["ab", "cd"], "n": 2, "max_tokens": 3, "temperature": 1, "seed": 1,
        "echo": true, "logprobs": 1, "ignore_eos": true});
    let (status, many) = pod.ask(TEXT, body).await;
    assert_eq!(status, 200, "{many}");
    for (index, choice) in many["choices"].as_array().unwrap().iter().enumerate() {
        assert_eq!(choice["index"], index);
        assert!(choice["text"].as_str().unwrap().starts_with(["ab", "cd"][index / 2]), "{choice}");
        assert_eq!(choice["logprobs"]["tokens"].as_array().unwrap().len(), 3 + 3);
    }
    assert_eq!(many["usage"], usage(6, 12));
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_have_the_form_that_was_asked_for() {
    let pod = Pod::start(&[]).await;
    let content = async |extra: Value| {
        let (status, answer) = pod.ask(CHAT, chat(extra)).await;
        assert_eq!(status, 200, "{answer}");
        assert_eq!(answer["choices"][0]["finish_reason"], "stop", "{answer}");
        answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
    };
    let schema = json!({"type": "object", "additionalProperties": false, "required": ["city", "days"],
        "properties": {"city": {"enum": ["Rome", "Oslo"]}, "days": {"type": "integer", "minimum": 1, "maximum": 7}}});
    for seed in 0..4 {
        let format = json!({"type": "json_schema", "json_schema": {"name": "trip", "schema": schema}});
        let text = content(json!({"seed": seed, "response_format": format})).await;
        let trip: Value = serde_json::from_str(&text).unwrap();
        assert!(["Rome", "Oslo"].contains(&trip["city"].as_str().unwrap()), "{text}");
        assert!((1..=7).contains(&trip["days"].as_u64().unwrap()), "{text}");
        let text = content(json!({"seed": seed, "structured_outputs": {"choice": ["left", "right"]}})).await;
        assert!(["left", "right"].contains(&text.as_str()), "{text}");
        let text = content(json!({"seed": seed, "structured_outputs": {"regex": "[a-c]{3}-[0-9]{2}"}})).await;
        assert!(text.len() == 6 && text.as_bytes()[3] == b'-', "{text}");
        let text =
            content(json!({"seed": seed, "structured_outputs": {"grammar": "start: \"x\" \"y\""}})).await;
        assert_eq!(text, "xy");
    }
    for (extra, param) in [
        (json!({"structured_outputs": {"regex": "("}}), "structured_outputs.regex"),
        (json!({"structured_outputs": {"grammar": "no"}}), "structured_outputs.grammar"),
        (
            json!({"response_format": {"type": "json_schema",
                "json_schema": {"name": "n", "schema": {"type": "nothing"}}}}),
            "response_format.json_schema.schema",
        ),
    ] {
        let (status, answer) = pod.ask(CHAT, chat(extra)).await;
        assert_eq!((status, &answer["error"]["param"]), (400, &json!(param)), "{answer}");
    }
    let either = json!({"oneOf": [{"type": "number"}, {"type": "integer"}]});
    let format = json!({"type": "json_schema", "json_schema": {"name": "n", "schema": either}});
    let (_, refused) = pod.ask(CHAT, chat(json!({"response_format": format}))).await;
    assert!(refused["error"]["message"].as_str().unwrap().contains("use anyOf"), "{refused}");
    // An answer of a given form is resumed within it.
    let asked = chat(json!({"temperature": 0, "return_token_ids": true,
        "structured_outputs": {"regex": "[a-c]{3}-[0-9]{2}"}}));
    let (_, whole) = pod.ask(CHAT, asked.clone()).await;
    let mut resumed = asked;
    resumed["resume_token_ids"] = json!(whole["choices"][0]["token_ids"].as_array().unwrap()[..4]);
    let (_, rest) = pod.ask(CHAT, resumed.clone()).await;
    let (wanted, rest) = (&whole["choices"][0]["message"], &rest["choices"][0]["message"]);
    assert_eq!(rest["content"], wanted["content"].as_str().unwrap()[4..]);
    resumed["resume_token_ids"] = json!([60, 60]);
    assert_eq!(pod.ask(CHAT, resumed).await.0, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn tools_are_called_as_demanded() {
    let pod = pod_with_tools().await;
    let tool = |name: &str, key: &str| {
        let parameters = json!({"type": "object", "additionalProperties": false, "required": [key],
            "properties": {key: {"enum": [1, "two"]}}});
        json!({"type": "function", "function": {"name": name, "parameters": parameters}})
    };
    let tools = json!([tool("first", "a"), tool("second", "b")]);
    let named = json!({"type": "function", "function": {"name": "second"}});
    for (seed, choice) in (0..6).flat_map(|seed| [(seed, json!("required")), (seed, named.clone())]) {
        let asked =
            chat(json!({"tools": tools, "tool_choice": choice, "parallel_tool_calls": false, "seed": seed}));
        let (status, answer) = pod.ask(CHAT, asked.clone()).await;
        assert_eq!(status, 200, "{answer}");
        let message = &answer["choices"][0]["message"];
        assert_eq!(
            (&answer["choices"][0]["finish_reason"], &message["content"]),
            (&json!("tool_calls"), &Value::Null)
        );
        let calls = message["tool_calls"].as_array().unwrap();
        assert_eq!(calls.len(), 1);
        assert!(calls[0]["id"].as_str().unwrap().starts_with("call_"), "{calls:?}");
        let function = &calls[0]["function"];
        let arguments: Value = serde_json::from_str(function["arguments"].as_str().unwrap()).unwrap();
        let key = if function["name"] == "first" { "a" } else { "b" };
        assert!([json!(1), json!("two")].contains(&arguments[key]), "{function}");
        assert!(choice == "required" || function["name"] == "second");

        // The same in a stream.
        let mut streaming = asked;
        streaming["stream"] = json!(true);
        let chunks = pod.stream(CHAT, streaming).await;
        let (mut name, mut written) = (String::new(), String::new());
        for delta in
            chunks.iter().flat_map(|chunk| chunk["choices"][0]["delta"]["tool_calls"].as_array()).flatten()
        {
            assert_eq!(delta["index"], 0);
            name.push_str(delta["function"]["name"].as_str().unwrap_or_default());
            written.push_str(delta["function"]["arguments"].as_str().unwrap_or_default());
        }
        assert_eq!((json!(name), json!(written)), (function["name"].clone(), function["arguments"].clone()));
        assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "tool_calls");

        // And on with the result.
        let messages = json!([{"role": "user", "content": "hello"}, message, {"role": "tool", "content": "3",
            "tool_call_id": calls[0]["id"]}]);
        let (status, answer) =
            pod.ask(CHAT, chat(json!({"messages": messages, "tools": tools, "max_tokens": 3}))).await;
        assert_eq!(status, 200, "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_has_its_form_or_is_a_call_as_the_model_likes() {
    let pod = pod_with_tools().await;
    let parameters = json!({"type": "object", "additionalProperties": false, "required": ["a"],
        "properties": {"a": {"enum": [1, 2]}}});
    let tools = json!([{"type": "function", "function": {"name": "first", "parameters": parameters}}]);
    let schema = json!({"type": "object", "additionalProperties": false, "required": ["city"],
        "properties": {"city": {"enum": ["Rome", "Oslo"]}}});
    let format = json!({"type": "json_schema", "json_schema": {"name": "trip", "schema": schema}});
    // `<` opens a call and `{` the form; which of them is likelier decides.
    let [call, form] = ['<', '{'].map(|letter| (u32::from(letter) - 31).to_string());
    let ask = |likely: &str, extra: Value| {
        let mut body =
            chat(json!({"tools": tools, "response_format": format, "logit_bias": {likely: 100}, "seed": 3}));
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        pod.ask(CHAT, body)
    };
    let (status, formed) = ask(&form, json!({})).await;
    assert_eq!(status, 200, "{formed}");
    let choice = &formed["choices"][0];
    assert_eq!((&choice["finish_reason"], &choice["message"]["tool_calls"]), (&json!("stop"), &Value::Null));
    let trip: Value = serde_json::from_str(choice["message"]["content"].as_str().unwrap()).unwrap();
    assert!(["Rome", "Oslo"].contains(&trip["city"].as_str().unwrap()), "{formed}");

    let (status, called) = ask(&call, json!({"parallel_tool_calls": false})).await;
    assert_eq!(status, 200, "{called}");
    let choice = &called["choices"][0];
    assert_eq!(
        (&choice["finish_reason"], &choice["message"]["content"]),
        (&json!("tool_calls"), &Value::Null)
    );
    let function = &choice["message"]["tool_calls"][0]["function"];
    let arguments: Value = serde_json::from_str(function["arguments"].as_str().unwrap()).unwrap();
    assert!(function["name"] == "first" && [1, 2].map(Value::from).contains(&arguments["a"]), "{called}");

    // Without calls the form simply holds.
    let (status, formed) = ask(&call, json!({"tool_choice": "none"})).await;
    assert_eq!(status, 200, "{formed}");
    let trip: Value =
        serde_json::from_str(formed["choices"][0]["message"]["content"].as_str().unwrap()).unwrap();
    assert!(trip["city"].is_string(), "{formed}");
    // Of a schema that cannot be kept to it is said where it may stand.
    let wrong = json!([{"type": "function", "function": {"name": "f", "parameters": {"not": {}}}}]);
    let (status, refused) = ask(&form, json!({"tools": wrong})).await;
    let message = refused["error"]["message"].as_str().unwrap();
    assert!(
        status == 400 && message.contains("or tools: these keywords are not supported: not"),
        "{message}"
    );
}
