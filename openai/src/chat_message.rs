//! The messages of a conversation: roles, texts, and the calls of tools with their results.

use crate::error::ApiError;
use crate::fields::{Fields, wrong};
use crate::generation::GenerationOptions;
use crate::json::Json;
use crate::tools::{ToolCall, parse_calls};

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatMessage {
    /// `system`, `developer`, `user`, `assistant` or `tool`.
    pub role: &'static str,
    /// What it says; absent only where an assistant called tools.
    pub content: Option<MessageContent>,
    /// Name of the speaker, where given.
    pub name: Option<String>,
    /// Tools that an assistant called.
    pub tool_calls: Vec<ToolCall>,
    /// In a tool's message: the call that it answers.
    pub tool_call_id: Option<String>,
    /// What an assistant thought before it spoke, for templates that show it (`reasoning_content`).
    pub reasoning_content: Option<String>,
}

/// What a message says.
#[derive(Clone, Debug, PartialEq)]
pub enum MessageContent {
    /// Plain text.
    Text(String),
    /// Parts in order.
    Parts(Vec<ContentPart>),
}

/// A part of a message.
#[derive(Clone, Debug, PartialEq)]
pub enum ContentPart {
    /// Text.
    Text(String),
    /// Something else, such as `image_url`; only its type is kept.
    Other(String),
}

impl MessageContent {
    /// The text, parts joined by line breaks as vLLM joins them for templates that take strings.
    pub fn text(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Parts(parts) => {
                let texts: Vec<&str> = parts
                    .iter()
                    .filter_map(|part| match part {
                        ContentPart::Text(text) => Some(text.as_str()),
                        ContentPart::Other(_) => None,
                    })
                    .collect();
                texts.join("\n")
            }
        }
    }
}

pub(crate) fn parse_messages(
    fields: &Fields<'_>,
    options: &mut GenerationOptions,
) -> Result<Vec<ChatMessage>, ApiError> {
    let Some(items) = fields.array("messages")? else {
        return Err(ApiError::invalid(
            "messages",
            "messages is required: send an array with at least one message",
        ));
    };
    if items.is_empty() {
        return Err(ApiError::invalid("messages", "messages is empty; send at least one message"));
    }
    let mut messages = Vec::with_capacity(items.len());
    for (index, item) in items.iter().enumerate() {
        messages.push(parse_message(&Fields::item("messages", index, item)?, options)?);
    }
    Ok(messages)
}

fn parse_message(fields: &Fields<'_>, options: &mut GenerationOptions) -> Result<ChatMessage, ApiError> {
    let role = parse_role(fields)?;
    for key in ["function_call", "audio"] {
        if fields.get(key).is_some() {
            let remedy = if key == "audio" { "send text" } else { "use tool_calls" };
            options.refuse(fields.name(key), remedy);
        }
    }
    let tool_calls = parse_calls(fields)?;
    if !tool_calls.is_empty() && role != "assistant" {
        let path = fields.name("tool_calls");
        let message =
            format!("{path} belongs to an assistant's message, but its role is \"{role}\"; change one");
        return Err(ApiError::invalid(path, message));
    }
    let content = match fields.get("content") {
        Some(Json::Str(text)) => Some(MessageContent::Text(text.to_string())),
        Some(Json::Array(parts)) => Some(parse_parts(parts, &fields.name("content"), options)?),
        None if !tool_calls.is_empty() => None,
        None => {
            let path = fields.name("content");
            let message = format!("{path} is required: it must be a string or an array of text parts");
            return Err(ApiError::invalid(path, message));
        }
        Some(other) => {
            return Err(wrong(fields.name("content"), "a string or an array of text parts", other));
        }
    };
    Ok(ChatMessage {
        content,
        name: fields.string("name")?.map(str::to_owned),
        tool_calls,
        tool_call_id: fields.string("tool_call_id")?.map(str::to_owned),
        reasoning_content: fields.string("reasoning_content")?.map(str::to_owned),
        role,
    })
}

fn parse_role(fields: &Fields<'_>) -> Result<&'static str, ApiError> {
    let roles = "\"system\", \"developer\", \"user\", \"assistant\" or \"tool\"";
    let Some(value) = fields.get("role") else {
        let path = fields.name("role");
        return Err(ApiError::invalid(path.clone(), format!("{path} is required: set it to {roles}")));
    };
    let known = ["system", "developer", "user", "assistant", "tool"];
    let role = value.as_str().and_then(|text| known.into_iter().find(|role| *role == text));
    role.ok_or_else(|| wrong(fields.name("role"), roles, value))
}

fn parse_parts(
    parts: &[Json<'_>],
    path: &str,
    options: &mut GenerationOptions,
) -> Result<MessageContent, ApiError> {
    let mut parsed = Vec::with_capacity(parts.len());
    for (index, part) in parts.iter().enumerate() {
        let fields = Fields::at(part, format!("{path}[{index}]"))?;
        match fields.string("type")? {
            Some("text") => match fields.string("text")? {
                Some(text) => parsed.push(ContentPart::Text(text.to_owned())),
                None => {
                    let name = fields.name("text");
                    return Err(ApiError::invalid(
                        name.clone(),
                        format!("{name} is required in a part of type text"),
                    ));
                }
            },
            Some(other) => {
                options.refuse(fields.name("type"), "send parts of type \"text\" only");
                parsed.push(ContentPart::Other(other.to_owned()));
            }
            None => {
                let name = fields.name("type");
                return Err(ApiError::invalid(
                    name.clone(),
                    format!("{name} is required: set it to \"text\""),
                ));
            }
        }
    }
    Ok(MessageContent::Parts(parsed))
}
