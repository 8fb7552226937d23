//! The memory plan of an encoder: weights and the activations of one batch; there is no cache to fill what is left.
//!
//! For one batch of `T = maxBatchedTokens` tokens, in bytes: `T x (8 x hidden + 2 x intermediate) x bytes` for the largest
//! layer's intermediate results, `T x maxModelLen x heads x bytes` for the scores of attention where no fused kernel
//! avoids them, and the fixed part of [`runtime_bytes`].

use crate::dtype::{DeviceKind, RunDtype};
use crate::encoder::config::EncoderConfig;
use crate::error::ModelError;
use crate::plan::{Plan, gib, join_or, runtime_bytes};
use crate::tensors::WeightsSummary;

/// What an encoder's plan is made from.
#[derive(Clone, Copy, Debug)]
pub struct EncoderPlanInputs<'a> {
    /// The model's shape.
    pub config: &'a EncoderConfig,
    /// The model's weights.
    pub weights: &'a WeightsSummary,
    /// Where the replica runs.
    pub device: DeviceKind,
    /// Number type of weights and activations; `None` is `auto` ([`DeviceKind::auto_dtype`]).
    pub dtype: Option<RunDtype>,
    /// Longest input in tokens; `None` is [`EncoderConfig::max_input_tokens`].
    pub max_model_len: Option<u32>,
    /// Bytes that weights and activations may take together.
    pub memory_budget_bytes: u64,
    /// Most tokens in one batch; a longer input is a batch of its own.
    pub max_batched_tokens: u32,
}

/// Makes the plan of an encoder: a [`Plan`] without a cache. One that does not fit is a plan, not an error.
///
/// # Errors
/// [`ModelError::InvalidSetting`] for a setting that the model does not allow.
pub fn plan_encoder(inputs: &EncoderPlanInputs<'_>) -> Result<Plan, ModelError> {
    let invalid = |field, problem: String| Err(ModelError::InvalidSetting { field, problem });
    if inputs.max_batched_tokens == 0 {
        return invalid("engine.maxBatchedTokens", "is 0, it must be at least 1".to_owned());
    }
    let longest = inputs.config.longest();
    match inputs.max_model_len {
        Some(0) => return invalid("engine.maxModelLen", "is 0, it must be at least 1".to_owned()),
        Some(length) if length > longest => {
            let problem =
                format!("is {length}, but the model has {longest} positions; set it to {longest} or less");
            return invalid("engine.maxModelLen", problem);
        }
        _ => {}
    }
    let dtype = inputs.dtype.unwrap_or_else(|| inputs.device.auto_dtype());
    let max_model_len = inputs.max_model_len.unwrap_or_else(|| inputs.config.max_input_tokens());
    let weight_bytes = inputs.weights.parameters.saturating_mul(dtype.bytes());
    let reserve = activation_reserve(inputs, dtype, inputs.max_batched_tokens, max_model_len);
    let needed = weight_bytes.saturating_add(reserve);
    let fits = needed <= inputs.memory_budget_bytes;
    let arithmetic =
        format!("{} of weights ({dtype}) and {} for activations", gib(weight_bytes), gib(reserve));
    let explanation = if fits {
        let budget = gib(inputs.memory_budget_bytes);
        format!("{arithmetic} fit into {budget}; inputs of up to {max_model_len} tokens")
    } else {
        let remedies = remedies(inputs, dtype, max_model_len, weight_bytes);
        let budget = gib(inputs.memory_budget_bytes);
        format!(
            "does not fit: needs {arithmetic} = {}, a replica has {budget}: {}",
            gib(needed),
            join_or(&remedies)
        )
    };
    Ok(Plan {
        dtype,
        parameters: inputs.weights.parameters,
        weight_bytes,
        kv_bytes_per_token: 0,
        activation_reserve_bytes: reserve,
        memory_budget_bytes: inputs.memory_budget_bytes,
        max_model_len,
        block_tokens: 0,
        kv_blocks: 0,
        kv_cache_bytes: 0,
        max_cached_tokens: 0,
        fits,
        explanation,
    })
}

fn activation_reserve(
    inputs: &EncoderPlanInputs<'_>,
    dtype: RunDtype,
    max_batched_tokens: u32,
    max_model_len: u32,
) -> u64 {
    let config = inputs.config;
    let [hidden, inner, heads] =
        [config.hidden_size, config.intermediate_size, config.num_attention_heads].map(u64::from);
    let (tokens, longest) = (u64::from(max_batched_tokens.max(max_model_len)), u64::from(max_model_len));
    let layer = tokens.saturating_mul(8 * hidden + 2 * inner).saturating_mul(dtype.bytes());
    let scores = tokens.saturating_mul(longest).saturating_mul(heads * dtype.bytes());
    [layer, scores, runtime_bytes(inputs.device)].into_iter().fold(0, u64::saturating_add)
}

fn remedies(
    inputs: &EncoderPlanInputs<'_>,
    dtype: RunDtype,
    max_model_len: u32,
    weight_bytes: u64,
) -> Vec<String> {
    let fits = |weights: u64, dtype, tokens| {
        weights.saturating_add(activation_reserve(inputs, dtype, tokens, max_model_len))
            <= inputs.memory_budget_bytes
    };
    let mut remedies = Vec::new();
    let smaller = inputs.max_batched_tokens.min(512);
    if smaller < inputs.max_batched_tokens && fits(weight_bytes, dtype, smaller) {
        remedies.push(format!("lower engine.maxBatchedTokens to {smaller}"));
    }
    let halved = inputs.weights.parameters.saturating_mul(RunDtype::Bf16.bytes());
    if dtype == RunDtype::F32 && fits(halved, RunDtype::Bf16, inputs.max_batched_tokens) {
        remedies.push("set engine.dtype to bf16".to_owned());
    }
    remedies.push(match inputs.device {
        DeviceKind::Gpu => "use a GPU with more memory".to_owned(),
        DeviceKind::Cpu => "raise resources.memory".to_owned(),
    });
    remedies.push("use a smaller model".to_owned());
    remedies
}
