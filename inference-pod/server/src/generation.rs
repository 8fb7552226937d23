//! One prompt's way through the engine, as text: submits it, turns tokens into text, finds stop strings, measures.
//!
//! Used by both APIs; knows neither's JSON. Dropping a [`Generation`] aborts it.

use std::sync::Arc;
use std::time::Instant;

use fairlead_engine::backend::TokenLogprob;
use fairlead_engine::engine::{Event, Failure, SubmitError};
use fairlead_engine::sampling::SamplingOptions;
use fairlead_engine::scheduler::Refusal;
use fairlead_engine::sequence::{EndReason, GenerationRequest, PromptLogprob};
use fairlead_engine::stop::StopMatcher;
use fairlead_openai::{ApiError, FinishReason, GenerationOptions};
use tokio::sync::mpsc;

use crate::detokenize::Detokenizer;
use crate::metrics::{Finished, Metrics};
use crate::state::{Model, engine_dead};
use crate::tokenizer::CodecError;

/// A prompt and how to go on from it.
pub struct TextRequest<'a> {
    /// Tokens of the prompt.
    pub prompt: Vec<u32>,
    /// The request's field that the prompt comes from, for errors.
    pub param: &'static str,
    /// Options common to both APIs.
    pub options: &'a GenerationOptions,
    /// Tokens to generate where the request leaves it open; `None` is as many as fit.
    pub default_max_tokens: Option<u32>,
    /// Alternatives to report with each token; `None` reports nothing.
    pub logprobs: Option<u32>,
    /// Report the prompt's log-probabilities too.
    pub prompt_logprobs: bool,
    /// Whether the answer's text continues the prompt's.
    pub continues_prompt: bool,
    /// When the request came in.
    pub arrived: Instant,
}

/// A token with what is known about its probability.
#[derive(Clone, Debug, PartialEq)]
pub struct ScoredToken {
    /// The token.
    pub token: u32,
    /// Its log-probability; absent for a prompt's first.
    pub logprob: Option<f32>,
    /// The likeliest tokens in its place.
    pub top: Vec<TokenLogprob>,
}

/// What comes out of a generation, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// The prompt's log-probabilities, from its second token on.
    Prompt(Vec<PromptLogprob>),
    /// More of the answer.
    Piece {
        /// New text; may be empty.
        text: String,
        /// New tokens, when log-probabilities were asked for.
        tokens: Vec<ScoredToken>,
        /// Set in the last piece.
        finish: Option<FinishReason>,
    },
}

/// A prompt on its way.
pub struct Generation {
    events: mpsc::Receiver<Event>,
    detokenizer: Detokenizer,
    stops: StopMatcher,
    logprobs: bool,
    measure: Measure,
    param: &'static str,
    ended: bool,
}

impl Generation {
    /// Checks a prompt against the model and queues it.
    ///
    /// # Errors
    /// 400 where it cannot fit, 429 where too many wait, 503 where the engine has stopped.
    pub fn start(model: &Model, metrics: &Metrics, request: TextRequest<'_>) -> Result<Self, ApiError> {
        let TextRequest {
            prompt,
            param,
            options,
            default_max_tokens,
            logprobs,
            prompt_logprobs,
            continues_prompt,
            arrived,
        } = request;
        if prompt.is_empty() {
            return Err(ApiError::invalid(param, format!("{param} has no tokens; send some text")));
        }
        let vocabulary = model.codec.vocab_size();
        if let Some((index, token)) = prompt.iter().enumerate().find(|(_, token)| **token >= vocabulary) {
            return Err(ApiError::invalid(
                param,
                format!(
                    "{param}: token {index} is {token}, but this model's tokens are 0 to {}",
                    vocabulary - 1
                ),
            ));
        }
        let longest = model.engine.max_model_len();
        let room = (longest as usize).saturating_sub(prompt.len()).min(u32::MAX as usize) as u32;
        let max_new_tokens = match options.max_tokens {
            Some(asked) if asked > room => {
                return Err(ApiError::context_length_exceeded(param, prompt.len(), asked, longest));
            }
            Some(asked) => asked,
            None if room == 0 => {
                return Err(ApiError::context_length_exceeded(param, prompt.len(), 1, longest));
            }
            None => default_max_tokens.map_or(room, |count| count.min(room)),
        };
        let mut stop_tokens = options.stop_token_ids.clone();
        if !options.ignore_eos {
            stop_tokens.extend(&model.eos_tokens);
        }
        let detokenizer = if continues_prompt {
            Detokenizer::continuing(Arc::clone(&model.codec), &prompt).map_err(codec_error)?
        } else {
            Detokenizer::new(Arc::clone(&model.codec))
        };
        let prompt_tokens = prompt.len() as u64;
        let events = model
            .engine
            .submit(GenerationRequest {
                prompt,
                max_new_tokens,
                sampling: sampling(model, options, logprobs),
                prompt_logprobs,
                stop_tokens,
                ..GenerationRequest::default()
            })
            .map_err(|error| match error {
                SubmitError::Full { waiting } => ApiError::overloaded(
                    format!("{waiting} requests are waiting for this model already; try again later"),
                    1,
                ),
                SubmitError::Dead(reason) => engine_dead(&reason),
            })?;
        metrics.queued(arrived.elapsed());
        Ok(Self {
            events,
            detokenizer,
            stops: StopMatcher::new(&options.stop),
            logprobs: logprobs.is_some(),
            measure: Measure::new(metrics.clone(), prompt_tokens, arrived),
            param,
            ended: false,
        })
    }

    /// Tokens of the prompt.
    pub fn prompt_tokens(&self) -> u64 {
        self.measure.prompt_tokens
    }

    /// Tokens generated so far.
    pub fn generated(&self) -> u64 {
        self.measure.generated
    }

    /// What comes next; `None` after the last piece.
    ///
    /// # Errors
    /// What the engine could not do; nothing comes after it.
    pub async fn next(&mut self) -> Option<Result<Output, ApiError>> {
        while !self.ended {
            let event = match self.events.recv().await {
                Some(event) => event,
                None => Event::Failed(Failure::Dead("it gave no answer".to_owned())),
            };
            let output = match event {
                Event::Admitted { .. } => continue,
                Event::PromptLogprobs(logprobs) => Ok(Output::Prompt(logprobs)),
                Event::Token { token, end, .. } => {
                    self.measure.token();
                    let scored =
                        ScoredToken { token: token.token, logprob: token.logprob, top: token.top_logprobs };
                    match self.piece(scored, end) {
                        Ok(Some(output)) => Ok(output),
                        Ok(None) => continue,
                        Err(error) => Err(codec_error(error)),
                    }
                }
                Event::Ended { .. } => {
                    self.measure.scored();
                    self.end(Finished::Length);
                    Ok(Output::Piece {
                        text: String::new(),
                        tokens: Vec::new(),
                        finish: Some(FinishReason::Length),
                    })
                }
                Event::Failed(failure) => Err(failure_error(failure, self.param)),
            };
            if output.is_err() {
                self.end(Finished::Error);
            }
            return Some(output);
        }
        None
    }

    /// What a token adds; `None` when there is nothing to send yet.
    fn piece(&mut self, scored: ScoredToken, end: Option<EndReason>) -> Result<Option<Output>, CodecError> {
        let is_stop_token = end == Some(EndReason::StopToken);
        let mut new = if is_stop_token { String::new() } else { self.detokenizer.push(scored.token)? };
        if end.is_some() {
            new.push_str(&self.detokenizer.finish()?);
        }
        let released = self.stops.push(&new);
        let mut text = released.text;
        let finish = match end {
            _ if released.stopped => Some(FinishReason::Stop),
            Some(EndReason::StopToken) => Some(FinishReason::Stop),
            Some(EndReason::Length) => Some(FinishReason::Length),
            None => None,
        };
        if let Some(finish) = finish {
            if !released.stopped {
                text.push_str(&self.stops.finish());
            }
            self.end(if finish == FinishReason::Length { Finished::Length } else { Finished::Stop });
            // What the engine may still be doing for this request is not wanted.
            self.events.close();
        }
        let tokens = if self.logprobs && !is_stop_token { vec![scored] } else { Vec::new() };
        let is_empty = text.is_empty() && tokens.is_empty() && finish.is_none();
        Ok((!is_empty).then_some(Output::Piece { text, tokens, finish }))
    }

    fn end(&mut self, how: Finished) {
        self.ended = true;
        self.measure.end(how);
    }
}

fn sampling(model: &Model, options: &GenerationOptions, logprobs: Option<u32>) -> SamplingOptions {
    SamplingOptions {
        temperature: options.temperature.or(model.defaults.temperature).unwrap_or(1.0),
        top_p: options.top_p.or(model.defaults.top_p).unwrap_or(1.0),
        top_k: options.top_k.or(model.defaults.top_k).unwrap_or(0),
        seed: options.seed.map_or_else(|| uuid::Uuid::new_v4().as_u64_pair().0, i64::cast_unsigned),
        logprobs,
        ..SamplingOptions::default()
    }
}

fn codec_error(error: CodecError) -> ApiError {
    ApiError::internal(error.to_string())
}

fn failure_error(failure: Failure, param: &str) -> ApiError {
    match failure {
        Failure::Refused(Refusal::TooLong { prompt, new, most }) => {
            ApiError::context_length_exceeded(param, prompt, new, most)
        }
        Failure::Refused(Refusal::Draining) => {
            ApiError::unavailable("draining", "this server is shutting down; send the request again", 1)
        }
        Failure::Refused(Refusal::EmptyPrompt) => {
            ApiError::invalid(param, format!("{param} has no tokens; send some text"))
        }
        Failure::NonFinite | Failure::OutOfMemory | Failure::DeadlinePassed => {
            ApiError::internal(failure.to_string())
        }
        Failure::Dead(reason) => engine_dead(&reason),
    }
}

/// Times and counts of one request. One that is dropped before its end counts as aborted.
struct Measure {
    metrics: Metrics,
    prompt_tokens: u64,
    generated: u64,
    arrived: Instant,
    last_token: Instant,
    ended: bool,
}

impl Measure {
    fn new(metrics: Metrics, prompt_tokens: u64, arrived: Instant) -> Self {
        Self { metrics, prompt_tokens, generated: 0, arrived, last_token: arrived, ended: false }
    }

    fn token(&mut self) {
        let now = Instant::now();
        if self.generated == 0 {
            self.metrics.first_token(self.prompt_tokens, now - self.arrived);
        } else {
            self.metrics.next_token(now - self.last_token);
        }
        self.generated += 1;
        self.last_token = now;
    }

    fn scored(&self) {
        self.metrics.prompt_scored(self.prompt_tokens);
    }

    fn end(&mut self, how: Finished) {
        if !self.ended {
            self.ended = true;
            self.metrics.finished(how, self.prompt_tokens, self.generated, self.arrived.elapsed());
        }
    }
}

impl Drop for Measure {
    fn drop(&mut self) {
        self.end(Finished::Abort);
    }
}
