//! `POST /v1/completions`: the answers, whole or in a stream, with echo and log-probabilities.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use async_stream::stream;
use axum::response::Response;
use fairlead_engine::backend::TokenLogprob;
use fairlead_engine::sequence::PromptLogprob;
use fairlead_openai::completion::{CompletionChoice, CompletionLogprobs};
use fairlead_openai::{ApiError, Completion, GenerationOptions, Usage};
use futures::future::try_join_all;
use futures::stream::{Stream, StreamExt, select_all};
use serde_json::{Map, Value};

use crate::drain::InFlight;
use crate::generation::{Generation, Output, ScoredToken};
use crate::http::continuation::Telling;
use crate::http::request_id::StreamedRequest;
use crate::http::{sse_done, sse_error, sse_event, sse_response};
use crate::tokenizer::TextCodec;
use crate::traces::RequestSpan;

/// A prompt that its answers begin with.
pub struct Echo {
    /// Its text.
    pub text: String,
    /// Its tokens.
    pub tokens: Vec<u32>,
}

/// One prompt and its answers.
pub struct PromptAnswers {
    first_index: u32,
    generation: Generation,
    echo: Option<Echo>,
    /// What is known of the prompt's tokens.
    known: Vec<PromptLogprob>,
    prompt_token_ids: Option<Vec<u32>>,
    answers: Vec<AnswerWriter>,
    ready: VecDeque<Made>,
}

/// A part of an answer, and the tokens it was made of where they are asked for.
struct Made {
    choice: CompletionChoice,
    token_ids: Vec<u32>,
}

struct AnswerWriter {
    begun: bool,
    logprobs: Option<LogprobWriter>,
}

impl Made {
    /// Whether there is anything for a client in it. Tokens that only a gateway asked for are not.
    fn shows_something(&self) -> bool {
        let Self { choice, token_ids } = self;
        let scored = choice.logprobs.as_ref().is_some_and(|logprobs| !logprobs.tokens.is_empty());
        !choice.text.is_empty()
            || choice.finish_reason.is_some()
            || scored
            || choice.token_ids.is_some()
            || token_ids.is_empty()
    }
}

impl PromptAnswers {
    /// `n` answers, numbered from `first_index`; with a `codec`, log-probabilities are written.
    pub fn new(
        first_index: u32,
        n: u32,
        generation: Generation,
        echo: Option<Echo>,
        codec: Option<Arc<TextCodec>>,
        prompt_token_ids: Option<Vec<u32>>,
    ) -> Self {
        let writer = |_| AnswerWriter { begun: false, logprobs: codec.clone().map(LogprobWriter::new) };
        Self {
            first_index,
            generation,
            echo,
            known: Vec::new(),
            prompt_token_ids,
            answers: (0..n).map(writer).collect(),
            ready: VecDeque::new(),
        }
    }

    /// An answer that was begun elsewhere with these tokens: places in its text are counted from its beginning.
    #[must_use]
    pub fn after(mut self, resumed: &[u32]) -> Self {
        let text = self.generation.resumed_text();
        for writer in self.answers.iter_mut().filter_map(|answer| answer.logprobs.as_mut()) {
            resumed.iter().for_each(|token| writer.pass(*token, text));
        }
        self
    }

    /// What comes next, in each answer the echo first; `None` after the last piece.
    async fn next(&mut self) -> Option<Result<Made, ApiError>> {
        loop {
            if let Some(made) = self.ready.pop_front() {
                return Some(Ok(made));
            }
            match self.generation.next().await? {
                Ok(Output::Prompt(known)) => self.known = known,
                Ok(Output::Piece(piece)) => {
                    let Some(answer) = self.answers.get_mut(piece.choice as usize) else { continue };
                    let index = self.first_index + piece.choice;
                    let mut choice = |text: String, tokens: &[ScoredToken], token_ids: Option<Vec<u32>>| {
                        CompletionChoice {
                            index,
                            logprobs: answer.logprobs.as_mut().map(|writer| writer.write(tokens, &text)),
                            text,
                            finish_reason: None,
                            token_ids,
                            prompt_token_ids: None,
                        }
                    };
                    let reports_ids = self.prompt_token_ids.is_some();
                    let mut made = Vec::with_capacity(2);
                    if let (Some(echo), false) = (&self.echo, answer.begun) {
                        let scored = echo_scores(&echo.tokens, &self.known);
                        let choice = choice(echo.text.clone(), &scored, reports_ids.then(Vec::new));
                        made.push(Made { choice, token_ids: Vec::new() });
                    }
                    let shown = reports_ids.then(|| piece.token_ids.clone());
                    let mut new = choice(piece.text, &piece.tokens, shown);
                    new.finish_reason = piece.finish;
                    made.push(Made { choice: new, token_ids: piece.token_ids });
                    if let (Some(first), false) = (made.first_mut(), answer.begun) {
                        first.choice.prompt_token_ids = self.prompt_token_ids.clone();
                    }
                    answer.begun = true;
                    self.ready.extend(made);
                }
                Err(error) => return Some(Err(error)),
            }
        }
    }

    fn usage(&self) -> Counts {
        let to_first_token = self.generation.time_to_first_token();
        Counts { usage: self.generation.usage(), to_first_token }
    }

    async fn whole(mut self) -> Result<(Vec<CompletionChoice>, Counts), ApiError> {
        let mut all: Vec<CompletionChoice> = (0..)
            .zip(&self.answers)
            .map(|(choice, answer)| CompletionChoice {
                index: self.first_index + choice,
                text: String::new(),
                logprobs: answer.logprobs.as_ref().map(|_| CompletionLogprobs::default()),
                finish_reason: None,
                token_ids: self.prompt_token_ids.as_ref().map(|_| Vec::new()),
                prompt_token_ids: self.prompt_token_ids.clone(),
            })
            .collect();
        while let Some(part) = self.next().await {
            let part = part?.choice;
            let Some(all) = all.get_mut((part.index - self.first_index) as usize) else { continue };
            all.text.push_str(&part.text);
            if let (Some(all), Some(part)) = (&mut all.logprobs, part.logprobs) {
                all.tokens.extend(part.tokens);
                all.token_logprobs.extend(part.token_logprobs);
                all.top_logprobs.extend(part.top_logprobs);
                all.text_offset.extend(part.text_offset);
            }
            if let (Some(all), Some(part)) = (&mut all.token_ids, part.token_ids) {
                all.extend(part);
            }
            all.finish_reason = part.finish_reason.or(all.finish_reason);
        }
        Ok((all, self.usage()))
    }
}

/// A prompt's tokens with what is known of them; nothing is known of the first.
fn echo_scores(tokens: &[u32], known: &[PromptLogprob]) -> Vec<ScoredToken> {
    let mut known = known.iter();
    tokens
        .iter()
        .enumerate()
        .map(|(index, &token)| match if index > 0 { known.next() } else { None } {
            Some((own, top)) => ScoredToken { token, logprob: Some(own.logprob), top: top.clone() },
            None => ScoredToken { token, logprob: None, top: Vec::new() },
        })
        .collect()
}

/// Writes log-probabilities, counting where in the text each token begins.
struct LogprobWriter {
    codec: Arc<TextCodec>,
    /// Characters before the next token.
    offset: u64,
    /// Bytes that are no character yet.
    partial: Vec<u8>,
}

impl LogprobWriter {
    fn new(codec: Arc<TextCodec>) -> Self {
        Self { codec, offset: 0, partial: Vec::new() }
    }

    /// A token that is not written, with the answer's text up to here.
    fn pass(&mut self, token: u32, text: &str) {
        if !self.codec.is_special(&self.codec.token_name(token)) {
            self.advance(&self.codec.token_bytes(token), text);
        }
    }

    /// Of tokens and the text that they add to the answer.
    fn write(&mut self, tokens: &[ScoredToken], added: &str) -> CompletionLogprobs {
        let mut written = CompletionLogprobs::default();
        for scored in tokens {
            let text = self.codec.token_text(scored.token);
            written.text_offset.push(self.offset);
            // Special tokens are left out of the text.
            self.pass(scored.token, added);
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

    fn advance(&mut self, bytes: &[u8], added: &str) {
        // The space that some vocabularies put before a text's first word is not in the text.
        let is_first = self.offset == 0 && self.partial.is_empty();
        let drops_space = is_first && !added.is_empty() && !added.starts_with(' ');
        self.partial.extend(bytes.strip_prefix(b" ").filter(|_| drops_space).unwrap_or(bytes));
        loop {
            let (whole, broken) = match std::str::from_utf8(&self.partial) {
                Ok(text) => (text.len(), Some(0)),
                Err(error) => (error.valid_up_to(), error.error_len()),
            };
            self.offset +=
                self.partial[..whole].iter().filter(|byte| !is_continuation(**byte)).count() as u64;
            self.partial.drain(..whole + broken.unwrap_or(0));
            match broken {
                // Stands in the text as one replacement character.
                Some(length) if length > 0 => self.offset += 1,
                _ => break,
            }
        }
    }
}

/// Whether a byte of UTF-8 begins no character.
fn is_continuation(byte: u8) -> bool {
    byte & 0xc0 == 0x80
}

/// Tokens read and written, and how long the first took.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    usage: Usage,
    to_first_token: Option<Duration>,
}

/// What is the same in all parts of an answer.
pub struct Answer {
    /// Tells what the request came to.
    pub span: RequestSpan,
    /// Tells of a stream that breaks off.
    pub request: StreamedRequest,
    /// Name of the answer.
    pub id: String,
    /// Unix seconds.
    pub created: u64,
    /// The model's public name.
    pub model: String,
    /// How a gateway wants it told.
    pub telling: Telling,
}

impl Answer {
    /// All of it at once.
    ///
    /// # Errors
    /// What the engine could not do.
    pub async fn whole(mut self, prompts: Vec<PromptAnswers>) -> Result<Completion, ApiError> {
        let done = try_join_all(prompts.into_iter().map(PromptAnswers::whole)).await;
        let (choices, counts): (Vec<_>, Vec<_>) =
            done.inspect_err(|error| self.span.failed(error))?.into_iter().unzip();
        let choices: Vec<CompletionChoice> = choices.into_iter().flatten().collect();
        choices
            .iter()
            .filter_map(|choice| choice.finish_reason)
            .for_each(|reason| self.span.finished(reason));
        self.done(&counts);
        Ok(self.completion(choices, Some(Some(sum(&counts)))))
    }

    /// Piece by piece. Begins with the first output: until then an error still has its status, and a gateway can still ask
    /// another pod.
    ///
    /// # Errors
    /// What the engine could not do before the first output.
    pub async fn stream(
        mut self,
        prompts: Vec<PromptAnswers>,
        options: &GenerationOptions,
        guard: InFlight,
    ) -> Result<Response, ApiError> {
        let GenerationOptions { include_usage, continuous_usage, .. } = *options;
        let mut counts = vec![Counts::default(); prompts.len()];
        for (counts, prompt) in counts.iter_mut().zip(&prompts) {
            *counts = prompt.usage();
        }
        let streams = prompts.into_iter().enumerate().map(|(number, prompt)| Box::pin(parts(number, prompt)));
        let mut parts = select_all(streams);
        let first = parts.next().await.transpose();
        let mut next = first.inspect_err(|error| self.span.failed(error))?.map(Ok);
        let telling = self.telling.clone();
        let mut notes = telling.notes(&self.id, self.created, sum(&counts).prompt_tokens);
        Ok(telling.mark(sse_response(stream! {
            let _guard = guard;
            while let Some(part) = next {
                match part {
                    Ok(Part { number, made, so_far }) => {
                        if let Some(counts) = counts.get_mut(number) {
                            *counts = so_far;
                        }
                        let usage = include_usage.then(|| continuous_usage.then(|| sum(&counts)));
                        if let Some(made) = made {
                            let shows = made.shows_something();
                            let Made { choice, token_ids } = made;
                            choice.finish_reason.into_iter().for_each(|reason| self.span.finished(reason));
                            notes.tokens(choice.index, &token_ids, choice.finish_reason.is_some());
                            if shows {
                                yield Ok(notes.before(sse_event(&self.completion(vec![choice], usage))));
                            } else if let Some(alone) = notes.alone() {
                                yield Ok(alone);
                            }
                        }
                    }
                    Err(error) => {
                        self.span.failed(&error);
                        self.request.broke_off(&error);
                        yield Ok(sse_error(&error));
                    }
                }
                next = parts.next().await;
            }
            self.done(&counts);
            if include_usage {
                yield Ok(sse_event(&self.completion(Vec::new(), Some(Some(sum(&counts))))));
            }
            yield Ok(sse_done());
        })))
    }

    fn done(&mut self, counts: &[Counts]) {
        let (usage, first) = (sum(counts), counts.iter().filter_map(|one| one.to_first_token).min());
        self.span.done(&self.id, usage.prompt_tokens, usage.completion_tokens, first);
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

fn sum(counts: &[Counts]) -> Usage {
    let total = |of: fn(&Usage) -> u64| counts.iter().map(|one| of(&one.usage)).sum();
    Usage::new(total(|usage| usage.prompt_tokens), total(|usage| usage.completion_tokens))
        .with_cached(total(|usage| usage.prompt_tokens_details.cached_tokens))
}

/// What is new in the answers to one prompt.
struct Part {
    /// Number of the prompt.
    number: usize,
    /// Absent at the prompt's end.
    made: Option<Made>,
    so_far: Counts,
}

fn parts(number: usize, mut prompt: PromptAnswers) -> impl Stream<Item = Result<Part, ApiError>> + Send {
    stream! {
        while let Some(made) = prompt.next().await {
            let so_far = prompt.usage();
            yield made.map(|made| Part { number, made: Some(made), so_far });
        }
        // Tokens that made no piece of their own count, too.
        yield Ok(Part { number, made: None, so_far: prompt.usage() });
    }
}
