//! Quantiles, such as the 95th percentile of the time to first token, in intervals that hold at all times at once.
//!
//! Of the values that come, each is at most the true p-quantile with probability p (where the distribution has a jump there, a random
//! part of the values at the jump is). So how many of them are at most x is, for
//! the true quantile, a tally of a known proportion, and the martingale of `bernoulli` says which x it can be. Nothing is assumed of
//! the distribution. (Howard and Ramdas 2022, "Sequential estimation of quantiles with applications to A/B testing and
//! best-arm identification", whose bounds come from the same martingales.)

use crate::Interval;
use crate::bernoulli::{Tally, float, mixture};
use crate::histogram::Histogram;

/// How many values the Beta prior counts for. It is centred on p; the larger, the shorter the interval after many values and the
/// longer after few. At 30 it is near its best from some hundred to some ten thousand values.
const PRIOR_VALUES: f64 = 30.0;

/// The interval of the `p`-quantile of what `values` counted, wrong with probability `alpha` at most over all times.
///
/// Its ends are edges of buckets, so it is rather too long. `p` is between 0 and 1, both excluded.
pub fn quantile(values: &Histogram, p: f64, alpha: f64) -> Interval {
    let limit = alpha.recip().ln();
    let inside = stretches(values, p).filter(|stretch| stretch.excess <= limit);
    inside.fold(Interval { low: f64::INFINITY, high: 0.0 }, |found, stretch| Interval {
        low: found.low.min(stretch.low),
        high: found.high.max(stretch.high),
    })
}

/// The interval of the `p`-quantile of `first` divided by that of `second`, of two independent streams.
///
/// The product of the two martingales is one too; a ratio is inside as long as some pair of quantiles with that ratio is.
pub fn quantile_ratio(first: &Histogram, second: &Histogram, p: f64, alpha: f64) -> Interval {
    let limit = alpha.recip().ln();
    let (mut first, mut second): (Vec<_>, Vec<_>) =
        (stretches(first, p).collect(), stretches(second, p).collect());
    // Most stretches fit with none.
    let least = |of: &[Stretch]| of.iter().map(|stretch| stretch.excess).fold(f64::INFINITY, f64::min);
    let (mine, theirs) = (least(&first), least(&second));
    first.retain(|stretch| stretch.excess + theirs <= limit);
    second.retain(|stretch| stretch.excess + mine <= limit);
    let mut found = Interval { low: f64::INFINITY, high: 0.0 };
    for theirs in &second {
        // The excesses fall and then rise, so the plausible ones lie together.
        let fits = |stretch: &&Stretch| stretch.excess + theirs.excess <= limit;
        if let (Some(lowest), Some(highest)) = (first.iter().find(fits), first.iter().rev().find(fits)) {
            found.low = found.low.min(lowest.low / theirs.high);
            found.high =
                found.high.max(if theirs.low == 0.0 { f64::INFINITY } else { highest.high / theirs.low });
        }
    }
    found
}

/// A stretch of values among which the quantile may be.
struct Stretch {
    low: f64,
    high: f64,
    /// The logarithm of the martingale for a quantile there, at its least.
    excess: f64,
}

/// Buckets, and the gaps between them, upwards from 0 to infinity.
fn stretches(values: &Histogram, p: f64) -> impl Iterator<Item = Stretch> {
    let of = values.count();
    // For an x within a bucket of which `least` values are below and `most` at most at its upper edge.
    let stretch = move |low: f64, high: f64, least: u64, most: u64| {
        // The excess has one minimum, within one of where p puts it.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let likeliest = (p * float(of)).round() as u64;
        let (lower, upper) =
            (likeliest.saturating_sub(1).clamp(least, most), (likeliest + 1).clamp(least, most));
        let excess = (lower..=upper).map(|hits| excess(Tally { hits, of }, p)).fold(f64::INFINITY, f64::min);
        Stretch { low, high, excess }
    };
    let mut made = Vec::new();
    let (mut edge, mut below) = (0.0, 0);
    for (low, high, count) in values.buckets() {
        if low > edge {
            made.push(stretch(edge, low, below, below));
        }
        made.push(stretch(low, high, below, below + count));
        (edge, below) = (high, below + count);
    }
    if edge < f64::INFINITY {
        made.push(stretch(edge, f64::INFINITY, below, below));
    }
    made.into_iter()
}

/// The logarithm of the martingale of a stream whose proportion is `p`.
fn excess(tally: Tally, p: f64) -> f64 {
    let prior = (PRIOR_VALUES * p, PRIOR_VALUES * (1.0 - p));
    mixture(tally, prior) - float(tally.hits) * p.ln() - float(tally.of - tally.hits) * (-p).ln_1p()
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
    fn without_values_nothing_is_known() {
        let nothing = Histogram::default();
        assert_eq!(quantile(&nothing, 0.95, 0.05), Interval { low: 0.0, high: f64::INFINITY });
        let ratio = quantile_ratio(&of(&[1.0]), &nothing, 0.95, 0.05);
        assert_eq!(ratio, Interval { low: 0.0, high: f64::INFINITY });
    }

    #[test]
    fn many_values_leave_a_short_interval_around_the_quantile() {
        let values: Vec<f64> = (0..10_000).map(|i| 0.1 + f64::from(i) / 10_000.0).collect();
        let found = quantile(&of(&values), 0.95, 0.01);
        assert!(found.contains(1.05) && found.low > 1.0 && found.high < 1.1, "{found:?}");
        let slower: Vec<f64> = values.iter().map(|value| value * 1.5).collect();
        let ratio = quantile_ratio(&of(&slower), &of(&values), 0.95, 0.01);
        assert!(ratio.contains(1.5) && ratio.low > 1.4 && ratio.high < 1.6, "{ratio:?}");
    }

    /// The interval of a ratio is that of all pairs of stretches whose martingales' product is below 1/alpha, also where one stream has
    /// far fewer values.
    #[test]
    fn the_ratio_is_the_hull_of_all_plausible_pairs() {
        let many: Vec<f64> = (0..20_000).map(|i| 0.1 + f64::from(i % 997) / 500.0).collect();
        let few: Vec<f64> = many.iter().copied().step_by(40).collect();
        for (first, second) in [(&many, &few), (&few, &many), (&few, &few)] {
            let (first, second, p, alpha) = (of(first), of(second), 0.95, 0.004);
            let limit = f64::ln(1.0 / alpha);
            let mut hull = Interval { low: f64::INFINITY, high: 0.0 };
            for mine in stretches(&first, p) {
                for theirs in stretches(&second, p).filter(|theirs| mine.excess + theirs.excess <= limit) {
                    hull.low = hull.low.min(mine.low / theirs.high);
                    hull.high = hull.high.max(mine.high / theirs.low);
                }
            }
            assert_eq!(quantile_ratio(&first, &second, p, alpha), hull);
        }
    }

    proptest! {
        #[test]
        fn the_quantile_of_what_was_seen_is_inside(mut values in prop::collection::vec(0.001_f64..100.0, 1..300), p in 0.05_f64..0.99) {
            let found = quantile(&of(&values), p, 0.05);
            values.sort_by(f64::total_cmp);
            let at = ((p * float(values.len() as u64)).ceil() as usize).clamp(1, values.len()) - 1;
            prop_assert!(found.contains(values[at]), "{found:?} {}", values[at]);
            let ratio = quantile_ratio(&of(&values), &of(&values), p, 0.05);
            prop_assert!(ratio.contains(1.0), "{ratio:?}");
        }

        #[test]
        fn a_smaller_alpha_never_shortens(values in prop::collection::vec(0.001_f64..100.0, 1..300), p in 0.05_f64..0.99) {
            let (wide, narrow) = (quantile(&of(&values), p, 0.001), quantile(&of(&values), p, 0.05));
            prop_assert!(wide.low <= narrow.low && wide.high >= narrow.high);
        }

        #[test]
        fn a_slower_stream_is_not_faster(values in prop::collection::vec(0.01_f64..1.0, 50..300), factor in 1.1_f64..8.0) {
            let slower: Vec<f64> = values.iter().map(|value| value * factor).collect();
            let ratio = quantile_ratio(&of(&slower), &of(&values), 0.5, 0.05);
            // The buckets' edges add 2.2 % on either side.
            prop_assert!(ratio.low <= factor * 1.05 && ratio.high >= factor / 1.05, "{ratio:?}");
        }
    }
}
