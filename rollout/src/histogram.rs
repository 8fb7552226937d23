//! Counts of values on a logarithmic scale: what a gateway keeps of latencies and lengths.
//!
//! Buckets are 2.2 % wide, so that a quantile read from them is as exact as a rollout needs, and histograms of several gateways
//! add up without loss.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Buckets for a doubling.
const PER_DOUBLING: f64 = 32.0;
/// The smallest value that is told apart from nothing.
const SMALLEST: f64 = 1e-5;
/// The last bucket; its lower edge is some 45 hours, or as many tokens as seconds.
const LAST: u16 = 1086;

/// Counts of positive values.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Histogram {
    counts: BTreeMap<u16, u64>,
}

impl Histogram {
    /// Counts one value. What is not a number is not counted; what is too small or too large is in the first or last bucket.
    pub fn add(&mut self, value: f64) {
        self.add_many(value, 1);
    }

    /// Counts a value so many times.
    pub fn add_many(&mut self, value: f64, times: u64) {
        if !value.is_nan() && times > 0 {
            let count = self.counts.entry(bucket(value)).or_default();
            *count = count.saturating_add(times);
        }
    }

    /// Counts everything that `other` has counted.
    pub fn merge(&mut self, other: &Self) {
        for (bucket, count) in &other.counts {
            let mine = self.counts.entry(*bucket).or_default();
            *mine = mine.saturating_add(*count);
        }
    }

    /// How many values.
    pub fn count(&self) -> u64 {
        self.counts.values().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// How many values are certainly `value` or more.
    pub fn at_least(&self, value: f64) -> u64 {
        self.buckets().filter(|(low, ..)| *low >= value).fold(0, |sum, (.., count)| sum.saturating_add(count))
    }

    /// The `p`-quantile, as exact as its bucket is narrow; infinite where it is that of requests that were never answered. `None`
    /// without values.
    pub fn quantile(&self, p: f64) -> Option<f64> {
        let of = self.count();
        #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let rank = ((p * of as f64).ceil() as u64).clamp(1, of.max(1));
        let mut below = 0_u64;
        self.buckets().find_map(|(low, high, count)| {
            below = below.saturating_add(count);
            // The middle on the logarithmic scale; the first bucket begins at nothing.
            (below >= rank).then(|| if low == 0.0 || high.is_infinite() { high } else { (low * high).sqrt() })
        })
    }

    /// Every bucket with something in it, upwards: its lower edge, its upper edge, its count.
    pub fn buckets(&self) -> impl Iterator<Item = (f64, f64, u64)> {
        self.counts.iter().map(|(bucket, count)| (edge(*bucket), upper(*bucket), *count))
    }
}

/// The bucket of a value: 0 for what is at most `SMALLEST`, then upwards; a bucket holds its upper edge.
fn bucket(value: f64) -> u16 {
    if value <= SMALLEST {
        return 0;
    }
    let place = (PER_DOUBLING * (value / SMALLEST).log2()).ceil();
    // At least 1 as the value is above SMALLEST, and not above LAST.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let place = place.clamp(1.0, f64::from(LAST)) as u16;
    place
}

fn edge(bucket: u16) -> f64 {
    if bucket == 0 { 0.0 } else { SMALLEST * (f64::from(bucket - 1) / PER_DOUBLING).exp2() }
}

fn upper(bucket: u16) -> f64 {
    if bucket == LAST { f64::INFINITY } else { SMALLEST * (f64::from(bucket) / PER_DOUBLING).exp2() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(values: &[f64]) -> Histogram {
        let mut made = Histogram::default();
        values.iter().for_each(|value| made.add(*value));
        made
    }

    #[test]
    fn odd_values_are_counted_at_the_ends_or_not_at_all() {
        let made = of(&[-1.0, 0.0, f64::NAN, f64::INFINITY, 1e300]);
        assert_eq!(made.count(), 4);
        let ends: Vec<_> = made.buckets().collect();
        assert_eq!((ends.len(), ends[0].0, ends[1].1), (2, 0.0, f64::INFINITY));
    }

    #[test]
    fn quantiles_and_tails_are_read_from_buckets() {
        let made = of(&[0.1, 0.2, 0.3, 0.4, f64::INFINITY]);
        let near = |p: f64, value: f64| (made.quantile(p).unwrap() / value - 1.0).abs() < 0.023;
        assert!(near(0.2, 0.1) && near(0.5, 0.3) && near(0.01, 0.1));
        assert_eq!(made.quantile(0.99), Some(f64::INFINITY));
        assert_eq!(Histogram::default().quantile(0.5), None);
        assert_eq!([made.at_least(0.15), made.at_least(0.0), made.at_least(1.0)], [4, 5, 1]);
        let text = serde_json::to_string(&made).unwrap();
        assert_eq!(serde_json::from_str::<Histogram>(&text).unwrap(), made);
    }

    proptest! {
        #[test]
        fn a_value_lies_in_its_bucket(value in 1e-7_f64..1e5) {
            let (low, high, count) = of(&[value]).buckets().next().unwrap();
            prop_assert_eq!(count, 1);
            // At an edge the last digits of the logarithm decide.
            prop_assert!(low <= value * (1.0 + 1e-12) && value <= high * (1.0 + 1e-12));
            prop_assert!(value <= SMALLEST || high / low < 1.0221);
        }

        #[test]
        fn merging_counts_all(a in prop::collection::vec(0.001_f64..100.0, 0..40), b in prop::collection::vec(0.001_f64..100.0, 0..40)) {
            let mut merged = of(&a);
            merged.merge(&of(&b));
            let all = [a, b].concat();
            prop_assert_eq!(merged, of(&all));
        }
    }
}
