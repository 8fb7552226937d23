//! What slower tiers of the KV cache need of the scheduler: plain questions and plain data, no IO.
//!
//! In each turn, before [`schedule`](super::schedule()): ask [`State::take_newly_waiting`] who has begun to wait,
//! [`State::waiting_prefix`] what he needs beyond the pool, [`State::hold`] him back while bytes are fetched, and
//! [`State::offer`] them once they are there (or let go of him, if they do not come). Admission then takes, after what the pool
//! has, the longest run of offered blocks; they travel in `StepBatch::loads` and count as computed. After
//! [`complete`](super::complete()), `StepOutcome::registered` lists the blocks that can be read and kept, before the next step
//! is executed.

use super::sequence::Rank;
use super::state::State;
use crate::backend::{BlockBytes, BlockId};
use crate::prefix_hash::BlockHash;
use crate::sequence::RequestId;

/// What a waiting sequence begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WaitingPrefix<'a> {
    /// Whose it is.
    pub request: RequestId,
    /// Names of its full blocks, in order.
    pub names: &'a [BlockHash],
    /// How many of the first are in the pool at present.
    pub in_pool: usize,
}

impl State {
    /// Sequences that have begun to wait since this was last asked: new ones, and those that were preempted. None while
    /// prefix sharing is off.
    pub fn take_newly_waiting(&mut self) -> Vec<Rank> {
        let mut new = Vec::new();
        if self.limits.prefix_sharing {
            for (rank, sequence) in self.waiting.iter_mut().filter(|(_, sequence)| !sequence.was_told) {
                sequence.was_told = true;
                new.push(*rank);
            }
        }
        new
    }

    /// What a sequence begins with; `None` where it waits no more, or must compute everything itself.
    pub fn waiting_prefix(&self, sequence: Rank) -> Option<WaitingPrefix<'_>> {
        let sequence = self.waiting.get(&sequence).filter(|sequence| !sequence.is_scoring())?;
        let in_pool = sequence.names.iter().take_while(|name| self.pool.find(name).is_some()).count();
        Some(WaitingPrefix { request: sequence.request_id, names: &sequence.names, in_pool })
    }

    /// The block that has this name at present.
    pub fn block_of(&self, name: &BlockHash) -> Option<BlockId> {
        self.pool.find(name)
    }

    /// Holds a waiting sequence back, or lets it go; others behind it are admitted meanwhile. Whoever holds one must let it
    /// go, whatever becomes of the bytes. Says whether it still waits.
    pub fn hold(&mut self, sequence: Rank, held: bool) -> bool {
        let waiting = self.waiting.get_mut(&sequence);
        waiting.map(|sequence| sequence.held = held).is_some()
    }

    /// Gives a waiting sequence blocks that a slower tier has, each `KvCapacity::block_bytes` long, and lets it go. They are kept
    /// until it is admitted or gone. Says whether it still waits.
    pub fn offer(
        &mut self,
        sequence: Rank,
        blocks: impl IntoIterator<Item = (BlockHash, BlockBytes)>,
    ) -> bool {
        let Some(sequence) = self.waiting.get_mut(&sequence) else { return false };
        sequence.offered.extend(blocks);
        sequence.held = false;
        true
    }

    /// Whether there is nothing to do until a slower tier has answered: nobody runs, and all that wait are held back.
    pub fn is_held_up(&self) -> bool {
        self.running.is_empty() && !self.waiting.is_empty() && self.waiting.values().all(|next| next.held)
    }
}
