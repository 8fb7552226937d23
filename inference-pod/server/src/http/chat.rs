//! `POST /v1/chat/completions`: the request. The answer is written in [`crate::http::chat_answer`].

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use fairlead_openai::{ApiError, ChatCompletionRequest, ChatPrompt};

use crate::constraint::Wanted;
use crate::generation::{Generation, MOST_REPORTED, TextRequest};
use crate::http::chat_answer::{Answer, Tools};
use crate::http::continuation::Telling;
use crate::http::errors::HttpError;
use crate::http::request_id::StreamedRequest;
use crate::http::{answer_id, public_model, timing};
use crate::state::{App, Model, unix_seconds};
use crate::traces::RequestFacts;

/// Answers a chat.
pub async fn chat_completions(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, HttpError> {
    let timing = timing(&headers)?;
    let telling = Telling::of(&headers)?;
    let body = app.bodies.read(body).await?;
    let (model, guard) = app.admit()?;
    let bytes = body.len();
    let read = {
        let (app, model) = (Arc::clone(&app), Arc::clone(&model));
        move || {
            let request = ChatCompletionRequest::from_slice(&body)?;
            app.check_model(&request.model)?;
            if let Some(error) = request.unsupported() {
                return Err(error);
            }
            let tools = tools(&model, &request.prompt)?;
            let prompt = prompt_tokens(&model, &request.prompt, false)?;
            let wanted = wanted(&model, &request, tools.as_ref())?;
            Ok((request, prompt, tools, wanted))
        }
    };
    let (mut request, prompt, tools, wanted) = app.read_request(bytes, timing.deadline, read).await?;
    let shows_ids = request.options.return_token_ids;
    request.options.return_token_ids |= telling.notes && request.options.stream;
    let constraint = match wanted {
        Some(wanted) => Some(wanted.compile(&model, timing.deadline).await?),
        None => None,
    };
    let ChatCompletionRequest { model: requested, options, logprobs, top_logprobs, .. } = &request;
    let public = public_model(&headers, requested);
    let facts = RequestFacts { headers: &headers, arrived: timing.arrived, model: &public, options };
    let (id, created) = telling.name(|| answer_id("chatcmpl"), unix_seconds);
    let mut answer = Answer {
        span: app.traces.begin("chat", &facts),
        request: StreamedRequest::new(&headers, "/v1/chat/completions", timing.arrived),
        id,
        created,
        telling,
        shows_ids,
        model: public,
        logprobs: *logprobs,
        codec: Arc::clone(&model.codec),
        prompt_token_ids: shows_ids.then(|| prompt.clone()),
        tools,
    };
    let generation = Generation::start(
        &model,
        &app.metrics,
        TextRequest {
            prompt,
            param: "messages",
            options,
            default_max_tokens: None,
            logprobs: logprobs.then_some(*top_logprobs),
            prompt_logprobs: false,
            continues_prompt: request.prompt.continue_final_message,
            // What opens a call may be a special token.
            special_tokens: answer.tools.is_some(),
            adapter: app.check_model(requested)?,
            most_reported: (!options.stream).then_some(MOST_REPORTED),
            constraint,
            timing,
        },
    )
    .inspect_err(|error| answer.span.failed(error))?;
    if options.stream {
        Ok(answer.stream(generation, options, guard).await?)
    } else {
        let completion = answer.whole(generation, options).await?;
        drop(guard);
        Ok(Json(completion).into_response())
    }
}

/// What the answer is held to: a form, calls, or either.
fn wanted(
    model: &Model,
    request: &ChatCompletionRequest,
    tools: Option<&Tools>,
) -> Result<Option<Wanted>, ApiError> {
    let offered = &request.prompt.tools;
    match (&request.options.form, tools) {
        (Some(form), Some(tools)) => Wanted::form_or_calls(form, model, tools.syntax, offered).map(Some),
        (Some(form), None) => Ok(Some(Wanted::form(form))),
        (None, Some(tools)) => Ok(Wanted::calls(model, tools.syntax, offered)),
        (None, None) => Ok(None),
    }
}

/// How calls of tools are read in the answer; `None` where there are none.
fn tools(model: &Model, prompt: &ChatPrompt) -> Result<Option<Tools>, ApiError> {
    if !prompt.tools.may_call() {
        return Ok(None);
    }
    let Some(syntax) = model.template.as_ref().and_then(|template| template.tool_syntax()) else {
        return Err(ApiError::invalid(
            "tools",
            "tools: this model's chat template writes no calls of tools that this server can read; leave tools out and \
             describe them in a message",
        ));
    };
    let names = prompt.tools.tools.iter().map(|tool| tool.name.clone()).collect();
    Ok(Some(Tools { syntax, names, parallel: prompt.tools.parallel }))
}

/// The tokens of a conversation; the template writes the special tokens itself.
pub(super) fn prompt_tokens(
    model: &Model,
    prompt: &ChatPrompt,
    add_special_tokens: bool,
) -> Result<Vec<u32>, ApiError> {
    let Some(template) = &model.template else {
        return Err(ApiError::invalid(
            "messages",
            "messages: this model has no chat template, so it cannot chat; use /v1/completions, or add \
             chat_template.jinja to the model's folder",
        ));
    };
    model.encode(&template.render(prompt)?, add_special_tokens, "messages")
}
