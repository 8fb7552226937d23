//! `/v1/chat/completions`: the request. What comes back is in [`crate::chat_answer`].

use serde_json::{Map, Value};

use crate::error::ApiError;
use crate::fields::{Fields, wrong};
use crate::generation::{GenerationOptions, MAX_LOGPROBS, parse_model, to_u32};
use crate::json::{Json, json_of, parse_json};
use crate::output_form::{OutputForm, RequestedForm};
use crate::tools::ToolFields;
use crate::unsupported;

pub use crate::chat_answer::*;
pub use crate::chat_message::{ChatMessage, ContentPart, MessageContent};

/// A chat request whose shape, types and ranges are right.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatCompletionRequest {
    /// The model the client names.
    pub model: String,
    /// What the chat template makes the prompt of.
    pub prompt: ChatPrompt,
    /// How to generate and send.
    pub options: GenerationOptions,
    /// Report each token's log-probability.
    pub logprobs: bool,
    /// Alternatives to report with it, 0 to 20.
    pub top_logprobs: u32,
}

/// What a chat template makes a prompt of.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatPrompt {
    /// The conversation, at least one message.
    pub messages: Vec<ChatMessage>,
    /// Tools on offer, and whether they are called.
    pub tools: ToolFields,
    /// Whether the template opens an assistant's turn at the end (vLLM's extension; normally true).
    pub add_generation_prompt: bool,
    /// Whether the answer goes on in the last message, an assistant's text, in place of a turn of its own (vLLM's extension).
    pub continue_final_message: bool,
    /// Further variables for the chat template (vLLM's extension).
    pub chat_template_kwargs: Map<String, Value>,
}

impl ChatCompletionRequest {
    /// Reads a request body.
    ///
    /// # Errors
    /// 400 naming the field and the remedy.
    pub fn from_slice(body: &[u8]) -> Result<Self, ApiError> {
        Self::from_json(&parse_json(body)?)
    }

    /// Reads a request that is a value already.
    ///
    /// # Errors
    /// 400 naming the field and the remedy.
    pub fn from_value(value: &Value) -> Result<Self, ApiError> {
        Self::from_json(&json_of(value))
    }

    /// Reads a request that is JSON already.
    ///
    /// # Errors
    /// 400 naming the field and the remedy.
    pub fn from_json(value: &Json<'_>) -> Result<Self, ApiError> {
        let fields = Fields::root(value)?;
        let model = parse_model(&fields)?;
        // The newer name wins where both are sent, as for OpenAI.
        let newer = fields.integer("max_completion_tokens", 1..=i64::from(u32::MAX))?.map(to_u32);
        let mut options = GenerationOptions::parse(&fields, 1, newer)?;
        let prompt = ChatPrompt::parse(&fields, &mut options)?;
        if let (true, Some(form)) = (prompt.tools.may_call(), &options.form) {
            check_form_beside_tools(form, &prompt.tools)?;
        }
        if prompt.tools.demands_call() {
            options.check_end("tool_choice")?;
        }
        fields.array("modalities")?;
        unsupported::refuse(&fields, unsupported::OF_CHATS, &mut options);
        let logprobs = fields.boolean("logprobs")?.unwrap_or(false);
        let top_logprobs = fields.integer("top_logprobs", 0..=i64::from(MAX_LOGPROBS))?.map(to_u32);
        if top_logprobs.is_some_and(|count| count > 0) && !logprobs {
            return Err(ApiError::invalid(
                "top_logprobs",
                "top_logprobs needs logprobs; set logprobs to true",
            ));
        }
        Ok(Self { model, prompt, options, logprobs, top_logprobs: top_logprobs.unwrap_or(0) })
    }

    /// The first field that our engine would have to ignore, as the 400 that the pod answers.
    pub fn unsupported(&self) -> Option<ApiError> {
        self.options.unsupported()
    }
}

impl ChatPrompt {
    pub(crate) fn parse(fields: &Fields<'_>, options: &mut GenerationOptions) -> Result<Self, ApiError> {
        let messages = crate::chat_message::parse_messages(fields, options)?;
        let tools = ToolFields::parse(fields, options)?;
        unsupported::refuse(fields, unsupported::OF_PROMPTS, options);
        let chat_template_kwargs = match fields.get("chat_template_kwargs") {
            None => Map::new(),
            Some(Json::Object(object)) => Map::from(object),
            Some(other) => return Err(wrong("chat_template_kwargs", "an object", other)),
        };
        let continue_final_message = fields.boolean("continue_final_message")?.unwrap_or(false);
        let add_generation_prompt = fields.boolean("add_generation_prompt")?;
        if continue_final_message {
            check_continuation(&messages, &tools, add_generation_prompt)?;
        }
        Ok(Self {
            messages,
            tools,
            add_generation_prompt: add_generation_prompt.unwrap_or(!continue_final_message),
            continue_final_message,
            chat_template_kwargs,
        })
    }
}

/// With `auto` an answer has the form or is calls; that can be said of forms that are JSON or a choice.
fn check_form_beside_tools(form: &RequestedForm, tools: &ToolFields) -> Result<(), ApiError> {
    let RequestedForm { form, param } = form;
    let message = match form {
        _ if tools.demands_call() => {
            format!(
                "{param} says what form the answer has, but tool_choice demands a call; leave one out, or set tool_choice to \
                 \"auto\" or \"none\""
            )
        }
        OutputForm::Regex(_) | OutputForm::Grammar(_) => {
            format!(
                "{param} cannot be beside tools that may be called; leave one out, or set tool_choice to \"none\""
            )
        }
        OutputForm::JsonObject | OutputForm::JsonSchema(_) | OutputForm::Choice(_) => return Ok(()),
    };
    Err(ApiError::invalid(*param, message))
}

fn check_continuation(
    messages: &[ChatMessage],
    tools: &ToolFields,
    add_generation_prompt: Option<bool>,
) -> Result<(), ApiError> {
    let invalid = |message: &str| Err(ApiError::invalid("continue_final_message", message));
    if add_generation_prompt == Some(true) {
        return invalid(
            "continue_final_message goes on in the last message, add_generation_prompt begins another; set one of them \
             to false",
        );
    }
    if tools.demands_call() {
        return invalid(
            "continue_final_message goes on in a text, but tool_choice demands a call; leave one of them out",
        );
    }
    match messages.last() {
        Some(last) if last.role == "assistant" && last.tool_calls.is_empty() && last.content.is_some() => {
            Ok(())
        }
        _ => invalid(
            "continue_final_message needs a text of the assistant as the last message; add it, or leave \
             continue_final_message out",
        ),
    }
}
