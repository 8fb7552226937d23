//! Planning a step: who gets how much of its budget, and who must give way.

use super::sequence::Sequence;
use super::state::{Place, State};
use super::{Budget, StepPlan};
use crate::backend::{BlockCopy, SequenceId};
use crate::block_pool::PoolError;

/// What one of those that read behind the first may have of the step, as a part of what the decodes have left.
const SHARES: usize = 8;

/// What a running sequence is to do in the step.
pub(super) struct Grant {
    pub(super) place: Place,
    pub(super) slice: usize,
    drafts: usize,
}

/// A step on its way from a budget to a plan.
pub(super) struct Planner {
    pub(super) left: Budget,
    /// What those that read had to share.
    readers: Budget,
    pub(super) grants: Vec<Grant>,
    pub(super) plan: StepPlan,
}

/// Plans the next step. The plan is empty only when there is nothing to do, or nothing but what is held back.
///
/// Nothing counts as computed until [`complete`](super::complete()) is called with the step's results; a plan that could not
/// be run is simply planned again, with a smaller budget if need be.
///
/// # Errors
/// [`PoolError`] is a bug in this module.
pub fn schedule(state: &mut State, budget: Budget) -> Result<StepPlan, PoolError> {
    let mut planner =
        Planner { left: budget, readers: budget, grants: Vec::new(), plan: StepPlan::default() };
    planner.grant_writers(state)?;
    let first_reader = planner.grants.len();
    let may_admit = planner.grant_readers(state) && planner.plan.preempted.is_empty();
    if may_admit {
        planner.admit(state)?;
    }
    planner.grant_the_rest(state, first_reader);
    planner.grant_drafts(state);
    planner.finish(state)
}

impl Planner {
    /// Those that wait for one token only. Victims stand behind the one that needs room, so none is in the plan yet.
    fn grant_writers(&mut self, state: &mut State) -> Result<(), PoolError> {
        let mut index = 0;
        while index < state.running.len()
            && self.left.tokens > 0
            && self.left.logits_rows > 0
            && self.left.sequences > 0
        {
            if state.running[index].is_writing() {
                if !state.make_room(index, &mut self.plan.preempted)? {
                    break;
                }
                self.grant(&state.running[index], index, 1);
            }
            index += 1;
        }
        Ok(())
    }

    /// Those that still read. They have had blocks for all of it since they were admitted. Says whether all got something.
    fn grant_readers(&mut self, state: &State) -> bool {
        self.readers = self.left;
        let mut is_first = true;
        for (index, sequence) in state.running.iter().enumerate() {
            if sequence.is_writing() {
                continue;
            }
            let slice = self.fair_slice(sequence, is_first);
            if slice == 0 {
                return false;
            }
            self.grant(sequence, index, slice);
            is_first = false;
        }
        true
    }

    /// What one that reads gets before the rest is handed out: the first may have half, all others a small part each.
    pub(super) fn fair_slice(&self, sequence: &Sequence, is_first: bool) -> usize {
        if self.left.sequences == 0 {
            return 0;
        }
        let part = |all: usize| if is_first { all - all / 2 } else { all / SHARES }.max(2);
        let tokens = self.left.tokens.min(part(self.readers.tokens));
        sequence.slice(tokens, self.left.logits_rows.min(part(self.readers.logits_rows)))
    }

    pub(super) fn grant(&mut self, sequence: &Sequence, index: usize, slice: usize) {
        self.left.tokens -= slice;
        self.left.logits_rows -= sequence.rows(slice);
        self.left.sequences -= 1;
        let place = Place { index, rank: sequence.rank };
        self.grants.push(Grant { place, slice, drafts: 0 });
    }

    /// What is left goes to those that read, in their order.
    fn grant_the_rest(&mut self, state: &State, first_reader: usize) {
        for grant in &mut self.grants[first_reader..] {
            if self.left.tokens == 0 {
                break;
            }
            let Some(index) = state.locate(grant.place) else { continue };
            let sequence = &state.running[index];
            let rows = self.left.logits_rows + sequence.rows(grant.slice);
            let slice = sequence.slice(grant.slice + self.left.tokens, rows).max(grant.slice);
            self.left.tokens -= slice - grant.slice;
            self.left.logits_rows = rows - sequence.rows(slice);
            grant.slice = slice;
        }
    }

    /// Guesses take what nobody else wants, and blocks only where some are free.
    fn grant_drafts(&mut self, state: &mut State) {
        let spare = state.running.len() as u32;
        for grant in &mut self.grants {
            let most = self.left.tokens.min(self.left.logits_rows);
            if most == 0 {
                break;
            }
            let Some(index) = state.locate(grant.place) else { continue };
            let sequence = &mut state.running[index];
            let mut drafts = sequence.drafts.len().min(most);
            let room = (sequence.blocks.len() * state.block_tokens).saturating_sub(sequence.tokens.len());
            if drafts > room {
                let more = (drafts - room).div_ceil(state.block_tokens) as u32;
                if state.pool.free() < more + spare || !state.pool.extend(&mut sequence.blocks, more) {
                    drafts = room;
                }
            }
            self.left.tokens -= drafts;
            self.left.logits_rows -= drafts;
            grant.drafts = drafts;
        }
    }

    /// Writes the plan down.
    fn finish(mut self, state: &mut State) -> Result<StepPlan, PoolError> {
        let batch = &mut self.plan.batch;
        batch.sequences.reserve(self.grants.len());
        self.plan.places.reserve(self.grants.len());
        for Grant { place, slice, drafts } in self.grants {
            let Some(index) = state.locate(place) else { continue };
            let sequence = &mut state.running[index];
            let decides = sequence.slice_start() + slice == sequence.tokens.len();
            let drafts = match decides.then(|| sequence.prepare_masks(drafts)) {
                None => drafts,
                Some(Ok(checked)) => checked,
                Some(Err(problem)) => {
                    self.plan.failed.push((sequence.request_id, problem));
                    continue;
                }
            };
            batch.copies.extend(&sequence.copies);
            batch.loads.extend(sequence.loads.iter().cloned());
            batch.sequences.push(sequence.step(slice, drafts));
            self.plan.places.push(Place { index, rank: place.rank });
        }
        // Other answers of a failed request are in the batch perhaps; what comes of them is dropped.
        for (request, _) in &self.plan.failed {
            state.abort(*request)?;
        }
        Ok(self.plan)
    }
}

impl State {
    /// Gives the running sequence at `index` the blocks that its next token needs, if need be at the cost of the worst in
    /// rank. Says whether the sequence still runs.
    fn make_room(&mut self, index: usize, preempted: &mut Vec<SequenceId>) -> Result<bool, PoolError> {
        loop {
            let sequence = &mut self.running[index];
            let missing =
                sequence.tokens.len().div_ceil(self.block_tokens).saturating_sub(sequence.blocks.len());
            let written = sequence.computed / self.block_tokens;
            let shared = sequence.blocks.get(written).copied().filter(|block| self.pool.is_shared(*block));
            if missing as u32 + u32::from(shared.is_some()) <= self.pool.free() {
                self.pool.extend(&mut sequence.blocks, missing as u32);
                if let Some(from) = shared
                    && let Some(to) = self.pool.allocate()
                {
                    sequence.blocks[written] = to;
                    if sequence.computed.is_multiple_of(self.block_tokens) {
                        // Nothing in it is this sequence's yet.
                        self.pool.release(from)?;
                    } else {
                        sequence.copies.push(BlockCopy { from, to });
                    }
                }
                return Ok(true);
            }
            // `index` is inside `running`, so there is a last one.
            let Some(victim) = self.running.pop() else { return Ok(false) };
            preempted.push(victim.id);
            self.preempt(victim)?;
            if self.running.len() == index {
                return Ok(false);
            }
        }
    }
}
