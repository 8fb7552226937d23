//! Templates as models have them.

use fairlead_openai::{ChatCompletionRequest, Tool};
use serde_json::json;

use super::tokenizer_config::{TEMPLATE_JSON_FILE, TOKENIZER_CONFIG_FILE};
use super::*;

fn request(messages: Json) -> ChatPrompt {
    ChatCompletionRequest::from_value(&json!({"model": "m", "messages": messages})).unwrap().prompt
}

fn compile(source: &str) -> ChatTemplate {
    let tokens = json!({"bos_token": "<s>", "eos_token": "</s>"});
    ChatTemplate::compile(source, None, tokens.as_object().unwrap().clone()).unwrap()
}

/// The shape of Llama 3's template.
const LLAMA: &str = "{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = \"\" %}
{%- endif %}
{%- if system %}{{- \"<|start|>system\\n\\n\" ~ system ~ \"<|eot|>\" }}{%- endif %}
{%- for message in messages %}
    {%- if not (message.role == 'user' or message.role == 'assistant') %}
        {{- raise_exception('Roles must be user or assistant, not ' + message.role) }}
    {%- endif %}
    {{- '<|start|>' + message['role'] + '\\n\\n' + message['content'].strip() + '<|eot|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start|>assistant\\n\\n' }}
{%- endif %}
";

#[test]
fn renders_as_transformers_does() {
    let messages = json!([
        {"role": "system", "content": " be brief "},
        {"role": "user", "content": [{"type": "text", "text": " hi <b> & \"you\" "}]},
    ]);
    assert_eq!(
        compile(LLAMA).render(&request(messages)).unwrap(),
        "<s><|start|>system\n\nbe brief<|eot|><|start|>user\n\nhi <b> & \"you\"<|eot|><|start|>assistant\n\n"
    );
}

#[test]
fn blocks_are_trimmed_and_the_last_line_break_goes() {
    let template = compile(
        "{% for message in messages %}\n    {% if true %}\n{{ message.content }}\n    {% endif %}\n{% endfor %}\n",
    );
    assert_eq!(template.render(&request(json!([{"role": "user", "content": "a"}]))).unwrap(), "a\n");
}

#[test]
fn a_template_that_refuses_is_quoted() {
    let error = compile(LLAMA).render(&request(json!([{"role": "tool", "content": "x"}]))).unwrap_err();
    assert_eq!((error.status, error.param.as_deref()), (400, Some("messages")));
    assert!(
        error.message.ends_with("refuses them: Roles must be user or assistant, not tool"),
        "{}",
        error.message
    );
}

#[test]
fn json_is_written_pythons_way() {
    let template = compile("{{ x | tojson }}|{{ x | tojson(indent=2) }}");
    let mut asked = request(json!([{"role": "user", "content": "a"}]));
    asked.chat_template_kwargs = json!({"x": {"b": [1, "é<"], "a": {}}}).as_object().unwrap().clone();
    assert_eq!(
        template.render(&asked).unwrap(),
        "{\"b\": [1, \"é<\"], \"a\": {}}|{\n  \"b\": [\n    1,\n    \"é<\"\n  ],\n  \"a\": {}\n}"
    );
}

#[test]
fn pythons_methods_dates_and_training_marks_work() {
    let template = compile(
        "{{ strftime_now('%Y')|length }}{% generation %}{{ messages[0].content.split('-')[0].upper() }}{% endgeneration %}\
             {{ messages[0].get('nothing', 'x') }}{% for k, v in messages[0].items() %}{{ k }}{% break %}{% endfor %}",
    );
    assert_eq!(template.render(&request(json!([{"role": "user", "content": "a-b"}]))).unwrap(), "4Axrole");
}

#[test]
fn templates_are_found_in_each_place() {
    let dir = tempfile::tempdir().unwrap();
    let load = || TokenizerConfig::load(dir.path());
    assert!(load().unwrap().into_template().unwrap().is_none());
    let config =
        |value: Json| std::fs::write(dir.path().join(TOKENIZER_CONFIG_FILE), value.to_string()).unwrap();
    let render = || {
        let template = load().unwrap().into_template().unwrap().unwrap();
        template.render(&request(json!([{"role": "user", "content": "a"}]))).unwrap()
    };
    config(json!({"eos_token": {"content": "</s>"}, "chat_template": "1{{ eos_token }}"}));
    assert_eq!(render(), "1</s>");
    assert_eq!(load().unwrap().eos_token(), Some("</s>"));
    config(
        json!({"chat_template": [{"name": "tool_use", "template": "x"}, {"name": "default", "template": "2"}]}),
    );
    assert_eq!(render(), "2");
    let mut with_tools = request(json!([{"role": "user", "content": "a"}]));
    with_tools.tools.tools = vec![Tool { name: "f".into(), parameters: None, raw: json!({}) }];
    with_tools.tools.choice = ToolChoice::Auto;
    assert_eq!(load().unwrap().into_template().unwrap().unwrap().render(&with_tools).unwrap(), "x");
    std::fs::write(dir.path().join(TEMPLATE_JSON_FILE), r#"{"chat_template": {"default": "2b"}}"#).unwrap();
    assert_eq!(render(), "2b");
    std::fs::write(dir.path().join(TEMPLATE_FILE), "3").unwrap();
    assert_eq!(render(), "3");
    std::fs::write(dir.path().join(TEMPLATE_FILE), "{% if %}").unwrap();
    let error = load().unwrap().into_template().err().unwrap().to_string();
    assert!(error.contains(TEMPLATE_FILE), "{error}");
    config(json!(5));
    assert!(load().is_err());
}
