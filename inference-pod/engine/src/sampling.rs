//! Choosing the next token from logits, and log-probabilities: pure functions over one row.
//!
//! Backends call this for each row that has a `sample`. The random number is a function of (seed, draw), so a choice depends
//! on nothing but the row: not on the batch, the order of sequences, or a preemption in between.

use crate::backend::{ChosenToken, SampleRequest, TokenLogprob};

/// How to choose tokens, as the client asked for it.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingOptions {
    /// 0 takes the likeliest token.
    pub temperature: f32,
    /// Keep the smallest set of likeliest tokens whose probability reaches this; 1 keeps all.
    pub top_p: f32,
    /// Keep this many likeliest tokens; 0 keeps all.
    pub top_k: u32,
    /// Keep tokens that are at least this share as likely as the likeliest; 0 keeps all.
    pub min_p: f32,
    /// Divides the positive logits of tokens seen in prompt or answer, multiplies their negative ones; 1 changes nothing.
    pub repetition_penalty: f32,
    /// Taken from the logits of tokens that the answer has; 0 changes nothing.
    pub presence_penalty: f32,
    /// Taken from a token's logit once for each time that the answer has it; 0 changes nothing.
    pub frequency_penalty: f32,
    /// Added to the logits of these tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// With the number of tokens drawn before, fixes all choices.
    pub seed: u64,
    /// How many of the likeliest tokens to report with their log-probabilities; `None` reports none, not even the
    /// chosen one's.
    pub logprobs: Option<u32>,
}

impl Default for SamplingOptions {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
            logprobs: None,
        }
    }
}

/// How often each token has been seen; what penalties count.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenHistory {
    /// Tokens of the prompt, each once.
    pub prompt: std::collections::BTreeSet<u32>,
    /// Tokens of the answer and how often it has them.
    pub answer: std::collections::BTreeMap<u32, u32>,
}

/// One bit for each token of the vocabulary: set where it may be chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenMask {
    /// Token `t` is bit `t % 32` of word `t / 32`.
    pub words: Vec<u32>,
}

impl TokenMask {
    /// Whether a token may be chosen. Tokens beyond the mask may not.
    #[must_use]
    pub fn allows(&self, token: u32) -> bool {
        self.words.get(token as usize / 32).is_some_and(|word| word >> (token % 32) & 1 == 1)
    }
}

/// A row held NaN or an infinity, so that nothing can be said about its tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("logits are not finite")]
pub struct NonFinite;

/// Chooses the next token from one row of logits. `before` are the drafts of this step that come before it: those that the
/// request's numbers do not count yet.
///
/// Ties go to the smaller token id. Filters apply in the order top-k, then top-p over what top-k kept. If every token
/// is banned the bans are ignored: an answer that goes on is better than none.
///
/// # Errors
/// [`NonFinite`] if any logit is NaN or infinite, or the row is empty.
pub fn sample(logits: &[f32], request: &SampleRequest, before: &[u32]) -> Result<ChosenToken, NonFinite> {
    check(logits)?;
    let draw = request.draw + before.len() as u64;
    let token = if request.banned.is_empty() || draw >= request.banned_draws {
        choose(logits, &request.options, draw)
    } else {
        let mut allowed = logits.to_vec();
        for &token in request.banned.iter() {
            if let Some(logit) = allowed.get_mut(token as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
        let any = allowed.iter().any(|logit| logit.is_finite());
        choose(if any { &allowed } else { logits }, &request.options, draw)
    };
    match request.options.logprobs {
        None => Ok(ChosenToken { token, logprob: None, top_logprobs: Vec::new() }),
        Some(count) => {
            let (own, top_logprobs) = score(logits, token, count)?;
            Ok(ChosenToken { token, logprob: Some(own.logprob), top_logprobs })
        }
    }
}

/// The log-probability of `token` in a row, and the row's `count` likeliest tokens in falling order.
///
/// # Errors
/// [`NonFinite`] if any logit is NaN or infinite, or `token` is not in the row.
pub fn score(logits: &[f32], token: u32, count: u32) -> Result<(TokenLogprob, Vec<TokenLogprob>), NonFinite> {
    check(logits)?;
    let own = *logits.get(token as usize).ok_or(NonFinite)?;
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - highest).exp()).sum();
    let normalizer = f64::from(highest) + sum.ln();
    let logprob = |logit: f32| (f64::from(logit) - normalizer) as f32;
    let top = likeliest(logits, count as usize)
        .into_iter()
        .map(|token| TokenLogprob { token, logprob: logprob(logits[token as usize]) })
        .collect();
    Ok((TokenLogprob { token, logprob: logprob(own) }, top))
}

/// A number in [0, 1) that depends on `seed` and `draw` only.
pub fn uniform(seed: u64, draw: u64) -> f64 {
    // Two rounds of SplitMix64's finalizer: neighbouring seeds and draws give unrelated numbers.
    let mixed = mix(mix(seed.wrapping_add(0x9e37_79b9_7f4a_7c15)) ^ draw.wrapping_mul(0xd134_2543_de82_ef95));
    (mixed >> 11) as f64 / (1_u64 << 53) as f64
}

fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

fn check(logits: &[f32]) -> Result<(), NonFinite> {
    if logits.is_empty() || logits.iter().any(|logit| !logit.is_finite()) { Err(NonFinite) } else { Ok(()) }
}

fn choose(logits: &[f32], options: &SamplingOptions, draw_number: u64) -> u32 {
    if options.temperature <= 0.0 || options.top_k == 1 {
        return greedy(logits);
    }
    let random = uniform(options.seed, draw_number);
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let temperature = f64::from(options.temperature);
    let weight = |token: u32| (f64::from(logits[token as usize] - highest) / temperature).exp();
    let keeps_k = options.top_k > 0 && (options.top_k as usize) < logits.len();
    let keeps_p = options.top_p < 1.0;
    let kept = match (keeps_k, keeps_p) {
        (false, false) => return draw(0..logits.len() as u32, weight, random),
        (true, false) => likeliest(logits, options.top_k as usize),
        (true, true) => nucleus(likeliest(logits, options.top_k as usize), weight, f64::from(options.top_p)),
        (false, true) => nucleus_of_all(logits, weight, f64::from(options.top_p)),
    };
    draw(kept.into_iter(), weight, random)
}

fn greedy(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (token, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = token;
        }
    }
    best as u32
}

/// Walks `tokens` until their weights reach `random` of the whole.
fn draw(tokens: impl Iterator<Item = u32> + Clone, weight: impl Fn(u32) -> f64, random: f64) -> u32 {
    let total: f64 = tokens.clone().map(&weight).sum();
    let target = random * total;
    let mut reached = 0.0;
    let mut last = 0;
    for token in tokens {
        let step = weight(token);
        if step > 0.0 {
            last = token;
            reached += step;
            if reached > target {
                break;
            }
        }
    }
    last
}

/// The `count` likeliest tokens in falling order; selection first, so only what is kept gets sorted.
fn likeliest(logits: &[f32], count: usize) -> Vec<u32> {
    if count == 0 {
        return Vec::new();
    }
    let falling = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    let mut tokens: Vec<u32> = (0..logits.len() as u32).collect();
    if count < tokens.len() {
        tokens.select_nth_unstable_by(count - 1, falling);
        tokens.truncate(count);
    }
    tokens.sort_unstable_by(falling);
    tokens
}

/// The shortest beginning of `tokens` (in falling order) that holds `share` of their weight.
fn nucleus(mut tokens: Vec<u32>, weight: impl Fn(u32) -> f64, share: f64) -> Vec<u32> {
    let total: f64 = tokens.iter().map(|&token| weight(token)).sum();
    if let Some(length) = nucleus_length(&tokens, &weight, share * total) {
        tokens.truncate(length);
    }
    tokens
}

/// The same over a whole vocabulary. The nucleus is nearly always short, so ever longer beginnings are tried before
/// everything is sorted.
fn nucleus_of_all(logits: &[f32], weight: impl Fn(u32) -> f64, share: f64) -> Vec<u32> {
    let total: f64 = (0..logits.len() as u32).map(&weight).sum();
    let mut tried = 64;
    loop {
        let mut tokens = likeliest(logits, tried.min(logits.len()));
        if let Some(length) = nucleus_length(&tokens, &weight, share * total) {
            tokens.truncate(length);
            return tokens;
        }
        if tried >= logits.len() {
            return tokens;
        }
        tried *= 16;
    }
}

fn nucleus_length(tokens: &[u32], weight: impl Fn(u32) -> f64, target: f64) -> Option<usize> {
    let mut reached = 0.0;
    tokens
        .iter()
        .position(|&token| {
            reached += weight(token);
            reached >= target
        })
        .map(|index| index + 1)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;

    fn request(temperature: f32, top_k: u32, top_p: f32, draw: u64) -> SampleRequest {
        asked(SamplingOptions { temperature, top_p, top_k, seed: 7, ..SamplingOptions::default() }, draw)
    }

    fn asked(options: SamplingOptions, draw: u64) -> SampleRequest {
        SampleRequest::new(Arc::new(options), draw)
    }

    fn counts(logits: &[f32], temperature: f32, top_k: u32, top_p: f32, draws: u64) -> Vec<f64> {
        let mut counts = vec![0.0; logits.len()];
        for draw in 0..draws {
            let token = sample(logits, &request(temperature, top_k, top_p, draw), &[]).unwrap().token;
            counts[token as usize] += 1.0 / draws as f64;
        }
        counts
    }

    #[test]
    fn greedy_takes_the_first_of_the_likeliest() {
        assert_eq!(sample(&[0.0, 3.0, 3.0, -1.0], &request(0.0, 0, 1.0, 0), &[]).unwrap().token, 1);
    }

    #[test]
    fn frequencies_follow_the_tempered_distribution() {
        let logits = [1.0_f32, 0.0, -1.0, 2.0];
        for temperature in [0.5_f32, 1.0, 1.7] {
            let weights: Vec<f64> = logits.iter().map(|l| f64::from(l / temperature).exp()).collect();
            let total: f64 = weights.iter().sum();
            let seen = counts(&logits, temperature, 0, 1.0, 20_000);
            for (weight, seen) in weights.iter().zip(seen) {
                assert!((weight / total - seen).abs() < 0.015, "{} against {seen}", weight / total);
            }
        }
    }

    #[test]
    fn top_k_and_top_p_keep_what_they_say() {
        let logits = [0.6_f32.ln(), 0.25_f32.ln(), 0.1_f32.ln(), 0.05_f32.ln()];
        let kept =
            |top_k, top_p| counts(&logits, 1.0, top_k, top_p, 5_000).iter().filter(|c| **c > 0.0).count();
        assert_eq!(kept(0, 1.0), 4);
        assert_eq!(kept(2, 1.0), 2);
        assert_eq!(kept(0, 0.59), 1);
        assert_eq!(kept(0, 0.7), 2);
        assert_eq!(kept(0, 0.9), 3);
        // Of the two that top-k keeps, the first alone holds 0.6 / 0.85 = 0.706.
        assert_eq!(kept(2, 0.7), 1);
        assert_eq!(kept(2, 0.72), 2);
    }

    #[test]
    fn logprobs_come_from_the_untempered_distribution() {
        let logits = [0.5_f32.ln() + 3.0, 0.3_f32.ln() + 3.0, 0.2_f32.ln() + 3.0];
        let options =
            SamplingOptions { temperature: 0.1, top_k: 1, logprobs: Some(2), ..SamplingOptions::default() };
        let choice = sample(&logits, &asked(options, 0), &[]).unwrap();
        assert!((choice.logprob.unwrap() - 0.5_f32.ln()).abs() < 1e-6);
        assert_eq!(choice.top_logprobs.iter().map(|top| top.token).collect::<Vec<_>>(), [0, 1]);
        assert!((choice.top_logprobs[1].logprob - 0.3_f32.ln()).abs() < 1e-6);
    }

    #[test]
    fn bans_hold_and_broken_rows_are_refused() {
        let asked = SampleRequest { banned: Arc::new([1, 900]), banned_draws: 1, ..request(0.0, 0, 1.0, 0) };
        assert_eq!(sample(&[0.0, 9.0, 1.0], &asked, &[]).unwrap().token, 2);
        assert_eq!(sample(&[0.0, 9.0, 1.0], &asked, &[2]).unwrap().token, 1);
        for broken in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert_eq!(sample(&[0.0, broken], &request(1.0, 0, 1.0, 0), &[]), Err(NonFinite));
        }
        assert_eq!(sample(&[], &request(1.0, 0, 1.0, 0), &[]), Err(NonFinite));
        assert_eq!(score(&[0.0], 1, 0), Err(NonFinite));
    }

    #[test]
    fn seeds_and_draws_are_unrelated() {
        let mut sum = 0.0;
        let mut product = 0.0;
        for i in 0..10_000 {
            let (a, b) = (uniform(i, 0), uniform(i + 1, 0));
            sum += a;
            product += (a - 0.5) * (b - 0.5);
        }
        assert!((sum / 10_000.0 - 0.5).abs() < 0.02);
        assert!((product / 10_000.0).abs() < 0.01);
    }

    proptest! {
        #[test]
        fn a_choice_is_repeatable_and_inside_the_filters(
            logits in prop::collection::vec(-40.0_f32..40.0, 1..300),
            temperature in 0.01_f32..2.0,
            top_k in 0_u32..50,
            top_p in 0.01_f32..=1.0,
            seed: u64,
            draw: u64,
        ) {
            let options = SamplingOptions { temperature, top_p, top_k, seed, ..SamplingOptions::default() };
            let asked = asked(options, draw);
            let token = sample(&logits, &asked, &[]).unwrap().token;
            prop_assert_eq!(token, sample(&logits, &asked, &[]).unwrap().token);
            // A reference with a full sort.
            let mut order: Vec<usize> = (0..logits.len()).collect();
            order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b)));
            if top_k > 0 {
                order.truncate(top_k as usize);
            }
            let weight = |i: usize| (f64::from(logits[i] - logits[order[0]]) / f64::from(temperature)).exp();
            let total: f64 = order.iter().map(|&i| weight(i)).sum();
            let before: f64 = order.iter().take_while(|&&i| i != token as usize).map(|&i| weight(i)).sum();
            prop_assert!(order.contains(&(token as usize)));
            prop_assert!(before <= f64::from(top_p) * total * (1.0 + 1e-9));
        }
    }
}
