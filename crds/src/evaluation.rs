//! `Evaluation` (`ev`): a question set that the backends of a route answer, and how well they do.

// Each `printcolumn(…)` group has the same keys.
#![allow(clippy::duplicated_attributes)]

mod pattern;
mod reading;
mod scoring;
mod status;

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{LocalObjectReference, Toleration};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::pattern::{MOST_DIGITS, discordant, pattern};
pub use self::reading::{Measured, Standing};
pub use self::scoring::{Ignored, Score};
pub use self::status::{
    Current, EvaluationRequest, EvaluationResult, EvaluationStatus, ItemsAt, Latency, Outcome, QuestionsSeen,
    RequestedRun, ScoreResult,
};
use crate::validation::rule;

/// A question set that the backends of a route answer, and how well they do.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "fairlead.dev",
    version = "v1alpha1",
    kind = "Evaluation",
    plural = "evaluations",
    shortname = "ev",
    category = "fairlead",
    namespaced,
    status = "EvaluationStatus",
    derive = "PartialEq",
    doc = "A question set that the backends of a route answer, and how well they do.",
    printcolumn(
        name = "Target",
        type_ = "string",
        json_path = ".status.target",
        description = "What is asked"
    ),
    printcolumn(
        name = "Questions",
        type_ = "integer",
        json_path = ".status.questions.count",
        description = "How many questions there are"
    ),
    printcolumn(
        name = "Score",
        type_ = "string",
        json_path = ".status.summary",
        description = "The first of the scores, of each backend as it is now"
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status",
        description = "Whether every backend has answered the questions at its current revision"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason",
        description = "Why it is ready or not"
    ),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].message",
        priority = 1,
        description = "What is going on, in words"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct EvaluationSpec {
    /// What is asked.
    pub questions: QuestionsSource,
    /// Who is asked.
    pub target: EvaluationTarget,
    /// What is measured; the first is the one that `kubectl get` shows. Default: everything that the questions allow, in the
    /// order exactMatch, contains, f1, refusal, falseRefusal, latency, errors. `errors` is always measured.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 7), extend("x-kubernetes-list-type" = "set"))]
    pub scores: Vec<Score>,
    /// Differences between an answer and what was expected that do not count. Default: Case, Punctuation and Articles, as in
    /// SQuAD. White space never counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4), extend("x-kubernetes-list-type" = "set"))]
    pub ignore: Option<Vec<Ignored>>,
    /// Phrases that make an answer a refusal. Default: common English ones, listed in docs/spec/evaluation.md.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 256)))]
    pub refusals: Vec<String>,
    /// A system message before every question that has no messages of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 8192))]
    pub system_prompt: Option<String>,
    /// How answers are generated.
    #[serde(default, skip_serializing_if = "is_default")]
    pub sampling: EvaluationSampling,
    /// Questions that are asked at the same time. Default 4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 64))]
    pub concurrency: Option<u32>,
    /// How long one answer may take before it counts as an error: `30s`, `2m`. Default 60s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), extend("x-kubernetes-validations" = [rule(
        "self.matches('^([0-9]{1,4}h)?([0-9]{1,4}m)?([0-9]{1,5}s)?$') && size(self) > 0",
        "spec.requestTimeout must be hours, minutes and seconds, such as 30s or 2m",
    )]))]
    pub request_timeout: Option<String>,
    /// How long a run over all questions may take before it has failed: `30m`, `2h`. Default 1h.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), extend("x-kubernetes-validations" = [rule(
        "self.matches('^([0-9]{1,4}h)?([0-9]{1,4}m)?([0-9]{1,5}s)?$') && size(self) > 0",
        "spec.timeout must be hours, minutes and seconds, such as 30m or 2h",
    )]))]
    pub timeout: Option<String>,
    /// When the questions are asked.
    #[serde(default, skip_serializing_if = "is_default")]
    pub run_on: RunOn,
    /// How often a run whose pod has failed is tried again. Default 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 6))]
    pub backoff_limit: Option<i32>,
    /// Results that are kept, those of the backends as they are now included. Default 10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 50))]
    pub history_limit: Option<u32>,
    /// How long a run's Job and its log are kept after its end, in seconds. Default 3600. Its result stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 60, max = 2_592_000))]
    pub ttl_seconds_after_finished: Option<i32>,
    /// What to add to the pods that ask.
    #[serde(default, skip_serializing_if = "is_default")]
    pub pod_template: EvaluationPodTemplate,
}

/// Where the questions are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct QuestionsSource {
    /// A key of a ConfigMap in the Evaluation's namespace: one JSON object a line, or a list in YAML or JSON.
    /// docs/spec/evaluation.md describes a question.
    pub config_map_ref: QuestionsKey,
}

/// A key of a ConfigMap.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct QuestionsKey {
    /// The ConfigMap's name.
    #[schemars(length(max = 253), extend("x-kubernetes-validations" = [rule(
        "self.matches('^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$')",
        "spec.questions.configMapRef.name must be the name of a ConfigMap: lower-case letters, digits, - and .",
    )]))]
    pub name: String,
    /// The key in it.
    #[schemars(length(max = 253), extend("x-kubernetes-validations" = [rule(
        "self.matches('^[-._a-zA-Z0-9]+$')",
        "spec.questions.configMapRef.key must be a key of a ConfigMap: letters, digits, -, _ and .",
    )]))]
    pub key: String,
}

/// Who is asked.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = [
    rule(
        "has(self.route) != has(self.modelDeployment)",
        "spec.target: set exactly one of route and modelDeployment",
    ),
    rule(
        "!has(self.backends) || size(self.backends) == 0 || has(self.route)",
        "spec.target.backends are those of a route; set spec.target.route, or leave backends out",
    ),
]))]
#[serde(rename_all = "camelCase")]
pub struct EvaluationTarget {
    /// A ModelRoute in the Evaluation's namespace. Its backends are asked directly, past the gateway, so that the questions
    /// neither follow its split nor count in a canary's analysis.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub route: Option<String>,
    /// Which of the route's backends. Default: the canary and those that it is compared with; without a canary, those that
    /// have a weight.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 63)), extend("x-kubernetes-list-type" = "set"))]
    pub backends: Vec<String>,
    /// A ModelDeployment in the Evaluation's namespace, without a route.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub model_deployment: Option<String>,
}

/// How answers are generated.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EvaluationSampling {
    /// Temperature, a decimal in a string, 0 to 2. Default "0": always the likeliest token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 8), extend("x-kubernetes-validations" = [rule(
        "self.matches('^([01]([.][0-9]+)?|2([.]0+)?)$')",
        "spec.sampling.temperature must be a decimal between 0 and 2, in quotes; for example \"0.7\"",
    )]))]
    pub temperature: Option<String>,
    /// Most tokens of an answer. Default 256.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_048_576))]
    pub max_tokens: Option<u32>,
    /// Seed of the draws, so that a run with a temperature can be repeated. Default 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 9_007_199_254_740_991_i64))]
    pub seed: Option<i64>,
}

/// When the questions are asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RunOn {
    /// When a backend serves a revision that has not answered these questions yet, and on request.
    #[default]
    Change,
    /// Only on request (`status.request`).
    Request,
}

/// What to add to the pods that ask.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EvaluationPodTemplate {
    /// Extra labels; Fairlead's own win.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Extra annotations; Fairlead's own win.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Labels a node must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// Taints that are tolerated.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128))]
    pub tolerations: Vec<Toleration>,
    /// Secrets to pull the image with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub image_pull_secrets: Vec<LocalObjectReference>,
    /// Priority class of the pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub priority_class_name: Option<String>,
    /// CPU request. Default 50m.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Quantity>,
    /// Memory request and limit. Default 128Mi.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Quantity>,
    /// Image instead of the operator's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub image: Option<String>,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
