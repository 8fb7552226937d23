//! Who computes what in the next step: a pure function over plain data.
//!
//! There are no prefill and decode phases: every sequence has tokens that are not computed yet, one after a choice, many
//! before it. A step shares one token budget among them. Running sequences come first, those that are one token short (they
//! stream to a client) before those that still read their prompt; then waiting ones are admitted in order of arrival.
//! A running sequence that needs a block when none is free takes it from the last admitted one, which starts over
//! later: its tokens are kept, its cache is not. So the first admitted always gets on, and everything ends.
//!
//! Called by [`crate::engine`] only. Must not know a tensor, a clock or a channel: `now` is an argument.

use std::collections::VecDeque;
use std::time::Instant;

use crate::backend::{ChosenToken, KvCapacity, Sampled, SequenceId, SequenceStep, StepBatch};
use crate::block_pool::{BlockPool, PoolError};
use crate::sequence::{EndReason, GenerationRequest, PromptLogprob, Sequence};

/// What one step may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Most tokens computed in it; at least 2, so that a prompt's log-probabilities get on.
    pub tokens: usize,
    /// Most sequences in it.
    pub sequences: usize,
}

/// Limits that hold for the engine's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most sequences that run at once.
    pub max_sequences: usize,
    /// Longest sequence, prompt and answer together.
    pub max_model_len: u32,
}

/// Why a sequence is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It has no tokens.
    #[error("the prompt has no tokens; send at least one")]
    EmptyPrompt,
    /// Prompt and answer are longer than the model or the cache takes.
    #[error(
        "the prompt has {prompt} tokens and {new} more were asked for, but at most {most} fit; shorten the prompt or lower \
         max_tokens"
    )]
    TooLong {
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens asked for.
        new: u32,
        /// Tokens that fit.
        most: u32,
    },
    /// The engine is draining.
    #[error("the engine is draining and takes no new work")]
    Draining,
}

/// Work for one step, and what was given up to make room for it.
#[derive(Debug, Default)]
pub struct StepPlan {
    /// What the backend is to run.
    pub batch: StepBatch,
    /// Sequences that lost their cache and wait again.
    pub preempted: Vec<SequenceId>,
    /// Sequences that left the queue for the first time.
    pub admitted: Vec<SequenceId>,
}

impl StepPlan {
    /// Tokens that the step computes.
    pub fn tokens(&self) -> usize {
        self.batch.sequences.iter().map(|step| step.tokens.len()).sum()
    }
}

/// What a finished step, or the lack of one, means for a sequence.
#[derive(Clone, Debug, PartialEq)]
pub enum Update {
    /// The prompt's log-probabilities, in order from its second token on.
    PromptLogprobs(SequenceId, Vec<PromptLogprob>),
    /// A new token.
    Token {
        /// Whose.
        sequence: SequenceId,
        /// The token and what is known of it.
        token: ChosenToken,
        /// Set when it is the last one.
        end: Option<EndReason>,
    },
    /// It ended without a new token: only its prompt was to be scored.
    Ended(SequenceId, EndReason),
}

/// A step's results do not belong to its batch: a bug in the backend or here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    /// The backend answered for other sequences than were asked about.
    #[error(
        "the backend answered for {found} sequences where {expected} were asked for, or in another order"
    )]
    Mismatch {
        /// Sequences to sample.
        expected: usize,
        /// Sequences answered for.
        found: usize,
    },
    /// See [`PoolError`].
    #[error(transparent)]
    Pool(#[from] PoolError),
}

/// All sequences and blocks.
#[derive(Debug)]
pub struct State {
    waiting: VecDeque<Sequence>,
    /// In order of admission.
    running: Vec<Sequence>,
    pool: BlockPool,
    block_tokens: usize,
    limits: Limits,
    draining: bool,
}

impl State {
    /// An empty engine over a cache of this size.
    pub fn new(capacity: KvCapacity, limits: Limits) -> Self {
        Self {
            waiting: VecDeque::new(),
            running: Vec::new(),
            pool: BlockPool::new(capacity.blocks),
            block_tokens: capacity.block_tokens.max(1) as usize,
            limits: Limits { max_sequences: limits.max_sequences.max(1), ..limits },
            draining: false,
        }
    }

    /// Longest sequence that is taken: what the model allows, or the whole cache where that is smaller.
    pub fn max_model_len(&self) -> u32 {
        // The last token of an answer is never computed, so it needs no place in the cache.
        let cached = u64::from(self.pool.usable()) * self.block_tokens as u64 + 1;
        self.limits.max_model_len.min(u32::try_from(cached).unwrap_or(u32::MAX))
    }

    /// Queues a sequence.
    ///
    /// # Errors
    /// [`Refusal`] when it can never run, or not any more.
    pub fn add(&mut self, id: SequenceId, request: GenerationRequest) -> Result<(), Refusal> {
        if self.draining {
            return Err(Refusal::Draining);
        }
        let (prompt, new, most) = (request.prompt.len(), request.max_new_tokens, self.max_model_len());
        if prompt == 0 {
            return Err(Refusal::EmptyPrompt);
        }
        if prompt as u64 + u64::from(new) > u64::from(most) {
            return Err(Refusal::TooLong { prompt, new, most });
        }
        self.waiting.push_back(Sequence::new(id, request));
        Ok(())
    }

    /// Drops a sequence and returns its blocks. Says whether it was there.
    ///
    /// # Errors
    /// [`PoolError`] if its blocks were not its own.
    pub fn abort(&mut self, id: SequenceId) -> Result<bool, PoolError> {
        if let Some(index) = self.waiting.iter().position(|sequence| sequence.id == id) {
            self.waiting.remove(index);
            return Ok(true);
        }
        let Some(index) = self.running.iter().position(|sequence| sequence.id == id) else {
            return Ok(false);
        };
        let mut sequence = self.running.remove(index);
        self.pool.release_table(&mut sequence.blocks)?;
        Ok(true)
    }

    /// Sequences whose deadline has passed; the caller aborts them.
    pub fn expired(&self, now: Instant) -> Vec<SequenceId> {
        let late = |sequence: &&Sequence| sequence.request.deadline.is_some_and(|deadline| deadline <= now);
        self.waiting
            .iter()
            .filter(late)
            .chain(self.running.iter().filter(late))
            .map(|sequence| sequence.id)
            .collect()
    }

    /// Takes no new sequences from now on; those it has are finished.
    pub fn drain(&mut self) {
        self.draining = true;
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

    /// The sequence that would be admitted next.
    pub fn next_waiting(&self) -> Option<SequenceId> {
        self.waiting.front().map(|sequence| sequence.id)
    }

    /// Blocks that belong to a sequence.
    pub fn used_blocks(&self) -> u32 {
        self.pool.used()
    }

    /// Blocks that can be given to sequences.
    pub fn usable_blocks(&self) -> u32 {
        self.pool.usable()
    }

    /// Gives the running sequence at `index` the blocks for all its tokens, if need be at the cost of the last admitted.
    /// Says whether the sequence still runs.
    fn make_room(&mut self, index: usize, preempted: &mut Vec<SequenceId>) -> Result<bool, PoolError> {
        loop {
            let sequence = &mut self.running[index];
            let missing = sequence.length().div_ceil(self.block_tokens).saturating_sub(sequence.blocks.len());
            if self.pool.extend(&mut sequence.blocks, missing as u32) {
                return Ok(true);
            }
            // `index` is inside `running`, so there is a last one.
            let Some(mut victim) = self.running.pop() else { return Ok(false) };
            self.pool.release_table(&mut victim.blocks)?;
            victim.start_over();
            preempted.push(victim.id);
            self.waiting.push_front(victim);
            if self.running.len() == index {
                return Ok(false);
            }
        }
    }
}

/// Plans the next step. The plan is empty only when there is nothing to do.
///
/// Nothing counts as computed until [`complete`] is called with the step's results; a plan that could not be run is simply
/// planned again, with a smaller budget if need be.
///
/// # Errors
/// [`PoolError`] is a bug in this file.
pub fn schedule(state: &mut State, budget: Budget) -> Result<StepPlan, PoolError> {
    let mut plan = StepPlan::default();
    let mut left = budget.tokens;

    // Those that wait for one token only. Victims stand behind the one that needs room, so none is in the batch yet.
    let mut index = 0;
    while index < state.running.len() && left > 0 && plan.batch.sequences.len() < budget.sequences {
        if state.running[index].uncomputed() == 1 && !state.running[index].is_scoring() {
            if !state.make_room(index, &mut plan.preempted)? {
                break;
            }
            left -= push_step(&mut plan, &state.running[index], left);
        }
        index += 1;
    }
    // Those that still read. They have had blocks for all of it since they were admitted.
    let mut is_full = false;
    for sequence in &state.running {
        if sequence.uncomputed() > 1 || sequence.is_scoring() {
            is_full = left < smallest_slice(sequence) || plan.batch.sequences.len() >= budget.sequences;
            if is_full {
                break;
            }
            left -= push_step(&mut plan, sequence, left);
        }
    }
    // New ones; not in a step that had to take blocks away or that could not serve everyone.
    while plan.preempted.is_empty()
        && !is_full
        && state.running.len() < state.limits.max_sequences
        && plan.batch.sequences.len() < budget.sequences
    {
        let Some(next) = state.waiting.front_mut() else { break };
        let needed = next.tokens.len().div_ceil(state.block_tokens) as u32;
        // One block for each that runs stays back: to admit someone only to preempt him a step later is waste.
        let reserve = state.running.len() as u32;
        if left < smallest_slice(next) || state.pool.free() < needed.saturating_add(reserve) {
            break;
        }
        state.pool.extend(&mut next.blocks, needed);
        let Some(mut sequence) = state.waiting.pop_front() else { break };
        if !sequence.admitted {
            sequence.admitted = true;
            plan.admitted.push(sequence.id);
        }
        left -= push_step(&mut plan, &sequence, left);
        state.running.push(sequence);
    }
    Ok(plan)
}

/// A scored prompt's later slices begin with a token that is computed already; it must bring a new one along.
fn smallest_slice(sequence: &Sequence) -> usize {
    if sequence.is_scoring() && sequence.computed > 0 { 2 } else { 1 }
}

/// Adds a slice of at most `most` tokens to the plan; returns its length.
fn push_step(plan: &mut StepPlan, sequence: &Sequence, most: usize) -> usize {
    let first = if sequence.is_scoring() { sequence.computed.saturating_sub(1) } else { sequence.computed };
    let end = sequence.tokens.len().min(first + most);
    let decides = end == sequence.tokens.len();
    // Guesses take what is left of the budget; they are never worth more than somebody's certain token.
    let drafts = if decides { sequence.drafts.len().min(first + most - end) } else { 0 };
    let mut tokens = sequence.tokens[first..end].to_vec();
    tokens.extend_from_slice(&sequence.drafts[..drafts]);
    plan.batch.sequences.push(SequenceStep {
        sequence: sequence.id,
        tokens,
        first_position: first as u32,
        block_table: sequence.blocks.clone(),
        drafts: drafts as u32,
        adapter: sequence.request.adapter.map(|adapter| adapter.id),
        sample: (decides || sequence.is_scoring()).then(|| sequence.sample_request()),
    });
    end - first + drafts
}

/// Takes a step's results in: what is computed, what was chosen, who has ended.
///
/// # Errors
/// [`StepError`] when the results do not belong to the plan.
pub fn complete(state: &mut State, plan: &StepPlan, sampled: Vec<Sampled>) -> Result<Vec<Update>, StepError> {
    let asked = plan.batch.sequences.iter().filter(|step| step.sample.is_some());
    let (expected, found) = (asked.clone().count(), sampled.len());
    if expected != found || !asked.zip(&sampled).all(|(step, answer)| step.sequence == answer.sequence) {
        return Err(StepError::Mismatch { expected, found });
    }
    let mut answers = sampled.into_iter();
    let mut updates = Vec::new();
    let most = state.max_model_len() as usize;
    for step in &plan.batch.sequences {
        let answer = if step.sample.is_some() { answers.next() } else { None };
        let Some(index) = state.running.iter().position(|sequence| sequence.id == step.sequence) else {
            continue;
        };
        let sequence = &mut state.running[index];
        sequence.computed = step.first_position as usize + step.tokens.len() - step.drafts as usize;
        let Some(mut answer) = answer else { continue };

        if sequence.is_scoring() {
            sequence.prompt_logprobs.append(&mut answer.prompt_logprobs);
            sequence.scored = sequence.computed;
            if !sequence.is_scoring() {
                updates
                    .push(Update::PromptLogprobs(sequence.id, std::mem::take(&mut sequence.prompt_logprobs)));
            }
        }
        if sequence.uncomputed() > 0 {
            continue;
        }
        let end = if sequence.request.max_new_tokens == 0 {
            updates.push(Update::Ended(sequence.id, EndReason::Length));
            Some(EndReason::Length)
        } else {
            sequence.drafts = answer.drafts;
            let mut end = None;
            for (index, token) in answer.tokens.into_iter().enumerate() {
                // The draft before it was right, so its keys and values are in the cache.
                sequence.computed += usize::from(index > 0);
                end = push_token(sequence, token.token, most);
                updates.push(Update::Token { sequence: sequence.id, token, end });
                if end.is_some() {
                    break;
                }
            }
            end
        };
        if end.is_some() {
            let mut sequence = state.running.remove(index);
            state.pool.release_table(&mut sequence.blocks)?;
        }
    }
    Ok(updates)
}

fn push_token(sequence: &mut Sequence, token: u32, most: usize) -> Option<EndReason> {
    sequence.tokens.push(token);
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
