//! Sampling done slowly and plainly, and the tests that compare it with the quick way.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;

use super::*;

/// What [`sample`] promises, written down step by step. `None` where nothing is allowed.
fn slow_sample(logits: &[f32], request: &SampleRequest, before: &[u32]) -> Option<u32> {
    let options = &*request.options;
    let history = request.history.clone().unwrap_or_default();
    let mut answer: BTreeMap<u32, u32> = history.answer.clone();
    for &token in before {
        *answer.entry(token).or_default() += 1;
    }
    let seen: BTreeSet<u32> = history.prompt.iter().chain(answer.keys()).copied().collect();
    let draw = request.draw + before.len() as u64;

    let mut row: Vec<Option<f32>> = logits.iter().copied().map(Some).collect();
    for (token, logit) in row.iter_mut().enumerate() {
        let token = token as u32;
        let mut value = logit.unwrap();
        for (biased, bias) in &options.logit_bias {
            if *biased == token {
                value += bias;
            }
        }
        if seen.contains(&token) {
            value = if value > 0.0 {
                value / options.repetition_penalty
            } else {
                value * options.repetition_penalty
            };
        }
        if let Some(&count) = answer.get(&token) {
            value -= options.frequency_penalty * count as f32;
            value -= options.presence_penalty;
        }
        *logit = Some(value);
        if !request.masks.is_empty() && !request.masks[before.len()].allows(token) {
            *logit = None;
        }
    }
    if row.iter().all(Option::is_none) {
        return None;
    }
    if draw < request.banned_draws {
        let mut allowed = row.clone();
        for &token in request.banned.iter() {
            if let Some(logit) = allowed.get_mut(token as usize) {
                *logit = None;
            }
        }
        if allowed.iter().any(Option::is_some) {
            row = allowed;
        }
    }

    let mut order: Vec<(usize, f32)> =
        row.iter().enumerate().filter_map(|(token, logit)| logit.map(|logit| (token, logit))).collect();
    order.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    if options.temperature <= 0.0 {
        return Some(order[0].0 as u32);
    }
    let highest = order[0].1;
    let weight = |logit: f32| (f64::from(logit - highest) / f64::from(options.temperature)).exp();
    order.retain(|(_, logit)| weight(*logit) >= f64::from(options.min_p));
    if options.top_k > 0 {
        order.truncate(options.top_k as usize);
    }
    let total: f64 = order.iter().map(|(_, logit)| weight(*logit)).sum();
    let mut reached = 0.0;
    let mut nucleus = Vec::new();
    for (token, logit) in order {
        nucleus.push((token, logit));
        reached += weight(logit);
        if options.top_p < 1.0 && reached >= f64::from(options.top_p) * total {
            break;
        }
    }
    let shortens = options.top_p < 1.0 || (options.top_k > 0 && (options.top_k as usize) < logits.len());
    if !shortens {
        nucleus.sort_by_key(|(token, _)| *token);
    }
    let target = uniform(options.seed, draw) * nucleus.iter().map(|(_, logit)| weight(*logit)).sum::<f64>();
    let mut reached = 0.0;
    let passes = |(_, logit): &&(usize, f32)| {
        reached += weight(*logit);
        reached > target
    };
    Some(nucleus.iter().find(passes).or(nucleus.last()).unwrap().0 as u32)
}

fn request(temperature: f32, top_k: u32, top_p: f32, draw: u64) -> SampleRequest {
    asked(SamplingOptions { temperature, top_p, top_k, seed: 7, ..SamplingOptions::default() }, draw)
}

fn asked(options: SamplingOptions, draw: u64) -> SampleRequest {
    SampleRequest::new(Arc::new(options), draw)
}

fn chosen(logits: &[f32], request: &SampleRequest, before: &[u32]) -> u32 {
    sample(logits, request, before).unwrap().token
}

fn counts(logits: &[f32], options: &SamplingOptions, draws: u64) -> Vec<f64> {
    let mut counts = vec![0.0; logits.len()];
    for draw in 0..draws {
        counts[chosen(logits, &asked(options.clone(), draw), &[]) as usize] += 1.0 / draws as f64;
    }
    counts
}

fn mask(allowed: &[u32]) -> Arc<TokenMask> {
    let mut words = vec![0; allowed.iter().max().map_or(0, |token| token / 32 + 1) as usize];
    for token in allowed {
        words[*token as usize / 32] |= 1 << (token % 32);
    }
    Arc::new(TokenMask { words })
}

#[test]
fn greedy_takes_the_first_of_the_likeliest() {
    assert_eq!(chosen(&[0.0, 3.0, 3.0, -1.0], &request(0.0, 0, 1.0, 0), &[]), 1);
    // Also where it does not lie in the first piece, or behind the last whole vector.
    for length in [1, 15, 16, 17, 1023, 1024, 1025, 5000] {
        for place in [0, length / 2, length - 1] {
            let mut row = vec![-3.0; length];
            row[place] = -1.0;
            row[length - 1] = -1.0;
            assert_eq!(chosen(&row, &request(0.0, 0, 1.0, 0), &[]), place as u32);
        }
    }
}

#[test]
fn frequencies_follow_the_tempered_distribution() {
    let logits = [1.0_f32, 0.0, -1.0, 2.0];
    for temperature in [0.5_f32, 1.0, 1.7] {
        let weights: Vec<f64> = logits.iter().map(|l| f64::from(l / temperature).exp()).collect();
        let total: f64 = weights.iter().sum();
        let seen = counts(&logits, &SamplingOptions { temperature, ..SamplingOptions::default() }, 20_000);
        for (weight, seen) in weights.iter().zip(seen) {
            assert!((weight / total - seen).abs() < 0.015, "{} against {seen}", weight / total);
        }
    }
}

#[test]
fn filters_keep_what_they_say() {
    let logits = [0.6_f32.ln(), 0.25_f32.ln(), 0.1_f32.ln(), 0.05_f32.ln()];
    let kept = |top_k, top_p, min_p| {
        let options = SamplingOptions { top_k, top_p, min_p, ..SamplingOptions::default() };
        counts(&logits, &options, 5_000).iter().filter(|count| **count > 0.0).count()
    };
    assert_eq!(kept(0, 1.0, 0.0), 4);
    assert_eq!(kept(2, 1.0, 0.0), 2);
    assert_eq!(kept(0, 0.59, 0.0), 1);
    assert_eq!(kept(0, 0.7, 0.0), 2);
    assert_eq!(kept(0, 0.9, 0.0), 3);
    // Of the two that top-k keeps, the first alone holds 0.6 / 0.85 = 0.706.
    assert_eq!(kept(2, 0.7, 0.0), 1);
    assert_eq!(kept(2, 0.72, 0.0), 2);
    // The second is 0.417 times as likely as the first, the third 0.167 times.
    assert_eq!(kept(0, 1.0, 0.16), 3);
    assert_eq!(kept(0, 1.0, 0.17), 2);
    assert_eq!(kept(0, 1.0, 1.0), 1);
    assert_eq!(kept(0, 1.0, f32::NAN), 4);
    // Of the two that min-p keeps, too.
    assert_eq!(kept(0, 0.7, 0.4), 1);
    assert_eq!(kept(3, 0.72, 0.4), 2);
}

#[test]
fn penalties_and_bias_do_what_openai_and_vllm_document() {
    let history = TokenHistory { prompt: [0, 1].into(), answer: [(1, 2), (2, 1)].into() };
    let row = |options: SamplingOptions, before: &[u32]| {
        let request = SampleRequest { history: Some(Arc::new(history.clone())), ..asked(options, 0) };
        let mut row = Vec::new();
        adjust::adjust(&[2.0, -2.0, 2.0, 2.0], &request, before, &mut row).unwrap();
        row
    };
    let none = SamplingOptions::default();
    let repetition = SamplingOptions { repetition_penalty: 2.0, ..none.clone() };
    assert_eq!(row(repetition.clone(), &[]), [1.0, -4.0, 1.0, 2.0]);
    assert_eq!(row(repetition, &[3, 3]), [1.0, -4.0, 1.0, 1.0]);
    let presence = SamplingOptions { presence_penalty: 0.5, ..none.clone() };
    assert_eq!(row(presence.clone(), &[]), [2.0, -2.5, 1.5, 2.0]);
    assert_eq!(row(presence, &[3, 3]), [2.0, -2.5, 1.5, 1.5]);
    let frequency = SamplingOptions { frequency_penalty: 0.5, ..none.clone() };
    assert_eq!(row(frequency.clone(), &[]), [2.0, -3.0, 1.5, 2.0]);
    assert_eq!(row(frequency, &[3, 1, 3]), [2.0, -3.5, 1.5, 1.0]);
    // Bias first: it decides which way repetition goes.
    let both =
        SamplingOptions { repetition_penalty: 2.0, logit_bias: vec![(0, -3.0), (3, 1.0), (9, 1.0)], ..none };
    assert_eq!(row(both, &[]), [-2.0, -4.0, 1.0, 3.0]);
}

#[test]
fn extreme_numbers_stay_finite() {
    let options = SamplingOptions {
        repetition_penalty: 1e-38,
        logit_bias: vec![(1, f32::INFINITY), (2, f32::NAN)],
        ..SamplingOptions::default()
    };
    let request = SampleRequest {
        history: Some(Arc::new(TokenHistory { prompt: [0].into(), ..TokenHistory::default() })),
        ..asked(options, 0)
    };
    let mut row = Vec::new();
    adjust::adjust(&[1e30, 0.0, 3.0], &request, &[], &mut row).unwrap();
    assert_eq!(row, [f32::MAX, f32::MAX, 3.0]);
    assert!(sample(&[1e30, 0.0, 3.0], &request, &[]).is_ok());
}

#[test]
fn the_mask_is_the_one_behind_the_drafts_and_one_that_allows_nothing_is_an_error() {
    let masks = vec![mask(&[0, 2]), mask(&[1]), mask(&[]), mask(&[40])];
    let asked = SampleRequest { masks, ..request(0.0, 0, 1.0, 0) };
    let row = [0.0, 9.0, 1.0];
    assert_eq!(chosen(&row, &asked, &[]), 2);
    assert_eq!(chosen(&row, &asked, &[2]), 1);
    for before in [&[2, 1][..], &[2, 1, 0], &[2, 1, 0, 0]] {
        assert_eq!(sample(&row, &asked, before), Err(SampleError::NothingAllowed));
    }
}

#[test]
fn logprobs_come_from_the_models_own_distribution() {
    let logits = [0.5_f32.ln() + 3.0, 0.3_f32.ln() + 3.0, 0.2_f32.ln() + 3.0];
    let options = SamplingOptions {
        temperature: 0.1,
        top_k: 1,
        logprobs: Some(2),
        logit_bias: vec![(2, 50.0)],
        ..SamplingOptions::default()
    };
    let choice = sample(&logits, &asked(options, 0), &[]).unwrap();
    assert_eq!(choice.token, 2);
    assert!((choice.logprob.unwrap() - 0.2_f32.ln()).abs() < 1e-6);
    assert_eq!(choice.top_logprobs.iter().map(|top| top.token).collect::<Vec<_>>(), [0, 1]);
    assert!((choice.top_logprobs[1].logprob - 0.3_f32.ln()).abs() < 1e-6);
}

#[test]
fn bans_hold_and_broken_rows_are_refused() {
    let asked = SampleRequest { banned: Arc::new([1, 900]), banned_draws: 1, ..request(0.0, 0, 1.0, 0) };
    assert_eq!(chosen(&[0.0, 9.0, 1.0], &asked, &[]), 2);
    assert_eq!(chosen(&[0.0, 9.0, 1.0], &asked, &[2]), 1);
    // A grammar that allows only what is banned goes first.
    let only = SampleRequest { masks: vec![mask(&[1])], ..asked };
    assert_eq!(chosen(&[0.0, 9.0, 1.0], &only, &[]), 1);
    for broken in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for length in [2, 40, 3000] {
            for place in [0, length / 2, length - 1] {
                let mut row = vec![0.5; length];
                row[place] = broken;
                assert_eq!(sample(&row, &request(1.0, 0, 1.0, 0), &[]), Err(SampleError::NonFinite));
                assert_eq!(score(&row, 0, 1), Err(SampleError::NonFinite));
            }
        }
    }
    assert_eq!(sample(&[], &request(1.0, 0, 1.0, 0), &[]), Err(SampleError::NonFinite));
    assert_eq!(score(&[0.0], 1, 0), Err(SampleError::NonFinite));
}

fn tokens(longest: usize) -> impl Strategy<Value = Vec<u32>> {
    prop::collection::vec(0..40_u32, 0..longest)
}

prop_compose! {
    fn any_options()(
        temperature in prop_oneof![Just(0.0_f32), 0.05_f32..2.0],
        top_p in prop_oneof![Just(1.0_f32), 0.01_f32..1.0],
        top_k in prop_oneof![Just(0_u32), 1..60_u32],
        min_p in prop_oneof![Just(0.0_f32), 0.0_f32..0.5],
        repetition_penalty in prop_oneof![Just(1.0_f32), 0.5_f32..2.0],
        presence_penalty in prop_oneof![Just(0.0_f32), -2.0_f32..2.0],
        frequency_penalty in prop_oneof![Just(0.0_f32), -2.0_f32..2.0],
        logit_bias in prop::collection::vec((0..50_u32, -20.0_f32..20.0), 0..3),
        seed: u64,
    ) -> SamplingOptions {
        SamplingOptions {
            temperature, top_p, top_k, min_p, repetition_penalty, presence_penalty, frequency_penalty, logit_bias, seed,
            logprobs: None,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_choice_is_the_one_that_the_slow_way_makes(
        logits in prop::collection::vec(-12.0_f32..12.0, 1..300),
        options in any_options(),
        draw in 0..5_u64,
        (prompt, answer, before) in (tokens(8), tokens(8), tokens(4)),
        allowed in prop::option::of(tokens(20)),
        (banned, banned_draws) in (tokens(6), 0..8_u64),
    ) {
        let mut history = TokenHistory { prompt: prompt.into_iter().collect(), ..TokenHistory::default() };
        for token in answer {
            *history.answer.entry(token).or_default() += 1;
        }
        let masks = allowed.map_or_else(Vec::new, |allowed| vec![mask(&allowed); before.len() + 1]);
        let request = SampleRequest {
            history: Some(Arc::new(history)),
            masks,
            banned: banned.into(),
            banned_draws,
            ..asked(options, draw)
        };
        let quick = sample(&logits, &request, &before).ok().map(|chosen| chosen.token);
        prop_assert_eq!(quick, slow_sample(&logits, &request, &before));
        prop_assert_eq!(quick, sample(&logits, &request, &before).ok().map(|chosen| chosen.token));
    }

    #[test]
    fn the_likeliest_are_those_of_a_full_sort(
        logits in prop::collection::vec((-9_i8..9).prop_map(f32::from), 1..700),
        count in 0..200_usize,
    ) {
        let mut order: Vec<u32> = (0..logits.len() as u32).collect();
        order.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b)));
        prop_assert_eq!(filters::likeliest(&logits).0, order[0]);
        order.truncate(count);
        prop_assert_eq!(filters::highest_tokens(&logits, count), order);
    }
}
