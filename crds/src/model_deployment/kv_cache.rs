//! `spec.kvCache`: the paged KV cache and its slower tiers.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::validation::rule;

/// The paged KV cache.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = [rule(
    "!has(self.tiers) || self.tiers.size() == 0 || !has(self.prefixSharing) || self.prefixSharing",
    "spec.kvCache.tiers need spec.kvCache.prefixSharing: a tier finds blocks by their prefix; set it to true or leave the tiers out",
)]))]
#[serde(rename_all = "camelCase")]
pub struct KvCacheSpec {
    /// Tokens in a block: 16, 32 or 64. Default 16.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = [16, 32, 64]))]
    pub block_tokens: Option<u32>,
    /// Requests that begin alike share the blocks of their common prefix. Default true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix_sharing: Option<bool>,
    /// Where blocks are kept beyond the cache itself, the fastest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 2),
        extend(
            "x-kubernetes-list-type" = "map",
            "x-kubernetes-list-map-keys" = ["name"],
            "x-kubernetes-validations" = [rule(
                "self.size() < 2 || self[0].name == 'host'",
                "spec.kvCache.tiers: host comes before disk",
            )]
        )
    )]
    pub tiers: Vec<KvTier>,
}

/// A place for blocks beyond the cache itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = [
    rule(
        "self.name != 'host' || (has(self.memory) && !has(self.size) && !has(self.volume))",
        "the tier host has memory, for example 32Gi, and neither size nor volume",
    ),
    rule(
        "self.name != 'disk' || (has(self.size) && !has(self.memory))",
        "the tier disk has size, for example 200Gi, and no memory",
    ),
]))]
#[serde(rename_all = "camelCase")]
pub struct KvTier {
    /// `host` is main memory, `disk` a volume.
    pub name: KvTierName,
    /// Of `host`: main memory for blocks. Added to the engine container's memory, with what blocks take on their way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxLength" = 32, "x-kubernetes-validations" = [rule(
        "!self.startsWith('-') && self.matches('[1-9]')",
        "memory must be a positive quantity, for example 32Gi",
    )]))]
    pub memory: Option<Quantity>,
    /// Of `disk`: the volume's size. The engine fills 95 % of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxLength" = 32, "x-kubernetes-validations" = [rule(
        "!self.startsWith('-') && self.matches('[1-9]')",
        "size must be a positive quantity, for example 200Gi",
    )]))]
    pub size: Option<Quantity>,
    /// Of `disk`: where the files lie. Default: a volume that lives as long as the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<KvTierVolume>,
}

/// A tier of the KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum KvTierName {
    /// Main memory.
    Host,
    /// A volume.
    Disk,
}

/// Where the disk tier's files lie: one of its fields.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = [rule(
    "has(self.claim) != has(self.emptyDir)",
    "a tier's volume has either claim or emptyDir",
)]))]
#[serde(rename_all = "camelCase")]
pub struct KvTierVolume {
    /// A PersistentVolumeClaim of this namespace. Its files survive the pod; one pod uses them at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub claim: Option<String>,
    /// A volume that lives as long as the pod, so it survives restarts of the container only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub empty_dir: Option<KvTierEmptyDir>,
}

/// Takes no settings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KvTierEmptyDir {}
