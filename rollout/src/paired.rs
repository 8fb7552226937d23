//! Differences of proportions where both were asked the same questions: a sample of pairs, of a size that was fixed before.
//!
//! Questions are hard or easy for both alike, so only those that went otherwise for one than for the other say anything. This is
//! Tango's score interval (Tango 1998, "Equivalence test and confidence interval for the difference in proportions for the
//! paired-sample design") with a correction for continuity: at a difference of zero it is McNemar's test so corrected. Without the
//! correction it is wrong up to twice as often as it says where there are few questions; with it, less often (tested by adding up all
//! outcomes).

use crate::Interval;
use crate::sample::normal_quantile;

/// How two that were asked the same fared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pairs {
    /// Questions with the property for the first alone.
    pub first: u64,
    /// For the second alone.
    pub second: u64,
    /// All questions, those with it for both or for none included.
    pub of: u64,
}

/// The interval of the first proportion less the second, wrong with a probability of about `alpha` or less.
pub fn paired_difference(pairs: Pairs, alpha: f64) -> Interval {
    let Pairs { first, second, of } = pairs;
    if of == 0 || first.saturating_add(second) > of {
        return Interval { low: -1.0, high: 1.0 };
    }
    let seen = (float(first) - float(second)) / float(of);
    let z = normal_quantile(alpha);
    let border = |outer: f64| {
        if score(pairs, outer).abs() <= z {
            return outer;
        }
        let (mut without, mut within) = (outer, seen);
        for _ in 0..50 {
            let middle = f64::midpoint(without, within);
            if score(pairs, middle).abs() <= z {
                within = middle;
            } else {
                without = middle;
            }
        }
        without
    };
    Interval { low: border(-1.0), high: border(1.0) }
}

/// How many standard deviations what was seen is from a true difference of `d`, one question less.
fn score(Pairs { first, second, of }: Pairs, d: f64) -> f64 {
    let (b, c, n) = (float(first), float(second), float(of));
    // The likeliest share of the second alone, where the difference is d.
    let (two_a, half, last) = (4.0 * n, (2.0 * n - b + c) * d - b - c, -c * d * (1.0 - d));
    let share = ((half * half - 2.0 * two_a * last).max(0.0).sqrt() - half) / two_a;
    let variance = n * (2.0 * share + d * (1.0 - d));
    let off = b - c - n * d;
    let corrected = (off.abs() - 1.0).max(0.0);
    if corrected == 0.0 {
        0.0
    } else if variance > 0.0 {
        corrected.copysign(off) / variance.sqrt()
    } else {
        f64::INFINITY.copysign(off)
    }
}

/// Questions are counted in thousands.
#[allow(clippy::cast_precision_loss)]
fn float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn without_questions_nothing_is_known() {
        let whole = Interval { low: -1.0, high: 1.0 };
        assert_eq!(paired_difference(Pairs::default(), 0.05), whole);
        assert_eq!(paired_difference(Pairs { first: 3, second: 3, of: 5 }, 0.05), whole, "no such sample");
    }

    /// Of 21 questions one version answered 16 and the other 2 of the same.
    #[test]
    fn a_score_of_questions_tells_versions_apart() {
        let found = paired_difference(Pairs { first: 0, second: 14, of: 21 }, 0.004);
        assert!(found.high < -0.1 && found.low > -0.95, "{found:?}");
        // Both alike but for two: nothing is found, and it is known to be little, though each answered half.
        let found = paired_difference(Pairs { first: 1, second: 1, of: 100 }, 0.004);
        assert!(found.low > -0.12 && found.high < 0.12 && found.contains(0.0), "{found:?}");
    }

    /// The probability that the interval lies wholly below the truth, by adding up all outcomes.
    fn wrong(of: u64, d: f64, apart: f64, alpha: f64) -> f64 {
        let ln_factorial = |n: u64| libm::lgamma(float(n) + 1.0);
        let (p, q) = (f64::midpoint(apart, d), f64::midpoint(apart, -d));
        let z = normal_quantile(alpha);
        let mut sum = 0.0;
        for first in 0..=of {
            for second in 0..=of - first {
                let rest = of - first - second;
                if score(Pairs { first, second, of }, d) < -z {
                    let ln =
                        ln_factorial(of) - ln_factorial(first) - ln_factorial(second) - ln_factorial(rest);
                    let ln = ln
                        + float(first) * p.ln()
                        + float(second) * q.ln()
                        + float(rest) * (1.0 - apart).ln();
                    sum += ln.exp();
                }
            }
        }
        sum
    }

    #[test]
    fn a_good_version_fails_no_more_often_than_alpha_allows() {
        let mut most = 0.0_f64;
        for of in [10, 20, 29, 60] {
            for d in [0.0, -0.02, -0.1] {
                for alpha in [0.05, 0.01, 0.004, 0.0002] {
                    for part in 1..20_u64 {
                        // How many answers differ at all.
                        let apart = f64::abs(d) + (1.0 - f64::abs(d)) * (float(part) / 20.0).powi(2);
                        let wrong = wrong(of, d, apart, alpha);
                        assert!(wrong <= alpha / 2.0, "{of} {d} {apart} {alpha}: {wrong}");
                        most = most.max(wrong / (alpha / 2.0));
                    }
                }
            }
        }
        assert!(most > 0.5, "not far too long either: {most}");
    }

    proptest! {
        #[test]
        fn intervals_hold_what_was_seen_and_grow_with_certainty(
            first in 0_u64..60, second in 0_u64..60, more in 0_u64..300, alpha in 1e-6_f64..0.5,
        ) {
            let pairs = Pairs { first, second, of: first + second + more };
            prop_assume!(pairs.of > 0);
            let found = paired_difference(pairs, alpha);
            let seen = (float(first) - float(second)) / float(pairs.of);
            prop_assert!(found.contains(seen) && found.low >= -1.0 && found.high <= 1.0, "{found:?} {seen}");
            let surer = paired_difference(pairs, alpha / 10.0);
            prop_assert!(surer.low <= found.low + 1e-9 && found.high - 1e-9 <= surer.high);
            let turned = paired_difference(Pairs { first: second, second: first, of: pairs.of }, alpha);
            prop_assert!((turned.low + found.high).abs() < 1e-6 && (turned.high + found.low).abs() < 1e-6);
            // At zero it is McNemar's test.
            let (b, c) = (float(first), float(second));
            let mcnemar = if first == second { 0.0 } else { ((b - c).abs() - 1.0) / (b + c).sqrt() };
            let z = normal_quantile(alpha);
            prop_assume!((mcnemar - z).abs() > 1e-6);
            prop_assert_eq!(mcnemar <= z, found.contains(0.0), "{:?} {} {}", found, mcnemar, z);
        }
    }
}
