//! A backend with a real paged cache and no model: the next token is a function of all tokens that the cache holds for a
//! sequence. A wrong block table, a lost block or a block with two owners therefore changes the answer.

use fairlead_engine::backend::{Backend, BackendError, KvCapacity, SampledToken, StepBatch, TokenLogprob};

/// Tokens of the fake vocabulary.
pub const VOCABULARY: u32 = 50;

/// What to answer instead of tokens, by step and batch.
pub type Failures = Box<dyn FnMut(u64, &StepBatch) -> Option<BackendError> + Send>;

pub struct FakeBackend {
    pub capacity: KvCapacity,
    pub cache: Vec<Option<u32>>,
    pub steps: u64,
    pub failures: Failures,
}

impl FakeBackend {
    pub fn new(blocks: u32, block_tokens: u32) -> Self {
        Self {
            capacity: KvCapacity { blocks, block_tokens },
            cache: vec![None; (blocks * block_tokens) as usize],
            steps: 0,
            failures: Box::new(|_, _| None),
        }
    }
}

fn hash(tokens: &[u32]) -> u64 {
    tokens.iter().fold(0xcbf2_9ce4_8422_2325, |state, &token| {
        (state ^ u64::from(token)).wrapping_mul(0x0100_0000_01b3).rotate_left(13)
    })
}

pub fn next_token(prefix: &[u32], seed: u64, draw: u64) -> u32 {
    ((hash(prefix) ^ seed.wrapping_mul(31) ^ draw.wrapping_mul(0x9e37_79b9)) % u64::from(VOCABULARY)) as u32
}

pub fn logprob(prefix: &[u32]) -> f32 {
    -((hash(prefix) % 1000) as f32) / 100.0
}

impl Backend for FakeBackend {
    fn kv_capacity(&self) -> KvCapacity {
        self.capacity
    }

    fn execute(&mut self, batch: &StepBatch) -> Result<Vec<SampledToken>, BackendError> {
        self.steps += 1;
        if let Some(failure) = (self.failures)(self.steps, batch) {
            return Err(failure);
        }
        let block_tokens = self.capacity.block_tokens as usize;
        let mut sampled = Vec::new();
        for step in &batch.sequences {
            assert!(!step.tokens.is_empty());
            let slot = |position: usize| {
                let block = step.block_table[position / block_tokens];
                assert!(block != 0 && block < self.capacity.blocks, "block {block}");
                block as usize * block_tokens + position % block_tokens
            };
            let first = step.first_position as usize;
            for (offset, &token) in step.tokens.iter().enumerate() {
                self.cache[slot(first + offset)] = Some(token);
            }
            let Some(request) = &step.sample else { continue };
            let end = first + step.tokens.len();
            let prefix: Vec<u32> =
                (0..end).map(|position| self.cache[slot(position)].expect("not computed")).collect();
            let prompt_logprobs = if request.prompt_logprobs {
                let entry = |position: usize| {
                    (
                        TokenLogprob { token: prefix[position], logprob: logprob(&prefix[..=position]) },
                        Vec::new(),
                    )
                };
                (first + 1..end).map(entry).collect()
            } else {
                Vec::new()
            };
            sampled.push(SampledToken {
                sequence: step.sequence,
                token: next_token(&prefix, request.seed, request.draw),
                logprob: request.logprobs.map(|_| logprob(&prefix)),
                top_logprobs: Vec::new(),
                prompt_logprobs,
            });
        }
        Ok(sampled)
    }
}
