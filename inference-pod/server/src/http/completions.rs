//! `POST /v1/completions`: the request, one prompt or many. The answer is written in [`crate::http::completion_answer`].

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use fairlead_engine::sequence::Constraint;
use fairlead_openai::{ApiError, CompletionRequest, Prompt};

use crate::constraint::Wanted;
use crate::detokenize::stable;
use crate::generation::{Generation, MOST_REPORTED, TextRequest, Timing};
use crate::http::completion_answer::{Answer, Echo, PromptAnswers};
use crate::http::continuation::Telling;
use crate::http::errors::HttpError;
use crate::http::request_id::StreamedRequest;
use crate::http::{answer_id, public_model, timing};
use crate::state::{App, Model, unix_seconds};
use crate::traces::RequestFacts;

/// Tokens generated where the request leaves it open, as for OpenAI.
const DEFAULT_MAX_TOKENS: u32 = 16;

/// Continues prompts.
pub async fn completions(
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
            let request = CompletionRequest::from_slice(&body)?;
            app.check_model(&request.model)?;
            if let Some(error) = request.unsupported() {
                return Err(error);
            }
            let prompts = read_prompts(&model, &request)?;
            Ok((request, prompts))
        }
    };
    let (mut request, prompts) = app.read_request(bytes, timing.deadline, read).await?;
    let shows_ids = request.options.return_token_ids;
    request.options.return_token_ids |= telling.notes && request.options.stream;
    let constraint = match &request.options.form {
        Some(form) => Some(Wanted::form(form).compile(&model, timing.deadline).await?),
        None => None,
    };
    let public = public_model(&headers, &request.model);
    let facts = RequestFacts {
        headers: &headers,
        arrived: timing.arrived,
        model: &public,
        options: &request.options,
    };
    let mut span = app.traces.begin("text_completion", &facts);
    let start = |(index, prompt)| {
        let constraint = constraint.as_ref().map(|constraint| constraint.fork());
        start(&model, &app, &request, shows_ids, index, prompt, constraint, timing)
    };
    let prompts = (0..).zip(prompts).map(start).collect::<Result<Vec<_>, ApiError>>();
    let prompts = prompts.inspect_err(|error| span.failed(error))?;
    let named = StreamedRequest::new(&headers, "/v1/completions", timing.arrived);
    let (id, created) = telling.name(|| answer_id("cmpl"), unix_seconds);
    let answer = Answer { span, request: named, id, created, model: public, telling };
    if request.options.stream {
        Ok(answer.stream(prompts, &request.options, guard).await?)
    } else {
        let completion = answer.whole(prompts).await?;
        drop(guard);
        Ok(Json(completion).into_response())
    }
}

/// A prompt as the engine takes it, and what its answers begin with.
struct ReadPrompt {
    tokens: Vec<u32>,
    echo: Option<Echo>,
}

fn read_prompts(model: &Model, request: &CompletionRequest) -> Result<Vec<ReadPrompt>, ApiError> {
    let (prompts, most) = (request.prompts.len(), model.engine.max_queued());
    if prompts > most {
        let message = format!(
            "prompt has {prompts} prompts, but only {most} requests may wait for this model at once; send fewer at a time"
        );
        return Err(ApiError::invalid("prompt", message));
    }
    let read = |prompt: &Prompt| {
        let tokens = match prompt {
            Prompt::Text(text) => model.encode(text, true, "prompt")?,
            Prompt::Tokens(tokens) => {
                model.check_tokens("prompt", tokens)?;
                tokens.clone()
            }
        };
        let echo = match (request.echo, prompt) {
            (false, _) => None,
            (true, Prompt::Text(text)) => Some(Echo { text: text.clone(), tokens: tokens.clone() }),
            // Half a character at its end is the answer's to complete.
            (true, Prompt::Tokens(tokens)) => {
                let text =
                    model.codec.decode(tokens).map_err(|error| ApiError::internal(error.to_string()))?;
                Some(Echo { text: stable(&text).to_owned(), tokens: tokens.clone() })
            }
        };
        Ok(ReadPrompt { tokens, echo })
    };
    request.prompts.iter().map(read).collect()
}

#[expect(clippy::too_many_arguments, reason = "each is what one prompt differs or agrees in with the others")]
fn start(
    model: &Model,
    app: &App,
    request: &CompletionRequest,
    shows_ids: bool,
    index: u32,
    prompt: ReadPrompt,
    constraint: Option<Box<dyn Constraint>>,
    timing: Timing,
) -> Result<PromptAnswers, ApiError> {
    let ReadPrompt { tokens, echo } = prompt;
    let prompt_token_ids = shows_ids.then(|| tokens.clone());
    let generation = Generation::start(
        model,
        &app.metrics,
        TextRequest {
            prompt: tokens,
            param: "prompt",
            options: &request.options,
            default_max_tokens: Some(DEFAULT_MAX_TOKENS),
            logprobs: request.logprobs,
            prompt_logprobs: request.echo && request.logprobs.is_some(),
            continues_prompt: true,
            special_tokens: false,
            adapter: app.check_model(&request.model)?,
            most_reported: (!request.options.stream).then_some(MOST_REPORTED / request.prompts.len().max(1)),
            constraint,
            timing,
        },
    )?;
    let n = request.options.n.max(1);
    let codec = request.logprobs.map(|_| Arc::clone(&model.codec));
    let resumed = &request.options.resume_token_ids;
    Ok(PromptAnswers::new(index * n, n, generation, echo, codec, prompt_token_ids).after(resumed))
}
