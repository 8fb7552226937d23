//! The engine's settings, as the ConfigMap `NAME-config`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use fairlead_crds::model_deployment::ModelPlan;
use fairlead_fetch::SourceUri;
use fairlead_inference_config::{Device, Dtype, EngineConfig, InferenceConfig, ModelConfig, ServerConfig};
use fairlead_model::{DeviceKind, RunDtype};
use k8s_openapi::api::core::v1::ConfigMap;

use super::{metadata, pod};
use crate::model_deployment::validate::{Engine, ValidatedModelDeployment};

/// Key of the settings in the ConfigMap, and name of the file in the pod.
pub const CONFIG_KEY: &str = "config.json";

/// The settings.
pub fn inference_config(validated: &ValidatedModelDeployment, plan: &ModelPlan) -> InferenceConfig {
    let Engine {
        device,
        dtype,
        max_model_len,
        max_sequences,
        max_batched_tokens,
        utilization: _,
        memory_is_explicit,
        block_tokens,
    } = &validated.engine;
    let (uri, cache_dir) = match &validated.source {
        SourceUri::Hub { repository, revision } => {
            // The commit that the plan was made for, so that all replicas serve the same.
            let revision = plan.resolved_revision.as_deref().unwrap_or(revision);
            (format!("hf://{repository}@{revision}"), Some(PathBuf::from(pod::MODELS_DIR)))
        }
        source => (pod::model_uri(source), None),
    };
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
            max_model_len: *max_model_len,
            max_sequences: Some(*max_sequences),
            max_batched_tokens: Some(*max_batched_tokens),
            block_tokens: Some(*block_tokens),
            // What a GPU has free is best measured on it, and a node that joins must not roll the pods. But where the spec
            // says how much may be used, and on a CPU, where it always does, the plan is kept to.
            kv_cache_bytes: (*device == DeviceKind::Cpu || *memory_is_explicit)
                .then_some(plan.kv_cache_bytes),
            threads: None,
        },
        server: ServerConfig {
            drain_seconds: drain_seconds(validated.pod.grace_seconds),
            ..ServerConfig::default()
        },
    }
}

/// A little less than the time that Kubernetes gives the pod, so that it can end by itself.
fn drain_seconds(grace_seconds: i64) -> u64 {
    let grace = u64::try_from(grace_seconds).unwrap_or_default();
    grace.saturating_sub(10).max(grace / 2)
}

/// The ConfigMap.
pub fn config_map(validated: &ValidatedModelDeployment, config: InferenceConfig) -> ConfigMap {
    ConfigMap {
        metadata: metadata(validated, format!("{}-config", validated.name)),
        data: Some(BTreeMap::from([(CONFIG_KEY.to_owned(), json(&config))])),
        ..ConfigMap::default()
    }
}

/// The settings as text. Plain data always has one.
pub fn json(config: &InferenceConfig) -> String {
    serde_json::to_string_pretty(config).unwrap_or_default()
}
