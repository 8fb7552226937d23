//! Fields that would change the answer and that this server does not have.
//!
//! One that is ignored gives an answer that nobody asked for, so each is refused by name. A value that changes nothing, such
//! as the default that some clients always send, is accepted.

use crate::fields::{Fields, mark};
use crate::generation::GenerationOptions;
use crate::json::Json;

/// A field, the values of it that change nothing, and what to do instead.
pub(crate) struct Unsupported {
    key: &'static str,
    mark: u64,
    changes_nothing: fn(&Json<'_>) -> bool,
    remedy: &'static str,
}

const fn field(
    key: &'static str,
    changes_nothing: fn(&Json<'_>) -> bool,
    remedy: &'static str,
) -> Unsupported {
    Unsupported { key, mark: mark(key), changes_nothing, remedy }
}

fn is_false(value: &Json<'_>) -> bool {
    *value == Json::Bool(false)
}

fn is_true(value: &Json<'_>) -> bool {
    *value == Json::Bool(true)
}

fn is_one(value: &Json<'_>) -> bool {
    value.as_f64() == Some(1.0)
}

fn is_empty(value: &Json<'_>) -> bool {
    match value {
        Json::Array(items) => items.is_empty(),
        Json::Object(fields) => fields.is_empty(),
        Json::Str(text) => text.is_empty(),
        _ => false,
    }
}

fn is_text_alone(value: &Json<'_>) -> bool {
    value.as_array().is_some_and(|kinds| kinds.iter().all(|kind| kind.as_str() == Some("text")))
}

fn never(_: &Json<'_>) -> bool {
    false
}

/// Of both APIs: vLLM's.
pub(crate) const OF_BOTH: &[Unsupported] = &[
    field("bad_words", is_empty, "use logit_bias with the words' tokens"),
    field("allowed_token_ids", never, "use logit_bias or structured_outputs"),
    field("prompt_logprobs", is_false, "use /v1/completions with echo and logprobs"),
    field("truncate_prompt_tokens", never, "cut the prompt before it is sent"),
    field("use_beam_search", is_false, "use n and choose among the answers"),
    field("length_penalty", is_one, "leave it out or set it to 1: it is for beam search"),
    field("skip_special_tokens", is_true, "leave it out and read the tokens with return_token_ids"),
    field("spaces_between_special_tokens", is_true, "leave it out"),
    field("logits_processors", is_empty, "use logit_bias or structured_outputs"),
    field("return_tokens_as_token_ids", is_false, "use return_token_ids"),
    field(
        "thinking_token_budget",
        never,
        "use max_tokens, or chat_template_kwargs where the template limits thoughts",
    ),
    field("guided_whitespace_pattern", never, "write white space into structured_outputs.grammar"),
];

/// Of `/v1/chat/completions`.
pub(crate) const OF_CHATS: &[Unsupported] = &[
    field("echo", is_false, "leave it out: messages are not part of the answer"),
    field("web_search_options", never, "leave it out: this server searches nothing"),
    field("modalities", is_text_alone, "leave it out: this server answers with text"),
    field("audio", never, "leave it out: this server answers with text"),
    field("add_special_tokens", is_false, "leave it out: chat templates write special tokens themselves"),
];

/// Of whatever a chat template renders.
pub(crate) const OF_PROMPTS: &[Unsupported] = &[
    field("chat_template", never, "the model's own template is used; vary it with chat_template_kwargs"),
    field("documents", is_empty, "write them into a message"),
];

/// Of `/v1/completions`.
pub(crate) const OF_COMPLETIONS: &[Unsupported] = &[
    field("suffix", is_empty, "leave it out"),
    field("max_completion_tokens", never, "use max_tokens"),
    field("prompt_embeds", never, "send text or token ids as prompt"),
    field("add_special_tokens", is_true, "send the prompt as token ids: they are taken as they are"),
];

/// Notes each of these fields that asks for something.
pub(crate) fn refuse(fields: &Fields<'_>, unsupported: &[Unsupported], options: &mut GenerationOptions) {
    for Unsupported { key, mark, changes_nothing, remedy } in unsupported {
        if fields.get_marked(key, *mark).is_some_and(|value| !changes_nothing(value)) {
            options.refuse(fields.name(key), remedy);
        }
    }
}
