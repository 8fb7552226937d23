//! How often the intervals are wrong, on streams whose truth is known: at most alpha, and not never.
//!
//! Seeded, so a run is like the last one. "Wrong" is wrong at any of the looks.

#![allow(clippy::unwrap_used)]

use fairlead_rollout::{Histogram, Interval, Tally, difference, proportion, quantile, quantile_ratio};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const STREAMS: u32 = 300;
const VALUES: u64 = 2_000;
const ALPHA: f64 = 0.2;

/// How many streams have an interval without the truth in it at one look or more. `step` takes in one value and returns the interval
/// when it is time to look.
fn wrong(truth: f64, mut stream: impl FnMut(StdRng) -> Box<dyn FnMut(u64) -> Option<Interval>>) -> f64 {
    let mut wrong = 0_u32;
    for seed in 0..STREAMS {
        let mut step = stream(StdRng::seed_from_u64(seed.into()));
        if (1..=VALUES).any(|n| step(n).is_some_and(|interval| !interval.contains(truth))) {
            wrong += 1;
        }
    }
    f64::from(wrong) / f64::from(STREAMS)
}

/// Often at first, where a wrong formula shows, and then rarely.
fn looks(n: u64) -> bool {
    n < 10 || n.is_multiple_of(50)
}

fn at_most_alpha(share: f64) {
    assert!(share <= ALPHA, "{share} of the streams are wrong, alpha is {ALPHA}");
}

/// Intervals that are never wrong over so many looks would be far too long.
fn kept(share: f64) {
    at_most_alpha(share);
    assert!(share > ALPHA / 50.0, "{share} of the streams are wrong, alpha is {ALPHA}");
}

#[test]
fn a_proportion_is_in_its_interval() {
    for p in [0.3, 0.02] {
        kept(wrong(p, |mut rng| {
            let mut tally = Tally::default();
            Box::new(move |n| {
                tally.of += 1;
                tally.hits += u64::from(rng.random_range(0.0..1.0) < p);
                looks(n).then(|| proportion(tally, ALPHA))
            })
        }));
    }
}

#[test]
fn a_difference_is_in_its_interval() {
    kept(wrong(0.05, |mut rng| {
        let (mut first, mut second) = (Tally::default(), Tally::default());
        Box::new(move |n| {
            // Four of five requests go to the second.
            let (tally, p) =
                if rng.random_range(0.0..1.0) < 0.2 { (&mut first, 0.1) } else { (&mut second, 0.05) };
            tally.of += 1;
            tally.hits += u64::from(rng.random_range(0.0..1.0) < p);
            looks(n).then(|| difference(first, second, ALPHA))
        })
    }));
}

/// An exponential variable of mean `mean`.
fn exponential(rng: &mut StdRng, mean: f64) -> f64 {
    -mean * (1.0 - rng.random_range(0.0..1.0_f64)).ln()
}

#[test]
fn a_quantile_is_in_its_interval() {
    for p in [0.5, 0.9] {
        kept(wrong(-(1.0_f64 - p).ln(), |mut rng| {
            let mut values = Histogram::default();
            Box::new(move |n| {
                values.add(exponential(&mut rng, 1.0));
                looks(n).then(|| quantile(&values, p, ALPHA))
            })
        }));
    }
}

#[test]
fn a_ratio_of_quantiles_is_in_its_interval() {
    // The buckets' edges add 2.2 % on either side, so it is hardly ever wrong.
    at_most_alpha(wrong(1.5, |mut rng| {
        let (mut first, mut second) = (Histogram::default(), Histogram::default());
        Box::new(move |n| {
            let other = rng.random_range(0.0..1.0) < 0.5;
            let (values, mean) = if other { (&mut first, 1.5) } else { (&mut second, 1.0) };
            values.add(exponential(&mut rng, mean));
            (n.is_multiple_of(100)).then(|| quantile_ratio(&first, &second, 0.8, ALPHA))
        })
    }));
}
