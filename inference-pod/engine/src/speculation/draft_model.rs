//! Guesses by a smaller model with the same vocabulary: two backends that are one to the engine.
//!
//! The draft model keeps its own keys and values under the numbers of the target's blocks, and computes every token that the
//! target computes in the same step. So whatever the engine does with blocks (shares, copies, saves and loads them) holds
//! for both. Its guesses go beyond the blocks that a sequence has; for these it has a few spare blocks of its own, whose
//! contents nobody needs after the step.
//!
//! It draws its guesses as the target will draw its tokens, with the same options, seed and draw: where the two models agree,
//! so do their draws, at any temperature.

use std::num::NonZeroUsize;
use std::sync::Arc;

use lru::LruCache;

use super::{Acceptance, most_sequences};
use crate::backend::{
    AdapterError, AdapterId, AdapterReader, Backend, BackendError, BlockBytes, BlockId, BlockLoad,
    KvCapacity, ReadAdapter, SampleRequest, Sampled, SequenceId, SequenceStep, StepBatch,
};
use crate::sampling::TokenHistory;

/// Sequences whose acceptance is remembered.
const REMEMBERED: NonZeroUsize = NonZeroUsize::MIN.saturating_add(1023);

/// Blocks that a draft model's cache needs on top of its target's, to guess `tokens` tokens ahead.
#[must_use]
pub fn spare_blocks(tokens: usize, block_tokens: u32) -> u32 {
    let of_one = tokens.div_ceil(block_tokens.max(1) as usize) + 1;
    u32::try_from(most_sequences(tokens).saturating_mul(of_one)).unwrap_or(u32::MAX)
}

/// A target's and a draft model's caches do not go together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the draft model's cache has {draft} blocks of {draft_tokens} tokens, {target} blocks of {target_tokens} are needed"
)]
pub struct CacheMismatch {
    draft: u32,
    draft_tokens: u32,
    target: u32,
    target_tokens: u32,
}

/// A backend whose answers are `target`'s, and a draft model that guesses what they will be.
pub struct DraftedBackend<T, D> {
    target: T,
    draft: D,
    /// Most tokens guessed at once.
    tokens: usize,
    acceptance: LruCache<SequenceId, Acceptance>,
}

/// A sequence that is being guessed for.
struct Guessing {
    /// Its place in the step's answers.
    place: usize,
    sequence: SequenceId,
    /// Where the next token to be computed lies.
    position: u32,
    block_table: Vec<BlockId>,
    request: SampleRequest,
}

impl<T: Backend, D: Backend> DraftedBackend<T, D> {
    /// Puts two backends together. The draft's cache has the target's number of blocks and [`spare_blocks`] more.
    ///
    /// # Errors
    /// [`CacheMismatch`].
    pub fn new(target: T, draft: D, tokens: usize) -> Result<Self, CacheMismatch> {
        let (ours, theirs) = (target.kv_capacity(), draft.kv_capacity());
        let needed = ours.blocks.saturating_add(spare_blocks(tokens, ours.block_tokens));
        if ours.block_tokens != theirs.block_tokens || theirs.blocks < needed {
            return Err(CacheMismatch {
                draft: theirs.blocks,
                draft_tokens: theirs.block_tokens,
                target: needed,
                target_tokens: ours.block_tokens,
            });
        }
        Ok(Self { target, draft, tokens, acceptance: LruCache::new(REMEMBERED) })
    }

    /// The draft model computes what the target has computed, and guesses on.
    fn follow(
        &mut self,
        batch: &StepBatch,
        loads: Vec<BlockLoad>,
        sampled: &mut [Sampled],
    ) -> Result<(), BackendError> {
        let is_writing =
            |step: &&SequenceStep| step.sample.as_ref().is_some_and(|request| !request.prompt_logprobs);
        let writing = batch.sequences.iter().filter(is_writing).count();
        let pays = self.tokens > 0 && writing <= most_sequences(self.tokens);
        let mut steps = Vec::with_capacity(batch.sequences.len());
        let mut guessing: Vec<Guessing> = Vec::new();
        let mut places = 0..sampled.len();
        for step in &batch.sequences {
            let answer = step.sample.as_ref().and_then(|request| Some((request, places.next()?)));
            let certain = step.tokens.len() - step.drafts as usize;
            let accepted =
                answer.as_ref().map_or(0, |(_, place)| sampled[*place].tokens.len().saturating_sub(1));
            let mut known = SequenceStep {
                tokens: step.tokens[..certain + accepted].to_vec(),
                drafts: 0,
                adapter: None,
                sample: None,
                ..step.clone()
            };
            if let Some((request, place)) = answer {
                let next = self.guess_for(step, &known, request, &sampled[place], pays);
                if let Some(next) = next {
                    let own = sampled[place].tokens.last().map(|chosen| chosen.token);
                    known.tokens.extend(own);
                    let end = known.first_position + known.tokens.len() as u32;
                    self.lend_blocks(&mut known.block_table, end as usize + self.tokens, guessing.len());
                    known.sample = Some(next.clone());
                    guessing.push(Guessing {
                        place,
                        sequence: step.sequence,
                        position: end,
                        block_table: known.block_table.clone(),
                        request: next,
                    });
                }
            }
            steps.push(known);
        }
        let first = StepBatch { loads, copies: batch.copies.clone(), sequences: steps };
        self.guess(first, guessing, sampled)
    }

    /// What to ask the draft model about the token after those that the target has just chosen; `None` if it is not to guess.
    fn guess_for(
        &mut self,
        step: &SequenceStep,
        known: &SequenceStep,
        request: &SampleRequest,
        answer: &Sampled,
        pays: bool,
    ) -> Option<SampleRequest> {
        if request.prompt_logprobs || answer.tokens.is_empty() {
            return None;
        }
        let acceptance = self.acceptance.get_or_insert_mut(step.sequence, Acceptance::default);
        let length = known.first_position as usize + known.tokens.len() + 1;
        if step.drafts > 0 {
            acceptance.record(step.drafts as usize, answer.tokens.len() - 1, length);
        }
        if !pays || !acceptance.is_worth_it(length) {
            return None;
        }
        let mut next = SampleRequest { masks: Vec::new(), ..request.clone() };
        if next.options.logprobs.is_some() {
            let mut options = (*next.options).clone();
            options.logprobs = None;
            next.options = Arc::new(options);
        }
        for chosen in &answer.tokens {
            count(&mut next, chosen.token);
        }
        Some(next)
    }

    /// Adds spare blocks to a table until it reaches `length` tokens. Each sequence that is guessed for has its own.
    fn lend_blocks(&self, block_table: &mut Vec<BlockId>, length: usize, number: usize) {
        let KvCapacity { blocks, block_tokens, .. } = self.target.kv_capacity();
        let of_one = spare_blocks(self.tokens, block_tokens) / most_sequences(self.tokens).max(1) as u32;
        let first = blocks + number as u32 * of_one;
        let missing = length.div_ceil(block_tokens.max(1) as usize).saturating_sub(block_table.len());
        block_table.extend((first..first + of_one).take(missing));
    }

    /// Runs the step that computes what is known, then one step for each further guess.
    fn guess(
        &mut self,
        mut batch: StepBatch,
        mut guessing: Vec<Guessing>,
        sampled: &mut [Sampled],
    ) -> Result<(), BackendError> {
        for number in 0..self.tokens.max(1) {
            let guesses = match self.execute_draft(&mut batch, &mut guessing) {
                Ok(guesses) => guesses,
                // What is known must be known to both models; what is only guessed may be left.
                Err(error @ BackendError::OutOfMemory(_)) if number == 0 => return Err(error),
                Err(BackendError::OutOfMemory(_)) => return Ok(()),
                Err(error) => return Err(error),
            };
            batch = StepBatch::default();
            for (guessing, guess) in guessing.iter_mut().zip(&guesses) {
                let Some(token) = guess.tokens.first().map(|chosen| chosen.token) else { continue };
                sampled[guessing.place].drafts.push(token);
                count(&mut guessing.request, token);
                batch.sequences.push(SequenceStep {
                    sequence: guessing.sequence,
                    tokens: vec![token],
                    first_position: guessing.position,
                    block_table: guessing.block_table.clone(),
                    drafts: 0,
                    adapter: None,
                    sample: Some(guessing.request.clone()),
                });
                guessing.position += 1;
            }
            if batch.sequences.is_empty() {
                break;
            }
        }
        Ok(())
    }

    /// Runs a step of the draft model; sequences for which it has no finite numbers are not guessed for any more.
    fn execute_draft(
        &mut self,
        batch: &mut StepBatch,
        guessing: &mut Vec<Guessing>,
    ) -> Result<Vec<Sampled>, BackendError> {
        loop {
            match self.draft.execute(batch) {
                Err(BackendError::NonFinite(broken)) if !broken.is_empty() && !guessing.is_empty() => {
                    for sequence in &broken {
                        self.acceptance.get_or_insert_mut(*sequence, Acceptance::default).give_up();
                    }
                    guessing.retain(|guessing| !broken.contains(&guessing.sequence));
                    for step in batch.sequences.iter_mut().filter(|step| broken.contains(&step.sequence)) {
                        step.sample = None;
                    }
                }
                result => return result,
            }
        }
    }

    /// The two parts of what a slower tier has kept.
    fn part_loads(&self, loads: &[BlockLoad]) -> (Vec<BlockLoad>, Vec<BlockLoad>) {
        let ours = self.target.kv_capacity().block_bytes as usize;
        let part = |load: &BlockLoad| {
            let (target, draft) = load.bytes.split_at(ours.min(load.bytes.len()));
            let of = |bytes: &[u8]| BlockLoad { block: load.block, bytes: Arc::from(bytes) };
            (of(target), of(draft))
        };
        loads.iter().map(part).unzip()
    }
}

/// A token that has been chosen or guessed counts for the next one.
fn count(request: &mut SampleRequest, token: u32) {
    request.draw += 1;
    if let Some(history) = &mut request.history {
        let history: &mut TokenHistory = Arc::make_mut(history);
        *history.answer.entry(token).or_default() += 1;
    }
}

impl<T: Backend, D: Backend> Backend for DraftedBackend<T, D> {
    fn kv_capacity(&self) -> KvCapacity {
        let capacity = self.target.kv_capacity();
        KvCapacity { block_bytes: capacity.block_bytes + self.draft.kv_capacity().block_bytes, ..capacity }
    }

    fn execute(&mut self, batch: &StepBatch) -> Result<Vec<Sampled>, BackendError> {
        if batch.loads.is_empty() {
            let mut sampled = self.target.execute(batch)?;
            self.follow(batch, Vec::new(), &mut sampled)?;
            return Ok(sampled);
        }
        let (ours, theirs) = self.part_loads(&batch.loads);
        let batch = StepBatch { loads: ours, ..batch.clone() };
        let mut sampled = self.target.execute(&batch)?;
        self.follow(&batch, theirs, &mut sampled)?;
        Ok(sampled)
    }

    fn read_blocks(&mut self, blocks: &[BlockId]) -> Result<Vec<BlockBytes>, BackendError> {
        let (ours, theirs) = (self.target.read_blocks(blocks)?, self.draft.read_blocks(blocks)?);
        Ok(ours.iter().zip(&theirs).map(|(ours, theirs)| [&ours[..], theirs].concat().into()).collect())
    }

    fn adapter_reader(&self) -> Option<Arc<dyn AdapterReader>> {
        self.target.adapter_reader()
    }

    fn load_adapter(&mut self, id: AdapterId, adapter: ReadAdapter) -> Result<(), AdapterError> {
        self.target.load_adapter(id, adapter)
    }

    fn unload_adapter(&mut self, id: AdapterId) {
        self.target.unload_adapter(id);
    }
}
