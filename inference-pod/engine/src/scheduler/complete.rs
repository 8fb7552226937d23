//! Taking a step's results in: what is computed, what was chosen, who parts from whom, and who has ended.

use std::collections::VecDeque;

use super::sequence::Sequence;
use super::state::{State, release};
use super::{Registered, StepError, StepOutcome, StepPlan, Update};
use crate::backend::{Sampled, SequenceStep};
use crate::block_pool::{BlockPool, PoolError};
use crate::proposer::Proposer;
use crate::sequence::EndReason;

/// Takes a step's results in.
///
/// # Errors
/// [`StepError`] when the results do not belong to the plan.
pub fn complete(state: &mut State, plan: StepPlan, sampled: Vec<Sampled>) -> Result<StepOutcome, StepError> {
    check(&plan, &sampled)?;
    let mut answers = VecDeque::from(sampled);
    let mut outcome = StepOutcome::default();
    let mut forks = Vec::new();
    for (mut step, place) in plan.batch.sequences.into_iter().zip(plan.places) {
        // The request is dropped here: what it shares with the sequence can then be changed without a copy.
        let answer = if step.sample.take().is_some() { answers.pop_front() } else { None };
        if let Some(index) = state.locate(place) {
            state.take_in(index, &step, answer, &mut outcome, &mut forks)?;
        }
    }
    state.remove_ended()?;
    for fork in forks {
        let index = state.running.partition_point(|other| other.rank < fork.rank);
        state.running.insert(index, fork);
    }
    for update in &outcome.updates {
        if let Update::Failed(request, _) = update {
            state.abort(*request)?;
        }
    }
    Ok(outcome)
}

fn check(plan: &StepPlan, sampled: &[Sampled]) -> Result<(), StepError> {
    let asked = plan.batch.sequences.iter().filter(|step| step.sample.is_some());
    let (expected, found) = (asked.clone().count(), sampled.len());
    if expected != found || !asked.clone().zip(sampled).all(|(step, answer)| step.sequence == answer.sequence)
    {
        return Err(StepError::Mismatch { expected, found });
    }
    for (step, answer) in asked.zip(sampled) {
        let found = answer.tokens.len();
        if found == 0 || found > step.drafts as usize + 1 {
            return Err(StepError::Tokens { sequence: step.sequence, found, drafts: step.drafts });
        }
    }
    Ok(())
}

impl State {
    fn take_in(
        &mut self,
        index: usize,
        step: &SequenceStep,
        answer: Option<Sampled>,
        outcome: &mut StepOutcome,
        forks: &mut Vec<Sequence>,
    ) -> Result<(), PoolError> {
        let sharing = self.limits.prefix_sharing;
        let sequence = &mut self.running[index];
        sequence.computed = step.first_position as usize + step.tokens.len() - step.drafts as usize;
        for copy in sequence.copies.drain(..) {
            self.pool.release(copy.from)?;
        }
        register_loads(&mut self.pool, sequence, step.first_position as usize / self.block_tokens)?;
        // Without logits nobody knows yet whether what was written is sound.
        let Some(mut answer) = answer else { return Ok(()) };

        if sequence.is_scoring() {
            sequence.prompt_logprobs.append(&mut answer.prompt_logprobs);
            sequence.scored = sequence.computed;
            if !sequence.is_scoring() {
                let logprobs = std::mem::take(&mut sequence.prompt_logprobs);
                outcome.updates.push(Update::PromptLogprobs(sequence.request_id, logprobs));
            }
        }
        if sharing {
            register(&mut self.pool, sequence, self.block_tokens, outcome)?;
        }
        if sequence.uncomputed() > 0 {
            return Ok(());
        }
        if sequence.generated() >= sequence.request.max_new_tokens as usize {
            return self.end_without_a_token(index, outcome);
        }
        if sequence.unforked > 0 {
            self.fork(index, forks)?;
        }
        self.take_tokens(index, step.drafts, answer, outcome);
        let sequence = &mut self.running[index];
        if sharing {
            register(&mut self.pool, sequence, self.block_tokens, outcome)?;
        }
        Ok(())
    }

    /// The prompt was to be scored only, or the answer that was to go on is complete.
    fn end_without_a_token(&mut self, index: usize, outcome: &mut StepOutcome) -> Result<(), PoolError> {
        let sequence = &mut self.running[index];
        sequence.ended = true;
        let (request, answers) = (sequence.request_id, sequence.unforked + 1);
        sequence.unforked = 0;
        for choice in 0..answers {
            outcome.updates.push(Update::Ended { request, choice, end: EndReason::Length });
            self.close_answer(request);
        }
        Ok(())
    }

    fn take_tokens(&mut self, index: usize, drafts: u32, answer: Sampled, outcome: &mut StepOutcome) {
        let most = self.max_model_len() as usize;
        if drafts > 0 {
            self.counts.drafts += 1;
            self.counts.draft_tokens += u64::from(drafts);
            let accepted = answer.tokens.len() - 1;
            self.counts.accepted_tokens += accepted as u64;
            if self.counts.accepted_at.len() < accepted {
                self.counts.accepted_at.resize(accepted, 0);
            }
            self.counts.accepted_at[..accepted].iter_mut().for_each(|count| *count += 1);
        }
        let sequence = &mut self.running[index];
        let (request, choice) = (sequence.request_id, sequence.rank.choice());
        sequence.drafts.clear();
        for (index, token) in answer.tokens.into_iter().enumerate() {
            // The draft before it was right, so its keys and values are in the cache.
            sequence.computed += usize::from(index > 0);
            if let Err(problem) = sequence.push(token.token) {
                outcome.updates.push(Update::Failed(request, problem));
                return;
            }
            let end = end_of(sequence, token.token, most);
            outcome.updates.push(Update::Token { request, choice, token, end });
            if end.is_some() {
                sequence.ended = true;
                return self.close_answer(request);
            }
        }
        sequence.set_drafts(answer.drafts, most);
    }

    /// The other answers part here from the first, whose prompt is computed. Those for which there is no place wait.
    fn fork(&mut self, index: usize, forks: &mut Vec<Sequence>) -> Result<(), PoolError> {
        let answers = std::mem::take(&mut self.running[index].unforked);
        for choice in 1..=answers {
            let id = self.new_sequence_id();
            let first = &self.running[index];
            let mut fork = first.fork(id, choice);
            fork.registered = fork.registered.min(fork.computed / self.block_tokens);
            // What the first has got for its guesses is its own.
            fork.blocks.truncate(fork.tokens.len().div_ceil(self.block_tokens));
            if self.running.len() + forks.len() < self.limits.max_sequences {
                for block in &fork.blocks {
                    self.pool.share(*block)?;
                }
                forks.push(fork);
            } else {
                fork.blocks.clear();
                fork.start_over();
                self.waiting.insert(fork.rank, fork);
            }
        }
        Ok(())
    }

    fn remove_ended(&mut self) -> Result<(), PoolError> {
        if self.running.iter().any(|sequence| sequence.ended) {
            for mut sequence in self.running.extract_if(.., |sequence| sequence.ended) {
                release(&mut self.pool, &mut sequence)?;
            }
        }
        Ok(())
    }

    /// Asks for guesses for every sequence that streams and has none.
    pub fn propose(&mut self, proposer: &mut dyn Proposer) {
        let most = self.max_model_len() as usize;
        if self.running.iter().filter(|sequence| sequence.is_writing()).count() > proposer.most_sequences() {
            return;
        }
        for sequence in self.running.iter_mut().filter(|sequence| sequence.is_writing()) {
            let room = sequence.most_drafts(most);
            if sequence.drafts.is_empty() && room > 0 {
                let drafts = proposer.propose(sequence.id, &sequence.tokens, room);
                sequence.set_drafts(drafts, most);
            }
        }
    }
}

/// Names the blocks that are full by now. The caller has seen finite logits after them.
fn register(
    pool: &mut BlockPool,
    sequence: &mut Sequence,
    block_tokens: usize,
    outcome: &mut StepOutcome,
) -> Result<(), PoolError> {
    // The next slice of a prompt that is being scored writes its last known token once more.
    let settled = if sequence.is_scoring() { sequence.computed.saturating_sub(1) } else { sequence.computed };
    let full = settled / block_tokens;
    if full <= sequence.registered {
        return Ok(());
    }
    sequence.root.extend_chain(&mut sequence.names, &sequence.tokens, block_tokens);
    for index in sequence.registered..full {
        let (block, name) = (sequence.blocks[index], sequence.names[index]);
        if pool.register(block, name)? {
            let parent = index.checked_sub(1).map(|before| sequence.names[before]);
            outcome.registered.push(Registered { block, name, parent });
        }
    }
    sequence.registered = full;
    Ok(())
}

/// Names the blocks that a slower tier has filled, as far as the step has not written into them: they were sound when the
/// tier got them.
fn register_loads(pool: &mut BlockPool, sequence: &mut Sequence, untouched: usize) -> Result<(), PoolError> {
    for load in std::mem::take(&mut sequence.loads) {
        let index = sequence.registered;
        if index < untouched && sequence.blocks.get(index) == Some(&load.block) {
            pool.register(load.block, sequence.names[index])?;
            sequence.registered += 1;
        }
    }
    Ok(())
}

fn end_of(sequence: &Sequence, token: u32, most: usize) -> Option<EndReason> {
    if sequence.request.stop_tokens.contains(&token) {
        Some(EndReason::StopToken)
    } else if sequence.generated() >= sequence.request.max_new_tokens as usize
        || sequence.tokens.len() >= most
    {
        Some(EndReason::Length)
    } else {
        None
    }
}
