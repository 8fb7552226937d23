//! Where a model's folder keeps its chat templates and the names of its special tokens.

use std::path::Path;

use fairlead_model::ModelError;
use serde_json::{Map, Value as Json};

use super::{ChatTemplate, TEMPLATE_FILE};

/// Holds the special tokens and, in older models, the template.
pub const TOKENIZER_CONFIG_FILE: &str = "tokenizer_config.json";
/// Where processors keep a template; goes before the one in tokenizer_config.json.
pub const TEMPLATE_JSON_FILE: &str = "chat_template.json";

/// What a model's folder says about special tokens and chat.
#[derive(Default)]
pub struct TokenizerConfig {
    special_tokens: Map<String, Json>,
    templates: Templates,
}

/// A model's chat templates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Templates {
    /// For every conversation.
    pub default: Option<String>,
    /// For conversations with tools, where it is another.
    pub tool_use: Option<String>,
}

impl TokenizerConfig {
    /// Reads the files in `dir`; a model needs none of them.
    ///
    /// # Errors
    /// [`ModelError::Invalid`] naming the file.
    pub fn load(dir: &Path) -> Result<Self, ModelError> {
        let mut config = match read(dir, TOKENIZER_CONFIG_FILE)? {
            Some(text) => Self::parse(&text)?,
            None => Self::default(),
        };
        if let Some(text) = read(dir, TEMPLATE_JSON_FILE)? {
            let invalid = |problem: String| ModelError::invalid(TEMPLATE_JSON_FILE, problem);
            let value: Json =
                serde_json::from_str(&text).map_err(|error| invalid(format!("is not JSON: {error}")))?;
            config.templates = Templates::parse(&value["chat_template"]).map_err(invalid)?;
        }
        if let Some(template) = read(dir, TEMPLATE_FILE)? {
            config.templates = Templates { default: Some(template), tool_use: None };
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
        let templates = object.get("chat_template").map_or(Ok(Templates::default()), Templates::parse);
        Ok(Self { special_tokens, templates: templates.map_err(invalid)? })
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
        let Self { special_tokens, templates } = self;
        let Templates { default, tool_use } = templates;
        // A model that has a template for tools only talks through that one.
        let Some(source) = default.as_ref().or(tool_use.as_ref()) else { return Ok(None) };
        ChatTemplate::compile(source, tool_use.as_deref(), special_tokens).map(Some)
    }
}

impl Templates {
    /// A template, or several by their names, as a list or an object.
    fn parse(value: &Json) -> Result<Self, String> {
        match value {
            Json::Null => Ok(Self::default()),
            Json::String(text) => Ok(Self { default: Some(text.clone()), tool_use: None }),
            Json::Array(entries) => {
                let named = |name: &str| {
                    let entry = entries.iter().find(|entry| entry["name"] == name);
                    entry.and_then(|entry| entry["template"].as_str()).map(str::to_owned)
                };
                Ok(Self { default: named("default"), tool_use: named("tool_use") })
            }
            Json::Object(by_name) => {
                let named = |name: &str| by_name.get(name).and_then(Json::as_str).map(str::to_owned);
                Ok(Self { default: named("default"), tool_use: named("tool_use") })
            }
            _ => Err("chat_template must be a string or named templates".to_owned()),
        }
    }
}

fn read(dir: &Path, file: &str) -> Result<Option<String>, ModelError> {
    match std::fs::read_to_string(dir.join(file)) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(ModelError::invalid(file, format!("cannot be read: {error}"))),
    }
}
