//! One prompt's way through the engine, as text: submits it, turns tokens into the text of its answers, measures.
//!
//! Used by both APIs; knows neither's JSON. Dropping a [`Generation`] aborts it.

use std::time::{Duration, Instant};

use fairlead_engine::engine::{Event, Failure, SubmitError};
use fairlead_engine::sampling::SamplingOptions;
use fairlead_engine::scheduler::Refusal;
use fairlead_engine::sequence::{AdapterKey, Constraint, GenerationRequest, GivenUp, PromptLogprob};
use fairlead_openai::{ApiError, FinishReason, GenerationOptions, Usage};
use tokio::sync::mpsc;

use crate::answer_text::{AnswerText, TextOptions};
pub use crate::answer_text::{Piece, ScoredToken};
use crate::measure::Measure;
use crate::metrics::{Finished, Metrics};
use crate::state::{Model, engine_dead};
use crate::tokenizer::CodecError;

/// When a request came in and when it is given up.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// When it came in.
    pub arrived: Instant,
    /// When it is given up, where the client says so.
    pub deadline: Option<Instant>,
}

/// Log-probabilities of tokens and their alternatives that an answer in one piece may have, all prompts and choices together: some
/// hundreds of mebibytes while it is written down.
pub const MOST_REPORTED: usize = 2_000_000;

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
    /// Whether special tokens are part of the answer's text.
    pub special_tokens: bool,
    /// LoRA adapter that answers.
    pub adapter: Option<AdapterKey>,
    /// Share of [`MOST_REPORTED`] that this prompt has, where all that is reported is gathered before it is sent.
    pub most_reported: Option<usize>,
    /// What form the answer must have.
    pub constraint: Option<Box<dyn Constraint>>,
    /// When the request came in and when it is given up.
    pub timing: Timing,
}

/// What comes out of a generation, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// The prompt's log-probabilities, from its second token on.
    Prompt(Vec<PromptLogprob>),
    /// More of an answer.
    Piece(Piece),
}

/// The request's fields that are to blame where prompt and answer do not fit.
#[derive(Clone, Copy, Debug)]
struct LengthFields {
    prompt: &'static str,
    max_tokens: &'static str,
}

impl LengthFields {
    fn of(request: &TextRequest<'_>) -> Self {
        Self { prompt: request.param, max_tokens: request.options.max_tokens_field() }
    }

    /// 400: the prompt's field where it does not fit by itself, or else the answer's.
    fn too_long(self, prompt: usize, asked: u32, most: u32) -> ApiError {
        if prompt >= most as usize {
            ApiError::prompt_too_long(self.prompt, prompt, most)
        } else {
            ApiError::answer_too_long(self.max_tokens, asked, prompt, most)
        }
    }
}

/// A prompt on its way.
pub struct Generation {
    events: mpsc::Receiver<Event>,
    answers: Vec<AnswerText>,
    measure: Measure,
    /// Tokens of the answer that were there before.
    resumed: u64,
    /// Tokens of the prompt that were in the cache.
    cached: u64,
    fields: LengthFields,
    given_up: GivenUp,
    reportable: Reportable,
    ended: bool,
}

impl Generation {
    /// Checks a prompt against the model and queues it.
    ///
    /// # Errors
    /// 400 where it cannot fit, 429 where too many wait, 503 where the engine has stopped.
    pub fn start(model: &Model, metrics: &Metrics, request: TextRequest<'_>) -> Result<Self, ApiError> {
        let max_new_tokens = check(model, &request)?;
        let fields = LengthFields::of(&request);
        let TextRequest { prompt, options, logprobs, continues_prompt, special_tokens, timing, .. } = request;
        let how = TextOptions {
            options,
            logprobs: logprobs.is_some(),
            continues: continues_prompt.then_some(&prompt),
            special_tokens,
        };
        let answers = (0..options.n.max(1))
            .map(|choice| AnswerText::new(choice, &model.codec, &how))
            .collect::<Result<Vec<_>, _>>()
            .map_err(codec_error)?;
        let mut stop_tokens = options.stop_token_ids.clone();
        if !options.ignore_eos {
            stop_tokens.extend(&model.eos_tokens);
        }
        let (prompt_tokens, choices) = (prompt.len() as u64, answers.len() as u32);
        let given_up = GivenUp::default();
        let events = model
            .engine
            .submit(GenerationRequest {
                prompt,
                answered: options.resume_token_ids.clone(),
                choices,
                max_new_tokens,
                min_new_tokens: options.min_tokens,
                sampling: sampling(model, options, logprobs),
                constraint: request.constraint,
                prompt_logprobs: request.prompt_logprobs,
                stop_tokens,
                priority: options.priority,
                adapter: request.adapter,
                cache_salt: options.cache_salt.clone(),
                deadline: timing.deadline,
                given_up: given_up.clone(),
            })
            .map_err(|error| match error {
                SubmitError::Full { waiting } => ApiError::overloaded(
                    format!("{waiting} requests are waiting for this model already; try again later"),
                    1,
                ),
                SubmitError::Dead(reason) => engine_dead(&reason),
            })?;
        Ok(Self {
            events,
            answers,
            measure: Measure::new(metrics.clone(), prompt_tokens, max_new_tokens, choices, timing.arrived),
            resumed: options.resume_token_ids.len() as u64,
            cached: 0,
            fields,
            given_up,
            reportable: Reportable(request.most_reported),
            ended: false,
        })
    }

    /// Tokens of the prompt.
    pub fn prompt_tokens(&self) -> u64 {
        self.measure.prompt_tokens()
    }

    /// Tokens read, those of them that were in the cache, and tokens written so far.
    pub fn usage(&self) -> Usage {
        Usage::new(self.prompt_tokens(), self.generated()).with_cached(self.cached)
    }

    /// Tokens of all answers so far.
    pub fn generated(&self) -> u64 {
        self.resumed + self.measure.generated()
    }

    /// The first answer's text that was sent before the request was resumed.
    pub fn resumed_text(&self) -> &str {
        self.answers.first().map_or("", AnswerText::resumed_text)
    }

    /// From the request's arrival to its first token, once that is there.
    pub fn time_to_first_token(&self) -> Option<Duration> {
        self.measure.time_to_first_token()
    }

    /// What comes next; `None` after the last piece of the last answer.
    ///
    /// # Errors
    /// What the engine could not do; nothing comes after it.
    pub async fn next(&mut self) -> Option<Result<Output, ApiError>> {
        while !self.ended {
            let event = match self.events.recv().await {
                Some(event) => event,
                None => Event::Failed(Failure::Dead("it gave the answer up, as nobody read it".to_owned())),
            };
            let output = self.take(event);
            if output.is_err() {
                self.ended = true;
                self.measure.end_all(Finished::Error);
            }
            match output.transpose() {
                Some(output) => return Some(output),
                None => continue,
            }
        }
        None
    }

    /// What an event adds; `None` when there is nothing to send yet.
    fn take(&mut self, event: Event) -> Result<Option<Output>, ApiError> {
        let piece = match event {
            Event::Admitted { at, cached_tokens } => {
                self.cached = u64::from(cached_tokens);
                self.measure.admitted(at);
                None
            }
            Event::PromptLogprobs(logprobs) => {
                self.reportable
                    .take(logprobs.iter().map(|(_, alternatives)| 1 + alternatives.len()).sum())?;
                return Ok(Some(Output::Prompt(logprobs)));
            }
            Event::Token { choice, token, end } => {
                let Some(answer) = self.answers.get_mut(choice as usize) else { return Ok(None) };
                if answer.has_ended() {
                    // It met a stop string; what the engine made before it knew is for nobody.
                    return Ok(None);
                }
                self.measure.token(choice);
                self.reportable.take(token.logprob.map_or(0, |_| 1 + token.top_logprobs.len()))?;
                answer.push(token, end).map_err(codec_error)?
            }
            Event::Ended { choice, .. } => {
                self.measure.scored();
                self.answers.get_mut(choice as usize).map(AnswerText::end)
            }
            Event::Failed(failure) => return Err(failure_error(failure, self.fields)),
        };
        if let Some(Piece { choice, finish: Some(finish), .. }) = &piece {
            let how = if *finish == FinishReason::Length { Finished::Length } else { Finished::Stop };
            self.measure.end(*choice, how);
            // Where a stop string has ended it the engine does not know.
            self.given_up.give_up(*choice);
            if self.answers.iter().all(AnswerText::has_ended) {
                self.ended = true;
                // What the engine may still be doing for this request is not wanted.
                self.events.close();
            }
        }
        Ok(piece.map(Output::Piece))
    }
}

/// Log-probabilities that may still be reported; `None` is any number.
struct Reportable(Option<usize>);

impl Reportable {
    fn take(&mut self, count: usize) -> Result<(), ApiError> {
        let Some(left) = self.0 else { return Ok(()) };
        let left = left.checked_sub(count).ok_or_else(|| {
            let message = format!(
                "logprobs: an answer in one piece may have {MOST_REPORTED} log-probabilities; stream it, or ask for fewer \
                 alternatives, choices, prompts or tokens"
            );
            ApiError::invalid("logprobs", message)
        })?;
        self.0 = Some(left);
        Ok(())
    }
}

/// Checks what only the model can tell; returns the most tokens that an answer may have.
fn check(model: &Model, request: &TextRequest<'_>) -> Result<u32, ApiError> {
    let TextRequest { prompt, param, options, .. } = request;
    if prompt.is_empty() {
        return Err(ApiError::invalid(*param, format!("{param} has no tokens; send some text")));
    }
    let resumed = &options.resume_token_ids;
    for (field, tokens) in [(*param, prompt), ("resume_token_ids", resumed)] {
        model.check_tokens(field, tokens)?;
    }
    check_named_tokens(options, model.codec.vocab_size())?;
    let longest = model.engine.max_model_len();
    let room = (longest as usize).saturating_sub(prompt.len()).min(u32::MAX as usize) as u32;
    match options.max_tokens {
        // A prompt may fill the model where it is only scored.
        Some(asked) if asked > room => Err(LengthFields::of(request).too_long(prompt.len(), asked, longest)),
        Some(asked) => Ok(asked),
        None if room == 0 => Err(ApiError::prompt_too_long(param, prompt.len(), longest)),
        None if options.min_tokens > room => {
            Err(ApiError::answer_too_long("min_tokens", options.min_tokens, prompt.len(), longest))
        }
        None if room as usize <= resumed.len() => {
            let message = format!(
                "resume_token_ids has {} tokens, but after the prompt's {} this model takes {room} more; do not resume it",
                resumed.len(),
                prompt.len()
            );
            Err(ApiError::invalid("resume_token_ids", message).with_code("context_length_exceeded"))
        }
        None => {
            let wanted = request.default_max_tokens.unwrap_or(room).max(options.min_tokens);
            Ok(wanted.max(resumed.len() as u32 + 1).min(room))
        }
    }
}

/// Checks the tokens that a request names one by one.
fn check_named_tokens(options: &GenerationOptions, vocabulary: u32) -> Result<(), ApiError> {
    let most = vocabulary.saturating_sub(1);
    if let Some((token, _)) = options.sampling.logit_bias.iter().find(|(token, _)| *token >= vocabulary) {
        let message = format!("logit_bias.{token} is no token of this model (0 to {most}); leave it out");
        return Err(ApiError::invalid("logit_bias", message));
    }
    let mut stops = options.stop_token_ids.iter().enumerate();
    if let Some((index, token)) = stops.find(|(_, token)| **token >= vocabulary) {
        let field = format!("stop_token_ids[{index}]");
        let message = format!("{field} is {token}, no token of this model (0 to {most}); leave it out");
        return Err(ApiError::invalid(field, message));
    }
    Ok(())
}

fn sampling(model: &Model, options: &GenerationOptions, logprobs: Option<u32>) -> SamplingOptions {
    let asked = &options.sampling;
    SamplingOptions {
        temperature: asked.temperature.or(model.defaults.temperature).unwrap_or(1.0),
        top_p: asked.top_p.or(model.defaults.top_p).unwrap_or(1.0),
        top_k: asked.top_k.or(model.defaults.top_k).unwrap_or(0),
        min_p: asked.min_p.unwrap_or(0.0),
        repetition_penalty: asked.repetition_penalty.unwrap_or(1.0),
        presence_penalty: asked.presence_penalty.unwrap_or(0.0),
        frequency_penalty: asked.frequency_penalty.unwrap_or(0.0),
        logit_bias: asked.logit_bias.clone(),
        seed: asked.seed.map_or_else(|| uuid::Uuid::new_v4().as_u64_pair().0, i64::cast_unsigned),
        logprobs,
    }
}

fn codec_error(error: CodecError) -> ApiError {
    ApiError::internal(error.to_string())
}

fn failure_error(failure: Failure, fields: LengthFields) -> ApiError {
    let param = fields.prompt;
    match failure {
        Failure::Refused(Refusal::TooLong { prompt, new, most }) => fields.too_long(prompt, new, most),
        Failure::Refused(Refusal::Draining) => {
            ApiError::unavailable("draining", "this server is shutting down; send the request again", 1)
        }
        Failure::Refused(Refusal::EmptyPrompt) => {
            ApiError::invalid(param, format!("{param} has no tokens; send some text"))
        }
        Failure::AdapterGone => ApiError::new(404, "invalid_request_error", format!("model: {failure}"))
            .with_param("model")
            .with_code("model_not_found"),
        Failure::DeadlinePassed => ApiError::deadline_passed(
            "the time that x-request-timeout-ms allows has passed; allow more, or ask for fewer tokens",
        ),
        Failure::Refused(refusal @ Refusal::TooManyChoices { .. }) => {
            ApiError::invalid("n", refusal.to_string())
        }
        Failure::Refused(refusal @ Refusal::Continuation(_)) => ApiError::invalid(param, refusal.to_string()),
        // The form is the client's.
        Failure::Constraint(_) => ApiError::bad_request(failure.to_string()),
        Failure::NonFinite | Failure::OutOfMemory => ApiError::internal(failure.to_string()),
        Failure::Dead(reason) => engine_dead(&reason),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_probabilities_are_reported_up_to_the_limit() {
        let mut some = Reportable(Some(5));
        assert!(some.take(2).is_ok() && some.take(3).is_ok() && some.take(0).is_ok());
        let error = some.take(1).unwrap_err();
        assert_eq!((error.status, error.param.as_deref()), (400, Some("logprobs")));
        assert!(Reportable(None).take(usize::MAX).is_ok());
    }
}
