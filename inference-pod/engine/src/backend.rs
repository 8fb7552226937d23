//! The seam between the scheduler and the tensors: one step goes in, one sampled token per finished prefix comes out.
//!
//! Implemented by `fairlead-backend-torch`; called by the engine's own thread only.

/// Identifies a sequence for as long as it lives; never reused within a process.
pub type SequenceId = u64;

/// Index of a KV block in the pool. Block 0 is reserved for padding and never given to a sequence.
pub type BlockId = u32;

/// Size of the KV cache that a backend has allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvCapacity {
    /// Blocks in the pool, block 0 included.
    pub blocks: u32,
    /// Tokens in a block.
    pub block_tokens: u32,
}

/// How to choose the next token of a sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct SampleRequest {
    /// 0 takes the likeliest token.
    pub temperature: f32,
    /// Keep the smallest set of likeliest tokens whose probability reaches this; 1 keeps all.
    pub top_p: f32,
    /// Keep this many likeliest tokens; 0 keeps all.
    pub top_k: u32,
    /// Seed of the sequence's random numbers; with `draw` it fixes the choice.
    pub seed: u64,
    /// Number of tokens this sequence has drawn before.
    pub draw: u64,
    /// How many of the likeliest tokens to report with their log-probabilities; `None` reports none, not even the
    /// chosen one's.
    pub logprobs: Option<u32>,
    /// Report log-probabilities of the slice's tokens given their predecessors too, not of the next token only (`echo`
    /// with `logprobs`). The slice's first token has no predecessor here and gets none: where a prompt is cut into
    /// chunks, the scheduler repeats the last token before the cut (same position, same keys and values), so that
    /// every token but the prompt's first is reported exactly once.
    pub prompt_logprobs: bool,
    /// Tokens that must not be chosen (end-of-sequence under `ignore_eos` is handled by the scheduler, not here).
    pub banned: Vec<u32>,
}

/// One sequence's part of a step: some of its tokens, to be computed at their positions.
#[derive(Clone, Debug, PartialEq)]
pub struct SequenceStep {
    /// Whose tokens these are.
    pub sequence: SequenceId,
    /// Tokens to compute, in order; at least one.
    pub tokens: Vec<u32>,
    /// Position of `tokens[0]` in the sequence; everything before it is in the cache already.
    pub first_position: u32,
    /// Blocks of the sequence in order, enough for `first_position + tokens.len()` tokens.
    pub block_table: Vec<BlockId>,
    /// Present when the last of `tokens` decides the sequence's next token; with `prompt_logprobs` also on earlier
    /// chunks of a prompt, whose sampled token the scheduler drops.
    pub sample: Option<SampleRequest>,
}

/// What the scheduler asks of a backend in one step. Sequences are distinct; decodes and prefill chunks mix freely.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepBatch {
    /// The sequences that take part.
    pub sequences: Vec<SequenceStep>,
}

/// A token's natural log-probability, from the untempered distribution.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenLogprob {
    /// The token.
    pub token: u32,
    /// Its natural log-probability.
    pub logprob: f32,
}

/// The next token of one sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct SampledToken {
    /// Whose next token it is.
    pub sequence: SequenceId,
    /// The token.
    pub token: u32,
    /// Its log-probability, when asked for.
    pub logprob: Option<f32>,
    /// The likeliest tokens in falling order, when asked for.
    pub top_logprobs: Vec<TokenLogprob>,
    /// With `prompt_logprobs`: for each of the slice's tokens but its first, its own log-probability and the likeliest
    /// alternatives (`logprobs` of them).
    pub prompt_logprobs: Vec<(TokenLogprob, Vec<TokenLogprob>)>,
}

/// Why a step could not be run.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// Memory ran out; the engine shrinks the batch and tries again.
    #[error("out of memory while running a step: {0}")]
    OutOfMemory(String),
    /// Logits of these sequences were not finite; the rest of the step is fine and must be run again without them.
    #[error("the model gave non-finite logits for sequences {0:?}")]
    NonFinite(Vec<SequenceId>),
    /// Anything else; the engine cannot go on.
    #[error("the backend failed: {0}")]
    Fatal(String),
}

/// Runs steps. One OS thread owns it, so it need not be `Sync`.
pub trait Backend {
    /// Size of the KV cache; fixed for the backend's life.
    fn kv_capacity(&self) -> KvCapacity;

    /// Computes every token of `batch`, writes its keys and values into the cache, and samples where asked.
    ///
    /// Returns one [`SampledToken`] for each sequence with a `sample`, in the batch's order.
    ///
    /// # Errors
    /// See [`BackendError`]. After `OutOfMemory` the cache holds what it held before.
    fn execute(&mut self, batch: &StepBatch) -> Result<Vec<SampledToken>, BackendError>;
}
