//! Whatever the batching, chunking and preemption: each sequence gets the answer it would get alone, all of them end, and
//! every block comes back.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod fake;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use fairlead_engine::backend::{Backend, KvCapacity, TokenLogprob};
use fairlead_engine::sampling::SamplingOptions;
use fairlead_engine::scheduler::{Budget, Limits, Refusal, State, Update, complete, schedule};
use fairlead_engine::sequence::{EndReason, GenerationRequest};
use fake::{FakeBackend, logprob, next_token};
use proptest::prelude::*;

fn request(prompt: Vec<u32>, max_new_tokens: u32) -> GenerationRequest {
    GenerationRequest {
        prompt,
        max_new_tokens,
        sampling: SamplingOptions { temperature: 0.0, seed: 3, ..SamplingOptions::default() },
        ..GenerationRequest::default()
    }
}

#[derive(Debug, Default, PartialEq)]
struct Answer {
    tokens: Vec<u32>,
    prompt_logprobs: Vec<(u32, f32)>,
    end: Option<EndReason>,
}

/// What a sequence must get, from the definition alone.
fn alone(request: &GenerationRequest) -> Answer {
    let mut tokens = request.prompt.clone();
    let mut answer = Answer { end: Some(EndReason::Length), ..Answer::default() };
    if request.prompt_logprobs {
        answer.prompt_logprobs = (1..tokens.len()).map(|i| (tokens[i], logprob(&tokens[..=i]))).collect();
    }
    for draw in 0..u64::from(request.max_new_tokens) {
        let token = next_token(&tokens, request.sampling.seed, draw);
        tokens.push(token);
        answer.tokens.push(token);
        if request.stop_tokens.contains(&token) {
            answer.end = Some(EndReason::StopToken);
            break;
        }
    }
    answer
}

fn take(answers: &mut HashMap<u64, Answer>, updates: Vec<Update>) {
    for update in updates {
        match update {
            Update::PromptLogprobs(id, logprobs) => {
                let answer = answers.entry(id).or_default();
                assert!(answer.prompt_logprobs.is_empty() && answer.tokens.is_empty());
                answer.prompt_logprobs = logprobs
                    .into_iter()
                    .map(|(TokenLogprob { token, logprob }, _)| (token, logprob))
                    .collect();
            }
            Update::Token { sequence, token, end, .. } => {
                let answer = answers.entry(sequence).or_default();
                assert_eq!(answer.end, None, "a token after the end");
                answer.tokens.push(token.token);
                answer.end = end;
            }
            Update::Ended(id, end) => answers.entry(id).or_default().end = Some(end),
        }
    }
}

fn any_request() -> impl Strategy<Value = GenerationRequest> {
    (prop::collection::vec(0_u32..50, 1..40), 0_u32..30, any::<u64>(), any::<bool>(), any::<bool>()).prop_map(
        |(prompt, max_new_tokens, seed, stops, scores)| {
            let mut request = request(prompt, max_new_tokens);
            request.sampling.seed = seed;
            request.prompt_logprobs = scores;
            request.stop_tokens = if stops { vec![7, 8] } else { vec![] };
            request
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn everyone_gets_his_own_answer(
        requests in prop::collection::vec((any_request(), 0_u64..40), 1..14),
        block_tokens in 1_u32..9,
        spare_blocks in 0_u32..20,
        max_sequences in 1_usize..7,
        budgets in prop::collection::vec((2_usize..40, 1_usize..7), 1..5),
        aborted in prop::collection::vec((0_usize..14, 0_u64..60), 0..4),
    ) {
        // Room for the largest alone, plus a little: small enough to force preemption.
        let largest = requests.iter().map(|(r, _)| r.prompt.len() as u32 + r.max_new_tokens).max().unwrap();
        let capacity = capacity(largest.div_ceil(block_tokens) + spare_blocks + 1, block_tokens);
        let mut backend = FakeBackend::new(capacity.blocks, block_tokens);
        let mut state = State::new(capacity, Limits { max_sequences, max_model_len: 4096 });
        let mut answers: HashMap<u64, Answer> = HashMap::new();
        let mut arrivals: Vec<(u64, u64, GenerationRequest)> =
            requests.iter().enumerate().map(|(id, (r, at))| (*at, id as u64, r.clone())).collect();
        let aborted: HashMap<u64, u64> = aborted.into_iter().map(|(id, at)| (id as u64, at)).collect();
        let total: u64 = requests.iter().map(|(r, _)| r.prompt.len() as u64 + u64::from(r.max_new_tokens) + 2).sum();
        let mut step = 0_u64;
        while !arrivals.is_empty() || !state.is_idle() {
            let (now, later): (Vec<_>, Vec<_>) = arrivals.into_iter().partition(|(at, ..)| *at <= step);
            arrivals = later;
            for (_, id, request) in now {
                state.add(id, request).unwrap();
            }
            for (&id, _) in aborted.iter().filter(|(_, at)| **at == step) {
                state.abort(id).unwrap();
            }
            let (tokens, sequences) = budgets[step as usize % budgets.len()];
            let plan = schedule(&mut state, Budget { tokens, sequences }).unwrap();
            prop_assert!(plan.tokens() <= tokens);
            prop_assert!(plan.batch.sequences.len() <= sequences);
            prop_assert!(state.running() <= max_sequences);
            prop_assert!(state.is_idle() || !plan.batch.sequences.is_empty(), "work, but nothing planned");
            let mut blocks: Vec<u32> = plan.batch.sequences.iter().flat_map(|s| s.block_table.clone()).collect();
            blocks.sort_unstable();
            prop_assert!(blocks.windows(2).all(|pair| pair[0] != pair[1]), "a block with two owners");
            let sampled = backend.execute(&plan.batch).unwrap();
            take(&mut answers, complete(&mut state, &plan, sampled).unwrap());
            step += 1;
            // Recomputing costs steps, but never without end.
            prop_assert!(step < 60 + total * 40, "no end in sight");
        }
        prop_assert_eq!(state.used_blocks(), 0);
        for (id, (request, _)) in requests.iter().enumerate() {
            let expected = alone(request);
            let answer = answers.remove(&(id as u64)).unwrap_or_default();
            if answer.end.is_none() && aborted.contains_key(&(id as u64)) {
                prop_assert!(expected.tokens.starts_with(&answer.tokens));
            } else {
                prop_assert_eq!(answer, expected, "sequence {}", id);
            }
        }
    }
}

fn capacity(blocks: u32, block_tokens: u32) -> KvCapacity {
    KvCapacity { blocks, block_tokens, block_bytes: 4 * u64::from(block_tokens) }
}

const ROOMY: Limits = Limits { max_sequences: 8, max_model_len: 1000 };

#[test]
fn a_long_prompt_does_not_stall_those_who_stream() {
    let mut state = State::new(capacity(100, 16), ROOMY);
    let mut backend = FakeBackend::new(100, 16);
    let budget = Budget { tokens: 10, sequences: 8 };
    let mut step = |state: &mut State| {
        let plan = schedule(state, budget).unwrap();
        let sampled = backend.execute(&plan.batch).unwrap();
        complete(state, &plan, sampled).unwrap();
        plan
    };
    // The reader is admitted first, and still the writer has its token in every step.
    state.add(1, request(vec![1; 200], 5)).unwrap();
    step(&mut state);
    state.add(2, request(vec![2], 20)).unwrap();
    let mut both = 0;
    for _ in 0..60 {
        let plan = step(&mut state);
        both += usize::from(plan.batch.sequences.len() == 2);
        if state.running() == 2 && plan.admitted.is_empty() {
            assert!(plan.batch.sequences.iter().any(|s| s.sequence == 2));
        }
    }
    assert!(both > 0);
    assert!(state.is_idle());
}

#[test]
fn the_last_admitted_gives_way_and_comes_back_with_what_it_said() {
    // Six blocks of four: two sequences that grow to five blocks each cannot both stay.
    let mut state = State::new(capacity(7, 4), ROOMY);
    let mut backend = FakeBackend::new(7, 4);
    let (first, second) = (request(vec![1; 6], 12), request(vec![2; 6], 12));
    state.add(1, first.clone()).unwrap();
    state.add(2, second.clone()).unwrap();
    let (mut preempted, mut answers) = (Vec::new(), HashMap::new());
    while !state.is_idle() {
        let plan = schedule(&mut state, Budget { tokens: 64, sequences: 8 }).unwrap();
        preempted.extend(plan.preempted.clone());
        let sampled = backend.execute(&plan.batch).unwrap();
        take(&mut answers, complete(&mut state, &plan, sampled).unwrap());
    }
    assert!(!preempted.is_empty() && preempted.iter().all(|id| *id == 2), "{preempted:?}");
    assert_eq!(answers[&1], alone(&first));
    assert_eq!(answers[&2], alone(&second));
}

#[test]
fn what_can_never_run_is_refused_at_once() {
    let mut state = State::new(capacity(3, 4), ROOMY);
    assert_eq!(state.max_model_len(), 9);
    assert_eq!(state.add(1, request(vec![], 1)), Err(Refusal::EmptyPrompt));
    assert_eq!(state.add(1, request(vec![1; 8], 2)), Err(Refusal::TooLong { prompt: 8, new: 2, most: 9 }));
    state.add(1, request(vec![1; 8], 1)).unwrap();
    state.drain();
    assert_eq!(state.add(2, request(vec![1], 1)), Err(Refusal::Draining));
    let mut backend = FakeBackend::new(3, 4);
    let plan = schedule(&mut state, Budget { tokens: 64, sequences: 8 }).unwrap();
    let sampled = backend.execute(&plan.batch).unwrap();
    complete(&mut state, &plan, sampled).unwrap();
    assert!(state.is_idle());
}

#[test]
fn deadlines_are_data() {
    let mut state = State::new(capacity(10, 4), ROOMY);
    let now = Instant::now();
    let late = GenerationRequest { deadline: Some(now + Duration::from_secs(1)), ..request(vec![1], 5) };
    state.add(1, late).unwrap();
    state.add(2, request(vec![1], 5)).unwrap();
    assert!(state.expired(now).is_empty());
    assert_eq!(state.expired(now + Duration::from_secs(2)), [1]);
}

#[test]
fn answers_for_someone_else_are_a_bug_and_said_to_be() {
    let mut state = State::new(capacity(10, 4), ROOMY);
    state.add(1, request(vec![1], 5)).unwrap();
    let plan = schedule(&mut state, Budget { tokens: 64, sequences: 8 }).unwrap();
    let error = complete(&mut state, &plan, vec![]).unwrap_err().to_string();
    assert!(error.contains("0 sequences where 1"), "{error}");
}
