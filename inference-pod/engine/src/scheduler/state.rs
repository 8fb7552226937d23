//! All sequences and blocks, and the ways in and out: new requests, aborts, deadlines, preemption.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::{Duration, Instant};

use super::sequence::{Rank, Sequence};
use super::{Limits, MAX_CHOICES, Refusal, StepCounts};
use crate::backend::{BlockId, KvCapacity, SequenceId};
use crate::block_pool::{BlockPool, PoolError};
use crate::prefix_hash::BlockHash;
use crate::sequence::{GenerationRequest, RequestId};

/// Where a running sequence is: its index, as long as nobody before it leaves or comes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) index: usize,
    pub(super) rank: Rank,
}

/// A request that has answers still to come.
#[derive(Debug)]
struct Open {
    rank: Rank,
    answers: u32,
    deadline: Option<Instant>,
}

/// What [`State::discard`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Discarded {
    /// Requests that are gone.
    pub requests: Vec<RequestId>,
    /// Names under which nothing is found any more; slower tiers must forget them too.
    pub names: Vec<BlockHash>,
}

/// All sequences and blocks.
#[derive(Debug)]
pub struct State {
    pub(super) waiting: BTreeMap<Rank, Sequence>,
    /// In order of rank.
    pub(super) running: Vec<Sequence>,
    pub(super) pool: BlockPool,
    pub(super) block_tokens: usize,
    pub(super) limits: Limits,
    pub(super) counts: StepCounts,
    requests: HashMap<RequestId, Open>,
    deadlines: BTreeSet<(Instant, RequestId)>,
    next_sequence: SequenceId,
    next_arrival: u64,
    draining: bool,
}

impl State {
    /// An empty engine over a cache of this size.
    pub fn new(capacity: KvCapacity, limits: Limits) -> Self {
        Self {
            waiting: BTreeMap::new(),
            running: Vec::new(),
            pool: BlockPool::new(capacity.blocks),
            block_tokens: capacity.block_tokens.max(1) as usize,
            limits: Limits { max_sequences: limits.max_sequences.max(1), ..limits },
            counts: StepCounts::default(),
            requests: HashMap::new(),
            deadlines: BTreeSet::new(),
            next_sequence: 1,
            next_arrival: 0,
            draining: false,
        }
    }

    /// Longest sequence that is taken: what the model allows, or the whole cache where that is smaller.
    pub fn max_model_len(&self) -> u32 {
        // The last token of an answer is never computed, so it needs no place in the cache.
        let cached = u64::from(self.pool.usable()) * self.block_tokens as u64 + 1;
        self.limits.max_model_len.min(u32::try_from(cached).unwrap_or(u32::MAX))
    }

    /// Queues a request. `id` must be new.
    ///
    /// # Errors
    /// [`Refusal`] when it can never run, or not any more.
    pub fn add(&mut self, id: RequestId, request: GenerationRequest) -> Result<(), Refusal> {
        if self.draining {
            return Err(Refusal::Draining);
        }
        let (prompt, most) = (request.prompt.len(), self.max_model_len());
        let new = request.max_new_tokens.max(u32::try_from(request.answered.len()).unwrap_or(u32::MAX));
        if prompt == 0 {
            return Err(Refusal::EmptyPrompt);
        }
        if prompt as u64 + u64::from(new) > u64::from(most) {
            return Err(Refusal::TooLong { prompt, new, most });
        }
        let answers = request.choices.max(1);
        let most = if request.answered.is_empty() { MAX_CHOICES } else { 1 };
        if answers > most {
            return Err(Refusal::TooManyChoices { asked: answers, most });
        }
        let deadline = request.deadline;
        let mut sequence = Sequence::new(self.next_sequence, id, self.next_arrival, request);
        if let Some(constraint) = &mut sequence.constraint {
            let answered = &sequence.tokens[sequence.prompt_length..];
            answered.iter().try_for_each(|token| constraint.accept(*token)).map_err(Refusal::Continuation)?;
        }
        if self.limits.prefix_sharing {
            sequence.root.extend_chain(&mut sequence.names, &sequence.tokens, self.block_tokens);
        }
        self.next_sequence += 1;
        self.next_arrival += 1;
        self.requests.insert(id, Open { rank: sequence.rank, answers, deadline });
        if let Some(deadline) = deadline {
            self.deadlines.insert((deadline, id));
        }
        self.waiting.insert(sequence.rank, sequence);
        Ok(())
    }

    /// Drops a request with all its answers and returns their blocks. Says whether it was there.
    ///
    /// # Errors
    /// [`PoolError`] if its blocks were not its own.
    pub fn abort(&mut self, id: RequestId) -> Result<bool, PoolError> {
        let Some(open) = self.requests.remove(&id) else { return Ok(false) };
        if let Some(deadline) = open.deadline {
            self.deadlines.remove(&(deadline, id));
        }
        let (first, last) = (open.rank.of_choice(0), open.rank.of_choice(u32::MAX));
        let waiting: Vec<Rank> = self.waiting.range(first..=last).map(|(rank, _)| *rank).collect();
        for rank in waiting {
            self.waiting.remove(&rank);
        }
        let begin = self.running.partition_point(|sequence| sequence.rank < first);
        let end = self.running.partition_point(|sequence| sequence.rank <= last);
        for mut sequence in self.running.drain(begin..end) {
            release(&mut self.pool, &mut sequence)?;
        }
        Ok(true)
    }

    /// Drops one answer of a request that has others, and returns its blocks. An answer that has not begun by itself yet, or has
    /// ended, stays as it is. Says whether it was dropped.
    ///
    /// # Errors
    /// [`PoolError`] if its blocks were not its own.
    pub fn end_answer(&mut self, id: RequestId, choice: u32) -> Result<bool, PoolError> {
        let Some(open) = self.requests.get(&id) else { return Ok(false) };
        let rank = open.rank.of_choice(choice);
        if self.waiting.get(&rank).is_some_and(|sequence| sequence.unforked == 0) {
            self.waiting.remove(&rank);
        } else {
            match self.running.binary_search_by_key(&rank, |sequence| sequence.rank) {
                Ok(index) if self.running[index].unforked == 0 => {
                    release(&mut self.pool, &mut self.running.remove(index))?;
                }
                _ => return Ok(false),
            }
        }
        self.close_answer(id);
        Ok(true)
    }

    /// Drops the requests of sequences whose logits were not finite. All blocks that these sequences held lose their names,
    /// since the backend has cleaned them, and whoever else held one of them starts over.
    ///
    /// # Errors
    /// [`PoolError`] if blocks were not their own.
    pub fn discard(&mut self, broken: &[SequenceId]) -> Result<Discarded, PoolError> {
        let mut discarded = Discarded::default();
        let mut cleaned: HashSet<BlockId> = HashSet::new();
        for sequence in self.running.iter().filter(|sequence| broken.contains(&sequence.id)) {
            if !discarded.requests.contains(&sequence.request_id) {
                discarded.requests.push(sequence.request_id);
            }
            cleaned.extend(&sequence.blocks);
        }
        for block in &cleaned {
            discarded.names.extend(self.pool.forget(*block));
        }
        for request in &discarded.requests {
            self.abort(*request)?;
        }
        let is_hit = |sequence: &Sequence| {
            sequence.blocks.iter().any(|block| cleaned.contains(block))
                || sequence.copies.iter().any(|copy| cleaned.contains(&copy.from))
        };
        while let Some(index) = self.running.iter().position(is_hit) {
            let sequence = self.running.remove(index);
            self.preempt(sequence)?;
        }
        Ok(discarded)
    }

    /// Whose answer a running sequence is.
    pub fn request_of(&self, sequence: SequenceId) -> Option<RequestId> {
        self.running.iter().find(|running| running.id == sequence).map(|running| running.request_id)
    }

    /// Requests whose deadline has passed; the caller aborts them.
    pub fn expired(&self, now: Instant) -> Vec<RequestId> {
        self.deadlines.range(..=(now, RequestId::MAX)).map(|(_, id)| *id).collect()
    }

    /// Takes no new requests from now on; those it has are finished.
    pub fn drain(&mut self) {
        self.draining = true;
    }

    /// Tells the time, counted from any fixed moment, for the ages in [`StepCounts`].
    pub fn set_time(&mut self, now: Duration) {
        self.pool.set_time(now);
    }

    /// What has happened since this was last asked for.
    pub fn take_counts(&mut self) -> StepCounts {
        let mut counts = std::mem::take(&mut self.counts);
        (counts.evictions, counts.reuse_gaps) = self.pool.take_ages();
        counts
    }

    /// Sequences that wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Sequences that run.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Whether there is nothing to do.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// The request that would be admitted next; `None` also where all that wait are held back.
    pub fn next_waiting(&self) -> Option<RequestId> {
        self.waiting.values().find(|sequence| !sequence.held).map(|sequence| sequence.request_id)
    }

    /// Blocks that belong to a sequence.
    pub fn used_blocks(&self) -> u32 {
        self.pool.used()
    }

    /// Blocks that can be given to sequences.
    pub fn usable_blocks(&self) -> u32 {
        self.pool.usable()
    }

    /// Blocks that can be found by their content.
    pub fn named_blocks(&self) -> usize {
        self.pool.named()
    }

    /// Whether others rely on a block's content: it has a name or several owners, so no step may write into it.
    pub fn is_shared(&self, block: BlockId) -> bool {
        self.pool.is_shared(block)
    }

    pub(super) fn new_sequence_id(&mut self) -> SequenceId {
        self.next_sequence += 1;
        self.next_sequence - 1
    }

    /// An answer has come to its end.
    pub(super) fn close_answer(&mut self, id: RequestId) {
        let Some(open) = self.requests.get_mut(&id) else { return };
        open.answers -= 1;
        if open.answers == 0 {
            if let Some(deadline) = open.deadline {
                self.deadlines.remove(&(deadline, id));
            }
            self.requests.remove(&id);
        }
    }

    /// The index of a running sequence; `None` where it runs no more.
    pub(super) fn locate(&self, place: Place) -> Option<usize> {
        let is_there = self.running.get(place.index).is_some_and(|sequence| sequence.rank == place.rank);
        if is_there {
            return Some(place.index);
        }
        self.running.binary_search_by_key(&place.rank, |sequence| sequence.rank).ok()
    }

    /// Takes a sequence's blocks; it waits again.
    pub(super) fn preempt(&mut self, mut sequence: Sequence) -> Result<(), PoolError> {
        release(&mut self.pool, &mut sequence)?;
        sequence.start_over();
        self.counts.preemptions += 1;
        self.waiting.insert(sequence.rank, sequence);
        Ok(())
    }
}

/// Gives back all that a sequence holds of the pool.
pub(super) fn release(pool: &mut BlockPool, sequence: &mut Sequence) -> Result<(), PoolError> {
    sequence.loads.clear();
    let mut result = Ok(());
    for copy in sequence.copies.drain(..) {
        result = result.and(pool.release(copy.from));
    }
    result.and(pool.release_table(&mut sequence.blocks))
}
