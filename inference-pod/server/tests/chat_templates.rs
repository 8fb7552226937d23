//! Prompts, letter by letter as `transformers` makes them (chat_templates/make_reference.py).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;

use fairlead_inference::chat_template::ChatTemplate;
use fairlead_inference::tool_calls::ToolSyntax;
use fairlead_openai::ChatCompletionRequest;
use serde_json::{Value, json};

fn template(family: &str) -> ChatTemplate {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/chat_templates/{family}.jinja"));
    let tokens = json!({"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"});
    let source = std::fs::read_to_string(path).unwrap();
    ChatTemplate::compile(&source, None, tokens.as_object().unwrap().clone()).unwrap()
}

fn render(template: &ChatTemplate, request: &Value) -> String {
    let mut request = request.clone();
    request["model"] = json!("m");
    template.render(&ChatCompletionRequest::from_value(&request).unwrap().prompt).unwrap()
}

#[test]
fn prompts_are_those_of_transformers() {
    let cases: Value = serde_json::from_str(include_str!("chat_templates/expected.json")).unwrap();
    for case in cases["cases"].as_array().unwrap() {
        let family = case["template"].as_str().unwrap();
        let found = render(&template(family), &case["request"]);
        assert_eq!(found, case["prompt"].as_str().unwrap(), "{family}: {}", case["name"]);
    }
}

#[test]
fn a_continued_message_follows_the_prompt_it_was_written_after() {
    for family in ["llama3", "qwen2_5", "qwen3"] {
        let template = template(family);
        let ask = json!({"role": "user", "content": "Why?"});
        let prompt = render(&template, &json!({"messages": [ask]}));
        // White space at its ends, thoughts that are not finished: all as the model wrote it.
        for begun in ["<think>\nWell", " Be", "cause ", "é 🌧", "\n\n"] {
            let said = json!({"role": "assistant", "content": begun});
            let continued =
                render(&template, &json!({"messages": [ask, said], "continue_final_message": true}));
            assert_eq!(continued, format!("{prompt}{begun}"), "{family}");
        }
    }
}

#[test]
fn a_developer_speaks_as_the_system_where_the_template_knows_none() {
    let ask = |role: &str| json!({"messages": [{"role": role, "content": "Rhyme."}, {"role": "user", "content": "Why?"}]});
    for family in ["llama3", "qwen2_5", "qwen3"] {
        let template = template(family);
        let prompt = render(&template, &ask("developer"));
        assert!(prompt.contains("Rhyme."), "{family}: {prompt}");
        assert_eq!(prompt, render(&template, &ask("system")), "{family}");
    }
    let source = "{% for message in messages %}{% if message.role == 'developer' %}D{% endif %}{% endfor %}";
    let knows = ChatTemplate::compile(source, None, serde_json::Map::new()).unwrap();
    assert_eq!(render(&knows, &ask("developer")), "D");
}

#[test]
fn the_syntax_of_calls_is_seen_from_the_template() {
    assert_eq!(template("llama3").tool_syntax(), Some(ToolSyntax::Llama3));
    assert_eq!(template("qwen2_5").tool_syntax(), Some(ToolSyntax::Hermes));
    assert_eq!(template("qwen3").tool_syntax(), Some(ToolSyntax::Hermes));
    let none = ChatTemplate::compile("{{ messages }}", None, serde_json::Map::new()).unwrap();
    assert_eq!(none.tool_syntax(), None);
}
