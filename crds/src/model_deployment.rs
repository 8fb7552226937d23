//! `ModelDeployment` (`md`): one model, its engine and its pods.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Affinity, EnvVar, LocalObjectReference, Toleration, TopologySpreadConstraint,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One model, its engine and its pods.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "fairlead.dev",
    version = "v1alpha1",
    kind = "ModelDeployment",
    plural = "modeldeployments",
    shortname = "md",
    category = "fairlead",
    namespaced,
    status = "ModelDeploymentStatus",
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ModelDeploymentSpec {
    /// What the model is for.
    #[serde(default)]
    pub task: Task,
    /// Where the model's files come from.
    pub model: ModelSource,
    /// How the engine runs it.
    #[serde(default)]
    pub engine: EngineSpec,
    /// The paged KV cache.
    #[serde(default)]
    pub kv_cache: KvCacheSpec,
    /// What each replica gets.
    #[serde(default)]
    pub resources: ResourcesSpec,
    /// Where replicas may run.
    #[serde(default)]
    pub placement: PlacementSpec,
    /// How many replicas run. Leave it out when an autoscaler owns it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<i32>,
    /// How a new revision replaces the old one.
    #[serde(default)]
    pub update: UpdateSpec,
    /// What to add to the pods.
    #[serde(default)]
    pub pod_template: PodTemplateSpec,
}

/// What a model is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Task {
    /// Text generation: chat and completions.
    #[default]
    Generate,
}

/// Where a model's files come from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ModelSource {
    /// `hf://org/name@revision`, `pvc://claim/path`, `oci://image` (the model lies in `/models` of the image, or in the
    /// folder named after `#`), or, on a node that has it, `file:///path`.
    pub uri: String,
    /// Secret with the key `token` for a hub that wants one; for `oci://`, an image pull secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<LocalObjectReference>,
    /// `sha256:…` over the model's files (docs/spec/modeldeployment.md says how); pods refuse anything else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
}

/// How the engine runs a model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EngineSpec {
    /// Number type of weights and activations.
    #[serde(default)]
    pub dtype: Dtype,
    /// Longest sequence, prompt and answer together, in tokens. Default: what the model was made for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_model_len: Option<u32>,
    /// Most sequences in one batch. Default 256 on a GPU, 32 on a CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_sequences: Option<u32>,
    /// Most tokens in one step. Default 8192 on a GPU, 1024 on a CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_batched_tokens: Option<u32>,
    /// Share of a GPU's memory (or of `resources.memory` on a CPU) that weights, activations and KV cache may take
    /// together, as a decimal in a string. Default "0.90".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_memory_utilization: Option<String>,
}

/// Number type of weights and activations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// bf16 on a GPU; on a CPU f32.
    #[default]
    Auto,
    /// bfloat16.
    Bf16,
    /// IEEE half precision.
    F16,
    /// IEEE single precision.
    F32,
}

/// The paged KV cache.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KvCacheSpec {
    /// Tokens in a block: 16, 32 or 64. Default 16.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_tokens: Option<u32>,
}

/// What each replica gets.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ResourcesSpec {
    /// GPUs for each replica; 0 runs on the CPU.
    #[serde(default)]
    pub gpus: u32,
    /// Extended resource that a GPU is requested by. Default `nvidia.com/gpu`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_resource: Option<String>,
    /// Memory of one GPU, for the plan. Default: the smallest `nvidia.com/gpu.memory` label of the nodes that match
    /// `placement.nodeSelector`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_memory: Option<Quantity>,
    /// CPU request and limit of the engine container. Default 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Quantity>,
    /// Memory request and limit of the engine container. Default 2Gi.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Quantity>,
}

/// Where replicas may run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PlacementSpec {
    /// Labels a node must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// Taints that are tolerated.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tolerations: Vec<Toleration>,
    /// How replicas spread over zones and nodes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub topology_spread_constraints: Vec<TopologySpreadConstraint>,
    /// Scheduler affinity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,
}

/// How a new revision replaces the old one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UpdateSpec {
    /// Replicas above the wanted number during an update. Default 1; 0 where GPUs are scarce.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_surge: Option<u32>,
    /// Replicas that may be missing during an update. Default 0; at least 1 where `maxSurge` is 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_unavailable: Option<u32>,
}

/// What to add to the pods.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PodTemplateSpec {
    /// Extra labels; Fairlead's own win.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Extra annotations; Fairlead's own win.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Extra environment of the engine container.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<EnvVar>,
    /// Secrets to pull the engine's image with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub image_pull_secrets: Vec<LocalObjectReference>,
    /// Priority class of the pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority_class_name: Option<String>,
    /// How long a pod may take to finish its streams after it was told to stop, in seconds. Default 300.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub termination_grace_period_seconds: Option<i64>,
    /// Engine image instead of the operator's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
}

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
    /// Parameters, counted from the tensors' shapes.
    pub parameters: u64,
    /// Bytes of the weights in the dtype they run in.
    pub weight_bytes: u64,
    /// Bytes that one token takes in the KV cache, all layers together.
    pub kv_bytes_per_token: u64,
    /// Longest sequence in tokens.
    pub max_model_len: u32,
    /// Memory that the engine may use, in bytes.
    pub memory_budget_bytes: u64,
    /// Bytes left for the KV cache.
    pub kv_cache_bytes: u64,
    /// Tokens that the KV cache holds.
    pub max_cached_tokens: u64,
    /// Whether the weights and at least one sequence of `maxModelLen` fit.
    pub fits: bool,
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
