//! `spec.canary.analysis` of a ModelRoute: what a canary is judged by, and how strictly. What is left out has the defaults of the
//! functions here, which the operator and the gateways share.

use std::time::Duration;

use fairlead_rollout::{Metric, OnUndecided};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::canary::duration;
use crate::evaluation::Score;
use crate::validation::rule;

/// What a canary is judged by.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Analysis {
    /// Time between two looks at the gates, from 1s to 1h: `30s`, `5m`. Default: 30s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), extend("x-kubernetes-validations" = [rule(
        "self.matches('^([0-9]{1,4}h)?([0-9]{1,4}m)?([0-9]{1,5}s)?$') && size(self) > 0",
        "spec.canary.analysis.interval must be hours, minutes and seconds, such as 30s or 5m",
    )]))]
    pub interval: Option<String>,
    /// Requests of the canary, and of stable where a gate compares with it, without which a gate is not judged. Default: 50.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub min_requests: Option<u32>,
    /// So many looks in a row at which a gate fails take the canary back. Default: 1, as a gate that counts requests fails only when
    /// chance is ruled out; 2 or 3 where failures come in bursts, or for a query of Prometheus, which is judged as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub failure_limit: Option<u32>,
    /// How likely a canary that keeps every bound may be taken back by chance, over all gates, steps and looks of a rollout. A
    /// decimal in a string. Default: `"0.05"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), extend("x-kubernetes-validations" = [rule(
        "self.matches('^0?[.][0-9]*[1-9][0-9]*$')",
        "spec.canary.analysis.alpha must be a probability above 0 and below 1, such as \"0.05\"",
    )]))]
    pub alpha: Option<String>,
    /// What to do when the last step is over, no gate fails and some cannot pass yet. Default: `Pause`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_undecided: Option<OnUndecided>,
    /// What the canary has to keep. One that fails takes it back; all have to pass before it gets everything.
    #[schemars(length(min = 1, max = 10))]
    pub gates: Vec<GateSpec>,
}

/// One gate: a metric and one bound.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = [
    rule(
        "[has(self.max), has(self.min), has(self.maxRegression), has(self.minImprovement)].filter(set, set).size() == 1",
        "spec.canary.analysis.gates[]: set exactly one of max, min, maxRegression and minImprovement; write another gate for another bound",
    ),
    rule(
        "(self.metric == 'Prometheus') == has(self.prometheus)",
        "spec.canary.analysis.gates[]: metric Prometheus needs prometheus with its query, and no other metric has one",
    ),
    rule(
        "self.metric != 'Prometheus' || has(self.max) || has(self.min)",
        "spec.canary.analysis.gates[]: a query of Prometheus gives one number; set max or min, and compare with stable in the query",
    ),
    rule(
        "self.metric == 'Evaluation' ? has(self.evaluation) && has(self.score) : !has(self.evaluation) && !has(self.score)",
        "spec.canary.analysis.gates[]: metric Evaluation needs evaluation and score, and no other metric has them",
    ),
    rule(
        "!has(self.quantile) || !(self.metric in ['ErrorRate', 'Prometheus', 'Evaluation'])",
        "spec.canary.analysis.gates[]: quantile is for latencies and TokensPerAnswer; leave it out",
    ),
]))]
#[serde(rename_all = "camelCase")]
pub struct GateSpec {
    /// What is measured.
    pub metric: Metric,
    /// Which quantile of latencies and lengths is judged, as a decimal in a string. Default: `"0.95"`; of TokensPerAnswer `"0.5"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), extend("x-kubernetes-validations" = [rule(
        "self.matches('^0?[.][0-9]*[1-9][0-9]*$')",
        "spec.canary.analysis.gates[].quantile must be above 0 and below 1, such as \"0.95\"",
    )]))]
    pub quantile: Option<String>,
    /// The most that the canary's own value may be: `2%`, `1.5s`, `800ms`, or a number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 24), extend("x-kubernetes-validations" = [number_rule()]))]
    pub max: Option<String>,
    /// The least that it may be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 24), extend("x-kubernetes-validations" = [number_rule()]))]
    pub min: Option<String>,
    /// How much worse than stable it may be: of latencies and TokensPerAnswer a part of stable's value (`20%` or `0.2`), of
    /// ErrorRate and Evaluations the difference (`1%`: one more of a hundred).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 24), extend("x-kubernetes-validations" = [number_rule()]))]
    pub max_regression: Option<String>,
    /// How much better than stable it has to be, in the same unit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 24), extend("x-kubernetes-validations" = [number_rule()]))]
    pub min_improvement: Option<String>,
    /// What to ask Prometheus.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prometheus: Option<PrometheusQuery>,
    /// An Evaluation in the route's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub evaluation: Option<String>,
    /// Which of its scores.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score: Option<Score>,
}

/// A query of Prometheus.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PrometheusQuery {
    /// Base URL of the server: one of those that the operator is allowed to ask (`operator.prometheusUrls` of the chart). Default:
    /// the first of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub url: Option<String>,
    /// An instant query that gives one number. In double braces, these names are filled in: `namespace`, `route`, `model`, `canary` and
    /// `stable` (of backends), `canaryDeployment` and `stableDeployment` (of ModelDeployments).
    #[schemars(length(min = 1, max = 4096))]
    pub query: String,
}

fn number_rule() -> serde_json::Value {
    rule(
        "self.matches('^-?[0-9]{1,9}([.][0-9]{1,9})?(%|ms|s)?$')",
        "spec.canary.analysis.gates[]: a bound is a number, a percentage or a time, such as \"0.02\", 2%, 800ms or 1.5s",
    )
}

impl Analysis {
    /// Time between two looks where none is given.
    pub const INTERVAL: Duration = Duration::from_secs(30);

    /// Time between two looks; `None` where it can't be read or is out of range.
    pub fn interval(&self) -> Option<Duration> {
        match &self.interval {
            None => Some(Self::INTERVAL),
            Some(text) => duration(text).filter(|it| (1..=3600).contains(&it.as_secs())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_has_a_default_and_a_range() {
        let interval = |text: Option<&str>| {
            Analysis { interval: text.map(str::to_owned), ..Analysis::default() }.interval()
        };
        assert_eq!(interval(None), Some(Duration::from_secs(30)));
        assert_eq!(interval(Some("1m30s")), Some(Duration::from_secs(90)));
        for bad in ["0s", "2h", "soon", ""] {
            assert_eq!(interval(Some(bad)), None, "{bad}");
        }
    }
}
