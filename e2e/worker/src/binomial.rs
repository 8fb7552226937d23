//! What chance alone does to a split. Pure.

use std::ops::RangeInclusive;

/// Weights smaller than this, relative to the largest, do not matter.
const NEGLIGIBLE: f64 = 1e-20;

/// How many of `requests`, each of which goes somewhere with the probability `share`, go there with at least the probability
/// `confidence`: at each end at most half of the rest is cut off. Exact.
pub fn range(requests: u64, share: f64, confidence: f64) -> RangeInclusive<u64> {
    let share = share.clamp(0.0, 1.0);
    if share <= 0.0 || requests == 0 {
        return 0..=0;
    }
    if share >= 1.0 {
        return requests..=requests;
    }
    // From the likeliest number outwards, each relative to it, so that nothing underflows.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
    let mode = (((requests + 1) as f64 * share) as u64).min(requests);
    // Numbers of requests, far below 2^53.
    #[allow(clippy::cast_precision_loss)]
    let odds = |at: u64| (requests - at) as f64 / (at + 1) as f64 * share / (1.0 - share);
    let mut below = vec![1.0];
    let mut first = mode;
    while first > 0 && below.last().is_some_and(|weight| *weight > NEGLIGIBLE) {
        first -= 1;
        below.push(below.last().copied().unwrap_or_default() / odds(first));
    }
    let mut weights: Vec<f64> = below.into_iter().rev().collect();
    let mut last = mode;
    while last < requests && weights.last().is_some_and(|weight| *weight > NEGLIGIBLE) {
        weights.push(weights.last().copied().unwrap_or_default() * odds(last));
        last += 1;
    }
    let tail = weights.iter().sum::<f64>() * (1.0 - confidence) / 2.0;
    let cut = |weights: &mut dyn Iterator<Item = &f64>| {
        let mut sum = 0.0;
        weights
            .take_while(|weight| {
                sum += **weight;
                sum <= tail
            })
            .count() as u64
    };
    let (low, high) = (cut(&mut weights.iter()), cut(&mut weights.iter().rev()));
    first + low..=last - high
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_those_of_tables() {
        // A fair coin, ten throws: 1 to 9 have 0.998, 2 to 8 have 0.979.
        assert_eq!(range(10, 0.5, 0.99), 1..=9);
        assert_eq!(range(10, 0.5, 0.97), 2..=8);
        assert_eq!(range(10, 0.5, 0.5), 4..=6);
        // Large numbers: 2.576 standard deviations (21.8) to each side.
        let wide = range(10_000, 0.05, 0.99);
        assert!((443..=446).contains(wide.start()) && (556..=558).contains(wide.end()), "{wide:?}");
    }

    #[test]
    fn the_ends_are_certain() {
        assert_eq!(range(100, 0.0, 0.99), 0..=0);
        assert_eq!(range(100, 1.0, 0.99), 100..=100);
        assert_eq!(range(0, 0.5, 0.99), 0..=0);
        assert!(range(1_000_000, 1e-9, 0.99).contains(&0));
    }
}
