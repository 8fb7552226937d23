//! The engine's settings, as the ConfigMap `NAME-config`.
//!
//! It has one key for each content, and pods mount the key of their own revision: whatever happens to the spec while an
//! older pod still runs, a container of it that restarts reads what it read before, and a new pod never reads old settings
//! from a cache. [`CONFIG_KEY`] repeats the newest, for people.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use fairlead_crds::model_deployment::{ModelPlan, Task as SpecTask};
use fairlead_fetch::SourceUri;
use fairlead_inference_config::{
    AdapterConfig, Device, Dtype, EngineConfig, InferenceConfig, ModelConfig, Quantization, ServerConfig,
    SpeculationConfig, Task,
};
use fairlead_model::{DeviceKind, LoadQuantization, RunDtype};
use k8s_openapi::api::core::v1::{ConfigMap, PodSpec};

use super::{metadata, pod};
use crate::model_deployment::plan::short_hash;
use crate::model_deployment::validate::{Engine, Speculation, ValidatedModelDeployment};

/// Key of the newest settings in the ConfigMap, and name of the file in every pod.
pub const CONFIG_KEY: &str = "config.json";

/// The settings.
pub fn inference_config(validated: &ValidatedModelDeployment, plan: &ModelPlan) -> InferenceConfig {
    let Engine {
        device,
        dtype,
        max_model_len,
        max_sequences,
        max_batched_tokens,
        utilization,
        memory_is_explicit,
        block_tokens,
        quantization,
    } = &validated.engine;
    let (uri, cache_dir) = match &validated.source {
        SourceUri::Hub { repository, revision } => {
            // The commit that the plan was made for, so that all replicas serve the same.
            let revision = plan.resolved_revision.as_deref().unwrap_or(revision);
            (format!("hf://{repository}@{revision}"), Some(PathBuf::from(pod::MODELS_DIR)))
        }
        // What adapters from a hub are fetched into.
        source => (pod::model_uri(source), pod::fetches(validated).then(|| PathBuf::from(pod::SCRATCH_DIR))),
    };
    let beside = |source: &SourceUri| match source {
        SourceUri::Hub { repository, .. } => match plan.resolved.get(&source.to_string()) {
            Some(commit) => format!("hf://{repository}@{commit}"),
            None => source.to_string(),
        },
        source => pod::model_uri(source),
    };
    let adapter =
        |(name, source): (&String, &SourceUri)| AdapterConfig { name: name.clone(), uri: beside(source) };
    let speculation = validated.speculation.as_ref().map(|Speculation { tokens, draft }| match draft {
        Some(source) => SpeculationConfig::DraftModel { tokens: *tokens, uri: beside(source) },
        None => SpeculationConfig::prompt_lookup(*tokens),
    });
    // What a GPU has free is best measured on it, and a node that joins must not roll the pods. But where the spec says how
    // much there is, and on a CPU, where it always does, the plan is kept to.
    let generates = validated.task == SpecTask::Generate;
    let sized = *device == DeviceKind::Cpu || *memory_is_explicit;
    InferenceConfig {
        served_model_names: vec![validated.name.clone()],
        model: ModelConfig { uri, cache_dir, digest: validated.digest.clone() },
        engine: EngineConfig {
            device: match device {
                DeviceKind::Cpu => Device::Cpu,
                DeviceKind::Gpu => Device::Cuda,
            },
            dtype: match dtype {
                None => Dtype::Auto,
                Some(RunDtype::Bf16) => Dtype::Bf16,
                Some(RunDtype::F16) => Dtype::F16,
                Some(RunDtype::F32) => Dtype::F32,
            },
            quantization: match quantization {
                LoadQuantization::None => Quantization::None,
                LoadQuantization::Int8 => Quantization::Int8,
                LoadQuantization::Int4 => Quantization::Int4,
            },
            max_model_len: *max_model_len,
            max_sequences: Some(*max_sequences),
            max_batched_tokens: Some(*max_batched_tokens),
            block_tokens: generates.then_some(*block_tokens),
            kv_cache_bytes: (generates && sized).then_some(plan.kv_cache_bytes),
            gpu_memory_utilization: (!sized).then_some(*utilization),
            // None is loaded later: the pod has no admin port.
            max_adapters: u32::try_from(validated.adapters.len()).ok().filter(|count| *count > 0),
            threads: None,
        },
        task: match validated.task {
            SpecTask::Generate => Task::Generate,
            SpecTask::Embed => Task::Embed,
            SpecTask::Rerank => Task::Rerank,
        },
        kv_cache: validated.kv_tiers.config.clone(),
        adapters: validated.adapters.iter().map(adapter).collect(),
        speculation,
        server: ServerConfig {
            drain_delay_seconds: drain_delay_seconds(validated.pod.grace_seconds),
            drain_seconds: drain_seconds(validated.pod.grace_seconds),
            ..ServerConfig::default()
        },
    }
}

/// What gateways and load balancers need to learn that a pod is leaving; out of what [`drain_seconds`] leaves.
fn drain_delay_seconds(grace_seconds: i64) -> u64 {
    (u64::try_from(grace_seconds).unwrap_or_default() / 4).min(3)
}

/// A little less than the time that Kubernetes gives the pod, so that it can end by itself.
fn drain_seconds(grace_seconds: i64) -> u64 {
    let grace = u64::try_from(grace_seconds).unwrap_or_default();
    grace.saturating_sub(10).max(grace / 2)
}

/// The key that pods with these settings mount.
pub fn key(config: &InferenceConfig) -> String {
    format!("config-{}.json", short_hash(&json(config)))
}

/// The ConfigMap. `kept` are the settings of other revisions whose pods may still start.
pub fn config_map(
    validated: &ValidatedModelDeployment,
    config: &InferenceConfig,
    kept: &BTreeMap<String, String>,
) -> ConfigMap {
    let mut data = kept.clone();
    data.insert(key(config), json(config));
    data.insert(CONFIG_KEY.to_owned(), json(config));
    ConfigMap {
        metadata: metadata(validated, format!("{}-config", validated.name)),
        data: Some(data),
        ..ConfigMap::default()
    }
}

/// The settings in `live` that these pods, of whatever revision, mount.
pub fn in_use<'a>(live: &ConfigMap, pods: impl Iterator<Item = &'a PodSpec>) -> BTreeMap<String, String> {
    let used: BTreeSet<&str> = pods.filter_map(mounted).collect();
    let data = live.data.iter().flatten();
    data.filter(|(key, _)| used.contains(key.as_str()))
        .map(|(key, text)| (key.clone(), text.clone()))
        .collect()
}

fn mounted(pod: &PodSpec) -> Option<&str> {
    let volume = pod.volumes.iter().flatten().find(|volume| volume.name == pod::CONFIG_VOLUME)?;
    Some(&volume.config_map.as_ref()?.items.as_ref()?.first()?.key)
}

/// The settings as text. Plain data always has one.
pub fn json(config: &InferenceConfig) -> String {
    serde_json::to_string_pretty(config).unwrap_or_default()
}
