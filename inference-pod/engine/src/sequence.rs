//! What a client asks the engine for, and how it may end: plain tokens in, plain tokens out.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::backend::{AdapterId, TokenLogprob};
use crate::sampling::{SamplingOptions, TokenMask};
use crate::scheduler::MAX_CHOICES;

/// Identifies a request for as long as it lives; never reused within a process. Its answers are sequences of their own.
pub type RequestId = u64;

/// What a client asks the engine for: plain tokens in, plain tokens out.
#[derive(Clone, Debug, Default)]
pub struct GenerationRequest {
    /// The prompt; at least one token.
    pub prompt: Vec<u32>,
    /// The answer's first tokens, where another engine has chosen them already: it goes on after them as it would have there.
    /// They count as the answer's, in `max_new_tokens` too, and are not reported again. For one answer only.
    pub answered: Vec<u32>,
    /// Answers to make of it, each with a seed of its own (`sampling.seed` plus the answer's number); 0 counts as 1.
    pub choices: u32,
    /// Most tokens to generate for each answer; 0 only scores the prompt.
    pub max_new_tokens: u32,
    /// Fewest tokens to generate: until then stop tokens are not chosen.
    pub min_new_tokens: u32,
    /// How to choose tokens.
    pub sampling: SamplingOptions,
    /// What the answer's form must be.
    pub constraint: Option<Box<dyn Constraint>>,
    /// Report the prompt's log-probabilities, with `sampling.logprobs` alternatives each.
    pub prompt_logprobs: bool,
    /// Tokens that end the answer. The model's end-of-sequence tokens are among them unless they are to be ignored.
    pub stop_tokens: Vec<u32>,
    /// Smaller goes first (vLLM's convention); 0 where the client leaves it open.
    pub priority: i32,
    /// LoRA adapter to answer with.
    pub adapter: Option<AdapterKey>,
    /// Requests share cached prefixes only with those that have the same salt.
    pub cache_salt: Option<String>,
    /// When to give up.
    pub deadline: Option<Instant>,
    /// Answers that are wanted no more.
    pub given_up: GivenUp,
}

/// Answers of one request that nobody wants any more, while others of it are still read: marked by the reader, for whom a stop
/// string has ended them, and seen by the engine before its next step. Clones share their marks.
#[derive(Clone, Debug, Default)]
pub struct GivenUp(Arc<[AtomicU64; (MAX_CHOICES as usize).div_ceil(64)]>);

impl GivenUp {
    /// Ends an answer. Nothing more comes of it, not even an end.
    pub fn give_up(&self, choice: u32) {
        if let Some(word) = self.0.get(choice as usize / 64) {
            word.fetch_or(1 << (choice % 64), Ordering::AcqRel);
        }
    }

    /// Answers that were given up since the last call.
    pub(crate) fn take(&self) -> impl Iterator<Item = u32> {
        let words = self.0.each_ref().map(|word| match word.load(Ordering::Relaxed) {
            0 => 0,
            _ => word.swap(0, Ordering::AcqRel),
        });
        (0..MAX_CHOICES).filter(move |choice| words[*choice as usize / 64] >> (choice % 64) & 1 == 1)
    }

    pub(crate) fn is_marked(&self) -> bool {
        self.0.iter().any(|word| word.load(Ordering::Relaxed) != 0)
    }
}

/// An adapter as a request names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdapterKey {
    /// Which one the backend is to use.
    pub id: AdapterId,
    /// Digest of its files: cached prefixes outlive a process, ids do not.
    pub digest: [u8; 32],
}

/// What may follow in one answer: a grammar and how far along it the answer is.
///
/// Implemented by [`crate::grammar`]; called by the scheduler on the engine's thread, so it must be quick.
pub trait Constraint: Send + std::fmt::Debug {
    /// Tokens that may come next.
    ///
    /// # Errors
    /// A description, where the grammar cannot go on.
    fn mask(&mut self) -> Result<Arc<TokenMask>, String>;

    /// Takes a token in.
    ///
    /// # Errors
    /// A description, where the token may not come here.
    fn accept(&mut self, token: u32) -> Result<(), String>;

    /// How many of `tokens`, from the first, the grammar would take one after the other; it takes none in.
    fn valid_prefix(&mut self, tokens: &[u32]) -> usize;

    /// A second answer at the same place.
    fn fork(&self) -> Box<dyn Constraint>;
}

impl Clone for Box<dyn Constraint> {
    fn clone(&self) -> Self {
        self.fork()
    }
}

/// Why a sequence ended in good order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// The last token is one of the stop tokens.
    StopToken,
    /// As many tokens as asked for, or as the model takes.
    Length,
}

/// A log-probability of a prompt's token with the likeliest alternatives.
pub type PromptLogprob = (TokenLogprob, Vec<TokenLogprob>);
