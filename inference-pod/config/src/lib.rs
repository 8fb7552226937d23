//! What the operator writes into a ConfigMap and the inference pod reads: one struct, JSON on disk.
//!
//! The command line of `fairlead-inference serve` fills the same struct when the pod runs by hand, so there is one
//! definition of every setting. It holds no secrets: a hub token comes from the environment (`HF_TOKEN`).

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Share of a GPU's memory that is used where nobody says how much may be.
pub const DEFAULT_GPU_MEMORY_UTILIZATION: f64 = 0.90;

/// What a step holds at most where nobody says: the same by hand and in a cluster, where the operator fills it in for its plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchLimits {
    /// Most sequences that run at once; of an encoder, most inputs in a batch.
    pub sequences: u32,
    /// Most tokens in one step.
    pub tokens: u32,
}

impl BatchLimits {
    /// Those on a CPU.
    #[must_use]
    pub const fn on_cpu(task: Task) -> Self {
        match task {
            Task::Generate => Self { sequences: 32, tokens: 1024 },
            // Texts to encode are short, and take no memory once they are done.
            Task::Embed | Task::Rerank => Self { sequences: 256, tokens: 1024 },
        }
    }

    /// Those on a GPU.
    #[must_use]
    pub const fn on_gpu(task: Task) -> Self {
        match task {
            Task::Generate => Self { sequences: 256, tokens: 8192 },
            Task::Embed | Task::Rerank => Self { sequences: 1024, tokens: 16_384 },
        }
    }
}

/// Settings of one inference pod.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InferenceConfig {
    /// What the pod does with the model.
    #[serde(default, skip_serializing_if = "is_default")]
    pub task: Task,
    /// Model names the pod answers to; the first is the one it reports.
    pub served_model_names: Vec<String>,
    /// Where the model comes from.
    pub model: ModelConfig,
    /// How the engine runs it.
    #[serde(default)]
    pub engine: EngineConfig,
    /// How keys and values are kept.
    #[serde(default, skip_serializing_if = "is_default")]
    pub kv_cache: KvCacheConfig,
    /// LoRA adapters to load at the start, each a model name of its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub adapters: Vec<AdapterConfig>,
    /// Guessing several tokens ahead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speculation: Option<SpeculationConfig>,
    /// Where and how long the server listens.
    #[serde(default)]
    pub server: ServerConfig,
}

/// Where the model comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ModelConfig {
    /// `hf://org/name@revision` or `file:///path`; a claim or an image is already mounted or copied, hence `file://`.
    pub uri: String,
    /// Folder to fetch into. Must survive a container restart for a fetch to resume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_dir: Option<PathBuf>,
    /// `sha256:…` that the model's files must have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
}

/// What nobody has set is left out, so that an engine older than a setting still reads the rest.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// What a pod does with its model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Task {
    /// Continues text: /v1/chat/completions and /v1/completions.
    #[default]
    Generate,
    /// Turns text into vectors: /v1/embeddings.
    Embed,
    /// Scores documents against a query: /v1/rerank.
    Rerank,
}

/// How keys and values are kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KvCacheConfig {
    /// Requests that begin alike share the blocks of their common prefix.
    pub prefix_sharing: bool,
    /// Bytes of main memory for blocks that the cache itself had to give up. Absent: no such tier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_bytes: Option<u64>,
    /// A folder for blocks that main memory had to give up. Absent: no such tier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<DiskTierConfig>,
}

/// Bytes of main memory that blocks on their way between tiers may take, where the host tier is not so large that a quarter
/// of it is more.
const TRANSIT_BYTES: u64 = 256 << 20;

impl KvCacheConfig {
    /// The largest host tier that takes, with what is then on its way, no more than `bytes` of main memory. 0 where none does.
    #[must_use]
    pub fn largest_host_bytes(&self, bytes: u64) -> u64 {
        // By bisection: a larger tier never takes less.
        let takes = |host| Self { host_bytes: Some(host), ..self.clone() }.tier_memory_bytes();
        let (mut fits, mut too_large) = (0, bytes.saturating_add(1));
        while too_large - fits > 1 {
            let middle = fits + (too_large - fits) / 2;
            if takes(middle) <= bytes {
                fits = middle;
            } else {
                too_large = middle;
            }
        }
        fits
    }

    /// Bytes of main memory for blocks on their way between tiers; 0 where there are none.
    #[must_use]
    pub fn transit_bytes(&self) -> u64 {
        let host = self.host_bytes.unwrap_or(0);
        let disk = self.disk.as_ref().map_or(0, |disk| disk.bytes);
        host.saturating_add(disk).min(TRANSIT_BYTES.max(host / 4))
    }

    /// Bytes of main memory that the tiers take beside weights and cache: the host tier, and what is on its way.
    #[must_use]
    pub fn tier_memory_bytes(&self) -> u64 {
        self.host_bytes.unwrap_or(0).saturating_add(self.transit_bytes())
    }
}

impl Default for KvCacheConfig {
    fn default() -> Self {
        Self { prefix_sharing: true, host_bytes: None, disk: None }
    }
}

/// The slowest tier of the KV cache. It survives a restart.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DiskTierConfig {
    /// Folder for its files; made where it is absent.
    pub path: PathBuf,
    /// Most bytes of files in it.
    pub bytes: u64,
}

/// A LoRA adapter to serve.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AdapterConfig {
    /// The model name it is served under.
    pub name: String,
    /// Where it comes from, like `model.uri`.
    pub uri: String,
}

/// Guessing several tokens ahead: the model then checks them all in one step. Answers stay what they are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "method", rename_all = "camelCase", rename_all_fields = "camelCase", deny_unknown_fields)]
pub enum SpeculationConfig {
    /// Guesses what followed the last tokens when they were seen before in prompt or answer.
    NGram {
        /// Most tokens guessed at once.
        tokens: u32,
        /// Longest run of last tokens that is looked for.
        longest: u32,
        /// Shortest run that is looked for.
        shortest: u32,
    },
    /// Guesses by a smaller model with the same vocabulary.
    DraftModel {
        /// Most tokens guessed at once.
        tokens: u32,
        /// Where the model comes from, like `model.uri`.
        uri: String,
    },
}

impl SpeculationConfig {
    /// Most tokens guessed at once.
    #[must_use]
    pub fn tokens(&self) -> u32 {
        match self {
            Self::NGram { tokens, .. } | Self::DraftModel { tokens, .. } => *tokens,
        }
    }

    /// Prompt lookup with the usual lengths of runs.
    #[must_use]
    pub fn prompt_lookup(tokens: u32) -> Self {
        Self::NGram { tokens, longest: 4, shortest: 2 }
    }
}

/// Where tensors live.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Device {
    /// A GPU where one is visible, otherwise the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// A GPU, or a clear error.
    Cuda,
}

/// Number type of weights and activations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// bf16 on a GPU, f32 on a CPU.
    #[default]
    Auto,
    /// bfloat16.
    Bf16,
    /// IEEE half precision.
    F16,
    /// IEEE single precision.
    F32,
}

/// Quantisation of weights that a checkpoint holds in full; one that is quantised already is run as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Quantization {
    /// They stay as they are.
    #[default]
    None,
    /// 8 bits, one scale for each output.
    Int8,
    /// 4 bits, one scale and zero point for each 128 inputs of an output.
    Int4,
}

/// How the engine runs a model. What is absent is decided from the device and the model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EngineConfig {
    /// Where tensors live.
    #[serde(default)]
    pub device: Device,
    /// Number type of weights and activations.
    #[serde(default)]
    pub dtype: Dtype,
    /// Quantisation of weights that the checkpoint holds in full.
    #[serde(default, skip_serializing_if = "is_default")]
    pub quantization: Quantization,
    /// Longest sequence, prompt and answer together, in tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_model_len: Option<u32>,
    /// Most sequences in one batch. Absent: [`BatchLimits`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_sequences: Option<u32>,
    /// Most tokens in one step. Absent: [`BatchLimits`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_batched_tokens: Option<u32>,
    /// Tokens in a KV block: 16, 32 or 64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_tokens: Option<u32>,
    /// Share of a GPU's memory that weights, activations and KV cache may take together, where `kv_cache_bytes` is absent:
    /// above 0 and at most 1. Absent: [`DEFAULT_GPU_MEMORY_UTILIZATION`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_memory_utilization: Option<f64>,
    /// Bytes of the KV cache. Absent: what weights and activations leave of a GPU's share; on a CPU at most 4 GiB of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_cache_bytes: Option<u64>,
    /// Most LoRA adapters at once. Absent: 8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_adapters: Option<u32>,
    /// Intra-op threads of libtorch on a CPU. Absent: the CPUs this process may use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threads: Option<u32>,
}

/// Where and how long the server listens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServerConfig {
    /// Address of the OpenAI API, /healthz, /readyz, /startup and /metrics. All addresses of a pod by default; a pod that runs by
    /// hand, without a file, listens on the loopback address alone.
    pub listen: String,
    /// Address of the admin API (adapters); absent: there is none. Never reachable by clients.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admin_listen: Option<String>,
    /// Requests that may wait for the engine; more are answered 429.
    pub max_queued_requests: u32,
    /// After SIGTERM: seconds in which the pod says that it is not ready and still takes requests, while load balancers learn
    /// of it.
    #[serde(default)]
    pub drain_delay_seconds: u64,
    /// After that: seconds until streams that have not finished are cut.
    pub drain_seconds: u64,
    /// Revision of the ModelDeployment, sent with every answer. The operator hands it over in the environment
    /// (`FAIRLEAD_REVISION`): it is a hash that covers this file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            listen: "0.0.0.0:8000".to_owned(),
            admin_listen: None,
            max_queued_requests: 1024,
            drain_delay_seconds: 0,
            drain_seconds: 290,
            revision: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn the_largest_host_tier_counts_what_is_on_its_way() {
        let tiers = |disk: Option<u64>| KvCacheConfig {
            disk: disk.map(|bytes| DiskTierConfig { path: PathBuf::from("kv"), bytes }),
            ..KvCacheConfig::default()
        };
        for (disk, bytes) in
            [(None, 100 * MIB), (None, 1000 * MIB), (None, 9_000 * MIB), (Some(1 << 40), 1000 * MIB)]
        {
            let tiers = tiers(disk);
            let largest = tiers.largest_host_bytes(bytes);
            let takes = |host| KvCacheConfig { host_bytes: Some(host), ..tiers.clone() }.tier_memory_bytes();
            assert!(takes(largest) <= bytes && takes(largest + 1) > bytes, "{disk:?} {bytes}: {largest}");
        }
        // Even an empty host tier leaves blocks on their way to the disk.
        assert_eq!(tiers(Some(1 << 40)).largest_host_bytes(100 * MIB), 0);
        assert_eq!(tiers(None).largest_host_bytes(0), 0);
        assert!(tiers(None).largest_host_bytes(u64::MAX) > u64::MAX / 2);
    }
}
