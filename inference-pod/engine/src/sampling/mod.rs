//! Choosing the next token from logits, and log-probabilities: pure functions over one row.
//!
//! Backends call this for each row that has a `sample`. The random number is a function of (seed, draw), so a choice depends
//! on nothing but the row: not on the batch, the order of sequences, a preemption in between, or how many tokens were guessed
//! right before it.
//!
//! The order is vLLM's: logit bias, penalties (repetition, then frequency, then presence), masks and bans, temperature, min-p,
//! top-k, top-p. Log-probabilities are the model's own: from the logits as they came, before all of this, as OpenAI's and
//! vLLM's are.

mod adjust;
mod filters;
mod logprobs;
mod random;
#[cfg(test)]
mod reference;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

pub use logprobs::score;
pub use random::uniform;

use crate::backend::{ChosenToken, SampleRequest};

/// How to choose tokens, as the client asked for it.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingOptions {
    /// 0 takes the likeliest token.
    pub temperature: f32,
    /// Keep the smallest set of likeliest tokens whose probability reaches this; 1 keeps all.
    pub top_p: f32,
    /// Keep this many likeliest tokens; 0 keeps all.
    pub top_k: u32,
    /// Keep tokens that are at least this share as likely as the likeliest; 0 keeps all.
    pub min_p: f32,
    /// Divides the positive logits of tokens seen in prompt or answer, multiplies their negative ones; 1 changes nothing.
    pub repetition_penalty: f32,
    /// Taken from the logits of tokens that the answer has; 0 changes nothing.
    pub presence_penalty: f32,
    /// Taken from a token's logit once for each time that the answer has it; 0 changes nothing.
    pub frequency_penalty: f32,
    /// Added to the logits of these tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// With the number of tokens drawn before, fixes all choices.
    pub seed: u64,
    /// How many of the likeliest tokens to report with their log-probabilities; `None` reports none, not even the
    /// chosen one's.
    pub logprobs: Option<u32>,
}

impl Default for SamplingOptions {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
            logprobs: None,
        }
    }
}

/// How often each token has been seen; what penalties count.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenHistory {
    /// Tokens of the prompt, each once.
    pub prompt: BTreeSet<u32>,
    /// Tokens of the answer and how often it has them.
    pub answer: BTreeMap<u32, u32>,
}

/// One bit for each token of the vocabulary: set where it may be chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenMask {
    /// Token `t` is bit `t % 32` of word `t / 32`.
    pub words: Vec<u32>,
}

impl TokenMask {
    /// Whether a token may be chosen. Tokens beyond the mask may not.
    #[must_use]
    pub fn allows(&self, token: u32) -> bool {
        self.words.get(token as usize / 32).is_some_and(|word| word >> (token % 32) & 1 == 1)
    }

    /// Whether no token may be chosen.
    #[must_use]
    pub fn allows_nothing(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }
}

/// Why no token could be chosen from a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SampleError {
    /// It held NaN or an infinity, so that nothing can be said about its tokens, or it was empty.
    #[error("logits are not finite")]
    NonFinite,
    /// The mask allows none of its tokens.
    #[error("the mask allows none of the model's tokens")]
    NothingAllowed,
}

/// Memory for one row at a time; rows come by the thousand, so it is kept.
#[derive(Default)]
struct Scratch {
    row: Vec<f32>,
    weights: Vec<f64>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Chooses the next token from one row of logits. `before` are the drafts of this step that come before it: those that the
/// request's numbers do not count yet. They count as part of the answer, and the mask is the one behind them.
///
/// Ties go to the smaller token id. See the module's words for the order of everything. If every token that the mask allows is
/// banned, the bans are ignored: an answer that ends early is better than none.
///
/// # Errors
/// [`SampleError::NonFinite`] if any logit is NaN or infinite, or the row is empty; [`SampleError::NothingAllowed`].
pub fn sample(logits: &[f32], request: &SampleRequest, before: &[u32]) -> Result<ChosenToken, SampleError> {
    let (likeliest, highest) = filters::likeliest_of_finite(logits).ok_or(SampleError::NonFinite)?;
    let options = &*request.options;
    let is_greedy = options.temperature <= 0.0 || options.top_k == 1;
    let draw = request.draw + before.len() as u64;
    let is_adjusted = adjust::is_needed(request, before);
    let token = match (is_greedy, is_adjusted) {
        (true, false) => likeliest,
        _ => SCRATCH.with_borrow_mut(|Scratch { row, weights }| {
            let (row, likeliest, highest) = if is_adjusted {
                adjust::adjust(logits, request, before, row)?;
                let (likeliest, highest) = filters::likeliest(row);
                (row.as_slice(), likeliest, highest)
            } else {
                (logits, likeliest, highest)
            };
            Ok(if is_greedy { likeliest } else { filters::choose(row, highest, options, draw, weights) })
        })?,
    };
    match options.logprobs {
        None => Ok(ChosenToken { token, logprob: None, top_logprobs: Vec::new() }),
        Some(count) => {
            let (own, top_logprobs) = score(logits, token, count)?;
            Ok(ChosenToken { token, logprob: Some(own.logprob), top_logprobs })
        }
    }
}
