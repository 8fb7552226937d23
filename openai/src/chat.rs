//! `/v1/chat/completions`: request, answer and stream chunk.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::ApiError;
use crate::fields::{Fields, parse_json, wrong};
use crate::generation::{FinishReason, GenerationOptions, MAX_LOGPROBS, parse_model, to_u32};
use crate::usage::Usage;

/// A chat request whose shape, types and ranges are right.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatCompletionRequest {
    /// The model the client names.
    pub model: String,
    /// The conversation, at least one message.
    pub messages: Vec<ChatMessage>,
    /// How to generate and send.
    pub options: GenerationOptions,
    /// Report each token's log-probability.
    pub logprobs: bool,
    /// Alternatives to report with it, 0 to 20.
    pub top_logprobs: u32,
    /// Whether the template opens an assistant's turn at the end (vLLM's extension; normally true).
    pub add_generation_prompt: bool,
    /// Further variables for the chat template (vLLM's extension).
    pub chat_template_kwargs: serde_json::Map<String, Value>,
}

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatMessage {
    /// `system`, `developer`, `user`, `assistant` or `tool`.
    pub role: String,
    /// What it says; absent only where an assistant called tools.
    pub content: Option<MessageContent>,
    /// Name of the speaker, where given.
    pub name: Option<String>,
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

impl ChatCompletionRequest {
    /// Reads a request body.
    ///
    /// # Errors
    /// 400 naming the field and the remedy.
    pub fn from_slice(body: &[u8]) -> Result<Self, ApiError> {
        Self::from_value(&parse_json(body)?)
    }

    /// Reads a request that is JSON already.
    ///
    /// # Errors
    /// 400 naming the field and the remedy.
    pub fn from_value(value: &Value) -> Result<Self, ApiError> {
        let fields = Fields::root(value)?;
        let model = parse_model(&fields)?;
        let mut options = GenerationOptions::parse(&fields, 1)?;
        // The newer name wins where both are sent, as for OpenAI.
        if let Some(most) = fields.integer("max_completion_tokens", 1..=i64::from(u32::MAX))? {
            options.max_tokens = Some(to_u32(most));
        }
        let messages = parse_messages(&fields, &mut options)?;
        let logprobs = fields.boolean("logprobs")?.unwrap_or(false);
        let top_logprobs = fields.integer("top_logprobs", 0..=i64::from(MAX_LOGPROBS))?.map(to_u32);
        if top_logprobs.is_some_and(|count| count > 0) && !logprobs {
            return Err(ApiError::invalid(
                "top_logprobs",
                "top_logprobs needs logprobs; set logprobs to true",
            ));
        }
        let chat_template_kwargs = match fields.get("chat_template_kwargs") {
            None => serde_json::Map::new(),
            Some(Value::Object(object)) => object.clone(),
            Some(other) => return Err(wrong("chat_template_kwargs", "an object", other)),
        };
        Ok(Self {
            model,
            messages,
            options,
            logprobs,
            top_logprobs: top_logprobs.unwrap_or(0),
            add_generation_prompt: fields.boolean("add_generation_prompt")?.unwrap_or(true),
            chat_template_kwargs,
        })
    }

    /// The first field that our engine would have to ignore, as the 400 that the pod answers.
    pub fn unsupported(&self) -> Option<ApiError> {
        self.options.unsupported()
    }
}

fn parse_messages(
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
    items
        .iter()
        .enumerate()
        .map(|(index, item)| parse_message(&Fields::at(item, format!("messages[{index}]"))?, options))
        .collect()
}

fn parse_message(fields: &Fields<'_>, options: &mut GenerationOptions) -> Result<ChatMessage, ApiError> {
    let roles = "\"system\", \"developer\", \"user\", \"assistant\" or \"tool\"";
    let role = match fields.get("role") {
        Some(Value::String(role))
            if ["system", "developer", "user", "assistant", "tool"].contains(&role.as_str()) =>
        {
            role.clone()
        }
        Some(other) => return Err(wrong(fields.name("role"), roles, other)),
        None => {
            let path = fields.name("role");
            return Err(ApiError::invalid(path.clone(), format!("{path} is required: set it to {roles}")));
        }
    };
    let calls_tools = fields.array("tool_calls")?.is_some_and(|calls| !calls.is_empty());
    if calls_tools {
        options.refuse(fields.name("tool_calls"), "send the call and its result as text");
    }
    let path = fields.name("content");
    let content = match fields.get("content") {
        Some(Value::String(text)) => Some(MessageContent::Text(text.clone())),
        Some(Value::Array(parts)) => Some(parse_parts(parts, &path, options)?),
        None if calls_tools => None,
        None => {
            let message = format!("{path} is required: it must be a string or an array of text parts");
            return Err(ApiError::invalid(path, message));
        }
        Some(other) => return Err(wrong(path, "a string or an array of text parts", other)),
    };
    Ok(ChatMessage { role, content, name: fields.string("name")?.map(str::to_owned) })
}

fn parse_parts(
    parts: &[Value],
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

/// The answer to a chat request that does not stream.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChatCompletion {
    /// Name of this answer, `chatcmpl-…`.
    pub id: String,
    /// Always `chat.completion`.
    pub object: String,
    /// Unix seconds.
    pub created: u64,
    /// The model's public name.
    pub model: String,
    /// The answers; one.
    pub choices: Vec<ChatChoice>,
    /// Token counts.
    pub usage: Usage,
}

/// One answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChatChoice {
    /// Its number.
    pub index: u32,
    /// What the assistant says.
    pub message: AssistantMessage,
    /// Log-probabilities, when asked for.
    pub logprobs: Option<ChatLogprobs>,
    /// Why it ended.
    pub finish_reason: FinishReason,
}

/// What the assistant says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AssistantMessage {
    /// Always `assistant`.
    pub role: String,
    /// Its text.
    pub content: String,
    /// Always null here; SDKs look for it.
    pub refusal: Option<String>,
}

/// A part of a streamed chat answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChatCompletionChunk {
    /// The same in every chunk of an answer.
    pub id: String,
    /// Always `chat.completion.chunk`.
    pub object: String,
    /// Unix seconds; the same in every chunk of an answer.
    pub created: u64,
    /// The model's public name.
    pub model: String,
    /// The changes; empty in the chunk that carries the usage.
    pub choices: Vec<ChatChunkChoice>,
    /// With `include_usage`: null in all chunks but the last. Otherwise absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Option<Usage>>,
}

/// What a chunk adds to an answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChatChunkChoice {
    /// Number of the answer.
    pub index: u32,
    /// What is new.
    pub delta: ChatDelta,
    /// Log-probabilities of the new tokens, when asked for.
    pub logprobs: Option<ChatLogprobs>,
    /// In the last chunk: why it ended.
    pub finish_reason: Option<FinishReason>,
}

/// What is new in a message.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChatDelta {
    /// In the first chunk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// Text to append.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
}

/// Log-probabilities of a chat answer's tokens.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ChatLogprobs {
    /// One for each token.
    pub content: Vec<ChatTokenLogprob>,
    /// Always null here; SDKs look for it.
    pub refusal: Option<Vec<ChatTokenLogprob>>,
}

/// A token of a chat answer with its log-probability.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChatTokenLogprob {
    /// Its text; not exact where it is a part of a character.
    pub token: String,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// Its bytes.
    pub bytes: Option<Vec<u8>>,
    /// The likeliest tokens in this place.
    pub top_logprobs: Vec<ChatTopLogprob>,
}

/// One of the likeliest tokens in a place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChatTopLogprob {
    /// Its text; not exact where it is a part of a character.
    pub token: String,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// Its bytes.
    pub bytes: Option<Vec<u8>>,
}
