//! `POST /v1/completions`: text or tokens in, for one prompt or many, with echo and log-probabilities.

use std::sync::Arc;
use std::time::Instant;

use async_stream::stream;
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use fairlead_engine::backend::TokenLogprob;
use fairlead_engine::sequence::PromptLogprob;
use fairlead_openai::completion::{CompletionChoice, CompletionLogprobs};
use fairlead_openai::{ApiError, Completion, CompletionRequest, FinishReason, Prompt, Usage};
use futures::future::try_join_all;
use futures::stream::{Stream, StreamExt, select_all};
use serde_json::{Map, Value};

use crate::detokenize::stable;
use crate::drain::InFlight;
use crate::generation::{Generation, Output, ScoredToken, TextRequest};
use crate::http::errors::HttpError;
use crate::http::{answer_id, public_model, read_body, sse_done, sse_error, sse_event, sse_response};
use crate::state::{App, Model, unix_seconds};
use crate::tokenizer::TextCodec;

/// Tokens generated where the request leaves it open, as for OpenAI.
const DEFAULT_MAX_TOKENS: u32 = 16;

/// Continues prompts.
pub async fn completions(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, HttpError> {
    let arrived = Instant::now();
    let body = read_body(body).await?;
    let (model, guard) = app.admit()?;
    let bytes = body.len();
    let read = {
        let app = Arc::clone(&app);
        move || {
            let request = CompletionRequest::from_slice(&body)?;
            app.check_model(&request.model)?;
            if let Some(error) = request.unsupported() {
                return Err(error);
            }
            let choices = start_all(&model, &app, &request, arrived)?;
            Ok((request, choices))
        }
    };
    let (request, choices) = app.read_request(bytes, read).await?;
    let answer = Answer {
        id: answer_id("cmpl"),
        created: unix_seconds(),
        model: public_model(&headers, &request.model),
    };
    if request.options.stream {
        Ok(answer.stream(choices, request.options.include_usage, guard).await?)
    } else {
        let completion = answer.whole(choices).await?;
        drop(guard);
        Ok(Json(completion).into_response())
    }
}

fn start_all(
    model: &Model,
    app: &App,
    request: &CompletionRequest,
    arrived: Instant,
) -> Result<Vec<Choice>, ApiError> {
    let internal = |error: crate::tokenizer::CodecError| ApiError::internal(error.to_string());
    let start = |(index, prompt): (usize, &Prompt)| {
        let tokens = match prompt {
            Prompt::Text(text) => model.encode(text, true, "prompt")?,
            Prompt::Tokens(tokens) => tokens.clone(),
        };
        let echo = match (request.echo, prompt) {
            (false, _) => None,
            (true, Prompt::Text(text)) => Some(Echo { text: text.clone(), tokens: tokens.clone() }),
            // Half a character at its end is the answer's to complete.
            (true, Prompt::Tokens(tokens)) => {
                let text = model.codec.decode(tokens).map_err(internal)?;
                Some(Echo { text: stable(&text).to_owned(), tokens: tokens.clone() })
            }
        };
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
                arrived,
            },
        )?;
        let logprobs = request.logprobs.map(|_| LogprobWriter { codec: Arc::clone(&model.codec), offset: 0 });
        Ok(Choice { index: index as u32, generation, echo, logprobs, held: None })
    };
    request.prompts.iter().enumerate().map(start).collect()
}

struct Echo {
    text: String,
    tokens: Vec<u32>,
}

/// One prompt and its answer.
struct Choice {
    index: u32,
    generation: Generation,
    /// Taken when it has been sent.
    echo: Option<Echo>,
    logprobs: Option<LogprobWriter>,
    /// What came while the echo had to go first.
    held: Option<Output>,
}

impl Choice {
    /// What comes next, the echo first; `None` after the last piece.
    async fn next(&mut self) -> Option<Result<CompletionChoice, ApiError>> {
        loop {
            if self.echo.is_some() && self.logprobs.is_none() {
                return self.echo.take().map(|echo| Ok(self.choice(echo.text, None, None)));
            }
            let output = match self.held.take() {
                Some(output) => output,
                None => match self.generation.next().await? {
                    Ok(output) => output,
                    Err(error) => return Some(Err(error)),
                },
            };
            // A prompt of one token has no log-probabilities, and so none come.
            let (known, rest) = match output {
                Output::Prompt(known) => (known, None),
                other => (Vec::new(), Some(other)),
            };
            if let Some(echo) = self.echo.take() {
                self.held = rest;
                let scored = echo_scores(&echo.tokens, known);
                let logprobs = self.logprobs.as_mut().map(|writer| writer.write(&scored));
                return Some(Ok(self.choice(echo.text, logprobs, None)));
            }
            if let Some(Output::Piece { text, tokens, finish }) = rest {
                let logprobs = self.logprobs.as_mut().map(|writer| writer.write(&tokens));
                return Some(Ok(self.choice(text, logprobs, finish)));
            }
        }
    }

    fn choice(
        &self,
        text: String,
        logprobs: Option<CompletionLogprobs>,
        finish_reason: Option<FinishReason>,
    ) -> CompletionChoice {
        CompletionChoice { index: self.index, text, logprobs, finish_reason }
    }

    fn usage(&self) -> (u64, u64) {
        (self.generation.prompt_tokens(), self.generation.generated())
    }

    async fn whole(mut self) -> Result<(CompletionChoice, (u64, u64)), ApiError> {
        let mut all =
            self.choice(String::new(), self.logprobs.as_ref().map(|_| CompletionLogprobs::default()), None);
        while let Some(part) = self.next().await {
            let part = part?;
            all.text.push_str(&part.text);
            if let (Some(all), Some(part)) = (&mut all.logprobs, part.logprobs) {
                all.tokens.extend(part.tokens);
                all.token_logprobs.extend(part.token_logprobs);
                all.top_logprobs.extend(part.top_logprobs);
                all.text_offset.extend(part.text_offset);
            }
            all.finish_reason = part.finish_reason.or(all.finish_reason);
        }
        let usage = self.usage();
        Ok((all, usage))
    }
}

/// A prompt's tokens with what is known of them; nothing is known of the first.
fn echo_scores(tokens: &[u32], known: Vec<PromptLogprob>) -> Vec<ScoredToken> {
    let mut known = known.into_iter();
    tokens
        .iter()
        .enumerate()
        .map(|(index, &token)| match if index > 0 { known.next() } else { None } {
            Some((own, top)) => ScoredToken { token, logprob: Some(own.logprob), top },
            None => ScoredToken { token, logprob: None, top: Vec::new() },
        })
        .collect()
}

/// Writes log-probabilities, counting where in the text each token begins.
struct LogprobWriter {
    codec: Arc<TextCodec>,
    offset: u64,
}

impl LogprobWriter {
    fn write(&mut self, tokens: &[ScoredToken]) -> CompletionLogprobs {
        let mut written = CompletionLogprobs::default();
        for scored in tokens {
            let text = self.codec.token_text(scored.token);
            written.text_offset.push(self.offset);
            self.offset += text.chars().count() as u64;
            let top = scored.logprob.map(|logprob| {
                let own = TokenLogprob { token: scored.token, logprob };
                let entry = |top: &TokenLogprob| (self.codec.token_text(top.token), Value::from(top.logprob));
                // The chosen token is always among them.
                scored.top.iter().chain(std::iter::once(&own)).map(entry).collect::<Map<_, _>>()
            });
            written.token_logprobs.push(scored.logprob);
            written.top_logprobs.push(top);
            written.tokens.push(text);
        }
        written
    }
}

/// What is the same in all parts of an answer.
struct Answer {
    id: String,
    created: u64,
    model: String,
}

impl Answer {
    async fn whole(self, choices: Vec<Choice>) -> Result<Completion, ApiError> {
        let done = try_join_all(choices.into_iter().map(Choice::whole)).await?;
        let (mut read, mut written) = (0, 0);
        let mut choices = Vec::with_capacity(done.len());
        for (choice, (prompt_tokens, generated)) in done {
            read += prompt_tokens;
            written += generated;
            choices.push(choice);
        }
        Ok(self.completion(choices, Some(Some(Usage::new(read, written)))))
    }

    /// Begins with the first output: until then an error still has its status, and a gateway can still ask another pod.
    async fn stream(
        self,
        choices: Vec<Choice>,
        include_usage: bool,
        guard: InFlight,
    ) -> Result<Response, ApiError> {
        let usage = include_usage.then_some(None);
        let mut parts = select_all(choices.into_iter().map(|choice| Box::pin(parts(choice))));
        let mut next = parts.next().await.transpose()?.map(Ok);
        Ok(sse_response(stream! {
            let _guard = guard;
            let (mut read, mut written) = (0, 0);
            while let Some(part) = next {
                match part {
                    Ok(Part::Choice(choice)) => yield Ok(sse_event(&self.completion(vec![choice], usage))),
                    Ok(Part::Usage(prompt_tokens, generated)) => {
                        read += prompt_tokens;
                        written += generated;
                    }
                    Err(error) => yield Ok(sse_error(&error)),
                }
                next = parts.next().await;
            }
            if include_usage {
                yield Ok(sse_event(&self.completion(Vec::new(), Some(Some(Usage::new(read, written))))));
            }
            yield Ok(sse_done());
        }))
    }

    fn completion(&self, choices: Vec<CompletionChoice>, usage: Option<Option<Usage>>) -> Completion {
        Completion {
            id: self.id.clone(),
            object: "text_completion".to_owned(),
            created: self.created,
            model: self.model.clone(),
            choices,
            usage,
        }
    }
}

enum Part {
    Choice(CompletionChoice),
    /// Tokens read and written, once a choice is complete.
    Usage(u64, u64),
}

fn parts(mut choice: Choice) -> impl Stream<Item = Result<Part, ApiError>> + Send {
    stream! {
        while let Some(part) = choice.next().await {
            yield part.map(Part::Choice);
        }
        let (read, written) = choice.usage();
        yield Ok(Part::Usage(read, written));
    }
}
