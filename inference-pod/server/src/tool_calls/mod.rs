//! Calls of tools in what a model writes: found in a stream of text, whatever its cuts, and demanded by a grammar.
//!
//! How a model writes them is seen from its chat template. Knows neither HTTP nor tokens. What is not quite a call is text.

mod call_scanner;
mod demand;
mod parser;

pub use self::demand::{demand, form_or_calls};
pub use self::parser::{ToolEvent, ToolParser};

/// How a model writes calls of tools.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToolSyntax {
    /// `<tool_call>{"name": …, "arguments": {…}}</tool_call>`, anywhere: Hermes, Qwen2.5, Qwen3.
    Hermes,
    /// `{"name": …, "parameters": {…}}` from the answer's beginning, after `<|python_tag|>` or not: Llama 3.
    Llama3,
}

/// Opens a call in Hermes' syntax.
const HERMES_OPEN: &str = "<tool_call>";
/// Closes it.
const HERMES_CLOSE: &str = "</tool_call>";
/// May stand before calls in Llama 3's syntax.
const LLAMA_TAG: &str = "<|python_tag|>";

impl ToolSyntax {
    /// The syntax that a chat template teaches; `None` where it knows no tools, or calls in a syntax that is not read here.
    pub fn of_template(source: &str) -> Option<Self> {
        if !source.contains("tools") {
            return None;
        }
        // Qwen3-Coder puts XML within the tags.
        if source.contains(HERMES_OPEN) && !source.contains("<function=") {
            return Some(Self::Hermes);
        }
        let llama = [LLAMA_TAG, r#""parameters": dictionary of argument name"#];
        llama.iter().any(|mark| source.contains(mark)).then_some(Self::Llama3)
    }

    /// What opens a call, where something does.
    pub fn open_tag(self) -> Option<&'static str> {
        match self {
            Self::Hermes => Some(HERMES_OPEN),
            Self::Llama3 => None,
        }
    }

    /// The key that holds a call's arguments.
    fn arguments_key(self) -> &'static str {
        match self {
            Self::Hermes => "arguments",
            Self::Llama3 => "parameters",
        }
    }
}
