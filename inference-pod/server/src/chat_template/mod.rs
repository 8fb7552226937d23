//! Chat templates: a model's own Jinja template turns messages into its prompt, as `transformers` would.
//!
//! Owns the template and the functions that templates call. Templates come with the model and see nothing but the
//! conversation and its tools.

mod python_json;
#[cfg(test)]
mod tests;
mod tokenizer_config;

use fairlead_model::ModelError;
use fairlead_openai::{ApiError, ChatMessage, ChatPrompt, ToolChoice};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, Error, ErrorKind, Value};
use serde_json::{Map, Value as Json, json};

pub use self::tokenizer_config::{Templates, TokenizerConfig};
use crate::tool_calls::ToolSyntax;

/// A template in a file of its own; goes before all others.
pub const TEMPLATE_FILE: &str = "chat_template.jinja";

const DEFAULT: &str = "chat";
const TOOL_USE: &str = "tool_use";

/// A compiled chat template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// `bos_token` and the like, as templates name them.
    special_tokens: Map<String, Json>,
    /// Whether there is another template for conversations with tools.
    has_tool_use: bool,
    tool_syntax: Option<ToolSyntax>,
}

impl ChatTemplate {
    /// Compiles a template, and one for conversations with tools where it is another, as `transformers` sets Jinja up.
    ///
    /// # Errors
    /// [`ModelError::Invalid`] with the line that is wrong.
    pub fn compile(
        source: &str,
        tool_use: Option<&str>,
        special_tokens: Map<String, Json>,
    ) -> Result<Self, ModelError> {
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
        environment.add_filter("tojson", python_json::tojson);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        for (name, source) in [(DEFAULT, Some(source)), (TOOL_USE, tool_use)] {
            let Some(source) = source else { continue };
            environment.add_template_owned(name, without_generation_tags(source)).map_err(|error| {
                ModelError::invalid(
                    TEMPLATE_FILE,
                    format!("is not a chat template that can be read: {error:#}"),
                )
            })?;
        }
        let tool_syntax = ToolSyntax::of_template(tool_use.unwrap_or(source));
        Ok(Self { environment, special_tokens, has_tool_use: tool_use.is_some(), tool_syntax })
    }

    /// How this template writes calls of tools; `None` where it knows none, or none that this server reads.
    pub fn tool_syntax(&self) -> Option<ToolSyntax> {
        self.tool_syntax
    }

    /// The prompt of a conversation.
    ///
    /// Where the last message is to be continued, the prompt is that of a new turn with the message's text after it, letter
    /// by letter: what a model saw that wrote this text itself.
    ///
    /// # Errors
    /// 400 when the template refuses the messages, with its own words.
    pub fn render(&self, prompt: &ChatPrompt) -> Result<String, ApiError> {
        let mut messages = prompt.messages.as_slice();
        let mut begun = String::new();
        if prompt.continue_final_message
            && let Some((last, before)) = messages.split_last()
        {
            begun = last.content.as_ref().map(|content| content.text()).unwrap_or_default();
            messages = before;
        }
        let tools = match &prompt.tools.choice {
            ToolChoice::None => Json::Null,
            _ => prompt.tools.tools.iter().map(|tool| tool.raw.clone()).collect(),
        };
        let name = if self.has_tool_use && !tools.is_null() { TOOL_USE } else { DEFAULT };
        let template = self.environment.get_template(name).map_err(render_error)?;
        // Templates older than the role leave its messages out, or refuse them.
        let knows_developer = template.source().contains("developer");
        // A client's variables go before the special tokens, but never before the conversation.
        let mut variables = self.special_tokens.clone();
        variables.extend(prompt.chat_template_kwargs.clone());
        for (key, value) in [
            ("messages", messages.iter().map(|message| message_json(message, knows_developer)).collect()),
            (
                "add_generation_prompt",
                Json::Bool(prompt.add_generation_prompt || prompt.continue_final_message),
            ),
            ("tools", tools),
            ("documents", Json::Null),
        ] {
            variables.insert(key.to_owned(), value);
        }
        let mut text = template.render(Value::from(Serde(&variables))).map_err(render_error)?;
        text.push_str(&begun);
        Ok(text)
    }
}

/// A message as templates see it: only the keys that the client sent, arguments of calls as objects. A developer speaks as the
/// system where the template does not know the one from the other.
fn message_json(message: &ChatMessage, knows_developer: bool) -> Json {
    let ChatMessage { role, content, name, tool_calls, tool_call_id, reasoning_content } = message;
    let mut object = Map::new();
    let role = if *role == "developer" && !knows_developer { "system" } else { role };
    object.insert("role".to_owned(), Json::from(role));
    object.insert("content".to_owned(), Json::from(content.as_ref().map(|content| content.text())));
    for (key, value) in
        [("name", name), ("tool_call_id", tool_call_id), ("reasoning_content", reasoning_content)]
    {
        if let Some(value) = value {
            object.insert(key.to_owned(), Json::from(value.as_str()));
        }
    }
    if !tool_calls.is_empty() {
        let calls = tool_calls.iter().map(|call| {
            // It was an object when the request was read.
            let arguments: Json = serde_json::from_str(&call.function.arguments).unwrap_or_default();
            json!({"id": call.id, "type": "function",
                "function": {"name": call.function.name, "arguments": arguments}})
        });
        object.insert("tool_calls".to_owned(), calls.collect());
    }
    Json::Object(object)
}

fn render_error(error: Error) -> ApiError {
    match error.kind() {
        ErrorKind::InvalidOperation if error.detail().is_some_and(|detail| detail.starts_with(RAISED)) => {
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
