//! What clients may send, and what they are told when it is wrong.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use fairlead_openai::chat::MessageContent;
use fairlead_openai::tokenize::TokenizeInput;
use fairlead_openai::{
    ApiError, ChatCompletionRequest, CompletionRequest, DetokenizeRequest, OutputForm, Prompt,
    TokenizeRequest, ToolChoice, Usage,
};
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
        "frequency_penalty": 0, "logit_bias": {}, "presence_penalty": null, "store": true, "metadata": {"a": "b"},
        "service_tier": "auto", "best_of": 1,
    }))
    .unwrap();
    assert_eq!(request.unsupported(), None);
    assert_eq!(
        request.prompt.messages[1].content.as_ref().map(MessageContent::text),
        Some("a\nb".to_owned())
    );
    assert_eq!(request.options.max_tokens, Some(6));
    assert_eq!(request.options.stop, ["END"]);
    assert_eq!(request.options.sampling.seed, Some(-7));
    assert_eq!(request.options.sampling.top_k, Some(40));
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
        (json!({"stop": vec!["a"; 17]}), "stop", "at most 16"),
        (json!({"stop": 5}), "stop", "stop must be a non-empty string or an array"),
        (json!({"seed": 0.5}), "seed", "seed must be an integer, but is 0.5"),
        (
            json!({"seed": 1e20}),
            "seed",
            "seed must be an integer from -9223372036854775808 to 9223372036854775807",
        ),
        (json!({"seed": u64::MAX}), "seed", "to 9223372036854775807, but is 18446744073709551615"),
        (json!({"max_tokens": 1.2e29}), "max_tokens", "an integer from 1 to 4294967295, but is 1.2e+29"),
        (json!({"max_tokens": -1.2e29}), "max_tokens", "an integer of at least 1, but is -1.2e+29"),
        (json!({"n": 1e300}), "n", "an integer from 1 to 128, but is 1e+300"),
        (json!({"stop_token_ids": [1e20]}), "stop_token_ids[0]", "from 0 to 4294967295"),
        (json!({"top_logprobs": 2}), "top_logprobs", "set logprobs to true"),
        (json!({"logprobs": true, "top_logprobs": 21}), "top_logprobs", "from 0 to 20"),
        (json!({"n": 0}), "n", "from 1 to 128"),
        (json!({"tools": {}}), "tools", "tools must be an array"),
        (json!({"response_format": {}}), "response_format.type", "is required"),
        (json!({"response_format": {"type": "yaml"}}), "response_format.type", "\"json_schema\""),
        (json!({"response_format": {"type": "json_schema"}}), "response_format.json_schema", "is required"),
        (
            json!({"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}}),
            "response_format.json_schema.name",
            "is required",
        ),
        (
            json!({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": 1}}}),
            "response_format.json_schema.schema",
            "a JSON schema object",
        ),
        (json!({"structured_outputs": {}}), "structured_outputs", "must have one of"),
        (json!({"structured_outputs": {"regex": "a", "choice": ["a"]}}), "structured_outputs", "send one"),
        (json!({"structured_outputs": {"regex": ""}}), "structured_outputs.regex", "is empty"),
        (json!({"structured_outputs": {"grammar": 5}}), "structured_outputs.grammar", "a string"),
        (json!({"structured_outputs": {"choice": []}}), "structured_outputs.choice", "1 to 1024"),
        (json!({"structured_outputs": {"choice": [1]}}), "structured_outputs.choice[0]", "non-empty string"),
        (json!({"structured_outputs": {"json": "{"}}), "structured_outputs.json", "is not JSON"),
        (json!({"structured_outputs": {"json": "5"}}), "structured_outputs.json", "a JSON schema"),
        (
            json!({"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}}),
            "structured_outputs",
            "send one of them",
        ),
        (
            json!({"structured_outputs": {"regex": "a"}, "ignore_eos": true}),
            "ignore_eos",
            "where the form ends",
        ),
        (
            json!({"response_format": {"type": "json_object"}, "min_tokens": 3}),
            "min_tokens",
            "may end earlier",
        ),
        (
            json!({"structured_outputs": {"choice": ["a"]}, "min_tokens": 1}),
            "min_tokens",
            "structured_outputs.choice",
        ),
        (
            json!({"tools": [tool("f")], "tool_choice": "required", "ignore_eos": true}),
            "ignore_eos",
            "(tool_choice) ends where the form ends",
        ),
        (
            json!({"tools": [tool("f")], "tool_choice": {"type": "function", "function": {"name": "f"}}, "min_tokens": 2}),
            "min_tokens",
            "(tool_choice) may end earlier",
        ),
        (
            json!({"stream": true, "stream_options": {"continuous_usage_stats": true}}),
            "stream_options.continuous_usage_stats",
            "set include_usage to true",
        ),
        (json!({"min_p": 1.5}), "min_p", "from 0 to 1"),
        (json!({"repetition_penalty": 0}), "repetition_penalty", "above 0"),
        (json!({"repetition_penalty": 1e-300}), "repetition_penalty", "above 0"),
        (json!({"presence_penalty": 2.5}), "presence_penalty", "from -2 to 2"),
        (json!({"frequency_penalty": "x"}), "frequency_penalty", "but is the string"),
        (json!({"logit_bias": [1]}), "logit_bias", "an object"),
        (json!({"logit_bias": {"a": 1}}), "logit_bias", "\"42\""),
        (json!({"logit_bias": {"07": 1}}), "logit_bias", "\"42\""),
        (json!({"logit_bias": {"7": 101}}), "logit_bias.7", "from -100 to 100"),
        (json!({"min_tokens": 5, "max_tokens": 4}), "min_tokens", "lower it"),
        (json!({"min_tokens": -1}), "min_tokens", "at least 0"),
        (json!({"n": 129}), "n", "from 1 to 128"),
        (json!({"stop": "x".repeat(2000)}), "stop", "shorten it"),
        (json!({"stop_token_ids": [-1]}), "stop_token_ids[0]", "a token id"),
        (json!({"cache_salt": ""}), "cache_salt", "1 to 256 bytes"),
        (json!({"cache_salt": "x".repeat(257)}), "cache_salt", "1 to 256 bytes"),
        (json!({"priority": 1_u64 << 40}), "priority", "priority must be an integer from -8 to 8"),
        (json!({"priority": 9}), "priority", "an integer from -8 to 8, but is 9"),
        (json!({"priority": -9}), "priority", "an integer from -8 to 8, but is -9"),
        (json!({"max_completion_tokens": 3, "min_tokens": 4}), "min_tokens", "(max_completion_tokens)"),
        (json!({"resume_token_ids": [1], "n": 2}), "resume_token_ids", "set n to 1"),
        (json!({"resume_token_ids": [1, 2], "max_tokens": 2}), "resume_token_ids", "none is left"),
        (json!({"tools": [{"type": "x"}]}), "tools[0].type", "\"function\""),
        (json!({"tools": [{"type": "function"}]}), "tools[0].function", "is required"),
        (
            json!({"tools": [{"type": "function", "function": {"name": "a b"}}]}),
            "tools[0].function.name",
            "letters, digits",
        ),
        (json!({"tools": [tool("f"), tool("f")]}), "tools[1].function.name", "rename one"),
        (json!({"tools": vec![tool("f"); 129]}), "tools", "at most 128"),
        (json!({"tools": [tool("f")], "tool_choice": "maybe"}), "tool_choice", "\"required\""),
        (json!({"tool_choice": "required"}), "tool_choice", "there are no tools"),
        (
            json!({"tools": [tool("f")], "tool_choice": {"type": "function", "function": {"name": "g"}}}),
            "tool_choice.function.name",
            "not among tools",
        ),
        (
            json!({"tools": [tool("f")], "tool_choice": "required", "response_format": {"type": "json_object"}}),
            "response_format",
            "leave one out",
        ),
        (
            json!({"tools": [tool("f")], "structured_outputs": {"regex": "a"}}),
            "structured_outputs.regex",
            "leave one out",
        ),
        (
            json!({"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]}),
            "messages[0].tool_calls[0].function.arguments",
            "is not JSON",
        ),
        (
            json!({"messages": [{"role": "user", "content": "", "tool_calls": [{"function": {"name": "f"}}]}]}),
            "messages[0].tool_calls",
            "assistant's message",
        ),
        (json!({"continue_final_message": true}), "continue_final_message", "as the last message"),
        (
            json!({"continue_final_message": true, "add_generation_prompt": true}),
            "continue_final_message",
            "set one of them",
        ),
        (json!({"chat_template_kwargs": 5}), "chat_template_kwargs", "an object"),
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
        (json!({"max_tokens": 0}), "max_tokens", "at least 1, but is 0; 0 is for echo"),
        (json!({"echo": true, "max_tokens": -1}), "max_tokens", "at least 0"),
        (json!({"logprobs": true}), "logprobs", "an integer from 0 to 20, but is true"),
        (json!({"prompt": vec!["a"; 100], "n": 128}), "n", "make 12800"),
        (json!({"n": 2, "max_tokens": 0, "echo": true}), "n", "set n to 1"),
        (json!({"prompt": ["a", "b"], "resume_token_ids": [1]}), "resume_token_ids", "several prompts"),
        (json!({"echo": true, "resume_token_ids": [1]}), "resume_token_ids", "leave echo out"),
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
fn reads_what_vllm_adds() {
    let request = chat(json!({
        "min_p": 0.1, "repetition_penalty": 1.1, "presence_penalty": -0.5, "frequency_penalty": 0.25, "n": 3, "best_of": 3,
        "logit_bias": {"5": -100, "42": 1.5}, "min_tokens": 2, "max_tokens": 9, "include_stop_str_in_output": true,
        "stop_token_ids": [7], "stream": true, "return_token_ids": true, "cache_salt": "tenant", "priority": -3,
        "stream_options": {"include_usage": true, "continuous_usage_stats": true},
        "chat_template_kwargs": {"enable_thinking": false}, "add_generation_prompt": false,
    }))
    .unwrap();
    assert_eq!(request.unsupported(), None);
    let (options, sampling) = (&request.options, &request.options.sampling);
    assert_eq!((sampling.min_p, sampling.repetition_penalty), (Some(0.1), Some(1.1)));
    assert_eq!((sampling.presence_penalty, sampling.frequency_penalty), (Some(-0.5), Some(0.25)));
    assert_eq!(sampling.logit_bias, [(5, -100.0), (42, 1.5)]);
    assert_eq!((options.n, options.min_tokens, options.priority), (3, 2, -3));
    assert_eq!(options.cache_salt.as_deref(), Some("tenant"));
    assert!(options.include_stop && options.return_token_ids);
    assert!(options.include_usage && options.continuous_usage);
    assert!(!request.prompt.add_generation_prompt);
    let resumed = completion(json!({"resume_token_ids": [1, 2], "max_tokens": 3})).unwrap();
    assert_eq!(resumed.options.resume_token_ids, [1, 2]);
}

#[test]
fn reads_forms_of_answers() {
    let form = |extra: Value| chat(extra).unwrap().options.form.unwrap();
    let schema = json!({"type": "object"});
    let named =
        json!({"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": true}});
    assert_eq!(form(json!({ "response_format": named })).form, OutputForm::JsonSchema(schema.clone()));
    assert_eq!(form(json!({"response_format": {"type": "json_object"}})).form, OutputForm::JsonObject);
    for (outputs, wanted) in [
        (json!({ "json": schema }), OutputForm::JsonSchema(schema.clone())),
        (json!({"json": schema.to_string()}), OutputForm::JsonSchema(schema.clone())),
        (json!({"json_object": true}), OutputForm::JsonObject),
        (json!({"regex": "a+", "json_object": false}), OutputForm::Regex("a+".into())),
        (json!({"choice": ["a", "b"]}), OutputForm::Choice(vec!["a".into(), "b".into()])),
        (json!({"grammar": "start: \"a\""}), OutputForm::Grammar("start: \"a\"".into())),
    ] {
        let found = form(json!({ "structured_outputs": outputs }));
        assert_eq!(found.form, wanted);
        assert!(found.param.starts_with("structured_outputs."));
    }
}

fn tool(name: &str) -> Value {
    json!({"type": "function", "function": {"name": name, "description": "d", "parameters": {"type": "object"}}})
}

#[test]
fn reads_tools_and_their_calls() {
    let request = chat(json!({
        "messages": [
            {"role": "user", "content": "weather?"},
            {"role": "assistant", "content": null, "tool_calls": [
                {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}},
                {"id": "call_2", "type": "function", "function": {"name": "g", "arguments": ""}},
            ]},
            {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
        ],
        "tools": [tool("f"), tool("g")], "tool_choice": "required", "parallel_tool_calls": false,
    }))
    .unwrap();
    assert_eq!(request.unsupported(), None);
    let prompt = &request.prompt;
    assert_eq!(prompt.messages[1].tool_calls[0].function.arguments, "{\"a\": 1}");
    assert_eq!(prompt.messages[1].tool_calls[1].function.arguments, "{}");
    assert_eq!(prompt.messages[2].tool_call_id.as_deref(), Some("call_1"));
    assert_eq!(prompt.tools.tools[0].raw, tool("f"));
    assert_eq!((&prompt.tools.choice, prompt.tools.parallel), (&ToolChoice::Required, false));
    let choice =
        |value: Value| chat(json!({"tools": [tool("f")], "tool_choice": value})).unwrap().prompt.tools.choice;
    assert_eq!(choice(Value::Null), ToolChoice::Auto);
    assert_eq!(choice(json!("none")), ToolChoice::None);
    assert_eq!(choice(json!({"type": "function", "function": {"name": "f"}})), ToolChoice::Named("f".into()));
    assert_eq!(chat(json!({})).unwrap().prompt.tools.choice, ToolChoice::None);
}

#[test]
fn a_final_message_is_continued() {
    let messages = json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "Once"}]);
    let prompt = chat(json!({"messages": messages, "continue_final_message": true})).unwrap().prompt;
    assert!(prompt.continue_final_message && !prompt.add_generation_prompt);
}

#[test]
fn reads_requests_to_tokenize() {
    let tokenize = |value: Value| TokenizeRequest::from_value(&value);
    let text = tokenize(json!({"model": "m", "prompt": "a", "return_token_strs": true})).unwrap();
    assert_eq!(text.input, TokenizeInput::Text { prompt: "a".into(), add_special_tokens: true });
    assert!(text.return_token_strs);
    let chat = tokenize(json!({"model": "m", "messages": [{"role": "user", "content": "a"}]})).unwrap();
    assert!(matches!(chat.input, TokenizeInput::Chat { add_special_tokens: false, .. }));
    for (value, param) in [
        (json!({"model": "m"}), "prompt"),
        (json!({"model": "m", "prompt": 5}), "prompt"),
        (json!({"model": "m", "prompt": "a", "messages": []}), "prompt"),
        (json!({"model": "m", "messages": []}), "messages"),
        (json!({"prompt": "a"}), "model"),
        (json!({"model": "m", "messages": "x"}), "messages"),
    ] {
        assert_eq!(tokenize(value.clone()).unwrap_err().param.as_deref(), Some(param), "{value}");
    }
    // Who has one model need not be told which.
    let alone = TokenizeRequest::from_slice_for(b"{\"prompt\": \"a\"}", "only").unwrap();
    assert_eq!(alone.model, "only");
    let named = TokenizeRequest::from_slice_for(b"{\"prompt\": \"a\", \"model\": \"m\"}", "only").unwrap();
    assert_eq!(named.model, "m");
    assert_eq!(DetokenizeRequest::from_slice_for(b"{\"tokens\": [1]}", "only").unwrap().model, "only");
    let detokenize = |value: Value| DetokenizeRequest::from_value(&value);
    assert_eq!(detokenize(json!({"model": "m", "tokens": [1, 2]})).unwrap().tokens, [1, 2]);
    for tokens in [Value::Null, json!("a"), json!([-1]), json!([0.5])] {
        let error = detokenize(json!({"model": "m", "tokens": tokens})).unwrap_err();
        assert!(error.param.unwrap().starts_with("tokens"));
    }
}

#[test]
fn what_the_engine_cannot_do_parses_but_is_named_as_unsupported() {
    let image = json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]);
    let old_call = json!([{"role": "assistant", "content": "", "function_call": {"name": "f"}}]);
    for (extra, param) in [
        (json!({"functions": [{"name": "f"}]}), "functions"),
        (json!({"function_call": "auto"}), "function_call"),
        (json!({"tools": [tool("f")], "tool_choice": {"type": "allowed_tools"}}), "tool_choice"),
        (json!({"guided_json": {}}), "guided_json"),
        (json!({"structured_outputs": {"structural_tag": "x"}}), "structured_outputs.structural_tag"),
        (json!({"best_of": 2}), "best_of"),
        (json!({"audio": {}}), "audio"),
        (json!({"modalities": ["text", "audio"]}), "modalities"),
        (json!({ "messages": image }), "messages[0].content[0].type"),
        (json!({ "messages": old_call }), "messages[0].function_call"),
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
fn what_would_change_the_answer_is_refused_unless_it_changes_nothing() {
    // With a value that asks for something, and the values that ask for nothing.
    let both = [
        ("bad_words", json!(["x"]), vec![json!([])]),
        ("allowed_token_ids", json!([1]), vec![]),
        ("prompt_logprobs", json!(0), vec![json!(false)]),
        ("truncate_prompt_tokens", json!(5), vec![]),
        ("use_beam_search", json!(true), vec![json!(false)]),
        ("best_of", json!(4), vec![json!(1)]),
        ("length_penalty", json!(0.8), vec![json!(1), json!(1.0)]),
        ("skip_special_tokens", json!(false), vec![json!(true)]),
        ("spaces_between_special_tokens", json!(false), vec![json!(true)]),
        ("logits_processors", json!(["x"]), vec![json!([])]),
        ("return_tokens_as_token_ids", json!(true), vec![json!(false)]),
        ("thinking_token_budget", json!(10), vec![]),
        ("guided_whitespace_pattern", json!(" "), vec![]),
    ];
    let chats = [
        ("echo", json!(true), vec![json!(false)]),
        ("chat_template", json!("{{ x }}"), vec![]),
        ("documents", json!([{"text": "x"}]), vec![json!([])]),
        ("web_search_options", json!({}), vec![]),
        ("audio", json!({}), vec![]),
        ("modalities", json!(["audio"]), vec![json!(["text"])]),
        ("add_special_tokens", json!(true), vec![json!(false)]),
    ];
    let completions = [
        ("suffix", json!("x"), vec![json!("")]),
        ("max_completion_tokens", json!(5), vec![]),
        ("prompt_embeds", json!("x"), vec![]),
        ("add_special_tokens", json!(false), vec![json!(true)]),
    ];
    type Asked = fn(Value) -> Option<ApiError>;
    let by_chat: Asked = |extra| chat(extra).unwrap().unsupported();
    let by_completion: Asked = |extra| completion(extra).unwrap().unsupported();
    for (asked, fields) in
        [(by_chat, &both[..]), (by_completion, &both), (by_chat, &chats), (by_completion, &completions)]
    {
        for (key, wanted, nothing) in fields {
            let error = asked(json!({ *key: wanted })).expect(key);
            assert_eq!((error.status, error.param.as_deref()), (400, Some(*key)));
            assert_eq!(error.code.as_deref(), Some("unsupported_parameter"));
            assert!(error.message.starts_with(&format!("{key} is not supported")), "{}", error.message);
            for value in nothing.iter().chain([&Value::Null]) {
                assert_eq!(asked(json!({ *key: value })), None, "{key}: {value}");
            }
        }
    }
    // Prompts are the same for /tokenize.
    for key in ["chat_template", "documents"] {
        let body = json!({"model": "m", "messages": [{"role": "user", "content": "a"}], key: ["x"]});
        assert!(TokenizeRequest::from_value(&body).unwrap().unsupported().is_some(), "{key}");
    }
}

#[test]
fn what_only_hints_is_accepted() {
    let hints = json!({"prediction": {"type": "content", "content": "x"}, "reasoning_effort": "high", "verbosity": "low", "metadata": {"a": "b"}, "store": true, "user": "u",
        "safety_identifier": "s", "service_tier": "flex", "prompt_cache_key": "k", "prompt_cache_retention": "24h"});
    assert_eq!(chat(hints.clone()).unwrap().unsupported(), None);
    assert_eq!(completion(hints).unwrap().unsupported(), None);
}

#[test]
fn limits_are_reached_and_not_crossed() {
    let options = |extra: Value| chat(extra).unwrap().options;
    assert_eq!(options(json!({"priority": 8})).priority, 8);
    assert_eq!(options(json!({"priority": -8.0})).priority, -8);
    assert_eq!(options(json!({"stop": vec!["x"; 16]})).stop.len(), 16);
    assert_eq!(options(json!({"seed": 1e16})).sampling.seed, Some(10_000_000_000_000_000));
    assert_eq!(options(json!({"seed": i64::MIN})).sampling.seed, Some(i64::MIN));
    // A field at its default asks for nothing, beside a form too.
    let form = json!({"type": "json_object"});
    options(json!({"response_format": form, "min_tokens": 0, "ignore_eos": false}));
    let with_tools = json!({"tools": [tool("f")], "response_format": form, "tool_choice": "auto"});
    assert!(options(with_tools).form.is_some());
    let without = json!({"tools": [tool("f")], "structured_outputs": {"regex": "a"}, "tool_choice": "none"});
    assert!(options(without).form.is_some());
    options(json!({"tools": [tool("f")], "ignore_eos": true, "min_tokens": 2}));
    assert_eq!(options(json!({"max_tokens": 1})).max_tokens_field(), "max_tokens");
    assert_eq!(options(json!({"max_completion_tokens": 1})).max_tokens_field(), "max_completion_tokens");
}

#[test]
fn usage_has_openais_shape() {
    let usage = serde_json::to_value(Usage::new(7, 2).with_cached(9)).unwrap();
    let details = json!({"cached_tokens": 7});
    let wanted = json!({"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9, "prompt_tokens_details": details});
    assert_eq!(usage, wanted);
}

#[test]
fn errors_have_openais_shape() {
    let error = ApiError::prompt_too_long("messages", 100, 100);
    assert_eq!(
        (error.param.as_deref(), error.code.as_deref()),
        (Some("messages"), Some("context_length_exceeded"))
    );
    assert_eq!(
        ApiError::path_not_found_among("/x", &["/a", "/b", "/c"]).message,
        "there is nothing at /x; the API has /a, /b and /c"
    );
    let error = ApiError::answer_too_long("max_tokens", 20, 90, 100);
    let body: Value = serde_json::from_str(&error.to_json()).unwrap();
    assert_eq!(body["error"]["type"], "invalid_request_error");
    assert_eq!(body["error"]["param"], "max_tokens");
    assert_eq!(body["error"]["code"], "context_length_exceeded");
    let message = body["error"]["message"].as_str().unwrap();
    assert!(
        ["90", "20", "100", "lower max_tokens to 10"].iter().all(|number| message.contains(number)),
        "{message}"
    );
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
        let key = prop::sample::select(vec![
            "model",
            "messages",
            "prompt",
            "role",
            "content",
            "type",
            "text",
            "stop",
            "seed",
            "max_tokens",
            "temperature",
            "top_k",
            "logprobs",
            "stream",
            "stream_options",
            "tools",
            "response_format",
            "n",
            "echo",
            "function",
            "name",
            "parameters",
            "tool_calls",
            "tool_choice",
            "arguments",
            "structured_outputs",
            "choice",
            "json",
            "logit_bias",
            "resume_token_ids",
            "continue_final_message",
            "tokens",
        ]);
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
        let others = [
            CompletionRequest::from_value(&value).err(),
            TokenizeRequest::from_value(&value).err(),
            DetokenizeRequest::from_value(&value).err(),
        ];
        for error in chat.into_iter().chain(others.into_iter().flatten()) {
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
