//! Proportions, such as the share of requests that fail, in intervals that hold at all times at once.
//!
//! An ordinary confidence interval that is looked at after every minute is wrong sooner or later. These come from martingales:
//! for the true proportion p, the mixture of likelihoods over a Beta prior divided by the likelihood of p has expectation 1
//! after any number of requests, and by Ville's inequality ever exceeds 1/alpha with probability alpha at most. The
//! interval is every p whose ratio does not. (Robbins 1970; Howard, Ramdas, McAuliffe and Sekhon 2021, "Time-uniform,
//! nonparametric, nonasymptotic confidence sequences", section 4 and the beta-binomial mixture.)
//!
//! They are functions of the counts alone, so that nothing but counts has to survive a restart.

use crate::Interval;

/// How many of how many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Those with the property.
    pub hits: u64,
    /// All.
    pub of: u64,
}

impl Tally {
    /// The part with the property; `None` of none.
    pub fn share(self) -> Option<f64> {
        (self.of > 0).then(|| share(self.hits, self.of))
    }
}

/// The Beta prior of proportions: little weight, most of it on small proportions, where error rates are.
const PRIOR: (f64, f64) = (0.5, 4.0);
/// Halvings of a bracket; a bracket of length 1 ends below 1e-15.
const HALVINGS: u32 = 50;

/// The interval of the proportion behind `tally`, wrong with probability `alpha` at most over all times at which it is looked at.
pub fn proportion(tally: Tally, alpha: f64) -> Interval {
    let Tally { hits, of } = tally;
    if of == 0 {
        return Interval { low: 0.0, high: 1.0 };
    }
    let inside = |p: f64| holds(tally, p, alpha);
    let middle = share(hits, of);
    Interval { low: border(0.0, middle, inside), high: border(1.0, middle, inside) }
}

/// Whether `p` is in the interval of the proportion; far cheaper than its ends.
pub fn holds(tally: Tally, p: f64, alpha: f64) -> bool {
    tally.of == 0 || likelihood(tally, p) >= mixture(tally, PRIOR) - alpha.recip().ln()
}

/// Whether `d` is in the interval of the difference; far cheaper than its ends.
pub fn difference_holds(first: Tally, second: Tally, d: f64, alpha: f64) -> bool {
    let bound = || mixture(first, PRIOR) + mixture(second, PRIOR) - alpha.recip().ln();
    first.of == 0 || second.of == 0 || likeliest_pair(first, second, d) >= bound()
}

/// The interval of the first proportion less the second, of two independent streams.
///
/// The product of the two martingales is one too. A difference is inside as long as some pair of proportions with that difference
/// is; this is shorter than the difference of two intervals, by the square root of two where both are as wide.
pub fn difference(first: Tally, second: Tally, alpha: f64) -> Interval {
    if first.of == 0 || second.of == 0 {
        return Interval { low: -1.0, high: 1.0 };
    }
    let bound = mixture(first, PRIOR) + mixture(second, PRIOR) - alpha.recip().ln();
    let inside = |d: f64| likeliest_pair(first, second, d) >= bound;
    let middle = share(first.hits, first.of) - share(second.hits, second.of);
    Interval { low: border(-1.0, middle, inside), high: border(1.0, middle, inside) }
}

/// The logarithm of the largest likelihood of two proportions, the first larger than the second by `d`.
fn likeliest_pair(first: Tally, second: Tally, d: f64) -> f64 {
    let (mut low, mut high) = (f64::max(0.0, -d), f64::min(1.0, 1.0 - d));
    // The sum is concave in the second proportion: its slope falls.
    for _ in 0..HALVINGS {
        let p = f64::midpoint(low, high);
        if slope(first, p + d) + slope(second, p) > 0.0 {
            low = p;
        } else {
            high = p;
        }
    }
    let p = f64::midpoint(low, high);
    likelihood(first, (p + d).clamp(0.0, 1.0)) + likelihood(second, p)
}

/// The end of a stretch that holds `inside`, begins at `inside` and ends before or at `outer`.
fn border(outer: f64, inner: f64, inside: impl Fn(f64) -> bool) -> f64 {
    if inside(outer) {
        return outer;
    }
    let (mut without, mut within) = (outer, inner);
    for _ in 0..HALVINGS {
        let middle = f64::midpoint(without, within);
        if inside(middle) {
            within = middle;
        } else {
            without = middle;
        }
    }
    // The one that is not inside: the interval is rather too long.
    without
}

/// The logarithm of the likelihood of `p`.
fn likelihood(Tally { hits, of }: Tally, p: f64) -> f64 {
    times_ln(hits, p) + times_ln(of - hits, 1.0 - p)
}

/// The slope of `likelihood` at `p`.
fn slope(Tally { hits, of }: Tally, p: f64) -> f64 {
    let part = |count: u64, p: f64| if count == 0 { 0.0 } else { float(count) / p.max(f64::MIN_POSITIVE) };
    part(hits, p) - part(of - hits, 1.0 - p)
}

fn times_ln(count: u64, p: f64) -> f64 {
    if count == 0 { 0.0 } else { float(count) * p.ln() }
}

/// The logarithm of the likelihood's mean over the Beta distribution `prior`.
pub(crate) fn mixture(Tally { hits, of }: Tally, (a, b): (f64, f64)) -> f64 {
    ln_beta(a + float(hits), b + float(of - hits)) - ln_beta(a, b)
}

fn ln_beta(a: f64, b: f64) -> f64 {
    libm::lgamma(a) + libm::lgamma(b) - libm::lgamma(a + b)
}

fn share(hits: u64, of: u64) -> f64 {
    float(hits) / float(of)
}

/// Counts here are far below 2^53.
#[allow(clippy::cast_precision_loss)]
pub(crate) fn float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn without_requests_nothing_is_known() {
        assert_eq!(proportion(Tally::default(), 0.05), Interval { low: 0.0, high: 1.0 });
        let some = Tally { hits: 1, of: 9 };
        assert_eq!(difference(some, Tally::default(), 0.05), Interval { low: -1.0, high: 1.0 });
    }

    #[test]
    fn none_of_many_bounds_the_proportion_from_above() {
        let Interval { low, high } = proportion(Tally { hits: 0, of: 1000 }, 0.05);
        assert_eq!(low, 0.0);
        // (1 - p)^1000 = 0.05 B(0.5, 1004) / B(0.5, 4): about 0.6 %.
        assert!(high > 0.003 && high < 0.009, "{high}");
    }

    /// The mixture is a distribution over the counts, so that its ratio to any other has mean 1: what the intervals stand on.
    #[test]
    fn the_mixture_of_all_outcomes_sums_to_one() {
        for of in [1, 7, 60, 400] {
            let outcomes =
                |hits: u64| -ln_beta(float(hits) + 1.0, float(of - hits) + 1.0) - float(of + 1).ln();
            for prior in [PRIOR, (30.0 * 0.95, 30.0 * 0.05)] {
                let sum: f64 =
                    (0..=of).map(|hits| (outcomes(hits) + mixture(Tally { hits, of }, prior)).exp()).sum();
                assert!((sum - 1.0).abs() < 1e-9, "{of} {prior:?}: {sum}");
            }
        }
    }

    proptest! {
        #[test]
        fn what_was_seen_is_inside(hits in 0_u64..500, more in 0_u64..5000, hits2 in 0_u64..500, more2 in 0_u64..5000) {
            let (first, second) = (Tally { hits, of: hits + more }, Tally { hits: hits2, of: hits2 + more2 });
            prop_assume!(first.of > 0 && second.of > 0);
            let p = |tally: Tally| share(tally.hits, tally.of);
            let one = proportion(first, 0.05);
            prop_assert!(one.contains(p(first)) && one.low >= 0.0 && one.high <= 1.0);
            let two = difference(first, second, 0.05);
            prop_assert!(two.contains(p(first) - p(second)), "{two:?}");
        }

        #[test]
        fn what_is_held_is_inside(hits in 0_u64..50, more in 1_u64..500, hits2 in 0_u64..50, more2 in 1_u64..500, p in 0.0_f64..1.0) {
            let (first, second) = (Tally { hits, of: hits + more }, Tally { hits: hits2, of: hits2 + more2 });
            let (one, two) = (proportion(first, 0.05), difference(first, second, 0.05));
            // Not at the ends, which are rounded.
            let near = |interval: Interval, value: f64| (interval.low - value).abs() < 1e-9 || (interval.high - value).abs() < 1e-9;
            prop_assert!(near(one, p) || holds(first, p, 0.05) == one.contains(p));
            let d = 2.0 * p - 1.0;
            prop_assert!(near(two, d) || difference_holds(first, second, d, 0.05) == two.contains(d));
        }

        #[test]
        fn a_smaller_alpha_never_shortens(hits in 0_u64..50, more in 1_u64..500) {
            let tally = Tally { hits, of: hits + more };
            let (wide, narrow) = (proportion(tally, 0.001), proportion(tally, 0.05));
            prop_assert!(wide.low <= narrow.low && wide.high >= narrow.high);
            let other = Tally { hits: 3, of: 200 };
            let (wide, narrow) = (difference(tally, other, 0.001), difference(tally, other, 0.05));
            prop_assert!(wide.low <= narrow.low && wide.high >= narrow.high);
        }

        #[test]
        fn swapping_turns_the_sign(hits in 0_u64..50, more in 1_u64..500, hits2 in 0_u64..50, more2 in 1_u64..500) {
            let (first, second) = (Tally { hits, of: hits + more }, Tally { hits: hits2, of: hits2 + more2 });
            let (there, back) = (difference(first, second, 0.05), difference(second, first, 0.05));
            prop_assert!((there.low + back.high).abs() < 1e-9 && (there.high + back.low).abs() < 1e-9);
        }

        #[test]
        fn more_of_the_same_shortens(hits in 0_u64..20, more in 1_u64..200) {
            let width = |factor: u64| {
                let found = proportion(Tally { hits: hits * factor, of: (hits + more) * factor }, 0.05);
                found.high - found.low
            };
            prop_assert!(width(10) <= width(1) + 1e-12);
        }
    }
}
