//! The scheduler's rules, one by one.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bench;
mod fake;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bench::{Bench, EveryThird, LARGE, ROOMY, adapter, alone, request};
use fairlead_engine::proposer::Proposer;
use fairlead_engine::sampling::{SamplingOptions, TokenMask};
use fairlead_engine::scheduler::{Budget, Limits, MAX_CHOICES, REQUESTS_PER_PRIORITY, Refusal, complete};
use fairlead_engine::sequence::{Constraint, EndReason, GenerationRequest};

/// Tokens of a request in a step, by the request's number.
fn share(bench: &Bench, steps: &[fairlead_engine::backend::SequenceStep], id: u64) -> usize {
    let own = steps.iter().filter(|step| bench.state.request_of(step.sequence) == Some(id));
    own.map(|step| step.tokens.len()).sum()
}

fn counting(length: u32) -> Vec<u32> {
    (0..length).map(|token| token % 50).collect()
}

#[test]
fn a_long_prompt_does_not_stall_those_who_stream() {
    let mut bench = Bench::new(100, 16, ROOMY);
    let budget = Budget { tokens: 10, ..LARGE };
    // The reader is admitted first, and still the writer has its token in every step.
    bench.add(1, request(vec![1; 200], 5));
    bench.step(budget);
    bench.add(2, request(vec![2], 20));
    bench.step(budget);
    for _ in 0..19 {
        let plan = bench.plan(budget);
        assert!(share(&bench, &plan.batch.sequences, 2) == 1 && plan.tokens() == 10);
        bench.run(plan);
    }
    bench.run_to_the_end();
    bench.check(1);
    bench.check(2);
}

#[test]
fn a_short_prompt_does_not_wait_for_a_very_long_one_and_nothing_is_left_unused() {
    let mut bench = Bench::new(200, 16, ROOMY);
    let budget = Budget { tokens: 64, sequences: 8, logits_rows: 16 };
    bench.add(1, request(counting(900), 5));
    bench.add(2, request(vec![2; 800], 5));
    bench.add(3, request(vec![3; 6], 5));
    let plan = bench.plan(budget);
    let shares = [1, 2, 3].map(|id| share(&bench, &plan.batch.sequences, id));
    assert_eq!(shares, [50, 8, 6]);
    bench.run(plan);
    assert_eq!(bench.outcomes[&3].answers[&0].tokens.len(), 1);
    bench.run_to_the_end();
    (1..4).for_each(|id| bench.check(id));
}

#[test]
fn the_worst_in_rank_gives_way_and_comes_back_with_what_it_said() {
    for (priorities, victim) in [([0, 0], 2), ([1, 0], 1), ([0, -1], 1)] {
        // Six blocks of four: two sequences that grow to five blocks each cannot both stay.
        let mut bench = Bench::new(7, 4, ROOMY);
        for id in [1, 2] {
            let priority = priorities[id as usize - 1];
            bench.add(id, GenerationRequest { priority, ..request(vec![id as u32; 6], 12) });
        }
        let mut preempted = Vec::new();
        while !bench.state.is_idle() {
            let names: Vec<u64> = [1, 2].to_vec();
            let plan = bench.plan(LARGE);
            let running = |id: &u64| share(&bench, &plan.batch.sequences, *id) > 0;
            if !plan.preempted.is_empty() {
                preempted.extend(names.into_iter().filter(|id| !running(id)));
                assert!(plan.admitted.is_empty());
            }
            bench.run(plan);
        }
        assert!(!preempted.is_empty() && preempted.iter().all(|id| *id == victim), "{preempted:?}");
        assert!(bench.state.take_counts().preemptions >= 1);
        bench.check(1);
        bench.check(2);
    }
}

#[test]
fn nobody_is_admitted_in_a_step_that_took_blocks_away() {
    let mut bench = Bench::new(7, 4, ROOMY);
    for (id, priority) in [(1, -1), (2, 1)] {
        bench.add(id, GenerationRequest { priority, ..request(vec![id as u32; 6], 12) });
    }
    while bench.state.used_blocks() < 6 {
        bench.step(LARGE);
    }
    bench.add(3, request(vec![3], 2));
    let mut plan = bench.plan(LARGE);
    while plan.preempted.is_empty() {
        bench.run(plan);
        plan = bench.plan(LARGE);
    }
    // There would be room for it now.
    assert!(plan.admitted.is_empty());
    bench.run(plan);
    assert_eq!(bench.plan(LARGE).admitted[0].request, 3);
    bench.run_to_the_end();
    (1..4).for_each(|id| bench.check(id));
}

#[test]
fn a_block_for_each_that_runs_stays_back_at_admission() {
    for (prompt, admitted) in [(12, 1), (13, 0)] {
        // Of six blocks the first takes two, and one is kept for it.
        let mut bench = Bench::new(7, 4, ROOMY);
        bench.add(1, request(vec![1; 7], 2));
        bench.step(LARGE);
        bench.add(2, request(vec![2; prompt], 2));
        let plan = bench.plan(LARGE);
        assert_eq!(plan.admitted.len(), admitted, "a prompt of {prompt}");
        bench.run(plan);
        bench.run_to_the_end();
        bench.check(2);
    }
}

#[test]
fn priorities_order_the_queue_and_are_a_head_start_only() {
    let mut bench = Bench::new(100, 4, Limits { max_sequences: 1, ..ROOMY });
    for (id, priority) in [(1, 0), (2, 1), (3, -1), (4, 0), (5, -1)] {
        bench.add(id, GenerationRequest { priority, ..request(vec![1], 1) });
    }
    let mut order = Vec::new();
    while !bench.state.is_idle() {
        let plan = bench.plan(LARGE);
        order.extend(plan.admitted.iter().map(|admission| admission.request));
        bench.run(plan);
    }
    assert_eq!(order, [3, 5, 1, 4, 2]);
    // One that came so many requests earlier is served first, whatever its priority.
    bench.add(10, GenerationRequest { priority: 1, ..request(vec![1], 1) });
    for id in 0..REQUESTS_PER_PRIORITY as u64 {
        bench.add(11 + id, request(vec![1], 1));
        bench.state.abort(11 + id).unwrap();
    }
    bench.add(5000, request(vec![1], 1));
    assert_eq!(bench.plan(LARGE).admitted[0].request, 10);
}

#[test]
fn what_can_never_run_is_refused_at_once() {
    let mut bench = Bench::new(3, 4, ROOMY);
    assert_eq!(bench.state.max_model_len(), 9);
    let refusal = |bench: &mut Bench, request| bench.state.add(1, request).unwrap_err();
    assert_eq!(refusal(&mut bench, request(vec![], 1)), Refusal::EmptyPrompt);
    assert_eq!(refusal(&mut bench, request(vec![1; 8], 2)), Refusal::TooLong { prompt: 8, new: 2, most: 9 });
    let answered = GenerationRequest { answered: vec![1; 3], ..request(vec![1; 7], 1) };
    assert_eq!(refusal(&mut bench, answered), Refusal::TooLong { prompt: 7, new: 3, most: 9 });
    let many = GenerationRequest { choices: MAX_CHOICES + 1, ..request(vec![1], 1) };
    let asked = MAX_CHOICES + 1;
    assert_eq!(refusal(&mut bench, many), Refusal::TooManyChoices { asked, most: MAX_CHOICES });
    let answered = GenerationRequest { answered: vec![1], choices: 2, ..request(vec![1], 4) };
    assert_eq!(refusal(&mut bench, answered), Refusal::TooManyChoices { asked: 2, most: 1 });
    let answered = GenerationRequest {
        answered: vec![1],
        constraint: Some(Box::new(EveryThird::default())),
        ..request(vec![1], 4)
    };
    assert!(matches!(refusal(&mut bench, answered), Refusal::Continuation(_)));
    bench.add(1, request(vec![1; 8], 1));
    bench.state.drain();
    assert_eq!(refusal(&mut bench, request(vec![1], 1)), Refusal::Draining);
    bench.run_to_the_end();
    bench.check(1);
}

#[test]
fn deadlines_are_data_for_those_who_wait_too() {
    let mut bench = Bench::new(10, 4, Limits { max_sequences: 1, ..ROOMY });
    let now = Instant::now();
    let late = |seconds| GenerationRequest {
        deadline: Some(now + Duration::from_secs(seconds)),
        ..request(vec![1], 5)
    };
    bench.add(1, late(3));
    bench.add(2, late(1));
    bench.add(3, request(vec![1], 5));
    bench.step(LARGE);
    assert!(bench.state.expired(now).is_empty());
    assert_eq!(bench.state.expired(now + Duration::from_secs(2)), [2]);
    assert_eq!(bench.state.expired(now + Duration::from_secs(3)), [2, 1]);
    bench.state.abort(2).unwrap();
    bench.run_to_the_end();
    assert!(bench.state.expired(now + Duration::from_secs(3)).is_empty());
}

#[test]
fn answers_for_someone_else_are_a_bug_and_said_to_be() {
    let mut bench = Bench::new(10, 4, ROOMY);
    bench.add(1, request(vec![1], 5));
    let plan = bench.plan(LARGE);
    let error = complete(&mut bench.state, plan, vec![]).unwrap_err().to_string();
    assert!(error.contains("0 sequences where 1"), "{error}");
    let plan = bench.plan(LARGE);
    let mut sampled = fairlead_engine::backend::Backend::execute(&mut bench.backend, &plan.batch).unwrap();
    let token = sampled[0].tokens[0].clone();
    sampled[0].tokens.push(token);
    let error = complete(&mut bench.state, plan, sampled).unwrap_err().to_string();
    assert!(error.contains("chose 2 tokens"), "{error}");
}

#[test]
fn a_second_request_finds_the_first_ones_prefix() {
    let mut bench = Bench::new(100, 4, ROOMY);
    bench.add(1, request(counting(22), 6));
    bench.run_to_the_end();
    // 22 and the 5 computed tokens of the answer: 6 full blocks.
    assert_eq!(bench.state.named_blocks(), 6);
    let mut longer = counting(22);
    longer.extend([40, 41, 42]);
    bench.add(2, request(longer, 6));
    let plan = bench.plan(LARGE);
    assert_eq!(plan.admitted[0].cached_tokens, 20);
    assert_eq!((plan.batch.sequences[0].first_position, plan.tokens()), (20, 5));
    bench.run(plan);
    bench.run_to_the_end();
    bench.check(1);
    bench.check(2);
    let counts = bench.state.take_counts();
    assert_eq!((counts.prefix_queries, counts.prefix_hits), (22 + 25, 20));
}

#[test]
fn a_prompt_that_is_found_whole_has_its_last_token_computed_in_a_copy() {
    let mut bench = Bench::new(100, 4, ROOMY);
    bench.add(1, request(counting(20), 3));
    bench.run_to_the_end();
    bench.add(2, request(counting(20), 3));
    let plan = bench.plan(LARGE);
    assert_eq!((plan.tokens(), plan.batch.sequences[0].first_position), (1, 19));
    assert_eq!(plan.batch.copies.len(), 1);
    let copy = plan.batch.copies[0];
    assert_eq!(plan.batch.sequences[0].block_table[4], copy.to);
    assert_ne!(copy.from, copy.to);
    bench.run(plan);
    bench.run_to_the_end();
    bench.check(2);
    // With no block to spare for the copy, the last block is computed again.
    let mut bench = Bench::new(6, 4, ROOMY);
    for id in 1..4 {
        bench.add(id, request(counting(20), 1));
        let plan = bench.plan(LARGE);
        assert_eq!(plan.tokens(), if id == 1 { 20 } else { 4 });
        assert!(plan.batch.copies.is_empty());
        bench.run(plan);
        bench.run_to_the_end();
        bench.check(id);
    }
}

#[test]
fn salts_adapters_and_the_switch_keep_prefixes_apart() {
    let of = |salt: Option<&str>, number: Option<u8>| GenerationRequest {
        cache_salt: salt.map(str::to_owned),
        adapter: number.map(adapter),
        ..request(counting(20), 2)
    };
    let mut bench = Bench::new(100, 4, ROOMY);
    let kinds = [
        (None, None),
        (Some("a"), None),
        (Some("b"), None),
        (None, Some(1)),
        (None, Some(2)),
        (Some("a"), Some(1)),
    ];
    for (round, cached) in [(0, 0), (1, 19)] {
        for (index, (salt, number)) in kinds.into_iter().enumerate() {
            let id = round * 10 + index as u64;
            bench.add(id, of(salt, number));
            let plan = bench.plan(LARGE);
            assert_eq!(plan.admitted[0].cached_tokens, cached, "{salt:?} {number:?}");
            bench.run(plan);
            bench.run_to_the_end();
            bench.check(id);
        }
    }
    let mut bench = Bench::new(100, 4, Limits { prefix_sharing: false, ..ROOMY });
    for id in 1..3 {
        bench.add(id, request(counting(20), 2));
        assert_eq!(bench.plan(LARGE).admitted[0].cached_tokens, 0);
        bench.run_to_the_end();
    }
    assert_eq!(bench.state.named_blocks(), 0);
}

#[test]
fn prompts_that_are_scored_are_computed_and_then_shared() {
    let mut bench = Bench::new(100, 4, ROOMY);
    bench.add(1, request(counting(20), 2));
    bench.run_to_the_end();
    let scored = GenerationRequest { prompt_logprobs: true, ..request(counting(20), 2) };
    bench.add(2, scored);
    // In chunks, each of which begins with the last token of the one before.
    while !bench.state.is_idle() {
        bench.step(Budget { tokens: 64, sequences: 8, logits_rows: 7 });
    }
    bench.check(2);
    let counts = bench.state.take_counts();
    assert_eq!((counts.prefix_queries, counts.prefix_hits), (20, 0));
}

#[test]
fn blocks_are_offered_only_when_logits_have_shown_them_to_be_sound() {
    let mut bench = Bench::new(100, 4, ROOMY);
    let small = Budget { tokens: 8, ..LARGE };
    bench.add(1, request(counting(20), 4));
    for named in [0, 0, 5] {
        bench.step(small);
        assert_eq!(bench.state.named_blocks(), named);
    }
    // What guesses have written is not offered before they have turned out right.
    let mut bench = Bench::new(100, 4, ROOMY);
    bench.backend.drafts = 3;
    bench.add(1, request(counting(4), 12));
    let mut length = 4;
    while !bench.state.is_idle() {
        bench.step(LARGE);
        length = 4 + bench.outcomes[&1].answers[&0].tokens.len();
        assert_eq!(bench.state.named_blocks(), (length - 1) / 4);
    }
    assert_eq!(length, 16);
    bench.check(1);
    let counts = bench.state.take_counts();
    assert!(counts.accepted_tokens > 0 && counts.accepted_tokens < counts.draft_tokens, "{counts:?}");
    assert!(counts.drafts * 3 >= counts.draft_tokens && counts.drafts > 0);
}

#[test]
fn broken_logits_take_their_blocks_and_those_who_share_them_back_to_the_beginning() {
    let mut bench = Bench::new(100, 4, ROOMY);
    bench.add(1, request(counting(20), 9));
    bench.step(LARGE);
    // Two more on the same prefix, one on its own.
    let mut other = counting(20);
    other.push(33);
    bench.add(2, request(other, 9));
    bench.add(3, request(vec![7; 9], 9));
    bench.step(LARGE);
    let plan = bench.plan(LARGE);
    let broken: Vec<_> = plan
        .batch
        .sequences
        .iter()
        .filter(|s| bench.state.request_of(s.sequence) == Some(1))
        .cloned()
        .collect();
    bench.backend.scrub(&broken[0].block_table);
    let discarded = bench.state.discard(&[broken[0].sequence]).unwrap();
    assert_eq!(discarded.requests, [1]);
    assert_eq!(discarded.names.len(), 5);
    assert_eq!((bench.state.running(), bench.state.waiting()), (1, 1));
    assert_eq!(bench.state.named_blocks(), 2, "those of the third");
    bench.run_to_the_end();
    bench.check(2);
    bench.check(3);
    assert!(bench.state.discard(&[broken[0].sequence]).unwrap().requests.is_empty());
}

#[test]
fn several_answers_share_the_prompts_blocks_and_part_with_a_copy() {
    for (prompt, copied) in [(10, 3), (8, 2), (1, 1)] {
        let mut bench = Bench::new(100, 4, ROOMY);
        bench.add(1, GenerationRequest { choices: 3, ..request(counting(prompt), 7) });
        let steps = bench.step(LARGE);
        assert_eq!(steps.iter().map(|step| step.tokens.len()).sum::<usize>(), prompt as usize);
        assert_eq!(bench.state.running(), 3);
        assert_eq!(bench.state.used_blocks(), prompt.div_ceil(4));
        let plan = bench.plan(LARGE);
        assert_eq!(plan.tokens(), 3, "one token each");
        assert_eq!(plan.batch.copies.len(), copied, "prompt of {prompt}");
        bench.run(plan);
        bench.run_to_the_end();
        bench.check(1);
    }
}

#[test]
fn answers_for_which_there_is_no_place_wait_and_all_are_counted_at_admission() {
    let limits = Limits { max_sequences: 3, ..ROOMY };
    let mut bench = Bench::new(100, 4, limits);
    bench.add(1, request(vec![1; 5], 4));
    bench.add(2, GenerationRequest { choices: 3, ..request(vec![2; 5], 4) });
    bench.add(3, request(vec![3; 5], 4));
    bench.step(LARGE);
    assert_eq!(bench.state.running(), 1, "the second needs three places, the third stands behind it");
    bench.run_to_the_end();
    (1..4).for_each(|id| bench.check(id));
    // More answers than places: they go one after the other.
    bench.add(4, GenerationRequest { choices: 7, ..request(vec![4; 9], 3) });
    while !bench.state.is_idle() {
        bench.step(LARGE);
        assert!(bench.state.running() <= 3);
    }
    bench.check(4);
    // So little room that answers push each other out.
    let mut bench = Bench::new(7, 4, limits);
    bench.add(5, GenerationRequest { choices: 3, ..request(vec![5; 9], 14) });
    bench.run_to_the_end();
    bench.check(5);
    assert!(bench.state.take_counts().preemptions > 0);
}

#[test]
fn an_answer_of_one_token_and_a_score_end_every_choice() {
    let mut bench = Bench::new(100, 4, ROOMY);
    bench.add(1, GenerationRequest { choices: 3, ..request(counting(9), 1) });
    bench.add(2, GenerationRequest { choices: 2, prompt_logprobs: true, ..request(counting(9), 0) });
    bench.run_to_the_end();
    bench.check(1);
    bench.check(2);
    assert_eq!(bench.outcomes[&2].answers.len(), 2);
}

#[test]
fn an_answer_that_is_complete_already_ends_at_once() {
    let mut bench = Bench::new(100, 4, ROOMY);
    bench.add(1, GenerationRequest { answered: vec![4, 5], ..request(vec![1], 2) });
    bench.run_to_the_end();
    let answer = &bench.outcomes[&1].answers[&0];
    assert_eq!((answer.tokens.len(), answer.end), (0, Some(EndReason::Length)));
}

#[test]
fn aborting_drops_all_answers() {
    let mut bench = Bench::new(100, 4, Limits { max_sequences: 3, ..ROOMY });
    bench.add(1, GenerationRequest { choices: 5, ..request(counting(9), 30) });
    bench.add(2, request(counting(9), 3));
    bench.step(LARGE);
    bench.step(LARGE);
    assert_eq!((bench.state.running(), bench.state.waiting()), (3, 3));
    assert!(bench.state.abort(1).unwrap());
    assert!(!bench.state.abort(1).unwrap());
    assert_eq!((bench.state.running(), bench.state.waiting(), bench.state.used_blocks()), (0, 1, 0));
    bench.run_to_the_end();
    bench.check(2);
}

#[test]
fn a_constraint_masks_every_place_and_its_errors_end_the_request() {
    let constrained = |ends_after| GenerationRequest {
        constraint: Some(Box::new(EveryThird { ends_after, ..EveryThird::default() })),
        choices: 2,
        ..request(counting(9), 12)
    };
    for drafts in [0, 4] {
        let mut bench = Bench::new(100, 4, ROOMY);
        bench.backend.drafts = drafts;
        bench.add(1, constrained(None));
        bench.add(2, constrained(Some(5)));
        bench.run_to_the_end();
        bench.check(1);
        let failed = &bench.outcomes[&2];
        assert_eq!(failed.failed.as_deref(), Some("nothing may come here"));
        assert!(failed.answers.values().all(|answer| answer.tokens.len() <= 5 && answer.end.is_none()));
    }
    // A backend that does not keep to the mask is found out.
    let mut bench = Bench::new(100, 4, ROOMY);
    bench.add(1, GenerationRequest { choices: 1, ..constrained(None) });
    let plan = bench.plan(LARGE);
    let mut sampled = fairlead_engine::backend::Backend::execute(&mut bench.backend, &plan.batch).unwrap();
    sampled[0].tokens[0].token = 1;
    let outcome = complete(&mut bench.state, plan, sampled).unwrap();
    assert_eq!(
        outcome.updates,
        [fairlead_engine::scheduler::Update::Failed(1, "token 1 may not come here".to_owned())]
    );
    assert!(bench.state.is_idle() && bench.state.used_blocks() == 0);
}

/// Allows all, but knows no way on behind one token, and is of no use once it was asked for one.
#[derive(Clone, Debug)]
struct DeadEnd {
    token: u32,
    is_behind: bool,
    /// Whether it says so or gives a mask that allows nothing.
    says: bool,
}

impl Constraint for DeadEnd {
    fn mask(&mut self) -> Result<Arc<TokenMask>, String> {
        match (self.is_behind, self.says) {
            (false, _) => Ok(Arc::new(TokenMask { words: vec![u32::MAX; 2] })),
            (true, false) => Ok(Arc::new(TokenMask { words: vec![0; 2] })),
            (true, true) => Err("no way on".to_owned()),
        }
    }

    fn accept(&mut self, token: u32) -> Result<(), String> {
        self.is_behind |= token == self.token;
        Ok(())
    }

    fn valid_prefix(&mut self, tokens: &[u32]) -> usize {
        tokens.len()
    }

    fn fork(&self) -> Box<dyn Constraint> {
        Box::new(self.clone())
    }
}

/// Guesses one token, right or wrong.
struct Stubborn(u32);

impl Proposer for Stubborn {
    fn propose(&mut self, _: u64, _: &[u32], most: usize) -> Vec<u32> {
        vec![self.0; most.min(3)]
    }
}

#[test]
fn a_wrong_guess_into_a_dead_end_costs_only_the_guess() {
    let plain = request(counting(9), 12);
    let wanted = alone(&plain);
    let answer = &wanted.answers[&0].tokens;
    let token = (0..50).find(|token| !answer.contains(token)).unwrap();
    for says in [false, true] {
        let mut bench = Bench::new(100, 4, ROOMY);
        let constraint = DeadEnd { token, is_behind: false, says };
        bench.add(1, GenerationRequest { constraint: Some(Box::new(constraint)), ..plain.clone() });
        while !bench.state.is_idle() {
            for step in bench.step(LARGE) {
                assert!(step.drafts == 0, "the guess is not worth checking: nothing is known behind it");
            }
            bench.state.propose(&mut Stubborn(token));
        }
        assert_eq!(bench.outcomes[&1], wanted);
    }
}

#[test]
fn stop_tokens_are_banned_until_the_shortest_answer_is_reached() {
    let mut bench = Bench::new(100, 4, ROOMY);
    bench.backend.drafts = 2;
    let stops: Vec<u32> = (0..50).step_by(2).collect();
    for (id, min_new_tokens) in [(1, 0), (2, 9)] {
        bench.add(
            id,
            GenerationRequest { min_new_tokens, stop_tokens: stops.clone(), ..request(counting(9), 40) },
        );
    }
    bench.run_to_the_end();
    bench.check(1);
    bench.check(2);
    assert!(bench.outcomes[&1].answers[&0].tokens.len() < 9);
    assert!(bench.outcomes[&2].answers[&0].tokens.len() > 9);
}

#[test]
fn penalties_are_given_the_history() {
    // The fake backend checks it against the tokens in its cache.
    for drafts in [0, 3] {
        let mut bench = Bench::new(9, 4, ROOMY);
        bench.backend.drafts = drafts;
        for id in 1..4 {
            let sampling = SamplingOptions { frequency_penalty: 0.5, seed: id, ..SamplingOptions::default() };
            bench.add(id, GenerationRequest { sampling, choices: 2, ..request(counting(5), 11) });
        }
        bench.run_to_the_end();
        (1..4).for_each(|id| bench.check(id));
    }
}

/// Knows the answer.
struct Oracle {
    answer: Vec<u32>,
    most_asked: usize,
}

impl Proposer for Oracle {
    fn propose(&mut self, _: u64, tokens: &[u32], most: usize) -> Vec<u32> {
        self.most_asked = self.most_asked.max(most);
        self.answer[tokens.len() - 4..].to_vec()
    }
}

#[test]
fn guesses_of_a_proposer_are_checked_within_every_limit() {
    let wanted = request(counting(4), 12);
    let answer = alone(&wanted).answers[&0].tokens.clone();
    let mut oracle = Oracle { answer, most_asked: 0 };
    let mut bench = Bench::new(100, 4, ROOMY);
    bench.add(1, wanted);
    bench.step(LARGE);
    bench.state.propose(&mut oracle);
    let plan = bench.plan(Budget { tokens: 4, ..LARGE });
    assert_eq!(plan.batch.sequences[0].drafts, 3, "what is left of the tokens");
    let plan = {
        drop(plan);
        bench.plan(Budget { logits_rows: 6, ..LARGE })
    };
    assert_eq!(plan.batch.sequences[0].drafts, 5, "what is left of the rows");
    drop(plan);
    let plan = bench.plan(LARGE);
    assert_eq!(plan.batch.sequences[0].drafts, 10, "the last token is never a guess");
    bench.run(plan);
    assert!(bench.state.is_idle());
    assert_eq!(oracle.most_asked, 10);
    bench.check(1);
    let counts = bench.state.take_counts();
    assert_eq!((counts.drafts, counts.draft_tokens, counts.accepted_tokens), (1, 10, 10));
}

#[test]
fn guesses_never_push_anybody_out_and_come_after_certain_tokens() {
    let mut bench = Bench::new(100, 4, ROOMY);
    bench.backend.drafts = 4;
    bench.add(1, request(vec![1; 3], 30));
    bench.step(LARGE);
    bench.add(2, request(counting(100), 3));
    let plan = bench.plan(Budget { tokens: 20, ..LARGE });
    assert_eq!(
        plan.batch.sequences.iter().map(|s| (s.tokens.len(), s.drafts)).collect::<Vec<_>>(),
        [(1, 0), (19, 0)]
    );
    bench.run(plan);
    // Five blocks for two that need all of them.
    let mut bench = Bench::new(6, 4, ROOMY);
    bench.backend.drafts = 8;
    bench.add(1, request(vec![1; 3], 6));
    bench.add(2, request(vec![2; 3], 6));
    bench.run_to_the_end();
    bench.check(1);
    bench.check(2);
    assert_eq!(bench.state.take_counts().preemptions, 0);
}
