//! What a canary is meant to do: the validated form of a route's `spec.canary`.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::gate::Gate;

/// A canary's way from nothing to everything.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Changes with everything that makes this another rollout: the backends, the steps, the gates, the revisions. Not with `paused`.
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum OnUndecided {
    /// Take it: nothing was found against it.
    Promote,
    /// Wait for more requests or for a person.
    #[default]
    Pause,
    /// Take it back.
    RollBack,
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

    /// The share of `alpha` that one gate may use up at one step, so that all of them together keep to `alpha`.
    pub fn alpha_each(&self) -> f64 {
        let looks = self.steps.len().max(1) * self.gates.len().max(1);
        // A few dozen.
        #[allow(clippy::cast_precision_loss)]
        let looks = looks as f64;
        self.alpha / looks
    }
}
