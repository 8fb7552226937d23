//! Letting waiting sequences in: what of them is cached already, and whether there is room for the rest.

use super::Admission;
use super::plan::Planner;
use super::sequence::{Rank, Sequence};
use super::state::State;
use crate::backend::{BlockCopy, BlockId, BlockLoad};
use crate::block_pool::PoolError;

/// What is at hand of a sequence's beginning.
struct Prefix {
    /// Blocks of the pool.
    hits: Vec<BlockId>,
    /// After them: blocks that a slower tier has offered.
    loads: usize,
    /// The last hit is copied, because its last token is computed again.
    copies_last: bool,
}

impl Planner {
    /// Admits waiting sequences in order of rank while there is room for them. Those that are held back do not keep others
    /// waiting; one for which there is no room does, or it would wait for ever.
    pub(super) fn admit(&mut self, state: &mut State) -> Result<(), PoolError> {
        if state.waiting.is_empty() {
            return Ok(());
        }
        // One place and one block for each answer that will part from its prompt.
        let mut reserved: usize = state.running.iter().map(|sequence| sequence.unforked as usize).sum();
        let mut is_first = !self
            .grants
            .iter()
            .any(|grant| state.locate(grant.place).is_some_and(|index| !state.running[index].is_writing()));
        while let Some(rank) = state.next_in_line() {
            let busy = state.running.len() + reserved;
            let Some(next) = state.waiting.get(&rank) else { break };
            let answers = (next.unforked as usize).min(state.limits.max_sequences - 1) + 1;
            // One block for each that runs stays back: to admit someone only to preempt him a step later is waste.
            let spare = if busy == 0 { 0 } else { busy + answers - 1 };
            if busy + answers > state.limits.max_sequences || (state.pool.free() as usize) <= spare {
                break;
            }
            let Some(prefix) = state.find_prefix(next, spare) else { break };
            let Some(mut sequence) = state.waiting.remove(&rank) else { break };
            let cached = (prefix.hits.len() + prefix.loads) * state.block_tokens;
            sequence.computed = cached.min(sequence.tokens.len() - 1);
            let slice = self.fair_slice(&sequence, is_first);
            if slice == 0 {
                sequence.computed = 0;
                state.waiting.insert(rank, sequence);
                break;
            }
            state.take_blocks(&mut sequence, prefix)?;
            if !sequence.admitted {
                sequence.admitted = true;
                let cached_tokens = sequence.computed as u32;
                self.plan.admitted.push(Admission { request: sequence.request_id, cached_tokens });
            }
            reserved += sequence.unforked as usize;
            let index = state.running.partition_point(|other| other.rank < rank);
            self.grant(&sequence, index, slice);
            state.running.insert(index, sequence);
            is_first = false;
        }
        Ok(())
    }
}

impl State {
    fn next_in_line(&self) -> Option<Rank> {
        self.waiting.values().find(|next| !next.held).map(|next| next.rank)
    }

    /// The longest beginning of a sequence that is at hand; `None` where there is no room for what is missing and `spare`
    /// more blocks.
    fn find_prefix(&self, sequence: &Sequence, spare: usize) -> Option<Prefix> {
        let mut hits: Vec<BlockId> = Vec::new();
        let mut loads = 0;
        if self.limits.prefix_sharing && !sequence.is_scoring() {
            hits.extend(sequence.names.iter().map_while(|name| self.pool.find(name)));
            let rest = &sequence.names[hits.len()..];
            loads = rest.iter().take_while(|name| sequence.offered.contains_key(*name)).count();
        }
        let blocks = sequence.tokens.len().div_ceil(self.block_tokens);
        let fits = |hits: &[BlockId], copies: bool| {
            let taken = hits.iter().filter(|block| self.pool.is_free(**block)).count();
            let fresh = blocks - hits.len() + usize::from(copies);
            taken + fresh + spare <= self.pool.free() as usize
        };
        let copies_last = hits.len() * self.block_tokens == sequence.tokens.len();
        if fits(&hits, copies_last) {
            return Some(Prefix { hits, loads, copies_last });
        }
        if copies_last {
            // No room for a copy; then all of the last block is computed again.
            hits.pop();
        }
        (copies_last && fits(&hits, false)).then_some(Prefix { hits, loads, copies_last: false })
    }

    /// Gives a sequence blocks for all its tokens: those found, and fresh ones.
    fn take_blocks(&mut self, sequence: &mut Sequence, prefix: Prefix) -> Result<(), PoolError> {
        let Prefix { hits, loads, copies_last } = prefix;
        // Hits first: a fresh block may come from the same list.
        for block in &hits {
            self.pool.reuse(*block)?;
        }
        let found = hits.len();
        sequence.blocks = hits;
        let source = if copies_last { sequence.blocks.pop() } else { None };
        sequence.registered = sequence.blocks.len();
        let missing = sequence.tokens.len().div_ceil(self.block_tokens) - sequence.blocks.len();
        self.pool.extend(&mut sequence.blocks, missing as u32);
        if let Some(from) = source
            && let Some(to) = sequence.blocks.last().copied()
        {
            sequence.copies.push(BlockCopy { from, to });
        }
        let offered = std::mem::take(&mut sequence.offered);
        for index in found..found + loads {
            if let Some(bytes) = offered.get(&sequence.names[index]) {
                sequence.loads.push(BlockLoad { block: sequence.blocks[index], bytes: bytes.clone() });
            }
        }
        if self.limits.prefix_sharing && !sequence.admitted && !sequence.is_scoring() {
            let in_pool = (found * self.block_tokens).min(sequence.computed);
            self.counts.prefix_queries += sequence.tokens.len() as u64;
            self.counts.prefix_hits += in_pool as u64;
            self.counts.tier_hits += (sequence.computed - in_pool) as u64;
        }
        Ok(())
    }
}
