//! Guessing ahead never changes an answer: whoever guesses, however well, under whatever schedule.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bench;
mod fake;

use std::sync::{Arc, Mutex};

use bench::{EveryThird, Outcome, alone};
use fairlead_engine::backend::{
    AdapterError, AdapterId, Backend, BackendError, BlockBytes, BlockId, KvCapacity, ReadAdapter, Sampled,
    StepBatch,
};
use fairlead_engine::engine::{EngineOptions, EngineParts, Event, Load, Observer, StepReport, start};
use fairlead_engine::proposer::Proposer;
use fairlead_engine::sampling::SamplingOptions;
use fairlead_engine::scheduler::StepCounts;
use fairlead_engine::sequence::{Constraint, GenerationRequest};
use fairlead_engine::speculation::{DraftedBackend, NGramProposer, NGramSettings, spare_blocks};
use fairlead_engine::tiers::TierOptions;
use fake::{FakeBackend, VOCABULARY};
use proptest::prelude::*;
use tokio::sync::oneshot;

const OPTIONS: EngineOptions = EngineOptions {
    max_sequences: 4,
    max_batched_tokens: 12,
    max_logits_rows: 16,
    max_model_len: 64,
    prefix_sharing: true,
    max_queued: 64,
    max_adapters: 2,
    tiers: TierOptions { host_bytes: None, disk: None, transit_bytes: 0 },
};

/// A draft model that is sometimes wrong, and sometimes has no finite numbers.
struct Mistaken {
    model: FakeBackend,
    wrong_every: u64,
    broken_every: u64,
    steps: u64,
}

impl Backend for Mistaken {
    fn kv_capacity(&self) -> KvCapacity {
        self.model.kv_capacity()
    }

    fn execute(&mut self, batch: &StepBatch) -> Result<Vec<Sampled>, BackendError> {
        let mut sampled = self.model.execute(batch)?;
        self.steps += 1;
        if self.broken_every > 0 && self.steps.is_multiple_of(self.broken_every) && !sampled.is_empty() {
            return Err(BackendError::NonFinite(vec![sampled[0].sequence]));
        }
        for answer in &mut sampled {
            let token = &mut answer.tokens[0].token;
            if self.wrong_every > 0 && (u64::from(*token) + self.steps).is_multiple_of(self.wrong_every) {
                *token = (*token + 1) % VOCABULARY;
            }
        }
        Ok(sampled)
    }

    fn read_blocks(&mut self, blocks: &[BlockId]) -> Result<Vec<BlockBytes>, BackendError> {
        self.model.read_blocks(blocks)
    }

    fn load_adapter(&mut self, id: AdapterId, adapter: ReadAdapter) -> Result<(), AdapterError> {
        self.model.load_adapter(id, adapter)
    }

    fn unload_adapter(&mut self, id: AdapterId) {
        self.model.unload_adapter(id);
    }
}

/// Sums what steps report. The engine drops it when its thread ends, and the sender with it.
struct Counting {
    sum: Arc<Mutex<StepCounts>>,
    _running: oneshot::Sender<()>,
}

impl Observer for Counting {
    fn load(&self, _: Load) {}

    fn step(&self, report: StepReport) {
        let mut sum = self.sum.lock().unwrap();
        sum.drafts += report.counts.drafts;
        sum.draft_tokens += report.counts.draft_tokens;
        sum.accepted_tokens += report.counts.accepted_tokens;
        sum.preemptions += report.counts.preemptions;
        sum.prefix_hits += report.counts.prefix_hits;
        sum.accepted_at.push(report.counts.accepted_at.iter().sum());
    }
}

/// What each request gets from an engine, and what the engine has counted.
fn outcomes<B: Backend + Send + 'static>(
    backend: B,
    options: EngineOptions,
    proposer: Option<Box<dyn Proposer>>,
    requests: &[GenerationRequest],
) -> (Vec<Outcome>, StepCounts) {
    outcomes_after(backend, options, proposer, requests, |_| ())
}

/// The same; `submitted` is called after each request, with how many there are by then.
fn outcomes_after<B: Backend + Send + 'static>(
    backend: B,
    options: EngineOptions,
    proposer: Option<Box<dyn Proposer>>,
    requests: &[GenerationRequest],
    mut submitted: impl FnMut(usize),
) -> (Vec<Outcome>, StepCounts) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let counts = Arc::new(Mutex::new(StepCounts::default()));
        let build = move || Ok::<_, String>(EngineParts { proposer, ..EngineParts::new(backend, options) });
        let (_running, ended) = oneshot::channel();
        let observer = Counting { sum: Arc::clone(&counts), _running };
        let handle = start(Box::new(observer), build).await.unwrap();
        let mut waiting = Vec::new();
        for request in requests {
            waiting.push(handle.submit(request.clone()).unwrap());
            submitted(waiting.len());
        }
        let mut outcomes = Vec::new();
        for mut events in waiting {
            let mut outcome = Outcome::default();
            while let Some(event) = events.recv().await {
                match event {
                    Event::Token { choice, token, end } => {
                        let answer = outcome.answers.entry(choice).or_default();
                        answer.tokens.push(token.token);
                        answer.end = end;
                    }
                    Event::Failed(failure) => outcome.failed = Some(failure.to_string()),
                    _ => {}
                }
            }
            outcomes.push(outcome);
        }
        handle.drain().await;
        // The last step is reported after its tokens are sent.
        assert!(ended.await.is_err(), "nothing is sent");
        let counts = counts.lock().unwrap().clone();
        (outcomes, counts)
    })
}

fn drafted(
    blocks: u32,
    block_tokens: u32,
    tokens: usize,
    draft: Mistaken,
) -> DraftedBackend<FakeBackend, Mistaken> {
    assert_eq!(draft.model.capacity.blocks, blocks + spare_blocks(tokens, block_tokens));
    DraftedBackend::new(FakeBackend::new(blocks, block_tokens), draft, tokens).unwrap()
}

fn mistaken(blocks: u32, block_tokens: u32, tokens: usize, wrong_every: u64, broken_every: u64) -> Mistaken {
    let model = FakeBackend::new(blocks + spare_blocks(tokens, block_tokens), block_tokens);
    Mistaken { model, wrong_every, broken_every, steps: 0 }
}

fn request(prompt: Vec<u32>, max_new_tokens: u32) -> GenerationRequest {
    GenerationRequest {
        prompt,
        max_new_tokens,
        sampling: SamplingOptions { seed: 3, ..SamplingOptions::default() },
        ..GenerationRequest::default()
    }
}

#[test]
fn a_draft_model_that_is_the_target_is_always_right() {
    let wanted = [request(vec![1, 2, 3, 4, 5], 41)];
    let (answers, counts) = outcomes(drafted(40, 4, 4, mistaken(40, 4, 4, 0, 0)), OPTIONS, None, &wanted);
    assert_eq!(answers, [alone(&wanted[0])]);
    assert_eq!(counts.accepted_tokens, counts.draft_tokens);
    // One token from the prompt's step, then five in each.
    assert_eq!((counts.drafts, counts.accepted_tokens), (8, 32));
    assert_eq!(counts.accepted_at.iter().sum::<u64>(), counts.accepted_tokens);
}

#[test]
fn poor_guesses_stop_and_a_full_batch_gets_none() {
    let wanted = [request(vec![1, 2, 3], 60)];
    let (answers, counts) = outcomes(drafted(40, 4, 4, mistaken(40, 4, 4, 1, 0)), OPTIONS, None, &wanted);
    assert_eq!(answers, [alone(&wanted[0])]);
    assert_eq!((counts.drafts, counts.accepted_tokens), (8, 0), "32 guesses, then none for 64 tokens");
    // 31 guesses pay for two sequences that write at once, not for three. A request of one token holds the engine in its
    // first step until the three are there, so that they begin and end together.
    let options = EngineOptions { max_logits_rows: 64, max_batched_tokens: 64, ..OPTIONS };
    let first = request(vec![9], 1);
    let wanted = [first, request(vec![1, 2, 3], 20), request(vec![4, 5, 6], 20), request(vec![7, 8], 20)];
    let (gate, closed) = std::sync::mpsc::channel::<()>();
    let (entering, entered) = std::sync::mpsc::channel();
    let mut target = FakeBackend::new(80, 4);
    target.failures = Box::new(move |_, _| {
        let _ = entering.send(());
        let _ = closed.recv();
        None
    });
    let backend = DraftedBackend::new(target, mistaken(80, 4, 31, 0, 0), 31).unwrap();
    let mut gate = Some(gate);
    let (answers, counts) = outcomes_after(backend, options, None, &wanted, |submitted| {
        if submitted == 1 {
            entered.recv().unwrap();
        } else if submitted == wanted.len() {
            gate.take();
        }
    });
    assert_eq!(answers, wanted.each_ref().map(alone));
    assert_eq!(counts.drafts, 0, "{counts:?}");
}

#[test]
fn caches_that_do_not_go_together_are_refused() {
    let target = || FakeBackend::new(10, 4);
    assert!(DraftedBackend::new(target(), FakeBackend::new(10, 4), 2).is_err());
    assert!(DraftedBackend::new(target(), FakeBackend::new(1000, 8), 2).is_err());
    let both = DraftedBackend::new(target(), FakeBackend::new(10 + spare_blocks(2, 4), 4), 2).unwrap();
    assert_eq!(both.kv_capacity(), KvCapacity { blocks: 10, block_tokens: 4, block_bytes: 96 });
}

prop_compose! {
    fn any_request()(
        shared in 0..12_usize,
        own in prop::collection::vec(0..VOCABULARY, 1..8),
        max_new_tokens in 1..24_u32,
        choices in 1..3_u32,
        seed in 0..4_u64,
        repetition_penalty in prop_oneof![Just(1.0_f32), Just(1.2)],
        min_new_tokens in 0..6_u32,
        stop_tokens in prop::collection::vec(0..VOCABULARY, 0..3),
        constrained: bool,
        priority in -1..2_i32,
    ) -> GenerationRequest {
        GenerationRequest {
            // What repeats is found by prompt lookup, what is common by the prefix cache.
            prompt: (0..shared as u32).map(|token| token % 5).chain(own).collect(),
            choices,
            max_new_tokens,
            min_new_tokens,
            stop_tokens,
            constraint: constrained.then(|| Box::new(EveryThird::default()) as Box<dyn Constraint>),
            priority,
            sampling: SamplingOptions { seed, repetition_penalty, ..SamplingOptions::default() },
            ..GenerationRequest::default()
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(120))]

    #[test]
    fn answers_are_those_without_guesses(
        requests in prop::collection::vec(any_request(), 1..7),
        blocks in 14..40_u32,
        block_tokens in 3..6_u32,
        tokens in 1..7_usize,
        (wrong_every, broken_every) in (0..4_u64, prop_oneof![Just(0_u64), 5..30_u64]),
        max_batched_tokens in 5..20_usize,
        by_lookup: bool,
    ) {
        let options = EngineOptions { max_batched_tokens, ..OPTIONS };
        let expected: Vec<Outcome> = requests.iter().map(alone).collect();
        let found = if by_lookup {
            let settings = NGramSettings { tokens, longest: 3, shortest: 1 };
            let proposer = Box::new(NGramProposer::new(settings, 4));
            outcomes(FakeBackend::new(blocks, block_tokens), options, Some(proposer), &requests).0
        } else {
            let draft = mistaken(blocks, block_tokens, tokens, wrong_every, broken_every);
            outcomes(drafted(blocks, block_tokens, tokens, draft), options, None, &requests).0
        };
        prop_assert_eq!(found, expected);
    }
}
