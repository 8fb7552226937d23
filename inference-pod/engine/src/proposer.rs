//! Guessing what a sequence goes on with, from its tokens alone: the seam for speculation that needs no model.

use crate::backend::SequenceId;

/// Guesses at the next tokens of sequences. Called on the engine's thread between two steps, so it must be quick.
///
/// The model checks every guess in the next step, so a wrong one costs time and changes nothing.
pub trait Proposer: Send {
    /// Guesses at what follows `tokens` (prompt and answer so far), `most` at most; none is a good answer.
    ///
    /// A sequence is asked about after every step in which it got a token, with all the tokens that it had before and the
    /// new ones. It may be asked about never again without a word: a proposer that keeps something for each sequence
    /// bounds that itself.
    fn propose(&mut self, sequence: SequenceId, tokens: &[u32], most: usize) -> Vec<u32>;

    /// Most sequences that write at the same time where guessing still pays; with more of them nobody is asked about.
    fn most_sequences(&self) -> usize {
        usize::MAX
    }
}
