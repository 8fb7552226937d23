//! `status` of an Evaluation: which questions were seen, who has answered them, and how well.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::scoring::Score;

/// What the operator has seen and decided.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EvaluationStatus {
    /// The generation that the rest of the status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`, and while abnormal `Reconciling` or `Stalled`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// What is asked, in a word: the route, or the ModelDeployment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// The questions as they were seen last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub questions: Option<QuestionsSeen>,
    /// Hash of all that makes another evaluation: the questions, and what in the spec changes answers or scores. Results of
    /// another hash can't be compared with those of this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inputs: Option<String>,
    /// The first score of each backend as it is now, in one line: `exactMatch v1=0.90 v2=0.45`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<String>,
    /// Who is to be asked, and at which revision each of them is now.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["backend"]))]
    pub current: Vec<Current>,
    /// Ended runs, the newest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), extend(
        "x-kubernetes-list-type" = "map",
        "x-kubernetes-list-map-keys" = ["backend", "revision", "inputs"],
    ))]
    pub results: Vec<EvaluationResult>,
    /// What a person asks; the operator reads it and never writes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<EvaluationRequest>,
}

/// The questions as they were seen last.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct QuestionsSeen {
    /// Hash of the ConfigMap's key.
    pub digest: String,
    /// How many there are.
    pub count: u32,
}

/// One of those who are asked, as it is now.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Current {
    /// The backend's name in the route; for a ModelDeployment without a route, the ModelDeployment's name.
    pub backend: String,
    /// Its ModelDeployment.
    pub model_deployment: String,
    /// The ModelDeployment's revision, once it serves one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// The Job that asks it now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<String>,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Outcome {
    /// The questions were asked; there are scores.
    #[default]
    Completed,
    /// They could not be asked; there are none.
    Failed,
}

/// A run that has ended.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EvaluationResult {
    /// The backend's name in the route; for a ModelDeployment without a route, the ModelDeployment's name.
    #[schemars(length(max = 63))]
    pub backend: String,
    /// The ModelDeployment that was asked.
    pub model_deployment: String,
    /// The name that it was asked by: its own, or an adapter's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The revision that answered.
    #[schemars(length(max = 63))]
    pub revision: String,
    /// `status.inputs` of the run.
    #[schemars(length(max = 63))]
    pub inputs: String,
    /// Digest of the questions.
    pub questions: String,
    /// How it ended.
    pub outcome: Outcome,
    /// Why it failed; or what to know about a run that did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Which completed run this is of this backend at this revision with these inputs, from 1 on; of a failed one, how many were completed
    /// before. Gates that judge by it are the stricter the larger it is. Absent: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<u32>,
    /// Questions that were asked.
    #[serde(default)]
    pub asked: u32,
    /// One for each score that at least one question has a part in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub scores: Vec<ScoreResult>,
    /// Quantiles of the time to the whole answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency: Option<Latency>,
    /// Where each question's answer and scores are; absent when nothing could be kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub items: Option<ItemsAt>,
    /// The Job that asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<String>,
    /// The request that it was run for, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<String>,
    /// When asking began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Time>,
}

/// One score of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ScoreResult {
    /// Which.
    pub name: Score,
    /// Questions that have a part in it.
    pub n: u32,
    /// Of a score that is a share: how many of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hits: Option<u32>,
    /// The mean over these questions, a decimal in a string: a share, or seconds.
    #[schemars(length(max = 32))]
    pub mean: String,
    /// Of a score that is no share: the sample variance over these questions, a decimal in a string; absent for one question.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub variance: Option<String>,
    /// Of a score that is a share: which of its questions were hits, in their order, four a hexadecimal digit, the first in the highest bit;
    /// so that two backends can be compared question by question. Absent where there are too many questions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2400))]
    pub pattern: Option<String>,
}

/// Quantiles of the time to the whole answer, in seconds, as decimals in strings.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Latency {
    /// Half of the answers took no longer.
    pub p50: String,
    /// 90 % of them.
    pub p90: String,
    /// 99 % of them.
    pub p99: String,
    /// The slowest.
    pub max: String,
}

/// Where each question's answer and scores are.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ItemsAt {
    /// A ConfigMap of the Evaluation's. The backend's next run writes over it.
    pub config_map: String,
    /// The key in it: one JSON object a line.
    pub key: String,
    /// Whether answers were cut short, or questions left out, to keep it below the size that a ConfigMap may have.
    #[serde(default)]
    pub truncated: bool,
}

/// What a person asks of an Evaluation. Written to the status subresource with a field manager of its own, so that what Git
/// applies stays what it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EvaluationRequest {
    /// Another for every request: one is acted on once. A timestamp will do.
    #[schemars(length(min = 1, max = 64))]
    pub id: String,
    /// What to do.
    pub action: RequestedRun,
    /// Who is asked. Default: all that the target names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub backend: Option<String>,
}

/// What can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RequestedRun {
    /// Ask the questions again, whether or not there is a result.
    Run,
}
