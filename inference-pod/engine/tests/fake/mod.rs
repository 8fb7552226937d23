//! A backend with a real paged cache and no model. What it keeps of a token depends, like keys and values, on all tokens
//! before it and on the adapter; the next token is a function of all that the cache holds for a sequence. A wrong block table,
//! a lost block, a block that someone else has written into or that was computed with another adapter therefore ends the
//! test or changes the answer.

#![allow(dead_code)]

use fairlead_engine::backend::{
    AdapterError, AdapterId, Backend, BackendError, BlockBytes, BlockId, ChosenToken, KvCapacity,
    ReadAdapter, SampleRequest, Sampled, SequenceStep, StepBatch, TokenLogprob,
};

/// Tokens of the fake vocabulary.
pub const VOCABULARY: u32 = 50;

/// Bytes of a token's place in a block.
const SLOT_BYTES: usize = 12;

/// What to answer instead of tokens, by step and batch.
pub type Failures = Box<dyn FnMut(u64, &StepBatch) -> Option<BackendError> + Send>;

/// What the cache holds of a token: itself, and a digest of everything up to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    pub token: u32,
    pub digest: u64,
}

pub struct FakeBackend {
    pub capacity: KvCapacity,
    pub cache: Vec<Option<Slot>>,
    pub steps: u64,
    pub failures: Failures,
    /// Guesses with each answer, every third of them wrong.
    pub drafts: usize,
}

impl FakeBackend {
    pub fn new(blocks: u32, block_tokens: u32) -> Self {
        let block_bytes = SLOT_BYTES as u64 * u64::from(block_tokens);
        Self {
            capacity: KvCapacity { blocks, block_tokens, block_bytes },
            cache: vec![None; (blocks * block_tokens) as usize],
            steps: 0,
            failures: Box::new(|_, _| None),
            drafts: 0,
        }
    }

    /// Cleans blocks, as a backend does with those of sequences whose logits are not finite.
    pub fn scrub(&mut self, blocks: &[BlockId]) {
        let block_tokens = self.capacity.block_tokens as usize;
        for block in blocks {
            let first = *block as usize * block_tokens;
            self.cache[first..first + block_tokens].fill(None);
        }
    }
}

fn hash(tokens: &[u32]) -> u64 {
    tokens.iter().fold(0xcbf2_9ce4_8422_2325, |state, &token| {
        (state ^ u64::from(token)).wrapping_mul(0x0100_0000_01b3).rotate_left(13)
    })
}

fn digest(before: Option<u64>, token: u32, adapter: Option<AdapterId>) -> u64 {
    let start = adapter.map_or(7, |adapter| 1000 + u64::from(adapter));
    let state = before.unwrap_or(start) ^ (u64::from(token) << 7);
    (state ^ start).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
}

pub fn next_token(prefix: &[u32], seed: u64, draw: u64) -> u32 {
    ((hash(prefix) ^ seed.wrapping_mul(31) ^ draw.wrapping_mul(0x9e37_79b9)) % u64::from(VOCABULARY)) as u32
}

/// The same with an adapter.
pub fn next_token_with(prefix: &[u32], seed: u64, draw: u64, adapter: Option<AdapterId>) -> u32 {
    next_token(prefix, seed.wrapping_add(adapter.map_or(0, |adapter| 17 * u64::from(adapter + 1))), draw)
}

/// `wanted`, or the next one that is allowed; `wanted` where none is.
pub fn nearest_allowed(wanted: u32, allows: impl Fn(u32) -> bool) -> u32 {
    (0..VOCABULARY).map(|step| (wanted + step) % VOCABULARY).find(|token| allows(*token)).unwrap_or(wanted)
}

pub fn logprob(prefix: &[u32]) -> f32 {
    -((hash(prefix) % 1000) as f32) / 100.0
}

fn choose(request: &SampleRequest, adapter: Option<AdapterId>, prefix: &[u32], before: usize) -> u32 {
    let draw = request.draw + before as u64;
    let allows = |token: u32| {
        let masked = request.masks.get(before).is_some_and(|mask| !mask.allows(token));
        !(masked || draw < request.banned_draws && request.banned.contains(&token))
    };
    nearest_allowed(next_token_with(prefix, request.options.seed, draw, adapter), allows)
}

/// The history must be that of the tokens which are certain.
fn check_history(request: &SampleRequest, certain: &[u32]) {
    let options = &request.options;
    let wanted = options.repetition_penalty != 1.0
        || options.presence_penalty != 0.0
        || options.frequency_penalty != 0.0;
    assert_eq!(request.history.is_some(), wanted);
    let Some(history) = &request.history else { return };
    let (prompt, answer) = certain.split_at(certain.len() - request.draw as usize);
    assert!(prompt.iter().all(|token| history.prompt.contains(token)));
    let count = |token: &u32| answer.iter().filter(|other| *other == token).count() as u32;
    assert!(
        answer.iter().all(|token| history.answer.get(token).copied() == Some(count(token))),
        "{history:?}"
    );
    assert_eq!(history.answer.values().sum::<u32>() as usize, answer.len());
}

impl FakeBackend {
    fn slot(&self, step: &SequenceStep, position: usize) -> usize {
        let block_tokens = self.capacity.block_tokens as usize;
        let block = step.block_table[position / block_tokens];
        assert!(block != 0 && block < self.capacity.blocks, "block {block}");
        block as usize * block_tokens + position % block_tokens
    }

    fn write(&mut self, step: &SequenceStep) {
        let first = step.first_position as usize;
        for (position, &token) in (first..).zip(&step.tokens) {
            let before = position.checked_sub(1).map(|before| {
                self.cache[self.slot(step, before)].expect("a token before it is not computed").digest
            });
            let slot = self.slot(step, position);
            self.cache[slot] = Some(Slot { token, digest: digest(before, token, step.adapter) });
        }
    }

    fn sample(&self, step: &SequenceStep, request: &SampleRequest) -> Sampled {
        let first = step.first_position as usize;
        let end = first + step.tokens.len();
        let mut before = None;
        let mut cached = Vec::new();
        for position in 0..end {
            let slot = self.cache[self.slot(step, position)].expect("not computed");
            let expected = digest(before, slot.token, step.adapter);
            assert_eq!(slot.digest, expected, "position {position} was computed after other tokens");
            before = Some(expected);
            cached.push(slot.token);
        }
        let certain = end - step.drafts as usize;
        assert!(request.masks.is_empty() || request.masks.len() == step.drafts as usize + 1);
        let prompt_logprobs = if request.prompt_logprobs {
            let entry = |position: usize| {
                (TokenLogprob { token: cached[position], logprob: logprob(&cached[..=position]) }, Vec::new())
            };
            (first + 1..certain).map(entry).collect()
        } else {
            check_history(request, &cached[..certain]);
            Vec::new()
        };
        let mut tokens: Vec<ChosenToken> = Vec::new();
        for length in certain..=end {
            let prefix = &cached[..length];
            let token = choose(request, step.adapter, prefix, tokens.len());
            let logprob = request.options.logprobs.map(|_| logprob(prefix));
            tokens.push(ChosenToken { token, logprob, top_logprobs: Vec::new() });
            if cached.get(length) != Some(&token) {
                break;
            }
        }
        let mut known = cached[..certain].to_vec();
        known.extend(tokens.iter().map(|chosen| chosen.token));
        let mut drafts = Vec::new();
        for draw in (request.draw + tokens.len() as u64..).take(self.drafts) {
            let right = next_token_with(&known, request.options.seed, draw, step.adapter);
            let guess = if hash(&known).is_multiple_of(3) { (right + 1) % VOCABULARY } else { right };
            drafts.push(guess);
            known.push(guess);
        }
        Sampled { sequence: step.sequence, tokens, prompt_logprobs, drafts }
    }
}

impl Backend for FakeBackend {
    fn kv_capacity(&self) -> KvCapacity {
        self.capacity
    }

    fn execute(&mut self, batch: &StepBatch) -> Result<Vec<Sampled>, BackendError> {
        self.steps += 1;
        if let Some(failure) = (self.failures)(self.steps, batch) {
            return Err(failure);
        }
        let block_tokens = self.capacity.block_tokens as usize;
        for load in &batch.loads {
            let first = load.block as usize * block_tokens;
            assert_eq!(load.bytes.len() as u64, self.capacity.block_bytes);
            for (slot, bytes) in
                self.cache[first..first + block_tokens].iter_mut().zip(load.bytes.chunks_exact(SLOT_BYTES))
            {
                let (token, digest) = bytes.split_at(4);
                let token = u32::from_le_bytes(token.try_into().unwrap());
                let digest = u64::from_le_bytes(digest.try_into().unwrap());
                *slot = (token != u32::MAX).then_some(Slot { token, digest });
            }
        }
        for copy in &batch.copies {
            let from = copy.from as usize * block_tokens;
            self.cache.copy_within(from..from + block_tokens, copy.to as usize * block_tokens);
        }
        for step in &batch.sequences {
            assert!(!step.tokens.is_empty());
            self.write(step);
        }
        // Only now: a sequence that writes into another's block is found out, whichever comes first.
        let asked =
            batch.sequences.iter().filter_map(|step| step.sample.as_ref().map(|request| (step, request)));
        Ok(asked.map(|(step, request)| self.sample(step, request)).collect())
    }

    fn read_blocks(&mut self, blocks: &[BlockId]) -> Result<Vec<BlockBytes>, BackendError> {
        let block_tokens = self.capacity.block_tokens as usize;
        let bytes = |block: &BlockId| {
            let first = *block as usize * block_tokens;
            let slots = self.cache[first..first + block_tokens].iter();
            let slots = slots.map(|slot| slot.unwrap_or(Slot { token: u32::MAX, digest: 0 }));
            slots
                .flat_map(|slot| [&slot.token.to_le_bytes()[..], &slot.digest.to_le_bytes()].concat())
                .collect()
        };
        Ok(blocks.iter().map(bytes).collect())
    }

    fn load_adapter(&mut self, _: AdapterId, _: ReadAdapter) -> Result<(), AdapterError> {
        Err(AdapterError::Invalid("this backend has no adapters".to_owned()))
    }

    fn unload_adapter(&mut self, _: AdapterId) {}
}
