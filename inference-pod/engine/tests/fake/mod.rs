//! A backend with a real paged cache and no model: the next token is a function of all tokens that the cache holds for a
//! sequence. A wrong block table, a lost block or a block with two owners therefore changes the answer.

use fairlead_engine::backend::{
    AdapterError, AdapterId, Backend, BackendError, BlockBytes, BlockId, ChosenToken, KvCapacity,
    ReadAdapter, Sampled, StepBatch, TokenLogprob,
};

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
            capacity: KvCapacity { blocks, block_tokens, block_bytes: 4 * u64::from(block_tokens) },
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

    fn execute(&mut self, batch: &StepBatch) -> Result<Vec<Sampled>, BackendError> {
        self.steps += 1;
        if let Some(failure) = (self.failures)(self.steps, batch) {
            return Err(failure);
        }
        let block_tokens = self.capacity.block_tokens as usize;
        for load in &batch.loads {
            let first = load.block as usize * block_tokens;
            for (slot, bytes) in
                self.cache[first..first + block_tokens].iter_mut().zip(load.bytes.chunks_exact(4))
            {
                let token = u32::from_le_bytes(bytes.try_into().unwrap());
                *slot = (token != u32::MAX).then_some(token);
            }
        }
        for copy in &batch.copies {
            let from = copy.from as usize * block_tokens;
            self.cache.copy_within(from..from + block_tokens, copy.to as usize * block_tokens);
        }
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
            let cached: Vec<u32> =
                (0..end).map(|position| self.cache[slot(position)].expect("not computed")).collect();
            let certain = end - step.drafts as usize;
            let prompt_logprobs = if request.prompt_logprobs {
                let entry = |position: usize| {
                    (
                        TokenLogprob { token: cached[position], logprob: logprob(&cached[..=position]) },
                        Vec::new(),
                    )
                };
                (first + 1..certain).map(entry).collect()
            } else {
                Vec::new()
            };
            let mut tokens = Vec::new();
            for length in certain..=end {
                let prefix = &cached[..length];
                let draw = request.draw + tokens.len() as u64;
                let token = next_token(prefix, request.options.seed, draw);
                let logprob = request.options.logprobs.map(|_| logprob(prefix));
                tokens.push(ChosenToken { token, logprob, top_logprobs: Vec::new() });
                if cached.get(length) != Some(&token) {
                    break;
                }
            }
            sampled.push(Sampled { sequence: step.sequence, tokens, prompt_logprobs, drafts: Vec::new() });
        }
        Ok(sampled)
    }

    fn read_blocks(&mut self, blocks: &[BlockId]) -> Result<Vec<BlockBytes>, BackendError> {
        let block_tokens = self.capacity.block_tokens as usize;
        let bytes = |block: &BlockId| {
            let first = *block as usize * block_tokens;
            let slots = &self.cache[first..first + block_tokens];
            slots.iter().flat_map(|token| token.unwrap_or(u32::MAX).to_le_bytes()).collect()
        };
        Ok(blocks.iter().map(bytes).collect())
    }

    fn load_adapter(&mut self, _: AdapterId, _: ReadAdapter) -> Result<(), AdapterError> {
        Err(AdapterError::Invalid("this backend has no adapters".to_owned()))
    }

    fn unload_adapter(&mut self, _: AdapterId) {}
}
