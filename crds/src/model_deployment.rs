//! `ModelDeployment` (`md`): one model, its engine and its pods.

// Each `printcolumn(…)` group has the same keys.
#![allow(clippy::duplicated_attributes)]

mod engine;
mod kv_cache;
mod status;

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Affinity, EnvVar, LocalObjectReference, Toleration, TopologySpreadConstraint,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::engine::{DraftModelSpec, Dtype, EngineSpec, Quantization, SpeculationSpec};
pub use self::kv_cache::{KvCacheSpec, KvTier, KvTierEmptyDir, KvTierName, KvTierVolume};
pub use self::status::{ModelDeploymentStatus, ModelPlan, StartupProgress};
use crate::validation::rule;

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
    derive = "PartialEq",
    doc = "One model, its engine and its pods.",
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(
        name = "Model",
        type_ = "string",
        json_path = ".spec.model.uri",
        description = "Where the model's files come from"
    ),
    printcolumn(
        name = "Task",
        type_ = "string",
        json_path = ".spec.task",
        priority = 1,
        description = "What the model is for; empty is Generate"
    ),
    printcolumn(
        name = "Pods",
        type_ = "string",
        json_path = ".status.serving",
        description = "Pods of the current revision that take requests, of those wanted"
    ),
    printcolumn(
        name = "Tokens",
        type_ = "integer",
        json_path = ".status.plan.maxCachedTokens",
        description = "Tokens that the KV cache of one replica holds"
    ),
    printcolumn(
        name = "Revision",
        type_ = "string",
        json_path = ".status.revision",
        priority = 1,
        description = "Hash of all that changes what a pod serves"
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status",
        description = "Whether every replica serves the current spec"
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
pub struct ModelDeploymentSpec {
    /// What the model is for.
    #[serde(default, skip_serializing_if = "is_default")]
    pub task: Task,
    /// Where the model's files come from.
    pub model: ModelSource,
    /// LoRA adapters to serve beside it. A ModelRoute gives each a public name: `backends[].adapter`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), extend(
        "x-kubernetes-list-type" = "map",
        "x-kubernetes-list-map-keys" = ["name"],
    ))]
    pub adapters: Vec<AdapterSpec>,
    /// How the engine runs it.
    #[serde(default, skip_serializing_if = "is_default")]
    pub engine: EngineSpec,
    /// The paged KV cache.
    #[serde(default, skip_serializing_if = "is_default")]
    pub kv_cache: KvCacheSpec,
    /// What each replica gets.
    #[serde(default, skip_serializing_if = "is_default")]
    pub resources: ResourcesSpec,
    /// Where replicas may run.
    #[serde(default, skip_serializing_if = "is_default")]
    pub placement: PlacementSpec,
    /// How many replicas run. Leave it out when an autoscaler owns it: a new Deployment then starts with 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 10_000))]
    pub replicas: Option<i32>,
    /// How a new revision replaces the old one.
    #[serde(default, skip_serializing_if = "is_default")]
    pub update: UpdateSpec,
    /// What to add to the pods.
    #[serde(default, skip_serializing_if = "is_default")]
    pub pod_template: PodTemplateSpec,
}

/// What a model is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Task {
    /// Text generation: chat and completions.
    #[default]
    Generate,
    /// Vectors of texts: /v1/embeddings. For encoders of the BERT family.
    Embed,
    /// Scores of documents against a query: /v1/rerank. For cross-encoders.
    Rerank,
}

/// Where a model's files come from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModelSource {
    /// `hf://org/name@revision`, `pvc://claim/path`, `oci://image` (the model lies in `/models` of the image, or in the
    /// folder named after `#`). `file:///path` is for inference pods that run by hand; in a cluster it is refused.
    #[schemars(length(max = 1024), extend("x-kubernetes-validations" = [
        rule(
            "self.matches('^(hf|pvc|oci|file)://')",
            "spec.model.uri must start with hf://, pvc://, oci:// or file://; for example hf://org/name@revision",
        ),
        rule(
            "!self.startsWith('hf://') || self.matches('^hf://[A-Za-z0-9._-]+/[A-Za-z0-9._-]+(@[A-Za-z0-9._/-]+)?$')",
            "spec.model.uri must read hf://org/name or hf://org/name@revision",
        ),
        rule(
            "!self.startsWith('pvc://') || self.matches('^pvc://[a-z0-9]([a-z0-9.-]*[a-z0-9])?(/.*)?$')",
            "spec.model.uri must read pvc://claim or pvc://claim/path, the claim being one of this namespace",
        ),
        rule(
            "!self.startsWith('oci://') || self.matches('^oci://[^#]+(#/.*)?$')",
            "spec.model.uri must read oci://image or oci://image#/folder",
        ),
    ]))]
    pub uri: String,
    /// Secret with the key `token` for a hub that wants one; for `oci://`, an image pull secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<LocalObjectReference>,
    /// `sha256:…` over the model's files (docs/spec/modeldeployment.md says how); pods refuse anything else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 71), extend("x-kubernetes-validations" = [rule(
        "self.matches('^sha256:[0-9a-f]{64}$')",
        "spec.model.digest must be sha256: and 64 lower-case hexadecimal digits",
    )]))]
    pub digest: Option<String>,
}

/// A LoRA adapter in PEFT's layout.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AdapterSpec {
    /// The model name that pods serve it under; not the ModelDeployment's own.
    #[schemars(length(max = 63), extend("x-kubernetes-validations" = [rule(
        "self.matches('^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$')",
        "spec.adapters[].name must begin and end with a letter or digit and hold only letters, digits and . _ -",
    )]))]
    pub name: String,
    /// `hf://org/name@revision`, or `pvc://claim/path` in the claim that `spec.model.uri` names.
    #[schemars(length(max = 1024), extend("x-kubernetes-validations" = [rule(
        "self.matches('^hf://[A-Za-z0-9._-]+/[A-Za-z0-9._-]+(@[A-Za-z0-9._/-]+)?$') || self.matches('^pvc://[a-z0-9]([a-z0-9.-]*[a-z0-9])?/.+$')",
        "spec.adapters[].uri must read hf://org/name@revision or pvc://claim/path",
    )]))]
    pub uri: String,
}

/// What each replica gets.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ResourcesSpec {
    /// GPUs for each replica; 0 (the default) runs on the CPU. More than one needs tensor parallelism, which this
    /// version does not have.
    #[serde(default, skip_serializing_if = "is_zero")]
    #[schemars(range(min = 0, max = 1))]
    pub gpus: u32,
    /// Extended resource that a GPU is requested by. Default `nvidia.com/gpu`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub gpu_resource: Option<String>,
    /// Memory of one GPU, for the plan. Default: the smallest `nvidia.com/gpu.memory` label of the nodes that match
    /// `placement.nodeSelector`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_memory: Option<Quantity>,
    /// CPU request of the engine container; it may use idle CPUs beyond that. Default 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Quantity>,
    /// Memory request and limit of the engine container. Default 2Gi.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Quantity>,
}

/// Where replicas may run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PlacementSpec {
    /// Labels a node must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// Taints that are tolerated.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128))]
    pub tolerations: Vec<Toleration>,
    /// How replicas spread over zones and nodes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub topology_spread_constraints: Vec<TopologySpreadConstraint>,
    /// Scheduler affinity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,
}

/// How a new revision replaces the old one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = [rule(
    "!(has(self.maxSurge) && self.maxSurge == 0 && has(self.maxUnavailable) && self.maxUnavailable == 0)",
    "spec.update.maxSurge and spec.update.maxUnavailable must not both be 0: no pod could ever be replaced; set one to 1",
)]))]
#[serde(rename_all = "camelCase")]
pub struct UpdateSpec {
    /// Replicas above the wanted number during an update. Default 1; 0 where GPUs are scarce.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 1000))]
    pub max_surge: Option<u32>,
    /// Replicas that may be missing during an update. Default 0, or 1 where `maxSurge` is 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 1000))]
    pub max_unavailable: Option<u32>,
}

/// What to add to the pods.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodTemplateSpec {
    /// Extra labels; Fairlead's own win.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Extra annotations; Fairlead's own win.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Extra environment of the engine container.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub env: Vec<EnvVar>,
    /// Secrets to pull the engine's image with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub image_pull_secrets: Vec<LocalObjectReference>,
    /// Priority class of the pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority_class_name: Option<String>,
    /// How long a pod may take to finish its streams after it was told to stop, in seconds. Default 300.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 86_400))]
    pub termination_grace_period_seconds: Option<i64>,
    /// Engine image instead of the operator's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub image: Option<String>,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn is_zero(value: &u32) -> bool {
    *value == 0
}
