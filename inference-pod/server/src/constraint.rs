//! What a request says about the form of its answer, compiled for the model.

mod schema_problem;

use std::sync::Arc;
use std::time::Instant;

use fairlead_engine::grammar::{GrammarError, GrammarSource};
use fairlead_engine::sequence::Constraint;
use fairlead_openai::output_form::RequestedForm;
use fairlead_openai::tools::ToolFields;
use fairlead_openai::{ApiError, OutputForm};
use tokio::time::timeout_at;

use crate::state::Model;
use crate::tool_calls::{ToolSyntax, demand, form_or_calls};

/// A form and the request's field that asks for it.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    source: GrammarSource,
    param: &'static str,
    /// Where it comes from, for people: the field, or several.
    origin: String,
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
        Self { source, param: requested.param, origin: requested.param.to_owned() }
    }

    /// The calls that `tool_choice` demands; `None` where it demands none.
    pub fn calls(model: &Model, syntax: ToolSyntax, tools: &ToolFields) -> Option<Self> {
        demand(syntax, tools, open_is_token(model, syntax)).map(|text| Self {
            source: GrammarSource::Lark(text),
            param: "tools",
            origin: "tools".to_owned(),
        })
    }

    /// A form, or calls of tools, as the model likes.
    ///
    /// # Errors
    /// 400 for a form that cannot stand beside calls.
    pub fn form_or_calls(
        requested: &RequestedForm,
        model: &Model,
        syntax: ToolSyntax,
        tools: &ToolFields,
    ) -> Result<Self, ApiError> {
        let RequestedForm { form, param } = requested;
        let Some(text) = form_or_calls(syntax, tools, open_is_token(model, syntax), form) else {
            let message = format!("{param} cannot be beside tools that may be called; leave one out");
            return Err(ApiError::invalid(*param, message));
        };
        Ok(Self { source: GrammarSource::Lark(text), param, origin: format!("{param} or tools") })
    }

    /// Compiles it, away from the threads that carry the streams.
    ///
    /// # Errors
    /// 400 naming the field, 503 where too many others are compiled, or 504 where it takes longer than the deadline.
    pub async fn compile(
        self,
        model: &Arc<Model>,
        deadline: Option<Instant>,
    ) -> Result<Box<dyn Constraint>, ApiError> {
        let Self { source, param, origin } = self;
        let Some(grammars) = model.grammars.clone() else {
            let message = format!(
                "{param}: this model's vocabulary cannot be held to a form (the pod's log says why); leave {param} out"
            );
            return Err(ApiError::invalid(param, message).with_code("unsupported_parameter"));
        };
        let compiling = tokio::task::spawn_blocking(move || grammars.compile(&source, &origin));
        let compiled = match deadline {
            None => compiling.await,
            // What has begun is finished nevertheless: the next request for the same form finds it.
            Some(deadline) => timeout_at(deadline.into(), compiling).await.map_err(|_| {
                ApiError::deadline_passed(format!(
                    "the time that x-request-timeout-ms allows has passed while {param} was compiled; allow more"
                ))
            })?,
        };
        match compiled {
            Ok(Ok(constraint)) => Ok(constraint),
            Ok(Err(GrammarError::Invalid { field, problem })) => {
                let explained = schema_problem::explain(problem);
                Err(ApiError::invalid(param, format!("{field}: {explained}; correct it there")))
            }
            Ok(Err(error @ GrammarError::Busy { .. })) => {
                Err(ApiError::unavailable("grammars_busy", error.to_string(), 5))
            }
            Err(error) => Err(ApiError::internal(format!("{param} could not be compiled: {error}"))),
        }
    }
}

/// Whether the tokenizer has the tag that opens a call as a special token.
fn open_is_token(model: &Model, syntax: ToolSyntax) -> bool {
    syntax.open_tag().is_some_and(|tag| model.codec.is_special(tag))
}
