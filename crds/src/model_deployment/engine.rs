//! `spec.engine`: how the engine runs a model.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::is_default;
use crate::validation::rule;

/// How the engine runs a model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EngineSpec {
    /// Number type of weights and activations.
    #[serde(default, skip_serializing_if = "is_default")]
    pub dtype: Dtype,
    /// Longest sequence, prompt and answer together, in tokens. Default: what the model was made for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 16_777_216))]
    pub max_model_len: Option<u32>,
    /// Most sequences in one batch. Default 256 on a GPU, 32 on a CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65_536))]
    pub max_sequences: Option<u32>,
    /// Most tokens in one step. Default 8192 on a GPU, 1024 on a CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 16_777_216))]
    pub max_batched_tokens: Option<u32>,
    /// Share of a GPU's memory (or of `resources.memory` on a CPU) that weights, activations and KV cache may take
    /// together, as a decimal in a string. Default "0.90".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 8), extend("x-kubernetes-validations" = [rule(
        "self.matches('^(0?[.][0-9]*[1-9][0-9]*|1([.]0+)?)$')",
        "spec.engine.gpuMemoryUtilization must be a decimal above 0 and at most 1, in quotes; for example \"0.90\"",
    )]))]
    pub gpu_memory_utilization: Option<String>,
    /// Quantisation of weights that the checkpoint holds in full; one that is quantised already is run as it is.
    #[serde(default, skip_serializing_if = "is_default")]
    pub quantization: Quantization,
    /// Guessing several tokens ahead, which the model checks in one step. Answers stay what they are. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speculation: Option<SpeculationSpec>,
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

/// Quantisation of weights when they are loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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

/// Guessing several tokens ahead.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SpeculationSpec {
    /// Most tokens guessed at once. Default 4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 32))]
    pub tokens: Option<u32>,
    /// A smaller model of the same family that guesses. Default: prompt lookup, which guesses what followed the last tokens when they
    /// were seen before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub draft_model: Option<DraftModelSpec>,
}

/// A smaller model with the same tokenizer, which guesses what the model says next.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DraftModelSpec {
    /// `hf://org/name@revision`, or `pvc://claim/path` in the claim that `spec.model.uri` names.
    #[schemars(length(max = 1024), extend("x-kubernetes-validations" = [rule(
        "self.matches('^hf://[A-Za-z0-9._-]+/[A-Za-z0-9._-]+(@[A-Za-z0-9._/-]+)?$') || self.matches('^pvc://[a-z0-9]([a-z0-9.-]*[a-z0-9])?/.+$')",
        "spec.engine.speculation.draftModel.uri must read hf://org/name@revision or pvc://claim/path",
    )]))]
    pub uri: String,
}
