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
    ready: VecDeque<CompletionChoice>,
}

struct AnswerWriter {
    begun: bool,
    logprobs: Option<LogprobWriter>,
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

    /// What comes next, in each answer the echo first; `None` after the last piece.
    async fn next(&mut self) -> Option<Result<CompletionChoice, ApiError>> {
        loop {
            if let Some(choice) = self.ready.pop_front() {
                return Some(Ok(choice));
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
                    let mut choices = Vec::with_capacity(2);
                    if let (Some(echo), false) = (&self.echo, answer.begun) {
                        let scored = echo_scores(&echo.tokens, &self.known);
                        choices.push(choice(echo.text.clone(), &scored, reports_ids.then(Vec::new)));
                    }
                    let mut new = choice(piece.text, &piece.tokens, reports_ids.then_some(piece.token_ids));
                    new.finish_reason = piece.finish;
                    choices.push(new);
                    if let (Some(first), false) = (choices.first_mut(), answer.begun) {
                        first.prompt_token_ids = self.prompt_token_ids.clone();
                    }
                    answer.begun = true;
                    self.ready.extend(choices);
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
            let part = part?;
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

    /// Of tokens and the text that they add to the answer.
    fn write(&mut self, tokens: &[ScoredToken], added: &str) -> CompletionLogprobs {
        let mut written = CompletionLogprobs::default();
        for scored in tokens {
            let text = self.codec.token_text(scored.token);
            written.text_offset.push(self.offset);
            // Special tokens are left out of the text.
            if !self.codec.is_special(&self.codec.token_name(scored.token)) {
                self.advance(&self.codec.token_bytes(scored.token), added);
            }
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
        Ok(sse_response(stream! {
            let _guard = guard;
            while let Some(part) = next {
                match part {
                    Ok(Part { number, choice, so_far }) => {
                        if let Some(counts) = counts.get_mut(number) {
                            *counts = so_far;
                        }
                        let usage = include_usage.then(|| continuous_usage.then(|| sum(&counts)));
                        if let Some(choice) = choice {
                            choice.finish_reason.into_iter().for_each(|reason| self.span.finished(reason));
                            yield Ok(sse_event(&self.completion(vec![choice], usage)));
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
        }))
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
    choice: Option<CompletionChoice>,
    so_far: Counts,
}

fn parts(number: usize, mut prompt: PromptAnswers) -> impl Stream<Item = Result<Part, ApiError>> + Send {
    stream! {
        while let Some(choice) = prompt.next().await {
            let so_far = prompt.usage();
            yield choice.map(|choice| Part { number, choice: Some(choice), so_far });
        }
        // Tokens that made no piece of their own count, too.
        yield Ok(Part { number, choice: None, so_far: prompt.usage() });
    }
}
