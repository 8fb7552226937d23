//! `/v1/chat/completions`: the answer and its stream chunks.

use serde::{Deserialize, Serialize};

use crate::generation::FinishReason;
use crate::tools::{ToolCall, ToolCallDelta};
use crate::usage::Usage;

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
    /// The answers, as many as asked for (`n`).
    pub choices: Vec<ChatChoice>,
    /// Token counts.
    pub usage: Usage,
    /// The prompt's tokens, with `return_token_ids`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_token_ids: Option<Vec<u32>>,
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
    /// Its tokens, with `return_token_ids`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<u32>>,
}

/// What the assistant says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AssistantMessage {
    /// Always `assistant`.
    pub role: String,
    /// Its text; null where it only calls tools.
    pub content: Option<String>,
    /// Always null here; SDKs look for it.
    pub refusal: Option<String>,
    /// The tools it calls; absent where there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
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
    /// With `include_usage`: null in all chunks but the last, or with `continuous_usage_stats` in none. Otherwise absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Option<Usage>>,
    /// In the first chunk, with `return_token_ids`: the prompt's tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_token_ids: Option<Vec<u32>>,
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
    /// The new tokens, with `return_token_ids`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<u32>>,
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
    /// What is new in the calls of tools.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCallDelta>,
}

impl ChatDelta {
    /// What the first chunk of an answer says.
    pub fn beginning() -> Self {
        Self { role: Some("assistant".to_owned()), content: Some(String::new()), tool_calls: Vec::new() }
    }
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
