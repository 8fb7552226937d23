//! What a request says about the form of its answer, compiled for the model.

use std::sync::Arc;

use fairlead_engine::grammar::{GrammarError, GrammarSource};
use fairlead_engine::sequence::Constraint;
use fairlead_openai::output_form::RequestedForm;
use fairlead_openai::tools::ToolFields;
use fairlead_openai::{ApiError, OutputForm};

use crate::state::Model;
use crate::tool_calls::{ToolSyntax, demand};

/// A form and the request's field that asks for it.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    source: GrammarSource,
    param: &'static str,
}

impl Wanted {
    /// What `response_format` or `structured_outputs` asks for.
    pub fn form(requested: &RequestedForm) -> Self {
        let source = match &requested.form {
            OutputForm::JsonObject => GrammarSource::JsonObject,
            OutputForm::JsonSchema(schema) => GrammarSource::JsonSchema(schema.clone()),
            OutputForm::Regex(text) => GrammarSource::Regex(text.clone()),
            OutputForm::Choice(choices) => GrammarSource::Choice(choices.clone()),
            OutputForm::Grammar(text) => GrammarSource::Lark(text.clone()),
        };
        Self { source, param: requested.param }
    }

    /// The calls that `tool_choice` demands; `None` where it demands none.
    pub fn calls(model: &Model, syntax: ToolSyntax, tools: &ToolFields) -> Option<Self> {
        let open_is_token = syntax.open_tag().is_some_and(|tag| model.codec.is_special(tag));
        demand(syntax, tools, open_is_token)
            .map(|text| Self { source: GrammarSource::Lark(text), param: "tools" })
    }

    /// Compiles it, away from the threads that carry the streams.
    ///
    /// # Errors
    /// 400 naming the field, or 503 where too many others are compiled.
    pub async fn compile(self, model: &Arc<Model>) -> Result<Box<dyn Constraint>, ApiError> {
        let Self { source, param } = self;
        let Some(grammars) = model.grammars.clone() else {
            let message = format!(
                "{param}: this model's vocabulary cannot be held to a form (the pod's log says why); leave {param} out"
            );
            return Err(ApiError::invalid(param, message).with_code("unsupported_parameter"));
        };
        let compiling = tokio::task::spawn_blocking(move || grammars.compile(&source, param));
        match compiling.await {
            Ok(Ok(constraint)) => Ok(constraint),
            Ok(Err(error @ GrammarError::Invalid { .. })) => {
                Err(ApiError::invalid(param, format!("{error}; correct it there")))
            }
            Ok(Err(error @ GrammarError::Busy { .. })) => {
                Err(ApiError::unavailable("grammars_busy", error.to_string(), 5))
            }
            Err(error) => Err(ApiError::internal(format!("{param} could not be compiled: {error}"))),
        }
    }
}
