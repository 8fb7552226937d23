//! Whatever the batching, chunking, preemption, sharing, guessing and failing: each request gets the answers it would get
//! alone, all of them end, every block comes back, nobody writes into what others read, and nobody reads what was computed
//! for another adapter or salt.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bench;
mod fake;

use std::collections::{HashMap, HashSet};

use bench::{Bench, EveryThird, adapter, alone, request};
use fairlead_engine::backend::{Backend, BlockBytes, SequenceId};
use fairlead_engine::prefix_hash::BlockHash;
use fairlead_engine::proposer::Proposer;
use fairlead_engine::sampling::SamplingOptions;
use fairlead_engine::scheduler::{Budget, Limits, Rank};
use fairlead_engine::sequence::GenerationRequest;
use proptest::prelude::*;

/// What goes wrong at a step.
#[derive(Clone, Copy, Debug)]
enum Trouble {
    /// A request is aborted.
    Abort(usize),
    /// One answer of a request is wanted no more.
    GiveUp(usize, u32),
    /// The step does not fit into memory and is planned again with half the budget.
    OutOfMemory,
    /// The logits of one of the step's sequences are not finite.
    NonFinite(usize),
}

#[derive(Clone, Debug)]
struct Scenario {
    requests: Vec<(GenerationRequest, u64)>,
    block_tokens: u32,
    spare_blocks: u32,
    max_sequences: usize,
    prefix_sharing: bool,
    budgets: Vec<Budget>,
    troubles: Vec<(u64, Trouble)>,
    drafts: usize,
    proposes: bool,
    /// Steps that a slower tier takes to answer; `None` where there is none.
    tier_delay: Option<u64>,
}

/// Prompts that often begin alike: a part of a common text, then a tail of their own.
fn prompts() -> impl Strategy<Value = Vec<u32>> {
    (0_usize..40, prop::collection::vec(0_u32..50, 0..12), 0_u32..2).prop_map(|(common, tail, text)| {
        let mut prompt: Vec<u32> = (0..common as u32).map(|i| (i * 7 + text * 11) % 50).collect();
        prompt.extend(tail);
        if prompt.is_empty() {
            prompt.push(5);
        }
        prompt
    })
}

fn requests() -> impl Strategy<Value = GenerationRequest> {
    let shape = (prompts(), 0_u32..24, 0_u64..4, 1_u32..4, 0_u32..8, -1_i32..2);
    let kind = (
        any::<bool>(),
        prop::bool::weighted(0.3),
        prop::bool::weighted(0.3),
        prop::bool::weighted(0.3),
        0_u8..3,
        0_usize..3,
    );
    (shape, kind).prop_map(|((prompt, new, seed, choices, least, priority), kind)| {
        let (stops, scores, constrained, penalties, adapter_number, salt) = kind;
        GenerationRequest {
            choices,
            min_new_tokens: least,
            priority,
            sampling: SamplingOptions {
                seed,
                presence_penalty: if penalties { 0.5 } else { 0.0 },
                ..SamplingOptions::default()
            },
            prompt_logprobs: scores,
            stop_tokens: if stops { vec![7, 8, 21] } else { vec![] },
            constraint: if constrained { Some(Box::new(EveryThird::default())) } else { None },
            adapter: (adapter_number > 0).then(|| adapter(adapter_number)),
            cache_salt: [None, Some("a"), Some("b")][salt].map(str::to_owned),
            ..request(prompt, new)
        }
    })
}

fn troubles() -> impl Strategy<Value = Vec<(u64, Trouble)>> {
    let trouble = prop_oneof![
        any::<usize>().prop_map(Trouble::Abort),
        (any::<usize>(), 0_u32..4).prop_map(|(index, choice)| Trouble::GiveUp(index, choice)),
        Just(Trouble::OutOfMemory),
        any::<usize>().prop_map(Trouble::NonFinite),
    ];
    prop::collection::vec((0_u64..60, trouble), 0..5)
}

fn budget() -> impl Strategy<Value = Budget> {
    (2_usize..40, 1_usize..7, 2_usize..40).prop_map(|(tokens, sequences, logits_rows)| Budget {
        tokens,
        sequences,
        logits_rows,
    })
}

prop_compose! {
    fn scenarios()(
        requests in prop::collection::vec((requests(), 0_u64..40), 1..10),
        block_tokens in 1_u32..9,
        spare_blocks in 0_u32..24,
        max_sequences in 1_usize..7,
        prefix_sharing in prop::bool::weighted(0.85),
        budgets in prop::collection::vec(budget(), 1..5),
        troubles in troubles(),
        drafts in prop_oneof![Just(0), 1_usize..5],
        proposes: bool,
        tier_delay in prop_oneof![Just(None), (0_u64..6).prop_map(Some)],
    ) -> Scenario {
        Scenario {
            requests, block_tokens, spare_blocks, max_sequences, prefix_sharing, budgets, troubles, drafts, proposes,
            tier_delay,
        }
    }
}

/// Guesses that what came last comes again.
struct Repeater;

impl Proposer for Repeater {
    fn propose(&mut self, _: SequenceId, tokens: &[u32], most: usize) -> Vec<u32> {
        vec![tokens[tokens.len() - 1]; most.min(3)]
    }
}

/// A slower tier that keeps everything it is told of.
#[derive(Default)]
struct Tier {
    blocks: HashMap<BlockHash, BlockBytes>,
    fetching: Vec<(u64, Rank)>,
}

impl Tier {
    fn turn(&mut self, bench: &mut Bench, step: u64, delay: u64) {
        for rank in bench.state.take_newly_waiting() {
            let Some(prefix) = bench.state.waiting_prefix(rank) else { continue };
            let next = prefix.names.get(prefix.in_pool);
            if next.is_some_and(|name| self.blocks.contains_key(name)) {
                assert!(bench.state.hold(rank, true));
                self.fetching.push((step + delay, rank));
            }
        }
        let (ready, rest) = self.fetching.drain(..).partition(|(at, _)| *at <= step);
        self.fetching = rest;
        let ready: Vec<(u64, Rank)> = ready;
        for (_, rank) in ready {
            let Some(prefix) = bench.state.waiting_prefix(rank) else { continue };
            let known = |name: &BlockHash| self.blocks.get(name).map(|bytes| (*name, bytes.clone()));
            let found: Vec<_> = prefix.names.iter().map_while(known).collect();
            assert!(bench.state.offer(rank, found));
        }
    }

    fn keep(&mut self, bench: &mut Bench, registered: &[fairlead_engine::scheduler::Registered]) {
        for block in registered {
            let bytes = bench.backend.read_blocks(&[block.block]).unwrap().remove(0);
            // The name stands for one content only.
            if let Some(known) = self.blocks.insert(block.name, bytes.clone()) {
                assert_eq!(known, bytes);
            }
        }
    }
}

fn run(scenario: Scenario) {
    let Scenario { requests, block_tokens, budgets, troubles, .. } = &scenario;
    // Room for the largest alone, plus a little: small enough to force preemption.
    let largest = requests.iter().map(|(r, _)| r.prompt.len() as u32 + r.max_new_tokens).max().unwrap();
    let limits = Limits {
        max_sequences: scenario.max_sequences,
        max_model_len: 4096,
        prefix_sharing: scenario.prefix_sharing,
    };
    let blocks = largest.div_ceil(*block_tokens) + scenario.spare_blocks + 1;
    let mut bench = Bench::new(blocks, *block_tokens, limits);
    bench.backend.drafts = scenario.drafts;
    let mut tier = Tier::default();
    let mut gone: HashSet<u64> = HashSet::new();
    let mut given_up: HashSet<(u64, u32)> = HashSet::new();
    let answers = |r: &GenerationRequest| {
        u64::from(r.choices) * (r.prompt.len() as u64 + u64::from(r.max_new_tokens) + 2)
    };
    let most_steps = 100 + 60 * requests.iter().map(|(r, _)| answers(r)).sum::<u64>();
    let mut step = 0_u64;
    let mut arrived = 0;
    while arrived < requests.len() || !bench.state.is_idle() {
        for (id, (request, at)) in requests.iter().enumerate() {
            if *at == step {
                bench.add(id as u64, request.clone());
                arrived += 1;
            }
        }
        let now: Vec<Trouble> =
            troubles.iter().filter(|(at, _)| *at == step).map(|(_, trouble)| *trouble).collect();
        for trouble in &now {
            if let Trouble::Abort(index) = trouble {
                let id = (index % requests.len()) as u64;
                if bench.state.abort(id).unwrap() {
                    gone.insert(id);
                }
            }
            if let Trouble::GiveUp(index, choice) = trouble {
                let id = (index % requests.len()) as u64;
                if bench.state.end_answer(id, *choice).unwrap() {
                    given_up.insert((id, *choice));
                }
            }
        }
        if let Some(delay) = scenario.tier_delay {
            tier.turn(&mut bench, step, delay);
        }
        let mut budget = budgets[step as usize % budgets.len()];
        let mut plan = bench.plan(budget);
        assert!(bench.state.running() <= scenario.max_sequences);
        for trouble in &now {
            match trouble {
                Trouble::OutOfMemory => {
                    budget = Budget {
                        tokens: (budget.tokens / 2).max(2),
                        sequences: budget.sequences.div_ceil(2),
                        logits_rows: (budget.logits_rows / 2).max(2),
                    };
                    plan = bench.plan(budget);
                }
                Trouble::NonFinite(index) if !plan.batch.sequences.is_empty() => {
                    let broken = plan.batch.sequences[index % plan.batch.sequences.len()].clone();
                    bench.backend.scrub(&broken.block_table);
                    gone.extend(bench.state.discard(&[broken.sequence]).unwrap().requests);
                    plan = bench.plan(budget);
                }
                _ => {}
            }
        }
        let is_stuck = plan.batch.sequences.is_empty() && !bench.state.is_idle() && !bench.state.is_held_up();
        assert!(!is_stuck, "work, but nothing planned");
        let registered = bench.run(plan);
        if scenario.tier_delay.is_some() {
            tier.keep(&mut bench, &registered);
        }
        if scenario.proposes {
            bench.state.propose(&mut Repeater);
        }
        step += 1;
        // Recomputing costs steps, but never without end.
        assert!(step < most_steps, "no end in sight");
    }
    assert_eq!(bench.state.used_blocks(), 0);
    for (id, (request, _)) in requests.iter().enumerate() {
        let id = id as u64;
        let is_given_up = |choice: u32| given_up.contains(&(id, choice));
        if !gone.contains(&id) && !(0..request.choices).any(is_given_up) {
            bench.check(id);
            continue;
        }
        let whole = alone(request);
        let found = bench.outcomes.remove(&id).unwrap_or_default().answers;
        for (choice, wanted) in &whole.answers {
            let answer = found.get(choice);
            // Where one answer fails, all do.
            if gone.contains(&id) || is_given_up(*choice) || whole.failed.is_some() {
                assert!(answer.is_none_or(|answer| wanted.tokens.starts_with(&answer.tokens)));
            } else {
                assert_eq!(answer, Some(wanted), "request {id}, answer {choice}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(600) })]

    #[test]
    fn everyone_gets_his_own_answers(scenario in scenarios()) {
        run(scenario);
    }
}
