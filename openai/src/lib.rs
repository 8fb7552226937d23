//! OpenAI wire types: what the gateway and the pods read from clients and send to them. One definition for both.
//!
//! Owns the shapes of requests, answers, stream chunks and errors, and the checks that need nothing but the request
//! itself. Must not know a web framework, a tokenizer or a model: whether a prompt fits, or a model exists, is its
//! callers' business.
//!
//! A request is parsed in two stages. [`ChatCompletionRequest::from_slice`] and [`CompletionRequest::from_slice`]
//! check shape, types and ranges, as every server of this API would; the gateway stops there, because a backend may
//! understand more than we do. The inference pod then asks `unsupported()`, which names the first field that our engine
//! would have to ignore.

pub mod chat;
pub mod chat_answer;
pub mod chat_message;
pub mod completion;
pub mod continuation;
pub mod embedding;
pub mod error;
mod fields;
pub mod generation;
mod json;
pub mod models;
pub mod output_form;
pub mod request_body;
pub mod rerank;
pub mod sampling;
pub mod tokenize;
pub mod tools;
mod unsupported;
pub mod usage;

pub use chat::{ChatCompletion, ChatCompletionChunk, ChatCompletionRequest, ChatMessage, ChatPrompt};
pub use completion::{Completion, CompletionRequest, Prompt};
pub use embedding::EmbeddingRequest;
pub use error::ApiError;
pub use generation::{FinishReason, GenerationOptions};
pub use json::{Json, parse_json};
pub use models::{Model, ModelList};
pub use output_form::OutputForm;
pub use request_body::RequestBody;
pub use rerank::RerankRequest;
pub use tokenize::{DetokenizeAnswer, DetokenizeRequest, TokenizeAnswer, TokenizeRequest};
pub use tools::{Tool, ToolCall, ToolChoice};
pub use usage::{PromptTokensDetails, Usage};
