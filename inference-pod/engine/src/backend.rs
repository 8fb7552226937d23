//! The seam between the scheduler and the tensors: one step goes in, one sampled token per finished prefix comes out.
//!
//! Implemented by `fairlead-backend-torch`; called by the engine's own thread only.

use std::any::Any;
use std::path::Path;
use std::sync::Arc;

use crate::sampling::{SamplingOptions, TokenHistory, TokenMask};

/// Identifies a sequence for as long as it lives; never reused within a process.
pub type SequenceId = u64;

/// Index of a KV block in the pool. Block 0 is reserved for padding and never given to a sequence.
pub type BlockId = u32;

/// A LoRA adapter for as long as it is loaded; never reused within a process.
pub type AdapterId = u32;

/// Keys and values of one block in all layers, as the backend that wrote them lays them out;
/// [`KvCapacity::block_bytes`] long.
pub type BlockBytes = Arc<[u8]>;

/// Size of the KV cache that a backend has allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvCapacity {
    /// Blocks in the pool, block 0 included.
    pub blocks: u32,
    /// Tokens in a block.
    pub block_tokens: u32,
    /// Bytes of a block's keys and values in all layers.
    pub block_bytes: u64,
}

/// How to choose the next tokens of a sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct SampleRequest {
    /// What the client asked for; the same in every step.
    pub options: Arc<SamplingOptions>,
    /// Number of tokens this sequence has drawn before. With `options.seed` it fixes the choice.
    pub draw: u64,
    /// Report log-probabilities of the slice's tokens given their predecessors too, not of the next token only (`echo`
    /// with `logprobs`). The slice's first token has no predecessor here and gets none: where a prompt is cut into
    /// chunks, the scheduler repeats the last token before the cut (same position, same keys and values), so that
    /// every token but the prompt's first is reported exactly once.
    pub prompt_logprobs: bool,
    /// Tokens seen so far, where `options` has penalties that need them.
    pub history: Option<Arc<TokenHistory>>,
    /// Tokens that a grammar allows: one mask for the next token and one more after each draft. Empty allows all.
    pub masks: Vec<Arc<TokenMask>>,
    /// Tokens that must not be chosen for the first `banned_draws` tokens of the answer (`min_tokens`).
    pub banned: Arc<[u32]>,
    /// See `banned`; counted like `draw`, from the answer's beginning.
    pub banned_draws: u64,
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
    /// How many of `tokens`, at their end, are guesses (speculative decoding): each holds only if the model, asked for the
    /// token in its place, chooses it. 0 where `sample` is absent.
    pub drafts: u32,
    /// LoRA adapter that its rows go through.
    pub adapter: Option<AdapterId>,
    /// Present when the last of `tokens` decides the sequence's next token; with `prompt_logprobs` also on earlier
    /// chunks of a prompt, whose sampled token the scheduler drops.
    pub sample: Option<SampleRequest>,
}

impl SampleRequest {
    /// Asks for the next token and nothing more.
    #[must_use]
    pub fn new(options: Arc<SamplingOptions>, draw: u64) -> Self {
        Self {
            options,
            draw,
            prompt_logprobs: false,
            history: None,
            masks: Vec::new(),
            banned: Arc::default(),
            banned_draws: 0,
        }
    }
}

impl From<Vec<SequenceStep>> for StepBatch {
    fn from(sequences: Vec<SequenceStep>) -> Self {
        Self { sequences, ..Self::default() }
    }
}

impl SequenceStep {
    /// The guesses at the end of `tokens`.
    #[must_use]
    pub fn draft_tokens(&self) -> &[u32] {
        &self.tokens[self.tokens.len().saturating_sub(self.drafts as usize)..]
    }
}

/// A block that becomes a copy of another, because a sequence is about to write into what others still read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockCopy {
    /// Read.
    pub from: BlockId,
    /// Overwritten.
    pub to: BlockId,
}

/// A block that gets back what a slower tier has kept of it.
#[derive(Clone, Debug, PartialEq)]
pub struct BlockLoad {
    /// Overwritten.
    pub block: BlockId,
    /// Its contents.
    pub bytes: BlockBytes,
}

/// What the scheduler asks of a backend in one step: loads, then copies, then tokens. Sequences are distinct; decodes and
/// prefill chunks mix freely.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepBatch {
    /// Blocks to fill from slower tiers, before anything else.
    pub loads: Vec<BlockLoad>,
    /// Blocks to copy, before any token is computed.
    pub copies: Vec<BlockCopy>,
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

/// A token that was chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct ChosenToken {
    /// The token.
    pub token: u32,
    /// Its log-probability, when asked for.
    pub logprob: Option<f32>,
    /// The likeliest tokens in falling order, when asked for.
    pub top_logprobs: Vec<TokenLogprob>,
}

/// What follows in one sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampled {
    /// Whose tokens these are.
    pub sequence: SequenceId,
    /// The drafts that were right, and after them one token of the model's own choice. At least one, at most one more than
    /// there were drafts.
    pub tokens: Vec<ChosenToken>,
    /// With `prompt_logprobs`: for each of the slice's tokens but its first, its own log-probability and the likeliest
    /// alternatives (`logprobs` of them).
    pub prompt_logprobs: Vec<(TokenLogprob, Vec<TokenLogprob>)>,
    /// Guesses at what comes after `tokens`, by a backend that has a draft model.
    pub drafts: Vec<u32>,
}

/// What a loaded adapter amounts to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdapterInfo {
    /// Rank of its matrices; the largest where they differ.
    pub rank: u32,
    /// Bytes it takes on the device.
    pub bytes: u64,
}

/// An adapter that has been read, on its way to the backend whose reader read it.
#[derive(Debug)]
pub struct ReadAdapter {
    /// What it amounts to.
    pub info: AdapterInfo,
    /// Digest of its files.
    pub digest: [u8; 32],
    /// Its matrices, as the backend keeps them.
    pub weights: Box<dyn Any + Send>,
}

/// Reads adapters on any thread but the engine's, so that no running sequence waits for a disk.
pub trait AdapterReader: Send + Sync {
    /// Reads a LoRA adapter (PEFT layout) from `folder` and checks it against the model.
    ///
    /// # Errors
    /// [`AdapterError`].
    fn read(&self, folder: &Path) -> Result<ReadAdapter, AdapterError>;
}

/// Why an adapter was not loaded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdapterError {
    /// Its files are not there.
    #[error("{0}")]
    NotFound(String),
    /// Its files are broken, or made for another model.
    #[error("{0}")]
    Invalid(String),
    /// There is no room for it.
    #[error("{0}")]
    NoRoom(String),
    /// The engine has stopped.
    #[error("the engine has stopped: {0}")]
    Dead(String),
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

    /// Fills and copies blocks, computes every token of `batch`, writes its keys and values into the cache, and samples where
    /// asked.
    ///
    /// Returns one [`Sampled`] for each sequence with a `sample`, in the batch's order.
    ///
    /// # Errors
    /// See [`BackendError`]. After `OutOfMemory` the cache holds what it held before, but for loads and copies, which may
    /// have been made and are asked for again.
    fn execute(&mut self, batch: &StepBatch) -> Result<Vec<Sampled>, BackendError>;

    /// What blocks hold, for slower tiers. The blocks are not written meanwhile.
    ///
    /// # Errors
    /// See [`BackendError`]; nothing is lost but the copy.
    fn read_blocks(&mut self, blocks: &[BlockId]) -> Result<Vec<BlockBytes>, BackendError>;

    /// What reads adapters for this backend; `None` where the model takes none.
    fn adapter_reader(&self) -> Option<Arc<dyn AdapterReader>> {
        None
    }

    /// Takes in an adapter that its reader has read; quick, since running sequences wait for it.
    ///
    /// # Errors
    /// [`AdapterError`]; the model runs on without it.
    fn load_adapter(&mut self, id: AdapterId, adapter: ReadAdapter) -> Result<(), AdapterError>;

    /// Forgets an adapter that no sequence uses any more.
    fn unload_adapter(&mut self, id: AdapterId);
}

impl<B: Backend + ?Sized> Backend for Box<B> {
    fn kv_capacity(&self) -> KvCapacity {
        (**self).kv_capacity()
    }

    fn execute(&mut self, batch: &StepBatch) -> Result<Vec<Sampled>, BackendError> {
        (**self).execute(batch)
    }

    fn read_blocks(&mut self, blocks: &[BlockId]) -> Result<Vec<BlockBytes>, BackendError> {
        (**self).read_blocks(blocks)
    }

    fn adapter_reader(&self) -> Option<Arc<dyn AdapterReader>> {
        (**self).adapter_reader()
    }

    fn load_adapter(&mut self, id: AdapterId, adapter: ReadAdapter) -> Result<(), AdapterError> {
        (**self).load_adapter(id, adapter)
    }

    fn unload_adapter(&mut self, id: AdapterId) {
        (**self).unload_adapter(id);
    }
}
