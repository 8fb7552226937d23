//! What a canary must keep to, and what the counts say about it so far.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::Interval;
use crate::bernoulli::{difference, difference_holds, holds, proportion};
use crate::counts::Counts;
use crate::quantile::{quantile, quantile_ratio};

/// What is measured.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema,
)]
pub enum Metric {
    /// Requests that failed, of all.
    ErrorRate,
    /// Seconds to the first token of a streamed answer.
    TimeToFirstToken,
    /// Seconds between two tokens of a streamed answer: its mean over the answer.
    InterTokenLatency,
    /// Seconds to the end of the answer.
    EndToEndLatency,
    /// Tokens of an answer.
    TokensPerAnswer,
    /// What a query of Prometheus gives. Judged elsewhere: [`External`].
    Prometheus,
    /// A score of an Evaluation. Judged elsewhere: [`External`].
    Evaluation,
}

impl Metric {
    /// Whether gateways count it.
    pub fn is_counted(self) -> bool {
        !matches!(self, Self::Prometheus | Self::Evaluation)
    }

    /// Whether it is a latency or a length, of which a quantile is judged.
    pub fn has_quantile(self) -> bool {
        self.is_counted() && self != Self::ErrorRate
    }
}

/// A bound that the canary has to keep.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bound {
    /// The most that the canary's own value may be: a share, seconds or tokens.
    Max(f64),
    /// The least that it may be.
    Min(f64),
    /// How much worse than stable over the same time it may be: for `ErrorRate` the difference of the shares, otherwise the part by
    /// which the quantile may be larger (0.1: a tenth).
    MaxRegression(f64),
    /// How much better it has to be, in the same unit: smaller by so much.
    MinImprovement(f64),
}

impl Bound {
    /// The number.
    pub fn limit(self) -> f64 {
        match self {
            Self::Max(limit)
            | Self::Min(limit)
            | Self::MaxRegression(limit)
            | Self::MinImprovement(limit) => limit,
        }
    }

    /// Whether it compares with stable.
    pub fn compares(self) -> bool {
        matches!(self, Self::MaxRegression(_) | Self::MinImprovement(_))
    }

    /// What follows from where the value, the regression or the improvement lies.
    pub fn verdict(self, interval: Interval) -> Verdict {
        let Interval { low, high } = interval;
        let limit = self.limit();
        let upwards = matches!(self, Self::Min(_) | Self::MinImprovement(_));
        if low.is_nan() || high.is_nan() || low > high {
            // A quantile or an alpha that is none: nothing may be concluded.
            Verdict::Undecided
        } else if (upwards && low >= limit) || (!upwards && high <= limit) {
            Verdict::Pass
        } else if (upwards && high < limit) || (!upwards && low > limit) {
            Verdict::Fail
        } else {
            Verdict::Undecided
        }
    }
}

/// One metric and one bound.
#[derive(Clone, Debug, PartialEq)]
pub struct Gate {
    /// What is measured.
    pub metric: Metric,
    /// Which quantile, between 0 and 1, both excluded; of no meaning where the metric has none.
    pub quantile: f64,
    /// What it may be.
    pub bound: Bound,
    /// Which of several, for people: the name of an Evaluation and its score.
    pub of: Option<String>,
}

/// What can be said of a gate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum Verdict {
    /// All of the interval is inside the bound.
    Pass,
    /// All of it is outside.
    Fail,
    /// The bound is in the interval.
    #[default]
    Undecided,
    /// Fewer requests than the minimum.
    TooFewRequests,
    /// There is nothing to judge by: a query failed or gave nothing, an Evaluation has not run.
    NotMeasured,
}

/// What was found of a gate that others judge.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct External {
    /// What follows from it.
    pub verdict: Verdict,
    /// Of the canary.
    pub canary: Option<f64>,
    /// Of stable, where compared.
    pub stable: Option<f64>,
    /// Where what the bound speaks of lies, when that is known as an interval.
    pub interval: Option<Interval>,
    /// How many values there are of the canary, and of stable where compared.
    pub counted: (u64, Option<u64>),
    /// Why it could not be measured, in words.
    pub note: Option<String>,
}

/// A gate's interval and what follows.
#[derive(Clone, Debug, PartialEq)]
pub struct Judgement {
    /// Which gate.
    pub gate: Gate,
    /// Of what the bound speaks of, in its unit.
    pub interval: Interval,
    /// What follows from it.
    pub verdict: Verdict,
    /// Which requests were judged: those that began since then, or those of the whole step.
    pub since: Option<Timestamp>,
    /// The value itself: of the canary, and of stable where the bound compares with it.
    pub values: (Option<f64>, Option<f64>),
    /// How many values of the canary were counted.
    pub canary: u64,
    /// How many of stable, where the bound compares with it.
    pub stable: Option<u64>,
    /// Why it could not be measured, in words.
    pub note: Option<String>,
}

impl Gate {
    /// Judges counts. `alpha`: the probability that this gate ever fails a canary that keeps the bound, over all looks at counts that
    /// only grow.
    pub fn judge(&self, canary: &Counts, stable: &Counts, min_requests: u64, alpha: f64) -> Judgement {
        let Self { metric, quantile: p, bound, of: _ } = self;
        let compares = bound.compares();
        let (interval, values, counted) = if metric.has_quantile() {
            let beyond = self.beyond(stable);
            let (mine, theirs) = (canary.values(*metric, beyond), stable.values(*metric, beyond));
            let interval = if compares {
                let ratio = quantile_ratio(&mine, &theirs, *p, alpha);
                Interval { low: ratio.low - 1.0, high: ratio.high - 1.0 }
            } else {
                quantile(&mine, *p, alpha)
            };
            (interval, (mine.quantile(*p), theirs.quantile(*p)), (mine.count(), theirs.count()))
        } else {
            let (mine, theirs) = (canary.failed(), stable.failed());
            let interval = if compares { difference(mine, theirs, alpha) } else { proportion(mine, alpha) };
            (interval, (mine.share(), theirs.share()), (mine.of, theirs.of))
        };
        let interval = match bound {
            Bound::MinImprovement(_) => Interval { low: -interval.high, high: -interval.low },
            Bound::Max(_) | Bound::Min(_) | Bound::MaxRegression(_) => interval,
        };
        let few = counted.0 < min_requests || (compares && counted.1 < min_requests);
        Judgement {
            gate: self.clone(),
            interval,
            verdict: if few { Verdict::TooFewRequests } else { bound.verdict(interval) },
            since: None,
            values: (values.0, values.1.filter(|_| compares)),
            canary: counted.0,
            stable: compares.then_some(counted.1),
            note: None,
        }
    }

    /// Whether judging these counts may say `Fail`. Far cheaper than to judge where it may not.
    pub fn may_fail(&self, canary: &Counts, stable: &Counts, alpha: f64) -> bool {
        if self.metric != Metric::ErrorRate {
            return true;
        }
        let (mine, theirs) = (canary.failed(), stable.failed());
        match self.bound {
            Bound::Max(limit) | Bound::Min(limit) => !holds(mine, limit, alpha),
            Bound::MaxRegression(limit) => !difference_holds(mine, theirs, limit, alpha),
            Bound::MinImprovement(limit) => !difference_holds(mine, theirs, -limit, alpha),
        }
    }

    /// What others found, as a judgement.
    pub fn external(&self, found: &External) -> Judgement {
        let External { verdict, canary, stable, interval, counted, note } = found.clone();
        let point = canary.unwrap_or(f64::NAN);
        Judgement {
            gate: self.clone(),
            interval: interval.unwrap_or(Interval { low: point, high: point }),
            verdict,
            since: None,
            values: (canary, stable),
            canary: counted.0,
            stable: counted.1,
            note,
        }
    }

    /// From which age on a request that is waited for is known to break the bound. Against stable it is the age at which stable itself
    /// would.
    fn beyond(&self, stable: &Counts) -> Option<f64> {
        let theirs = || stable.values(self.metric, None).quantile(self.quantile);
        match self.bound {
            Bound::Max(limit) | Bound::Min(limit) => Some(limit),
            Bound::MaxRegression(part) => theirs().map(|value| value * (1.0 + part)),
            Bound::MinImprovement(part) => theirs().map(|value| value * (1.0 - part)),
        }
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
        Gate { metric, quantile: 0.9, bound, of: None }.judge(canary, stable, 50, 0.01).verdict
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
            (Bound::MinImprovement(0.02), &fine, Verdict::Fail),
        ] {
            assert_eq!(verdict(Metric::ErrorRate, bound, canary, &fine), expected, "{bound:?} {canary:?}");
            let gate = Gate { metric: Metric::ErrorRate, quantile: 0.9, bound, of: None };
            assert!(expected != Verdict::Fail || gate.may_fail(canary, &fine, 0.01), "{bound:?} {canary:?}");
            assert!(
                expected != Verdict::Undecided || !gate.may_fail(canary, &fine, 0.01),
                "{bound:?} {canary:?}"
            );
        }
        assert_eq!(
            verdict(Metric::ErrorRate, Bound::MaxRegression(0.02), &fine, &errors(0, 10)),
            Verdict::TooFewRequests
        );
        let worse = errors(400, 2000);
        assert_eq!(
            verdict(Metric::ErrorRate, Bound::MinImprovement(0.1), &fine, &worse),
            Verdict::Pass,
            "from a fifth to a thousandth"
        );
    }

    #[test]
    fn latencies_are_judged_by_themselves_and_against_stable() {
        let (fast, slow, faster) = (latencies(0.1), latencies(0.2), latencies(0.05));
        let judge = |bound, canary| verdict(Metric::TimeToFirstToken, bound, canary, &fast);
        assert_eq!(judge(Bound::Max(0.3), &fast), Verdict::Pass);
        assert_eq!(judge(Bound::Max(0.3), &slow), Verdict::Fail);
        assert_eq!(judge(Bound::Min(0.3), &slow), Verdict::Pass);
        assert_eq!(judge(Bound::Min(0.3), &fast), Verdict::Fail);
        assert_eq!(judge(Bound::MaxRegression(0.5), &slow), Verdict::Fail);
        assert_eq!(judge(Bound::MaxRegression(0.5), &fast), Verdict::Pass);
        assert_eq!(judge(Bound::MaxRegression(1.0), &slow), Verdict::Undecided);
        assert_eq!(judge(Bound::MinImprovement(0.2), &faster), Verdict::Pass);
        assert_eq!(judge(Bound::MinImprovement(0.2), &fast), Verdict::Fail);
        // Requests there were, latencies nobody counted.
        assert_eq!(judge(Bound::Max(0.3), &errors(400, 400)), Verdict::TooFewRequests);
    }

    #[test]
    fn a_canary_that_hangs_fails_while_it_hangs() {
        let stable = latencies(0.1);
        let mut hanging = Counts::default();
        hanging.unanswered.add_many(5.0, 60);
        for bound in [Bound::Max(1.0), Bound::MaxRegression(0.5), Bound::MinImprovement(0.1)] {
            assert_eq!(
                verdict(Metric::TimeToFirstToken, bound, &hanging, &stable),
                Verdict::Fail,
                "{bound:?}"
            );
        }
        // Who has not waited for as long as the limit says nothing yet.
        assert_eq!(
            verdict(Metric::TimeToFirstToken, Bound::Max(10.0), &hanging, &stable),
            Verdict::TooFewRequests
        );
    }

    #[test]
    fn values_and_counts_are_told() {
        let gate =
            Gate { metric: Metric::ErrorRate, quantile: 0.5, bound: Bound::MaxRegression(0.1), of: None };
        let Judgement { values, canary, stable, .. } = gate.judge(&errors(3, 300), &errors(0, 600), 50, 0.01);
        assert_eq!((values, canary, stable), ((Some(0.01), Some(0.0)), 300, Some(600)));
        let alone = Gate { bound: Bound::Max(0.1), ..gate }.judge(&errors(3, 300), &errors(0, 600), 50, 0.01);
        assert_eq!((alone.values.1, alone.stable), (None, None));
    }
}
