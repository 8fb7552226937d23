//! Who computes what in the next step: a pure function over plain data.
//!
//! There are no prefill and decode phases: every sequence has tokens that are not computed yet, one after a choice, many
//! before it. A step shares one budget of tokens, sequences and logits rows among them ([`schedule`]):
//!
//! 1. Running sequences that are one token short; they stream to a client.
//! 2. Running sequences that still read, then waiting ones in order of rank, which are admitted with blocks for all that they
//!    have to read. The first of these may have half of what is left, those behind it an eighth each, so that a short
//!    prompt does not wait for a very long one; what nobody wants then goes to the first.
//! 3. Guesses (speculative decoding) get what is left after that: they are never worth more than a certain token.
//!
//! Rank is priority, then arrival; a priority is a head start of
//! [`REQUESTS_PER_PRIORITY`](sequence::REQUESTS_PER_PRIORITY) requests, so nobody waits for ever. A running sequence that
//! needs a block when none is free takes it from the one with the worst rank, which starts over later: its tokens are
//! kept, its blocks are not, and what nobody else has taken of them it finds again in the prefix cache. So the first in
//! rank always gets on, and everything ends. In a step that took blocks away nobody is admitted.
//!
//! [`complete`] takes a step's results in. Blocks that are full, and shown to be sound by finite logits after them, then get
//! a name under which other sequences find them. Nobody writes into a block that has a name or a second owner: a sequence
//! that must gets a copy (the block where several answers to one prompt part, or the last block of a prompt that was
//! found whole, whose last token is always computed again, because something has to give the logits).
//!
//! Called by [`crate::engine`] only. Must not know a tensor, a clock or a channel: `now` is an argument.

mod admission;
mod complete;
mod plan;
mod sequence;
mod state;
mod tier_hooks;

use std::time::Duration;

use crate::backend::{BlockId, ChosenToken, SequenceId, StepBatch};
use crate::block_pool::{Eviction, PoolError};
use crate::prefix_hash::BlockHash;
use crate::sequence::{EndReason, PromptLogprob, RequestId};

pub use self::complete::complete;
pub use self::plan::schedule;
pub use self::sequence::{REQUESTS_PER_PRIORITY, Rank};
pub use self::state::{Discarded, State};
pub use self::tier_hooks::WaitingPrefix;

/// Most answers to one prompt.
pub const MAX_CHOICES: u32 = 128;

/// What one step may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Most tokens computed in it; at least 2, so that a prompt's log-probabilities get on.
    pub tokens: usize,
    /// Most sequences in it.
    pub sequences: usize,
    /// Most rows of logits; at least 2. Logits are the widest tensor of a step.
    pub logits_rows: usize,
}

/// Limits that hold for the engine's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most sequences that run at once.
    pub max_sequences: usize,
    /// Longest sequence, prompt and answer together.
    pub max_model_len: u32,
    /// Whether sequences that begin alike share blocks.
    pub prefix_sharing: bool,
}

/// Why a request is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It has no tokens.
    #[error("the prompt has no tokens; send at least one")]
    EmptyPrompt,
    /// Prompt and answer are longer than the model or the cache takes.
    #[error(
        "the prompt has {prompt} tokens and {new} more were asked for, but at most {most} fit; shorten the prompt or lower \
         max_tokens"
    )]
    TooLong {
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens asked for.
        new: u32,
        /// Tokens that fit.
        most: u32,
    },
    /// More answers than are made of one prompt, or of one that is already answered in part.
    #[error("n: {asked} answers were asked for, but this prompt can have {most} at most; lower n")]
    TooManyChoices {
        /// Answers asked for.
        asked: u32,
        /// Answers it can have.
        most: u32,
    },
    /// The answer so far is not what the request's constraint allows.
    #[error("the answer's beginning does not have the form that the request demands: {0}")]
    Continuation(String),
    /// The engine is draining.
    #[error("the engine is draining and takes no new work")]
    Draining,
}

/// A request that left the queue for the first time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admission {
    /// Which.
    pub request: RequestId,
    /// Tokens of its prompt that need not be computed: found in the cache or a slower tier.
    pub cached_tokens: u32,
}

/// Work for one step, and what was given up to make room for it.
#[derive(Debug, Default)]
pub struct StepPlan {
    /// What the backend is to run.
    pub batch: StepBatch,
    /// Sequences that lost their blocks and wait again.
    pub preempted: Vec<SequenceId>,
    /// Requests that left the queue for the first time.
    pub admitted: Vec<Admission>,
    /// Requests whose constraint cannot go on, and why. They are gone from the state already.
    pub failed: Vec<(RequestId, String)>,
    /// Where each of the batch's sequences stands among the running ones.
    places: Vec<state::Place>,
}

impl StepPlan {
    /// Tokens that the step computes.
    pub fn tokens(&self) -> usize {
        self.batch.sequences.iter().map(|step| step.tokens.len()).sum()
    }

    /// Rows of logits that the step asks for.
    pub fn logits_rows(&self) -> usize {
        let sampled =
            self.batch.sequences.iter().filter_map(|step| step.sample.as_ref().map(|sample| (step, sample)));
        sampled
            .map(
                |(step, sample)| {
                    if sample.prompt_logprobs { step.tokens.len() } else { step.drafts as usize + 1 }
                },
            )
            .sum()
    }
}

/// What a finished step means for a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Update {
    /// The prompt's log-probabilities, in order from its second token on.
    PromptLogprobs(RequestId, Vec<PromptLogprob>),
    /// A new token.
    Token {
        /// Whose.
        request: RequestId,
        /// Of which answer.
        choice: u32,
        /// The token and what is known of it.
        token: ChosenToken,
        /// Set when it is the answer's last one.
        end: Option<EndReason>,
    },
    /// An answer ended without a new token: only its prompt was to be scored.
    Ended {
        /// Whose.
        request: RequestId,
        /// Which answer.
        choice: u32,
        /// Why.
        end: EndReason,
    },
    /// The request's constraint refused a token; all its answers are gone.
    Failed(RequestId, String),
}

/// A block that can be found by its name from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registered {
    /// The block. It holds what its name says at least until the next step is executed.
    pub block: BlockId,
    /// Its name.
    pub name: BlockHash,
    /// The name of the block before it; `None` for a prompt's first.
    pub parent: Option<BlockHash>,
}

/// What a finished step means.
#[derive(Debug, Default)]
pub struct StepOutcome {
    /// For requests, in order.
    pub updates: Vec<Update>,
    /// For slower tiers: blocks that this step filled. Those that came from a slower tier are not among them.
    pub registered: Vec<Registered>,
}

/// What has happened since it was last asked for; for metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StepCounts {
    /// Tokens of newly admitted requests that were looked for in the prefix cache.
    pub prefix_queries: u64,
    /// Those of them that were found there.
    pub prefix_hits: u64,
    /// Those of them that came from a slower tier.
    pub tier_hits: u64,
    /// Times that a sequence's guesses were checked.
    pub drafts: u64,
    /// Tokens that were guessed.
    pub draft_tokens: u64,
    /// Those of them that were right.
    pub accepted_tokens: u64,
    /// The same by their places among a sequence's guesses, the first first.
    pub accepted_at: Vec<u64>,
    /// Sequences that lost their blocks.
    pub preemptions: u64,
    /// Named blocks that were handed out for something else.
    pub evictions: Vec<Eviction>,
    /// For each block that was found while nobody owned it: how long nobody had.
    pub reuse_gaps: Vec<Duration>,
}

/// A step's results do not belong to its batch: a bug in the backend or here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    /// The backend answered for other sequences than were asked about.
    #[error(
        "the backend answered for {found} sequences where {expected} were asked for, or in another order"
    )]
    Mismatch {
        /// Sequences to sample.
        expected: usize,
        /// Sequences answered for.
        found: usize,
    },
    /// The backend chose no token, or more than there can be.
    #[error("the backend chose {found} tokens for sequence {sequence}, which had {drafts} drafts")]
    Tokens {
        /// Whose.
        sequence: SequenceId,
        /// Tokens chosen.
        found: usize,
        /// Guesses that it was to check.
        drafts: u32,
    },
    /// See [`PoolError`].
    #[error(transparent)]
    Pool(#[from] PoolError),
}
