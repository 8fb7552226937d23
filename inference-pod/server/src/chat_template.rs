//! Chat templates: a model's own Jinja template turns messages into its prompt, as `transformers` would.
//!
//! Owns the template and the functions that templates call. Templates come with the model and see nothing but the
//! conversation.

use std::path::Path;

use fairlead_model::ModelError;
use fairlead_openai::{ApiError, ChatCompletionRequest};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Rest, Serde};
use minijinja::{Environment, Error, ErrorKind, Value};
use serde_json::{Map, Value as Json};

/// A template in a file of its own; goes before the one in tokenizer_config.json.
pub const TEMPLATE_FILE: &str = "chat_template.jinja";
/// Holds the special tokens and, in older models, the template.
pub const TOKENIZER_CONFIG_FILE: &str = "tokenizer_config.json";

const NAME: &str = "chat";

/// A compiled chat template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// `bos_token` and the like, as templates name them.
    special_tokens: Map<String, Json>,
}

/// What a model's folder says about special tokens and chat.
#[derive(Default)]
pub struct TokenizerConfig {
    special_tokens: Map<String, Json>,
    template: Option<String>,
}

impl TokenizerConfig {
    /// Reads both files in `dir`; a model needs neither.
    ///
    /// # Errors
    /// [`ModelError::Invalid`] naming the file.
    pub fn load(dir: &Path) -> Result<Self, ModelError> {
        let mut config = match read(dir, TOKENIZER_CONFIG_FILE)? {
            Some(text) => Self::parse(&text)?,
            None => Self::default(),
        };
        if let Some(template) = read(dir, TEMPLATE_FILE)? {
            config.template = Some(template);
        }
        Ok(config)
    }

    fn parse(text: &str) -> Result<Self, ModelError> {
        let invalid = |problem: String| ModelError::invalid(TOKENIZER_CONFIG_FILE, problem);
        let value: Json =
            serde_json::from_str(text).map_err(|error| invalid(format!("is not JSON: {error}")))?;
        let object = value.as_object().ok_or_else(|| invalid("must hold a JSON object".to_owned()))?;
        let mut special_tokens = Map::new();
        for key in
            ["bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token"]
        {
            // Either the text, or an object with it.
            let token =
                object.get(key).and_then(|token| token.as_str().or_else(|| token.get("content")?.as_str()));
            if let Some(token) = token {
                special_tokens.insert(key.to_owned(), Json::from(token));
            }
        }
        let template = match object.get("chat_template") {
            None | Some(Json::Null) => None,
            Some(Json::String(text)) => Some(text.clone()),
            Some(Json::Array(named)) => named
                .iter()
                .find(|entry| entry["name"] == "default")
                .and_then(|entry| entry["template"].as_str())
                .map(str::to_owned),
            Some(_) => {
                return Err(invalid(
                    "chat_template must be a string or a list of named templates".to_owned(),
                ));
            }
        };
        Ok(Self { special_tokens, template })
    }

    /// Text of the model's end-of-sequence token.
    pub fn eos_token(&self) -> Option<&str> {
        self.special_tokens.get("eos_token").and_then(Json::as_str)
    }

    /// Compiles the chat template, where the model has one.
    ///
    /// # Errors
    /// [`ModelError::Invalid`] when it is not a template.
    pub fn into_template(self) -> Result<Option<ChatTemplate>, ModelError> {
        let Self { special_tokens, template } = self;
        template.map(|source| ChatTemplate::compile(&source, special_tokens)).transpose()
    }
}

fn read(dir: &Path, file: &str) -> Result<Option<String>, ModelError> {
    match std::fs::read_to_string(dir.join(file)) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(ModelError::invalid(file, format!("cannot be read: {error}"))),
    }
}

impl ChatTemplate {
    /// Compiles a template as `transformers` sets Jinja up.
    ///
    /// # Errors
    /// [`ModelError::Invalid`] with the line that is wrong.
    pub fn compile(source: &str, special_tokens: Map<String, Json>) -> Result<Self, ModelError> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|error| {
            ModelError::invalid(
                TEMPLATE_FILE,
                format!("cannot be read with Jinja's usual delimiters: {error}"),
            )
        })?);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", tojson);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_template_owned(NAME, without_generation_tags(source)).map_err(|error| {
            ModelError::invalid(TEMPLATE_FILE, format!("is not a chat template that can be read: {error:#}"))
        })?;
        Ok(Self { environment, special_tokens })
    }

    /// The prompt of a conversation.
    ///
    /// # Errors
    /// 400 when the template refuses the messages, with its own words.
    pub fn render(&self, request: &ChatCompletionRequest) -> Result<String, ApiError> {
        let messages: Vec<Json> = request
            .messages
            .iter()
            .map(|message| {
                let mut object = Map::new();
                object.insert("role".to_owned(), Json::from(message.role.as_str()));
                let content = message.content.as_ref().map(|content| content.text());
                object.insert("content".to_owned(), Json::from(content));
                if let Some(name) = &message.name {
                    object.insert("name".to_owned(), Json::from(name.as_str()));
                }
                Json::Object(object)
            })
            .collect();
        let failed = |error: Error| match error.kind() {
            ErrorKind::InvalidOperation
                if error.detail().is_some_and(|detail| detail.starts_with(RAISED)) =>
            {
                let words = error.detail().and_then(|detail| detail.strip_prefix(RAISED)).unwrap_or_default();
                ApiError::invalid(
                    "messages",
                    format!("messages: this model's chat template refuses them: {words}"),
                )
            }
            _ => ApiError::invalid(
                "messages",
                format!(
                    "messages: this model's chat template cannot render them: {error}; check roles and their order"
                ),
            ),
        };
        let template = self.environment.get_template(NAME).map_err(failed)?;
        // A client's variables go before the special tokens, but never before the conversation.
        let mut variables = self.special_tokens.clone();
        variables.extend(request.chat_template_kwargs.clone());
        for (key, value) in [
            ("messages", Json::Array(messages)),
            ("add_generation_prompt", Json::Bool(request.add_generation_prompt)),
            ("tools", Json::Null),
            ("documents", Json::Null),
        ] {
            variables.insert(key.to_owned(), value);
        }
        template.render(Value::from(Serde(&variables))).map_err(failed)
    }
}

/// `{% generation %}` marks an assistant's turn for training; to a prompt it means nothing.
fn without_generation_tags(source: &str) -> String {
    let mut text = source.to_owned();
    for (tag, plain) in [("generation", "if true"), ("endgeneration", "endif")] {
        for open in ["{%", "{%-", "{%+"] {
            for close in ["%}", "-%}", "+%}"] {
                text = text.replace(&format!("{open} {tag} {close}"), &format!("{open} {plain} {close}"));
            }
        }
    }
    text
}

/// Marks an error as the template's own.
const RAISED: &str = "\u{1}";

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, format!("{RAISED}{message}")))
}

fn strftime_now(format: String) -> Result<String, Error> {
    let now = jiff::Zoned::now();
    jiff::fmt::strtime::format(&format, &now).map_err(|error| {
        Error::new(ErrorKind::InvalidOperation, format!("strftime_now(\"{format}\"): {error}"))
    })
}

/// `json.dumps(value, ensure_ascii=False, indent=indent)`, which is what templates were written against.
fn tojson(value: Value, _rest: Rest<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    let json = serde_json::to_value(&value)
        .map_err(|error| Error::new(ErrorKind::InvalidOperation, format!("tojson: {error}")))?;
    let mut text = String::new();
    write_json(&json, indent, 0, &mut text);
    Ok(Value::from_safe_string(text))
}

fn write_json(value: &Json, indent: Option<usize>, depth: usize, out: &mut String) {
    let line = |out: &mut String, depth: usize| {
        if let Some(width) = indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', width * depth));
        }
    };
    let separator = if indent.is_some() { "," } else { ", " };
    match value {
        Json::Array(items) if !items.is_empty() => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                out.push_str(if index > 0 { separator } else { "" });
                line(out, depth + 1);
                write_json(item, indent, depth + 1, out);
            }
            line(out, depth);
            out.push(']');
        }
        Json::Object(fields) if !fields.is_empty() => {
            out.push('{');
            for (index, (key, item)) in fields.iter().enumerate() {
                out.push_str(if index > 0 { separator } else { "" });
                line(out, depth + 1);
                out.push_str(&Json::from(key.as_str()).to_string());
                out.push_str(": ");
                write_json(item, indent, depth + 1, out);
            }
            line(out, depth);
            out.push('}');
        }
        other => out.push_str(&other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn request(messages: Json) -> ChatCompletionRequest {
        ChatCompletionRequest::from_value(&json!({"model": "m", "messages": messages})).unwrap()
    }

    fn compile(source: &str) -> ChatTemplate {
        let tokens = json!({"bos_token": "<s>", "eos_token": "</s>"});
        ChatTemplate::compile(source, tokens.as_object().unwrap().clone()).unwrap()
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
        assert_eq!(
            template.render(&request(json!([{"role": "user", "content": "a-b"}]))).unwrap(),
            "4Axrole"
        );
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
        std::fs::write(dir.path().join(TEMPLATE_FILE), "3").unwrap();
        assert_eq!(render(), "3");
        std::fs::write(dir.path().join(TEMPLATE_FILE), "{% if %}").unwrap();
        let error = load().unwrap().into_template().err().unwrap().to_string();
        assert!(error.contains(TEMPLATE_FILE), "{error}");
        config(json!(5));
        assert!(load().is_err());
    }
}
