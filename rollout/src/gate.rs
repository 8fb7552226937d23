//! What a canary must not get worse at, and what the counts say about it so far.

use serde::{Deserialize, Serialize};

use crate::Interval;
use crate::bernoulli::{Tally, difference, proportion};
use crate::histogram::Histogram;
use crate::quantile::{quantile, quantile_ratio};

/// What gateways measure of every request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Metric {
    /// Requests that failed, of all.
    ErrorRate,
    /// Seconds.
    TimeToFirstToken,
    /// Seconds between two tokens of an answer: its mean over the answer.
    InterTokenLatency,
    /// Seconds.
    EndToEndLatency,
    /// Tokens.
    TokensPerAnswer,
}

/// A bound that the canary has to keep.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bound {
    /// The canary's own value: a share, seconds or tokens.
    Max(f64),
    /// Against stable over the same time: for `ErrorRate` the difference of the shares, otherwise the part by which the
    /// quantile may be larger (0.1: a tenth).
    MaxRegression(f64),
}

/// One metric and one bound.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gate {
    /// What is measured.
    pub metric: Metric,
    /// Which quantile, between 0 and 1, both excluded; of no meaning for `ErrorRate`.
    pub quantile: f64,
    /// What it may be.
    pub bound: Bound,
}

/// What gateways counted of one variant in an epoch, of the requests that the split decides on and that began in it.
///
/// A request that failed, or that is overdue, counts as infinite in the latencies: what never answers is not fast.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Counts {
    /// Requests that ended.
    pub requests: u64,
    /// Those of them that failed by the variant's fault.
    pub errors: u64,
    /// Seconds.
    pub time_to_first_token: Histogram,
    /// Seconds, of the requests that were answered with two tokens or more.
    pub inter_token_latency: Histogram,
    /// Seconds.
    pub end_to_end_latency: Histogram,
    /// Tokens, of the requests that were answered.
    pub tokens_per_answer: Histogram,
}

impl Counts {
    /// How many values there are of `metric`.
    pub fn of(&self, metric: Metric) -> u64 {
        self.histogram(metric).map_or(self.requests, Histogram::count)
    }

    fn histogram(&self, metric: Metric) -> Option<&Histogram> {
        match metric {
            Metric::ErrorRate => None,
            Metric::TimeToFirstToken => Some(&self.time_to_first_token),
            Metric::InterTokenLatency => Some(&self.inter_token_latency),
            Metric::EndToEndLatency => Some(&self.end_to_end_latency),
            Metric::TokensPerAnswer => Some(&self.tokens_per_answer),
        }
    }

    fn errors(&self) -> Tally {
        // More errors than requests would be a gateway's mistake, and must not become a panic here.
        Tally { hits: self.errors.min(self.requests), of: self.requests }
    }
}

/// What can be said of a gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// All of the interval is inside the bound.
    Pass,
    /// All of it is outside.
    Fail,
    /// The bound is in the interval.
    Undecided,
    /// Fewer requests than the minimum.
    TooFewRequests,
}

/// A gate's interval and what follows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Judgement {
    /// Which gate.
    pub gate: Gate,
    /// Of what the bound speaks of, in its unit.
    pub interval: Interval,
    /// What follows from it.
    pub verdict: Verdict,
    /// How many values of the canary were counted.
    pub canary: u64,
    /// How many of stable, where the bound compares with it.
    pub stable: Option<u64>,
}

impl Gate {
    /// Judges the counts. `alpha`: the probability that this gate ever fails a canary that keeps the bound, over all looks.
    pub fn judge(&self, canary: &Counts, stable: &Counts, min_requests: u64, alpha: f64) -> Judgement {
        let compares = matches!(self.bound, Bound::MaxRegression(_));
        let counted = (canary.of(self.metric), compares.then(|| stable.of(self.metric)));
        let (interval, bound) =
            match (self.bound, canary.histogram(self.metric), stable.histogram(self.metric)) {
                (Bound::Max(max), None, _) => (proportion(canary.errors(), alpha), max),
                (Bound::Max(max), Some(values), _) => (quantile(values, self.quantile, alpha), max),
                (Bound::MaxRegression(max), Some(values), Some(theirs)) => {
                    let ratio = quantile_ratio(values, theirs, self.quantile, alpha);
                    (Interval { low: ratio.low - 1.0, high: ratio.high - 1.0 }, max)
                }
                (Bound::MaxRegression(max), ..) => (difference(canary.errors(), stable.errors(), alpha), max),
            };
        let verdict = if counted.0 < min_requests || counted.1.is_some_and(|stable| stable < min_requests) {
            Verdict::TooFewRequests
        } else if interval.low.is_nan() || interval.high.is_nan() || interval.low > interval.high {
            // A quantile or an alpha that is none: nothing may be concluded.
            Verdict::Undecided
        } else if interval.high <= bound {
            Verdict::Pass
        } else if interval.low > bound {
            Verdict::Fail
        } else {
            Verdict::Undecided
        };
        Judgement { gate: *self, interval, verdict, canary: counted.0, stable: counted.1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(errors: u64, requests: u64) -> Counts {
        Counts { requests, errors, ..Counts::default() }
    }

    fn latencies(seconds: f64) -> Counts {
        let mut counts = errors(0, 400);
        (0..400).for_each(|i| counts.time_to_first_token.add(seconds * (1.0 + f64::from(i) / 400.0)));
        counts
    }

    fn verdict(metric: Metric, bound: Bound, canary: &Counts, stable: &Counts) -> Verdict {
        Gate { metric, quantile: 0.9, bound }.judge(canary, stable, 50, 0.01).verdict
    }

    #[test]
    fn errors_are_judged_by_themselves_and_against_stable() {
        let fine = errors(2, 2000);
        for (bound, canary, expected) in [
            (Bound::Max(0.05), &fine, Verdict::Pass),
            (Bound::Max(0.05), &errors(60, 300), Verdict::Fail),
            (Bound::Max(0.05), &errors(15, 300), Verdict::Undecided),
            (Bound::Max(0.05), &errors(0, 49), Verdict::TooFewRequests),
            (Bound::MaxRegression(0.02), &errors(2, 2000), Verdict::Pass),
            (Bound::MaxRegression(0.02), &errors(60, 300), Verdict::Fail),
            // More errors than requests is a gateway's mistake; it is all errors.
            (Bound::MaxRegression(0.02), &errors(900, 300), Verdict::Fail),
        ] {
            assert_eq!(verdict(Metric::ErrorRate, bound, canary, &fine), expected, "{bound:?} {canary:?}");
        }
        assert_eq!(
            verdict(Metric::ErrorRate, Bound::MaxRegression(0.02), &fine, &errors(0, 10)),
            Verdict::TooFewRequests
        );
    }

    #[test]
    fn latencies_are_judged_by_themselves_and_against_stable() {
        let (fast, slow) = (latencies(0.1), latencies(0.2));
        let judge = |bound, canary| verdict(Metric::TimeToFirstToken, bound, canary, &fast);
        assert_eq!(judge(Bound::Max(0.3), &fast), Verdict::Pass);
        assert_eq!(judge(Bound::Max(0.3), &slow), Verdict::Fail);
        assert_eq!(judge(Bound::MaxRegression(0.5), &slow), Verdict::Fail);
        assert_eq!(judge(Bound::MaxRegression(0.5), &fast), Verdict::Pass);
        assert_eq!(judge(Bound::MaxRegression(1.0), &slow), Verdict::Undecided);
        // Requests there were, latencies nobody counted.
        assert_eq!(judge(Bound::Max(0.3), &errors(400, 400)), Verdict::TooFewRequests);
    }
}
