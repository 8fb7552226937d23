//! `spec.shadow` of a ModelRoute: a backend that is asked the same, whose answers nobody gets.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::duration;

/// A backend that is asked the same as the others, whose answers nobody gets. It never slows or fails a request: when it does
/// not keep up, it is asked less.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Shadow {
    /// One of `spec.backends`.
    #[schemars(length(max = 63))]
    pub backend: String,
    /// Share of the requests that it is asked, in percent.
    #[schemars(range(min = 1, max = 100))]
    pub percent: u32,
    /// Most requests that it is asked at a time, by each gateway; what comes meanwhile is not mirrored. Default: 16.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1024))]
    pub max_in_flight: Option<u32>,
    /// How long it may take to answer. Default: 2m.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), extend("x-kubernetes-validations" = [duration::rule_for("spec.shadow.timeout")]))]
    pub timeout: Option<String>,
    /// What the two answers are compared by, beside latency, length and errors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub embedder: Option<ShadowEmbedder>,
}

/// A model for embeddings: the two answers' cosine similarity is measured with it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = [crate::validation::rule(
    "has(self.modelDeployment) != has(self.endpoint)",
    "spec.shadow.embedder: set exactly one of modelDeployment (in a cluster) and endpoint (for a gateway run by hand)",
)]))]
#[serde(rename_all = "camelCase")]
pub struct ShadowEmbedder {
    /// A ModelDeployment of the task Embed in the route's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub model_deployment: Option<String>,
    /// Base URL of a server, for a gateway that runs without Kubernetes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub endpoint: Option<String>,
    /// What the server at `endpoint` calls the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub model: Option<String>,
}
