//! Real models that guess for one another: answers are those without guesses, and a model knows what it will say itself.

#![allow(clippy::unwrap_used, clippy::panic)] // a panic is a test's verdict

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;

use common::{Case, options};
use fairlead_backend_torch::TorchBackend;
use fairlead_engine::backend::Backend;
use fairlead_engine::proposer::Proposer;
use fairlead_engine::sampling::{SamplingOptions, TokenMask};
use fairlead_engine::scheduler::{Budget, Limits, State, StepCounts, Update, complete, schedule};
use fairlead_engine::sequence::{Constraint, GenerationRequest};
use fairlead_engine::speculation::{DraftedBackend, NGramProposer, NGramSettings, spare_blocks};
use fairlead_model::ModelConfig;
use fairlead_model::RunDtype;
use fairlead_model::plan::kv_bytes_per_token;

const BLOCK_TOKENS: u32 = 16;
/// Tokens guessed at once.
const GUESSES: usize = 4;

/// Even and odd tokens in turn.
#[derive(Clone, Debug, Default)]
struct InTurn(usize);

impl Constraint for InTurn {
    fn mask(&mut self) -> Result<Arc<TokenMask>, String> {
        let word = if self.0.is_multiple_of(2) { 0x5555_5555 } else { 0xaaaa_aaaa };
        Ok(Arc::new(TokenMask { words: vec![word; 5] }))
    }

    fn accept(&mut self, token: u32) -> Result<(), String> {
        let fits = token as usize % 2 == self.0 % 2;
        self.0 += 1;
        fits.then_some(()).ok_or_else(|| format!("token {token} may not come here"))
    }

    fn valid_prefix(&mut self, tokens: &[u32]) -> usize {
        let places = tokens.iter().enumerate();
        places.take_while(|(index, token)| **token as usize % 2 == (self.0 + index) % 2).count()
    }

    fn fork(&self) -> Box<dyn Constraint> {
        Box::new(self.clone())
    }
}

/// A backend over `blocks` blocks.
fn backend(case: &Case, blocks: u32) -> TorchBackend {
    let config = ModelConfig::parse(&std::fs::read(case.folder.join("config.json")).unwrap()).unwrap();
    let bytes = kv_bytes_per_token(&config, RunDtype::F32) * u64::from(BLOCK_TOKENS * blocks);
    TorchBackend::load(&case.folder, &options(BLOCK_TOKENS, Some(RunDtype::F32), bytes), &mut |_, _| {})
        .unwrap()
}

fn drafted(target: &Case, draft: &Case) -> DraftedBackend<TorchBackend, TorchBackend> {
    let spare = spare_blocks(GUESSES, BLOCK_TOKENS);
    DraftedBackend::new(backend(target, 64), backend(draft, 64 + spare), GUESSES).unwrap()
}

/// Greedy, sampled, penalised, constrained, and several answers to one prompt.
fn requests(case: &Case) -> Vec<GenerationRequest> {
    let sampled = SamplingOptions { seed: 11, temperature: 0.8, top_p: 0.95, ..SamplingOptions::default() };
    let greedy = SamplingOptions { temperature: 0.0, ..SamplingOptions::default() };
    let penalised = SamplingOptions { repetition_penalty: 1.3, frequency_penalty: 0.4, ..sampled.clone() };
    let request = |prompt: usize, sampling: &SamplingOptions| GenerationRequest {
        prompt: case.prompts[prompt].prompt.clone(),
        max_new_tokens: 24,
        sampling: sampling.clone(),
        ..GenerationRequest::default()
    };
    vec![
        request(0, &greedy),
        request(1, &sampled),
        request(0, &penalised),
        GenerationRequest { constraint: Some(Box::new(InTurn::default())), ..request(1, &sampled) },
        GenerationRequest { choices: 3, ..request(0, &sampled) },
    ]
}

type Answers = BTreeMap<(u64, u32), Vec<u32>>;

/// Runs requests to their ends; all at once, or one after the other.
fn answers(
    backend: &mut dyn Backend,
    mut proposer: Option<&mut dyn Proposer>,
    requests: &[GenerationRequest],
    at_once: bool,
) -> (Answers, StepCounts) {
    let limits = Limits { max_sequences: 8, max_model_len: 120, prefix_sharing: true };
    let mut state = State::new(backend.kv_capacity(), limits);
    let budget = Budget { tokens: 48, sequences: 8, logits_rows: 48 };
    let mut answers = Answers::new();
    let mut left = requests.iter().enumerate();
    loop {
        if at_once || state.is_idle() {
            for (id, request) in left.by_ref().take(if at_once { usize::MAX } else { 1 }) {
                state.add(id as u64, request.clone()).unwrap();
            }
        }
        if state.is_idle() {
            return (answers, state.take_counts());
        }
        let plan = schedule(&mut state, budget).unwrap();
        let sampled = backend.execute(&plan.batch).unwrap();
        for update in complete(&mut state, plan, sampled).unwrap().updates {
            match update {
                Update::Token { request, choice, token, .. } => {
                    answers.entry((request, choice)).or_default().push(token.token);
                }
                other => panic!("{other:?}"),
            }
        }
        if let Some(proposer) = &mut proposer {
            state.propose(&mut **proposer);
        }
    }
}

#[test]
fn whoever_guesses_the_answers_stay_what_they_are() {
    let case = Case::read("gqa_untied");
    let requests = requests(&case);
    let (expected, counts) = answers(&mut backend(&case, 64), None, &requests, false);
    assert_eq!((expected.len(), counts.drafts), (7, 0));
    for at_once in [false, true] {
        for draft in ["gqa_untied", "mqa_tied", "qwen3"] {
            let mut both = drafted(&case, &Case::read(draft));
            let (found, counts) = answers(&mut both, None, &requests, at_once);
            assert_eq!(found, expected, "{draft}");
            assert!(counts.draft_tokens > 0, "{counts:?}");
        }
        let settings = NGramSettings { tokens: GUESSES, longest: 3, shortest: 1 };
        let mut proposer = NGramProposer::new(settings, 8);
        let (found, counts) = answers(&mut backend(&case, 64), Some(&mut proposer), &requests, at_once);
        assert_eq!(found, expected);
        assert!(counts.draft_tokens > 0, "{counts:?}");
    }
}

#[test]
fn a_model_that_guesses_for_itself_is_right() {
    let case = Case::read("gqa_untied");
    // Without the constraint, which the draft model does not know.
    let requests: Vec<GenerationRequest> =
        requests(&case).into_iter().filter(|request| request.constraint.is_none()).collect();
    let (_, counts) = answers(&mut drafted(&case, &case), None, &requests, false);
    assert!(counts.draft_tokens > 60, "{counts:?}");
    assert_eq!(counts.accepted_tokens, counts.draft_tokens, "{counts:?}");
}
