//! `spec.canary` of a ModelRoute, and what a person asks of it.

use std::time::Duration;

use fairlead_rollout::machine::{Action, State};
use k8s_openapi::jiff::SignedDuration;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::analysis::Analysis;
use crate::validation::rule;

/// How `status.rollout.message` begins when the last request was refused; the reason follows.
pub const REFUSED: &str = "the last request was refused: ";

/// A backend that takes over step by step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = [rule(
    "size(self.steps) < 2 || self.steps.all(s, self.steps.exists_one(t, t.weight == s.weight))",
    "spec.canary.steps: two steps have the same weight; each step must take more than the one before",
)]))]
#[serde(rename_all = "camelCase")]
pub struct Canary {
    /// The backend that is tried. It has no weight of its own: what it takes it takes from the others, in proportion.
    #[schemars(length(max = 63))]
    pub backend: String,
    /// From the first to the last; after the last it gets everything.
    #[schemars(length(min = 1, max = 20))]
    pub steps: Vec<CanaryStep>,
    /// What the canary is judged by. Without, time alone moves it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub analysis: Option<Analysis>,
    /// How long the canary may be without a pod that serves until it is taken back: `30m`, `2h`. Default: 1h.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), extend("x-kubernetes-validations" = [rule(
        "self.matches('^([0-9]{1,4}h)?([0-9]{1,4}m)?([0-9]{1,5}s)?$') && size(self) > 0",
        "spec.canary.progressDeadline must be hours, minutes and seconds, such as 30m or 2h",
    )]))]
    pub progress_deadline: Option<String>,
    /// Keeps the canary where it is. For pausing from Git; a person pauses by a request (`status.request`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub paused: bool,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CanaryStep {
    /// The canary's share of the requests in percent. Larger than in the step before.
    #[schemars(range(min = 1, max = 99))]
    pub weight: u32,
    /// How long the step lasts at least: `30s`, `10m`, `1h30m`.
    #[schemars(length(max = 16), extend("x-kubernetes-validations" = [rule(
        "self.matches('^([0-9]{1,4}h)?([0-9]{1,4}m)?([0-9]{1,5}s)?$') && size(self) > 0",
        "spec.canary.steps[].hold must be hours, minutes and seconds, such as 30s, 10m or 1h30m",
    )]))]
    pub hold: String,
}

impl Canary {
    /// How long it may be without a pod that serves; `None` where what is written can't be read.
    pub fn progress_deadline(&self) -> Option<Duration> {
        self.progress_deadline.as_ref().map_or(Some(Duration::from_secs(3600)), |text| duration(text))
    }
}

/// Hours, minutes and seconds, as in `1h30m`.
pub fn duration(text: &str) -> Option<Duration> {
    text.parse::<SignedDuration>().ok().and_then(|duration| Duration::try_from(duration).ok())
}

/// Where a canary is, and what has happened to canaries of this route.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RolloutStatus {
    /// What was decided, and all that the next decision needs.
    #[serde(flatten)]
    pub state: State,
    /// The step and how many there are: `2/3`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<String>,
    /// What it waits for, or how it ended, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// What a person asks of a rollout. Written to the status subresource with a field manager of its own, so that what Git applies
/// stays what it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RolloutRequest {
    /// Another for every request: one is acted on once. A timestamp will do.
    #[schemars(length(min = 1, max = 64))]
    pub id: String,
    /// What to do.
    pub action: Action,
    /// The canary that it is asked of. Refused when that is another by then.
    #[schemars(length(min = 1, max = 63))]
    pub canary: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An API server takes no null where the schema has a type.
    #[test]
    fn what_is_not_there_is_left_out() {
        let text = serde_json::to_string(&RolloutStatus::default()).unwrap();
        assert!(!text.contains("null"), "{text}");
    }
}
