//! Guessing several tokens ahead, so that the model checks them all in one step: what is common to all ways of guessing.
//!
//! A guess never changes an answer: the model, asked for the token in its place, must choose it, with the same random number
//! that it would have used alone (see [`crate::sampling`]). So all that is decided here is whether guessing pays.

mod acceptance;
mod draft_model;
mod ngram;

pub use acceptance::Acceptance;
pub use draft_model::{CacheMismatch, DraftedBackend, spare_blocks};
pub use ngram::{NGramProposer, NGramSettings};

/// Most rows that a step has where guesses are worth their time: up to about here a step costs what reading the weights
/// costs, and further rows are nearly free.
pub const MOST_ROWS: usize = 64;

/// Most sequences that write at the same time while each of them gets `guesses` guesses. Above that nobody does.
#[must_use]
pub fn most_sequences(guesses: usize) -> usize {
    MOST_ROWS / (guesses + 1)
}
