//! `status`: what the operator has seen and decided.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What the operator has seen and decided.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModelDeploymentStatus {
    /// The generation that the rest of the status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`, and while abnormal `Reconciling` or `Stalled`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// `readyReplicas` of the replicas wanted, as `kubectl get` shows them: `1/2`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serving: Option<String>,
    /// Pods that exist.
    #[serde(default)]
    pub replicas: i32,
    /// Pods of the current revision that can take requests.
    #[serde(default)]
    pub ready_replicas: i32,
    /// Label selector of the pods, for `/scale`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// Hash of all that changes what a pod serves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// What the model needs and what fits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<ModelPlan>,
    /// How far the slowest starting pod has come with fetching and loading; absent when none is starting.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub startup: Option<StartupProgress>,
}

/// Arithmetic on the safetensors header and config.json: what the model needs and what fits.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModelPlan {
    /// Hash of all that the plan was computed from; the model is inspected again only when it changes.
    pub inputs: String,
    /// First entry of `architectures` in config.json.
    pub architecture: String,
    /// Commit or digest that a moving revision stood for when it was inspected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolved_revision: Option<String>,
    /// The same for what else comes from a hub, adapters and a draft model: commits by URI.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub resolved: BTreeMap<String, String>,
    /// Parameters, counted from the tensors' shapes.
    pub parameters: u64,
    /// Bytes of the weights in the dtype they run in.
    pub weight_bytes: u64,
    /// Bytes that one token takes in the KV cache, all layers together; 0 for encoders, which have none.
    pub kv_bytes_per_token: u64,
    /// Longest sequence in tokens.
    pub max_model_len: u32,
    /// Memory that the engine may use, in bytes.
    pub memory_budget_bytes: u64,
    /// Bytes left for the KV cache; 0 for encoders.
    pub kv_cache_bytes: u64,
    /// Tokens that the KV cache holds.
    pub max_cached_tokens: u64,
    /// Whether the weights and at least one sequence of `maxModelLen` fit.
    pub fits: bool,
    /// Number type that weights, activations and KV cache have: bf16, f16 or f32.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dtype: Option<String>,
    /// The arithmetic in words; where the model does not fit, with what would help.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub explanation: Option<String>,
}

/// How far a starting pod has come.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StartupProgress {
    /// Fetching, Loading, WarmingUp or SizingCache.
    pub phase: String,
    /// Bytes fetched so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_done: Option<u64>,
    /// Bytes in all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_total: Option<u64>,
    /// `bytesDone` of `bytesTotal`, in percent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percent: Option<u8>,
}
