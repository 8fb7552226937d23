//! `POST /v1/chat/completions`.

use std::sync::Arc;
use std::time::Instant;

use async_stream::stream;
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use fairlead_openai::chat::{
    AssistantMessage, ChatChoice, ChatChunkChoice, ChatDelta, ChatLogprobs, ChatTokenLogprob, ChatTopLogprob,
};
use fairlead_openai::{
    ApiError, ChatCompletion, ChatCompletionChunk, ChatCompletionRequest, FinishReason, Usage,
};

use crate::drain::InFlight;
use crate::generation::{Generation, Output, ScoredToken, TextRequest};
use crate::http::errors::HttpError;
use crate::http::{answer_id, public_model, read_body, sse_done, sse_error, sse_event, sse_response};
use crate::state::{App, Model, unix_seconds};
use crate::tokenizer::TextCodec;

/// Answers a chat.
pub async fn chat_completions(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, HttpError> {
    let arrived = Instant::now();
    let body = read_body(body).await?;
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
            let prompt = prompt_tokens(&model, &request)?;
            Ok((request, prompt))
        }
    };
    let (request, prompt) = app.read_request(bytes, read).await?;
    let generation = Generation::start(
        &model,
        &app.metrics,
        TextRequest {
            prompt,
            param: "messages",
            options: &request.options,
            default_max_tokens: None,
            logprobs: request.logprobs.then_some(request.top_logprobs),
            prompt_logprobs: false,
            continues_prompt: false,
            arrived,
        },
    )?;
    let answer = Answer {
        id: answer_id("chatcmpl"),
        created: unix_seconds(),
        model: public_model(&headers, &request.model),
        logprobs: request.logprobs,
        codec: Arc::clone(&model.codec),
    };
    if request.options.stream {
        Ok(answer.stream(generation, request.options.include_usage, guard).await?)
    } else {
        let completion = answer.whole(generation).await?;
        drop(guard);
        Ok(Json(completion).into_response())
    }
}

fn prompt_tokens(model: &Model, request: &ChatCompletionRequest) -> Result<Vec<u32>, ApiError> {
    let Some(template) = &model.template else {
        return Err(ApiError::invalid(
            "messages",
            "messages: this model has no chat template, so it cannot chat; use /v1/completions, or add \
             chat_template.jinja to the model's folder",
        ));
    };
    // The template writes the special tokens itself.
    let text = template.render(request)?;
    model.encode(&text, false, "messages")
}

/// What is the same in all parts of an answer.
struct Answer {
    id: String,
    created: u64,
    model: String,
    logprobs: bool,
    codec: Arc<TextCodec>,
}

impl Answer {
    async fn whole(self, mut generation: Generation) -> Result<ChatCompletion, ApiError> {
        let mut content = String::new();
        let mut scored = Vec::new();
        let mut finish_reason = FinishReason::Stop;
        while let Some(output) = generation.next().await {
            if let Output::Piece { text, tokens, finish } = output? {
                content.push_str(&text);
                scored.extend(tokens);
                finish_reason = finish.unwrap_or(finish_reason);
            }
        }
        let message = AssistantMessage { role: "assistant".to_owned(), content, refusal: None };
        let choice = ChatChoice { index: 0, message, logprobs: self.logprobs(&scored), finish_reason };
        Ok(ChatCompletion {
            id: self.id,
            object: "chat.completion".to_owned(),
            created: self.created,
            model: self.model,
            choices: vec![choice],
            usage: Usage::new(generation.prompt_tokens(), generation.generated()),
        })
    }

    /// Begins with the first output: until then an error still has its status, and a gateway can still ask another pod.
    async fn stream(
        self,
        mut generation: Generation,
        include_usage: bool,
        guard: InFlight,
    ) -> Result<Response, ApiError> {
        let usage = include_usage.then_some(None);
        let mut next = generation.next().await.transpose()?.map(Ok);
        Ok(sse_response(stream! {
            let _guard = guard;
            let role = ChatDelta { role: Some("assistant".to_owned()), content: Some(String::new()) };
            yield Ok(sse_event(&self.chunk(role, None, None, usage)));
            while let Some(output) = next {
                match output {
                    Ok(Output::Piece { text, tokens, finish }) => {
                        let delta = ChatDelta { role: None, content: (!text.is_empty()).then_some(text) };
                        yield Ok(sse_event(&self.chunk(delta, self.logprobs(&tokens), finish, usage)));
                    }
                    Ok(Output::Prompt(_)) => {}
                    Err(error) => yield Ok(sse_error(&error)),
                }
                next = generation.next().await;
            }
            if include_usage {
                let usage = Usage::new(generation.prompt_tokens(), generation.generated());
                let last = self.chunk(ChatDelta::default(), None, None, Some(Some(usage)));
                yield Ok(sse_event(&ChatCompletionChunk { choices: Vec::new(), ..last }));
            }
            yield Ok(sse_done());
        }))
    }

    fn chunk(
        &self,
        delta: ChatDelta,
        logprobs: Option<ChatLogprobs>,
        finish_reason: Option<FinishReason>,
        usage: Option<Option<Usage>>,
    ) -> ChatCompletionChunk {
        ChatCompletionChunk {
            id: self.id.clone(),
            object: "chat.completion.chunk".to_owned(),
            created: self.created,
            model: self.model.clone(),
            choices: vec![ChatChunkChoice { index: 0, delta, logprobs, finish_reason }],
            usage,
        }
    }

    fn logprobs(&self, tokens: &[ScoredToken]) -> Option<ChatLogprobs> {
        if !self.logprobs {
            return None;
        }
        let content = tokens
            .iter()
            .map(|scored| ChatTokenLogprob {
                token: self.codec.token_text(scored.token),
                logprob: scored.logprob.unwrap_or_default(),
                bytes: Some(self.codec.token_bytes(scored.token)),
                top_logprobs: scored
                    .top
                    .iter()
                    .map(|top| ChatTopLogprob {
                        token: self.codec.token_text(top.token),
                        logprob: top.logprob,
                        bytes: Some(self.codec.token_bytes(top.token)),
                    })
                    .collect(),
            })
            .collect();
        Some(ChatLogprobs { content, refusal: None })
    }
}
