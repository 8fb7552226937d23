//! The likeliest tokens of a row, and a draw among those that min-p, top-k and top-p keep.
//!
//! Each of the three keeps a beginning of the tokens in falling order, so that together they keep the shortest of these
//! beginnings; top-p measures its share in what the other two keep.

use super::SamplingOptions;
use super::random::uniform;

/// Numbers looked at side by side: as many as one vector instruction takes.
const LANES: usize = 16;
/// Numbers of which only the highest is known until it is known to be the row's highest.
const PIECE: usize = 64 * LANES;
/// Up to so many likeliest tokens are found without putting the others in order at all.
const FEW: usize = 128;

/// The first of the likeliest tokens and its logit; `None` if a logit is not finite or there are none. One pass.
pub(super) fn likeliest_of_finite(logits: &[f32]) -> Option<(u32, f32)> {
    let mut broken = 0.0_f32;
    let likeliest = likeliest_with(logits, &mut broken);
    if logits.is_empty() || broken.is_nan() { None } else { Some(likeliest) }
}

/// The first of the likeliest tokens and its logit. Negative infinity stands for tokens that must not be chosen.
pub(super) fn likeliest(logits: &[f32]) -> (u32, f32) {
    likeliest_with(logits, &mut 0.0)
}

/// `broken` becomes NaN if a logit is not finite: a finite number times 0 is 0, any other is NaN, and so is every sum
/// with it.
fn likeliest_with(logits: &[f32], broken: &mut f32) -> (u32, f32) {
    let (mut best_piece, mut best) = (0, f32::NEG_INFINITY);
    for (index, piece) in logits.chunks(PIECE).enumerate() {
        let mut highest = [f32::NEG_INFINITY; LANES];
        let mut sums = [0.0_f32; LANES];
        let (vectors, rest) = piece.as_chunks::<LANES>();
        for vector in vectors {
            for lane in 0..LANES {
                highest[lane] = if vector[lane] > highest[lane] { vector[lane] } else { highest[lane] };
                sums[lane] += vector[lane] * 0.0;
            }
        }
        *broken += sums.iter().sum::<f32>() + rest.iter().map(|logit| logit * 0.0).sum::<f32>();
        let piece_best = highest.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max);
        if piece_best > best {
            (best_piece, best) = (index, piece_best);
        }
    }
    let first = best_piece * PIECE;
    let piece = &logits[first.min(logits.len())..];
    let place = piece.iter().position(|&logit| logit == best).unwrap_or(0);
    ((first + place) as u32, best)
}

/// The `count` likeliest tokens in falling order, those of the same logit in rising order of their numbers.
pub(super) fn highest_tokens(logits: &[f32], count: usize) -> Vec<u32> {
    let falling = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    if count == 0 {
        return Vec::new();
    }
    if count <= FEW && count < logits.len() {
        // Nearly every token is less likely than the worst that is kept, and costs one comparison.
        let mut kept: Vec<u32> = (0..count as u32).collect();
        kept.sort_unstable_by(falling);
        let mut worst = logits[kept[count - 1] as usize];
        for (token, &logit) in logits.iter().enumerate().skip(count) {
            if logit.total_cmp(&worst).is_gt() {
                kept.pop();
                let token = token as u32;
                kept.insert(kept.partition_point(|other| falling(other, &token).is_lt()), token);
                worst = logits[kept[count - 1] as usize];
            }
        }
        return kept;
    }
    let mut tokens: Vec<u32> = (0..logits.len() as u32).collect();
    if count < tokens.len() {
        tokens.select_nth_unstable_by(count - 1, falling);
        tokens.truncate(count);
    }
    tokens.sort_unstable_by(falling);
    tokens
}

/// Draws a token. `highest` is the row's highest logit; it is finite.
///
/// What is kept is walked in falling order where top-k or top-p shorten it, otherwise in the order of the tokens' numbers,
/// until its weights reach the random number's share of the whole.
pub(super) fn choose(
    row: &[f32],
    highest: f32,
    options: &SamplingOptions,
    draw: u64,
    weights: &mut Vec<f64>,
) -> u32 {
    let random = uniform(options.seed, draw);
    let temperature = f64::from(options.temperature);
    // Whatever a client sends, the likeliest token is kept.
    let min_p = if options.min_p > 0.0 { f64::from(options.min_p.min(1.0)) } else { 0.0 };
    let weight = |logit: f32| {
        let weight = (f64::from(logit - highest) / temperature).exp();
        if weight >= min_p { weight } else { 0.0 }
    };
    let top_k = if options.top_k == 0 { row.len() } else { row.len().min(options.top_k as usize) };
    let keeps_p = options.top_p < 1.0;
    weights.clear();
    if top_k == row.len() && !keeps_p {
        weights.extend(row.iter().map(|&logit| weight(logit)));
        return walk(weights, random) as u32;
    }
    let share = f64::from(options.top_p);
    let kept = if top_k < row.len() {
        let tokens = highest_tokens(row, top_k);
        weights.extend(tokens.iter().map(|&token| weight(row[token as usize])));
        if keeps_p {
            let target = share * weights.iter().sum::<f64>();
            weights.truncate(nucleus(weights, target).unwrap_or(weights.len()));
        }
        tokens
    } else {
        nucleus_of_all(row, share, weight, weights)
    };
    kept.get(walk(weights, random)).copied().unwrap_or(0)
}

/// The index at which the sum of weights passes `random` of the whole; never one without weight.
fn walk(weights: &[f64], random: f64) -> usize {
    let target = random * weights.iter().sum::<f64>();
    let (mut reached, mut last) = (0.0, 0);
    for (index, &weight) in weights.iter().enumerate() {
        if weight > 0.0 {
            last = index;
            reached += weight;
            if reached > target {
                break;
            }
        }
    }
    last
}

/// The shortest beginning of a whole vocabulary, in falling order, that holds `share` of the weight, and its weights. It is
/// nearly always short, so ever longer beginnings are tried before everything is sorted.
fn nucleus_of_all(row: &[f32], share: f64, weight: impl Fn(f32) -> f64, weights: &mut Vec<f64>) -> Vec<u32> {
    let target = share * row.iter().map(|&logit| weight(logit)).sum::<f64>();
    let mut tried = FEW;
    loop {
        let tokens = highest_tokens(row, tried.min(row.len()));
        weights.clear();
        weights.extend(tokens.iter().map(|&token| weight(row[token as usize])));
        let length = nucleus(weights, target);
        if length.is_some() || tried >= row.len() {
            weights.truncate(length.unwrap_or(weights.len()));
            return tokens;
        }
        tried *= 16;
    }
}

/// How many weights, from the first, reach `target` together.
fn nucleus(weights: &[f64], target: f64) -> Option<usize> {
    let mut reached = 0.0;
    let place = weights.iter().position(|weight| {
        reached += weight;
        reached >= target
    });
    place.map(|index| index + 1)
}
