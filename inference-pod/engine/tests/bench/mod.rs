//! Runs the scheduler step by step on the fake backend, gathers each request's answers, and knows what they must be.

#![allow(dead_code)]

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use fairlead_engine::backend::{Backend, KvCapacity, SequenceStep, TokenLogprob};
use fairlead_engine::sampling::{SamplingOptions, TokenMask};
use fairlead_engine::scheduler::{Budget, Limits, Registered, State, StepPlan, Update, complete, schedule};
use fairlead_engine::sequence::{AdapterKey, Constraint, EndReason, GenerationRequest, RequestId};

use crate::fake::{FakeBackend, VOCABULARY, logprob, nearest_allowed, next_token_with};

pub const ROOMY: Limits = Limits { max_sequences: 8, max_model_len: 1000, prefix_sharing: true };
pub const LARGE: Budget = Budget { tokens: 64, sequences: 8, logits_rows: 64 };

pub fn request(prompt: Vec<u32>, max_new_tokens: u32) -> GenerationRequest {
    GenerationRequest {
        prompt,
        max_new_tokens,
        sampling: SamplingOptions { temperature: 0.0, seed: 3, ..SamplingOptions::default() },
        ..GenerationRequest::default()
    }
}

pub fn adapter(number: u8) -> AdapterKey {
    AdapterKey { id: u32::from(number), digest: [number; 32] }
}

pub fn capacity(blocks: u32, block_tokens: u32) -> KvCapacity {
    FakeBackend::new(blocks, block_tokens).capacity
}

/// Allows a token by its own number and how many came before it; so a mask that is a position off shows.
#[derive(Clone, Debug, Default)]
pub struct EveryThird {
    pub taken: Vec<u32>,
    /// Cannot go on after so many tokens.
    pub ends_after: Option<usize>,
}

impl EveryThird {
    pub fn allows(token: u32, before: usize) -> bool {
        (token as usize + before).is_multiple_of(3)
    }
}

impl Constraint for EveryThird {
    fn mask(&mut self) -> Result<Arc<TokenMask>, String> {
        if self.ends_after.is_some_and(|most| self.taken.len() >= most) {
            return Err("nothing may come here".to_owned());
        }
        let mut mask = TokenMask { words: vec![0; 2] };
        for token in (0..VOCABULARY).filter(|token| Self::allows(*token, self.taken.len())) {
            mask.words[token as usize / 32] |= 1 << (token % 32);
        }
        Ok(Arc::new(mask))
    }

    fn accept(&mut self, token: u32) -> Result<(), String> {
        if !Self::allows(token, self.taken.len()) {
            return Err(format!("token {token} may not come here"));
        }
        self.taken.push(token);
        Ok(())
    }

    fn valid_prefix(&mut self, tokens: &[u32]) -> usize {
        let valid = tokens.iter().enumerate();
        valid.take_while(|(index, token)| Self::allows(**token, self.taken.len() + index)).count()
    }

    fn fork(&self) -> Box<dyn Constraint> {
        Box::new(self.clone())
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    pub tokens: Vec<u32>,
    pub end: Option<EndReason>,
}

/// What has come of a request.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    pub prompt_logprobs: Vec<(u32, f32)>,
    pub answers: BTreeMap<u32, Answer>,
    pub failed: Option<String>,
}

/// What a request must get, from the definition alone: as if it ran by itself, without batches, blocks or guesses.
pub fn alone(request: &GenerationRequest) -> Outcome {
    let mut outcome = Outcome::default();
    let prompt = &request.prompt;
    if request.prompt_logprobs && prompt.len() > 1 {
        outcome.prompt_logprobs = (1..prompt.len()).map(|i| (prompt[i], logprob(&prompt[..=i]))).collect();
    }
    for choice in 0..request.choices.max(1) {
        let seed = request.sampling.seed.wrapping_add(u64::from(choice));
        let mut tokens = prompt.clone();
        let mut answer = Answer { tokens: Vec::new(), end: Some(EndReason::Length) };
        for draw in 0..request.max_new_tokens as usize {
            let wanted =
                next_token_with(&tokens, seed, draw as u64, request.adapter.map(|adapter| adapter.id));
            let token = nearest_allowed(wanted, |token| {
                let banned = draw < request.min_new_tokens as usize && request.stop_tokens.contains(&token);
                !banned && (request.constraint.is_none() || EveryThird::allows(token, draw))
            });
            tokens.push(token);
            answer.tokens.push(token);
            if request.stop_tokens.contains(&token) {
                answer.end = Some(EndReason::StopToken);
                break;
            }
        }
        outcome.answers.insert(choice, answer);
    }
    outcome
}

/// An engine whose every step is checked.
pub struct Bench {
    pub state: State,
    pub backend: FakeBackend,
    pub outcomes: HashMap<RequestId, Outcome>,
    pub requests: HashMap<RequestId, GenerationRequest>,
    /// Whose keys and values a block holds: adapter and salt of who wrote it.
    owners: HashMap<u32, (Option<u32>, Option<String>)>,
}

impl Bench {
    pub fn new(blocks: u32, block_tokens: u32, limits: Limits) -> Self {
        let backend = FakeBackend::new(blocks, block_tokens);
        Self {
            state: State::new(backend.capacity, limits),
            backend,
            outcomes: HashMap::new(),
            requests: HashMap::new(),
            owners: HashMap::new(),
        }
    }

    pub fn add(&mut self, id: RequestId, request: GenerationRequest) {
        self.requests.insert(id, request.clone());
        self.state.add(id, request).unwrap();
    }

    /// Plans a step and checks that it keeps to its budget and writes only where nobody else reads.
    pub fn plan(&mut self, budget: Budget) -> StepPlan {
        let plan = schedule(&mut self.state, budget).unwrap();
        assert!(plan.tokens() <= budget.tokens);
        assert!(plan.batch.sequences.len() <= budget.sequences);
        assert!(plan.logits_rows() <= budget.logits_rows, "{} rows", plan.logits_rows());
        for (id, reason) in &plan.failed {
            self.outcomes.entry(*id).or_default().failed = Some(reason.clone());
        }
        let block_tokens = self.backend.capacity.block_tokens as usize;
        let mut written: Vec<u32> = Vec::new();
        for step in &plan.batch.sequences {
            let first = step.first_position as usize;
            let range = first / block_tokens..(first + step.tokens.len()).div_ceil(block_tokens);
            written.extend(&step.block_table[range]);
        }
        written.extend(plan.batch.copies.iter().map(|copy| copy.to));
        written.extend(plan.batch.loads.iter().map(|load| load.block));
        for block in &written {
            assert!(!self.state.is_shared(*block), "block {block} is written while others rely on it");
        }
        plan
    }

    /// Runs a plan and takes its results in. Returns the blocks that got a name.
    pub fn run(&mut self, plan: StepPlan) -> Vec<Registered> {
        self.check_salts(&plan);
        let sampled = self.backend.execute(&plan.batch).unwrap();
        let outcome = complete(&mut self.state, plan, sampled).unwrap();
        for update in outcome.updates {
            self.take(update);
        }
        outcome.registered
    }

    pub fn step(&mut self, budget: Budget) -> Vec<SequenceStep> {
        let plan = self.plan(budget);
        let steps = plan.batch.sequences.clone();
        self.run(plan);
        steps
    }

    pub fn run_to_the_end(&mut self) {
        for _ in 0..10_000 {
            if self.state.is_idle() {
                assert_eq!(self.state.used_blocks(), 0);
                return;
            }
            assert!(!self.step(LARGE).is_empty(), "work, but nothing planned");
        }
        panic!("no end in sight");
    }

    /// Everything that a sequence reads was written under its own adapter and salt.
    fn check_salts(&mut self, plan: &StepPlan) {
        let block_tokens = self.backend.capacity.block_tokens as usize;
        for step in &plan.batch.sequences {
            let Some(request) = self.state.request_of(step.sequence) else { continue };
            let request = &self.requests[&request];
            let owner = (request.adapter.map(|adapter| adapter.id), request.cache_salt.clone());
            for copy in plan.batch.copies.iter().filter(|copy| step.block_table.contains(&copy.to)) {
                assert_eq!(self.owners[&copy.from], owner, "copied from somebody else");
                self.owners.insert(copy.to, owner.clone());
            }
            for load in plan.batch.loads.iter().filter(|load| step.block_table.contains(&load.block)) {
                self.owners.insert(load.block, owner.clone());
            }
            let first = step.first_position as usize;
            for block in &step.block_table[..first.div_ceil(block_tokens)] {
                assert_eq!(
                    self.owners[block], owner,
                    "sequence {} reads somebody else's block",
                    step.sequence
                );
            }
            for block in
                &step.block_table[first / block_tokens..(first + step.tokens.len()).div_ceil(block_tokens)]
            {
                self.owners.insert(*block, owner.clone());
            }
        }
    }

    fn take(&mut self, update: Update) {
        match update {
            Update::PromptLogprobs(id, logprobs) => {
                let outcome = self.outcomes.entry(id).or_default();
                assert!(outcome.prompt_logprobs.is_empty() && outcome.answers.is_empty());
                outcome.prompt_logprobs = logprobs
                    .into_iter()
                    .map(|(TokenLogprob { token, logprob }, _)| (token, logprob))
                    .collect();
            }
            Update::Token { request, choice, token, end } => {
                let answer = self.outcomes.entry(request).or_default().answers.entry(choice).or_default();
                assert_eq!(answer.end, None, "a token after the end");
                answer.tokens.push(token.token);
                answer.end = end;
            }
            Update::Ended { request, choice, end } => {
                let answer = self.outcomes.entry(request).or_default().answers.entry(choice).or_default();
                assert_eq!(answer.end, None, "two ends");
                answer.end = Some(end);
            }
            Update::Failed(id, reason) => self.outcomes.entry(id).or_default().failed = Some(reason),
        }
    }

    pub fn check(&self, id: RequestId) {
        assert_eq!(self.outcomes.get(&id), Some(&alone(&self.requests[&id])), "request {id}");
    }
}
