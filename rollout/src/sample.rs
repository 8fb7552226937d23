//! Proportions of samples of a size that was fixed before, such as an Evaluation's questions.
//!
//! Such a sample is complete when it is first seen and stays the same, so it needs no interval that holds at all times, which would
//! be nearly twice as long. These are Wilson's score interval and Newcombe's for differences, made of it (Wilson 1927; Newcombe 1998,
//! "Interval estimation for the difference between independent proportions", method 10). Both are close approximations, also of few and
//! of extreme values, where the textbook's interval is not.

use crate::Interval;
use crate::bernoulli::Tally;

/// The interval of the proportion behind a sample, wrong with a probability of about `alpha`.
pub fn sampled_proportion(sample: Tally, alpha: f64) -> Interval {
    let Some(share) = sample.share() else { return Interval { low: 0.0, high: 1.0 } };
    // Questions are counted in thousands.
    #[allow(clippy::cast_precision_loss)]
    let n = sample.of as f64;
    let z = normal_quantile(alpha);
    let shrunk = 1.0 + z * z / n;
    let middle = (share + z * z / (2.0 * n)) / shrunk;
    let half = z / shrunk * (share * (1.0 - share) / n + z * z / (4.0 * n * n)).sqrt();
    Interval { low: (middle - half).max(0.0), high: (middle + half).min(1.0) }
}

/// The interval of the first proportion less the second, of two independent samples.
pub fn sampled_difference(first: Tally, second: Tally, alpha: f64) -> Interval {
    let (Some(p), Some(q)) = (first.share(), second.share()) else {
        return Interval { low: -1.0, high: 1.0 };
    };
    let (one, two) = (sampled_proportion(first, alpha), sampled_proportion(second, alpha));
    Interval {
        low: (p - q - (p - one.low).hypot(two.high - q)).max(-1.0),
        high: (p - q + (one.high - p).hypot(q - two.low)).min(1.0),
    }
}

/// How many standard deviations a normal variable is off with a probability of `alpha`, to either side.
pub(crate) fn normal_quantile(alpha: f64) -> f64 {
    let (mut within, mut without) = (0.0, 40.0);
    for _ in 0..60 {
        let middle = f64::midpoint(within, without);
        if libm::erfc(middle / std::f64::consts::SQRT_2) > alpha {
            within = middle;
        } else {
            without = middle;
        }
    }
    without
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn close(interval: Interval, low: f64, high: f64) {
        assert!(
            (interval.low - low).abs() < 5e-4 && (interval.high - high).abs() < 5e-4,
            "{interval:?} is not {low} to {high}"
        );
    }

    #[test]
    fn quantiles_are_those_of_the_tables() {
        for (alpha, z) in [(0.05, 1.959_964), (0.01, 2.575_829), (0.001, 3.290_527)] {
            assert!((normal_quantile(alpha) - z).abs() < 1e-5, "{alpha}");
        }
    }

    /// The examples of Newcombe's two papers of 1998.
    #[test]
    fn published_examples_are_met() {
        let of = |hits, of| Tally { hits, of };
        close(sampled_proportion(of(81, 263), 0.05), 0.2553, 0.3662);
        close(sampled_proportion(of(0, 20), 0.05), 0.0, 0.1611);
        close(sampled_difference(of(56, 70), of(48, 80), 0.05), 0.0524, 0.3339);
        close(sampled_difference(of(9, 10), of(3, 10), 0.05), 0.1705, 0.8090);
        close(sampled_difference(of(10, 10), of(0, 10), 0.05), 0.6075, 1.0);
    }

    #[test]
    fn nothing_is_known_of_nothing() {
        let none = Tally::default();
        assert_eq!(sampled_proportion(none, 0.05), Interval { low: 0.0, high: 1.0 });
        assert_eq!(
            sampled_difference(none, Tally { hits: 1, of: 2 }, 0.05),
            Interval { low: -1.0, high: 1.0 }
        );
    }

    proptest! {
        #[test]
        fn intervals_hold_what_was_seen_and_grow_with_certainty(
            of in 1..500_u64, part in 0.0..=1.0_f64, other in 1..500_u64, share in 0.0..=1.0_f64, alpha in 1e-6..0.5_f64,
        ) {
            // Parts of counts.
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
            let tally = |of: u64, part: f64| Tally { hits: (of as f64 * part) as u64, of };
            let (one, two) = (tally(of, part), tally(other, share));
            let seen = one.share().unwrap() - two.share().unwrap();
            let interval = sampled_difference(one, two, alpha);
            prop_assert!(interval.low <= seen + 1e-9 && seen - 1e-9 <= interval.high, "{interval:?} {seen}");
            let surer = sampled_difference(one, two, alpha / 10.0);
            prop_assert!(surer.low <= interval.low + 1e-9 && interval.high - 1e-9 <= surer.high);
        }
    }
}
