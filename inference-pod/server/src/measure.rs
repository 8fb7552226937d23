//! Times and counts of one request, from its arrival to its end, for the metrics.
//!
//! Filled by [`crate::generation`]. Answers that have not ended when it is dropped count as aborted.

use std::time::{Duration, Instant};

use crate::metrics::{Finished, Metrics, RequestReport};

/// One request and its answers.
pub struct Measure {
    metrics: Metrics,
    /// Tokens of the prompt.
    prompt_tokens: u64,
    /// Most tokens asked for, for each answer.
    max_tokens: u32,
    arrived: Instant,
    queued: Instant,
    admitted: Option<Instant>,
    first_token: Option<Instant>,
    last_token: Option<Instant>,
    answers: Vec<Answer>,
}

#[derive(Clone, Default)]
struct Answer {
    generated: u64,
    last_token: Option<Instant>,
    ended: bool,
}

impl Measure {
    /// A request that is in the engine's queue.
    pub fn new(
        metrics: Metrics,
        prompt_tokens: u64,
        max_tokens: u32,
        choices: u32,
        arrived: Instant,
    ) -> Self {
        metrics.queued(arrived.elapsed());
        Self {
            metrics,
            prompt_tokens,
            max_tokens,
            arrived,
            queued: Instant::now(),
            admitted: None,
            first_token: None,
            last_token: None,
            answers: vec![Answer::default(); choices as usize],
        }
    }

    /// Tokens of the prompt.
    pub fn prompt_tokens(&self) -> u64 {
        self.prompt_tokens
    }

    /// Tokens made so far, all answers together.
    pub fn generated(&self) -> u64 {
        self.answers.iter().map(|answer| answer.generated).sum()
    }

    /// It no longer waits.
    pub fn admitted(&mut self, at: Instant) {
        self.admitted = Some(at);
    }

    /// A token of an answer is there.
    pub fn token(&mut self, choice: u32) {
        let now = Instant::now();
        if self.first_token.is_none() {
            self.first_token = Some(now);
            self.metrics.first_token(self.prompt_tokens, now - self.arrived);
        }
        self.last_token = Some(now);
        self.metrics.token();
        if let Some(answer) = self.answers.get_mut(choice as usize) {
            answer.generated += 1;
            if let Some(last) = answer.last_token.replace(now) {
                self.metrics.inter_token(now - last);
            }
        }
    }

    /// The prompt is read, and no token is wanted.
    pub fn scored(&self) {
        self.metrics.prompt_scored(self.prompt_tokens);
    }

    /// Time to the first token, once it is there.
    pub fn time_to_first_token(&self) -> Option<Duration> {
        Some(self.first_token? - self.arrived)
    }

    /// An answer has ended.
    pub fn end(&mut self, choice: u32, how: Finished) {
        if let Some(answer) = self.answers.get_mut(choice as usize).filter(|answer| !answer.ended) {
            answer.ended = true;
            self.metrics.answer_finished(how, answer.generated);
        }
    }

    /// All answers that have not ended yet, end so.
    pub fn end_all(&mut self, how: Finished) {
        (0..self.answers.len() as u32).for_each(|choice| self.end(choice, how));
    }
}

impl Drop for Measure {
    fn drop(&mut self) {
        self.end_all(Finished::Abort);
        let now = Instant::now();
        let between = |from: Option<Instant>, to: Option<Instant>| Some(to?.saturating_duration_since(from?));
        self.metrics.request_finished(&RequestReport {
            prompt_tokens: self.prompt_tokens,
            answers: self.answers.len() as u64,
            max_tokens: u64::from(self.max_tokens),
            longest_answer: self.answers.iter().map(|answer| answer.generated).max().unwrap_or(0),
            end_to_end: now - self.arrived,
            queue: between(Some(self.queued), self.admitted),
            prefill: between(self.admitted, self.first_token),
            decode: between(self.first_token, self.last_token),
            inference: between(self.admitted, self.last_token),
        });
    }
}
