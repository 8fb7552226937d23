//! What a canary is meant to do: the validated form of a route's `spec.canary`.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::gate::{Gate, Metric};
use crate::stretch::share;

/// A canary's way from nothing to everything.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Changes with everything that makes this another rollout: the backends, the steps, the gates. Not with `paused`.
    pub fingerprint: String,
    /// The backend that is tried.
    pub canary: String,
    /// The backend that it is tried against by the spec: the one that has the traffic.
    pub stable: String,
    /// At least one; the weights grow and are below 100, which is where promotion leads.
    pub steps: Vec<Step>,
    /// Time between two looks at the gates.
    pub interval: Duration,
    /// A gate is not judged on fewer values, of the canary or of stable.
    pub min_requests: u64,
    /// So many looks in a row at which a gate fails roll the canary back; at least 1.
    pub failure_limit: u32,
    /// Probability that a gate ever fails a canary which keeps every bound, in one attempt; above 0 and below 1.
    pub alpha: f64,
    /// What to do when the last step has been held and gates are undecided.
    pub on_undecided: OnUndecided,
    /// What the canary must not get worse at. Without any, time alone moves it.
    pub gates: Vec<Gate>,
    /// How long the canary may be without a pod that serves until it is taken back; `None`: for ever.
    pub progress_deadline: Option<Duration>,
    /// Whether the spec says to pause.
    pub paused: bool,
}

/// One step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// The canary's share of the requests in percent, from 1 to 99.
    pub weight: u32,
    /// How long the step lasts at least.
    pub hold: Duration,
}

/// What to do with a canary that no gate fails and some cannot pass yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum OnUndecided {
    /// Take it: nothing was found against it.
    Promote,
    /// Wait for more requests or for a person.
    #[default]
    Pause,
    /// Take it back.
    RollBack,
}

/// The number of the interval that a moment lies in. Gateways and operator agree on it without a word, as far as their clocks do.
pub fn window(now: Timestamp, interval: Duration) -> i64 {
    let length = i64::try_from(interval.as_millis()).unwrap_or(i64::MAX).max(1);
    now.as_millisecond().div_euclid(length)
}

/// When the interval of that number begins; `None` where no calendar reaches.
pub fn begins(number: i64, interval: Duration) -> Option<Timestamp> {
    let length = i64::try_from(interval.as_millis()).unwrap_or(i64::MAX).max(1);
    Timestamp::from_millisecond(number.checked_mul(length)?).ok()
}

impl Plan {
    /// A step, counted from zero.
    pub fn step(&self, at: u32) -> Option<&Step> {
        self.steps.get(usize::try_from(at).ok()?)
    }

    /// Whether no step comes after this one.
    pub fn is_last(&self, at: u32) -> bool {
        self.step(at.saturating_add(1)).is_none()
    }

    /// The share of `alpha` that one gate may use up at one step, so that all of them together keep to `alpha`. What a query of
    /// Prometheus gives is no count and uses none.
    pub fn alpha_each(&self) -> f64 {
        let gates = self.gates.iter().filter(|gate| gate.metric != Metric::Prometheus).count();
        let looks = self.steps.len().max(1) * gates.max(1);
        // A few dozen.
        #[allow(clippy::cast_precision_loss)]
        let looks = looks as f64;
        self.alpha / looks
    }

    /// The share of `alpha_each` for the counts of a whole step; the rest is for the recent ones.
    pub fn alpha_of_step(&self) -> f64 {
        self.alpha_each() / 2.0
    }

    /// The share for the counts of the stretch that begins with interval `begun`, in a step that began in interval `step`. The shares of
    /// all stretches add up to no more than what the whole step leaves. `None` for what the whole step's counts cover.
    pub fn alpha_of_stretch(&self, begun: i64, step: i64) -> Option<f64> {
        Some(self.alpha_each() / 2.0 * share(begun, step)?)
    }

    /// Fewest requests for the counts of a stretch. The interval is right with any number; a handful of failures of one moment should not
    /// be a verdict.
    pub fn min_recent(&self) -> u64 {
        (self.min_requests / 5).max(10).min(self.min_requests)
    }

    /// Whether it can be followed.
    ///
    /// # Errors
    /// The field below `spec.canary`, what is wrong with it and the remedy.
    pub fn check(&self) -> Result<(), String> {
        if self.stable.is_empty() || self.stable == self.canary {
            let remedy =
                "needs a backend to be compared with; give another of spec.backends a weight above 0";
            return Err(remedy.to_owned());
        }
        if self.steps.is_empty() {
            return Err("steps is empty; give at least one step".to_owned());
        }
        let mut last = 0;
        for (index, Step { weight, hold: _ }) in self.steps.iter().enumerate() {
            if *weight <= last || *weight > 99 {
                let remedy = "each step takes more than the one before, from 1 to 99; after the last the canary gets everything";
                return Err(format!("steps[{index}].weight is {weight}; {remedy}"));
            }
            last = *weight;
        }
        if self.interval.is_zero() {
            return Err("analysis.interval is nothing; write a time such as 30s".to_owned());
        }
        if self.failure_limit == 0 {
            return Err(
                "analysis.failureLimit is 0; 1 takes the canary back at the first look that fails".to_owned()
            );
        }
        if !(self.alpha > 0.0 && self.alpha < 1.0) {
            let alpha = self.alpha;
            return Err(format!(
                "analysis.alpha is {alpha}; write a probability above 0 and below 1, such as \"0.05\""
            ));
        }
        for (index, Gate { metric, quantile, bound, of: _ }) in self.gates.iter().enumerate() {
            if metric.has_quantile() && !(*quantile > 0.0 && *quantile < 1.0) {
                let remedy = "write a number above 0 and below 1, such as \"0.95\"";
                return Err(format!("analysis.gates[{index}].quantile is {quantile}; {remedy}"));
            }
            if !bound.limit().is_finite() {
                return Err(format!(
                    "analysis.gates[{index}]: its bound is not a number; write a decimal such as \"0.02\""
                ));
            }
            if *metric == Metric::Prometheus && bound.compares() {
                let remedy =
                    "a query gives one number: write max or min, and compare with stable in the query";
                return Err(format!("analysis.gates[{index}]: {remedy}"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::Bound;

    fn plan() -> Plan {
        Plan {
            fingerprint: "one".into(),
            canary: "v2".into(),
            stable: "v1".into(),
            steps: vec![Step { weight: 5, hold: Duration::ZERO }, Step { weight: 99, hold: Duration::ZERO }],
            interval: Duration::from_secs(30),
            min_requests: 50,
            failure_limit: 1,
            alpha: 0.05,
            on_undecided: OnUndecided::Pause,
            gates: vec![
                Gate { metric: Metric::ErrorRate, quantile: 0.0, bound: Bound::Max(0.01), of: None },
                Gate { metric: Metric::TimeToFirstToken, quantile: 0.95, bound: Bound::Max(1.0), of: None },
                Gate { metric: Metric::Prometheus, quantile: 0.0, bound: Bound::Max(1.0), of: None },
            ],
            progress_deadline: None,
            paused: false,
        }
    }

    #[test]
    fn all_shares_of_alpha_add_up_to_it_however_long_a_step_lasts() {
        let plan = plan();
        let recent: f64 = (0..200_000).filter_map(|number| plan.alpha_of_stretch(number, 7)).sum();
        let of_step = plan.alpha_of_step() + recent;
        assert!(of_step <= plan.alpha_each() && of_step > 0.9 * plan.alpha_each());
        assert!((plan.alpha_each() * 4.0 - plan.alpha).abs() < 1e-12, "two steps, two gates that count");
    }

    #[test]
    fn what_cannot_be_followed_is_told_with_its_field() {
        plan().check().unwrap();
        type Spoil = fn(&mut Plan);
        let cases: [(&str, Spoil); 13] = [
            ("backend to be compared with", |plan| plan.stable.clear()),
            ("backend to be compared with", |plan| plan.stable = "v2".into()),
            ("steps is empty", |plan| plan.steps.clear()),
            ("steps[1].weight is 5", |plan| plan.steps[1].weight = 5),
            ("steps[1].weight is 100", |plan| plan.steps[1].weight = 100),
            ("steps[0].weight is 0", |plan| plan.steps[0].weight = 0),
            ("analysis.interval", |plan| plan.interval = Duration::ZERO),
            ("analysis.failureLimit", |plan| plan.failure_limit = 0),
            ("analysis.alpha is 1", |plan| plan.alpha = 1.0),
            ("analysis.alpha is NaN", |plan| plan.alpha = f64::NAN),
            ("analysis.gates[1].quantile is 1", |plan| plan.gates[1].quantile = 1.0),
            ("analysis.gates[0]", |plan| plan.gates[0].bound = Bound::Max(f64::NAN)),
            ("analysis.gates[2]", |plan| plan.gates[2].bound = Bound::MaxRegression(0.1)),
        ];
        for (part, spoil) in cases {
            let mut plan = plan();
            spoil(&mut plan);
            let error = plan.check().unwrap_err();
            assert!(error.contains(part), "{part}: {error}");
        }
    }

    #[test]
    fn windows_follow_one_another_and_have_no_gap() {
        let at = |millis| Timestamp::from_millisecond(millis).unwrap();
        let number = |millis| window(at(millis), Duration::from_secs(30));
        assert_eq!([number(-1), number(0), number(29_999), number(30_000)], [-1, 0, 0, 1]);
        assert!(window(at(5), Duration::ZERO) == 5, "no division by nothing");
        assert_eq!(begins(-1, Duration::from_secs(30)), Some(at(-30_000)));
        assert_eq!(begins(i64::MAX, Duration::from_secs(30)), None);
    }
}
