//! Texts in, vectors or scores out: the queue and the thread for models that read a text at once and write nothing.
//!
//! [`queue`] decides what runs together and is pure; [`worker`] is the thread that owns the model. Nothing here knows what
//! the numbers mean: an embedding has as many as the model is wide, a score is one.

pub mod queue;
pub mod worker;

use crate::backend::BackendError;

pub use queue::{BatchBudget, EncoderQueue, Item};
pub use worker::{EncodeRequest, Encoded, EncoderHandle, EncoderOptions, start};

/// One text, or a pair of them, as tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EncoderInput {
    /// The tokens, special ones included; at least one.
    pub tokens: Vec<u32>,
    /// For each token which text it belongs to, 0 or 1. Empty: all to the first.
    pub token_types: Vec<u8>,
}

/// Runs batches. One OS thread owns it, so it need not be `Sync`.
pub trait Encoder {
    /// The numbers for each input, in the inputs' order, whatever else is in the batch.
    ///
    /// # Errors
    /// [`BackendError::OutOfMemory`], after which a smaller batch is tried, or [`BackendError::Fatal`].
    fn encode(&mut self, inputs: &[&EncoderInput]) -> Result<Vec<Vec<f32>>, BackendError>;
}
