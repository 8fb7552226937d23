//! The memory plan: what a model needs, what a replica has, and how many tokens the KV cache then holds.
//!
//! Pure arithmetic, so that the operator can refuse a model before it makes a pod and the pod reaches the same verdict. All
//! sizes are bytes. The formulas:
//!
//! - weights = parameters x bytes of the number type they run in; projections that lie quantised in memory count with what
//!   [`WeightForm::bytes`] says instead;
//! - KV bytes a token = 2 (K and V) x layers x KV heads x head width x bytes of the number type;
//! - activations, for one step of `T = max(maxBatchedTokens, maxSequences + 1)` tokens and `S = maxSequences` sampled
//!   sequences (a step holds a token of each sequence that writes and one of another that is read):
//!   `T x (4 x hidden + (2 x heads + 2 x KV heads) x head width + 3 x intermediate) x bytes` for the largest layer's
//!   intermediate results, `2 x S x vocabulary x 4` for logits and their copy while sampling (f32),
//!   `2 x maxModelLen x (KV heads + heads) x head width x bytes` for one sequence's keys and values gathered from their
//!   blocks and repeated for the query heads, `2 x maxModelLen x head width x 4` for the rotary tables, and a fixed part for
//!   the runtime itself ([`runtime_bytes`]);
//! - KV cache = what is left of the budget, in whole blocks. One block is padding, so it holds
//!   `(blocks - 1) x blockTokens` tokens;
//! - a draft model adds its weights, its own KV bytes to each token, and its spare blocks ([`draft_spare_blocks`]) to the
//!   activations. What its steps compute takes turns with the model's own and is less.
//!
//! A model fits when the cache holds one sequence of `maxModelLen` tokens.

use serde::{Deserialize, Serialize};

use crate::config::{ModelConfig, limit};
use crate::dtype::{DeviceKind, RunDtype};
use crate::error::ModelError;
use crate::quantization::{LoadQuantization, WeightForm};
use crate::tensors::WeightsSummary;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Block indices are signed 32-bit numbers in the kernels.
const MAX_BLOCKS: u64 = i32::MAX as u64;

/// Sizes of a KV block that the engine takes, in tokens.
pub const BLOCK_SIZES: [u32; 3] = [16, 32, 64];

/// What a plan is made from.
#[derive(Clone, Copy, Debug)]
pub struct PlanInputs<'a> {
    /// The model's shape.
    pub config: &'a ModelConfig,
    /// The model's weights.
    pub weights: &'a WeightsSummary,
    /// Where the replica runs.
    pub device: DeviceKind,
    /// Number type of weights, activations and cache; `None` is `auto` ([`DeviceKind::auto_dtype`]).
    pub dtype: Option<RunDtype>,
    /// Quantisation of weights that the checkpoint holds in full.
    pub quantization: LoadQuantization,
    /// Longest sequence in tokens; `None` is what the model was made for.
    pub max_model_len: Option<u32>,
    /// Tokens in a KV block, one of [`BLOCK_SIZES`].
    pub block_tokens: u32,
    /// Bytes that weights, activations and cache may take together.
    pub memory_budget_bytes: u64,
    /// Most sequences in one batch.
    pub max_sequences: u32,
    /// Most tokens in one step.
    pub max_batched_tokens: u32,
    /// The model that guesses ahead, if there is one.
    pub draft: Option<DraftInputs<'a>>,
}

/// A smaller model that guesses what the model to be served says next. It runs in the same number type, unquantised, and keeps the
/// same tokens in a cache of its own.
#[derive(Clone, Copy, Debug)]
pub struct DraftInputs<'a> {
    /// Its shape.
    pub config: &'a ModelConfig,
    /// Its weights.
    pub weights: &'a WeightsSummary,
    /// Most tokens that it guesses at once.
    pub tokens: u32,
}

/// Guesses are made for so many rows of a step at most, each sequence's next token among them.
pub const DRAFTED_ROWS: u32 = 64;

/// Blocks that a draft model's cache has on top of the model's, for the tokens that are only guessed.
#[must_use]
pub fn draft_spare_blocks(tokens: u32, block_tokens: u32) -> u32 {
    let sequences = DRAFTED_ROWS / tokens.saturating_add(1);
    sequences.saturating_mul(tokens.div_ceil(block_tokens.max(1)) + 1)
}

/// What a model needs and what fits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// Number type of weights, activations and cache.
    pub dtype: RunDtype,
    /// Parameters of the model.
    pub parameters: u64,
    /// Bytes of the weights as they lie in memory, a draft model's too.
    pub weight_bytes: u64,
    /// Bytes of one token in the KV cache, all layers together, a draft model's too.
    pub kv_bytes_per_token: u64,
    /// Bytes kept for a step's intermediate results and the runtime.
    pub activation_reserve_bytes: u64,
    /// Bytes that weights, activations and cache may take together.
    pub memory_budget_bytes: u64,
    /// Longest sequence in tokens.
    pub max_model_len: u32,
    /// Tokens in a KV block.
    pub block_tokens: u32,
    /// Blocks of the KV cache, padding block included.
    pub kv_blocks: u64,
    /// Bytes of the KV cache: `kv_blocks` whole blocks.
    pub kv_cache_bytes: u64,
    /// Tokens that the KV cache holds.
    pub max_cached_tokens: u64,
    /// Whether weights, activations and one sequence of `max_model_len` tokens fit.
    pub fits: bool,
    /// The verdict in words, with the remedies when it does not fit.
    pub explanation: String,
}

impl Plan {
    /// Turns a plan that does not fit into an error.
    ///
    /// # Errors
    /// [`ModelError::DoesNotFit`] with the explanation.
    pub fn require_fit(&self) -> Result<(), ModelError> {
        if self.fits { Ok(()) } else { Err(ModelError::DoesNotFit(self.explanation.clone())) }
    }
}

/// Bytes that libtorch itself takes before the first tensor: its heap and thread stacks on a CPU; the CUDA context, cuBLAS
/// workspaces and allocator slack on a GPU.
#[must_use]
pub fn runtime_bytes(device: DeviceKind) -> u64 {
    match device {
        DeviceKind::Cpu => 256 * MIB,
        DeviceKind::Gpu => 768 * MIB,
    }
}

/// Makes the plan. A plan that does not fit is a plan, not an error: see [`Plan::fits`].
///
/// # Errors
/// [`ModelError::InvalidSetting`] for a setting that the model or the engine does not allow.
pub fn plan(inputs: &PlanInputs<'_>) -> Result<Plan, ModelError> {
    check_settings(inputs)?;
    let dtype = inputs.dtype.unwrap_or_else(|| inputs.device.auto_dtype());
    let max_model_len = inputs.max_model_len.unwrap_or(inputs.config.max_position_embeddings);
    let amounts = Amounts::of(inputs, dtype, max_model_len);
    let fits = amounts.max_cached_tokens >= u64::from(max_model_len);
    let explanation = if fits {
        format!(
            "{} of weights ({dtype}) and {} for activations leave {} of {} for the KV cache: {} tokens, {} of {max_model_len} \
             tokens at once",
            gib(amounts.weights),
            gib(amounts.reserve),
            gib(amounts.kv_cache),
            gib(inputs.memory_budget_bytes),
            amounts.max_cached_tokens,
            sequences(amounts.max_cached_tokens / u64::from(max_model_len)),
        )
    } else {
        shortfall(inputs, dtype, max_model_len, &amounts)
    };
    Ok(Plan {
        dtype,
        parameters: inputs.weights.parameters,
        weight_bytes: amounts.weights,
        kv_bytes_per_token: amounts.kv_bytes_per_token,
        activation_reserve_bytes: amounts.reserve,
        memory_budget_bytes: inputs.memory_budget_bytes,
        max_model_len,
        block_tokens: inputs.block_tokens,
        kv_blocks: amounts.blocks,
        kv_cache_bytes: amounts.kv_cache,
        max_cached_tokens: amounts.max_cached_tokens,
        fits,
        explanation,
    })
}

fn check_settings(inputs: &PlanInputs<'_>) -> Result<(), ModelError> {
    let invalid = |field, problem: String| Err(ModelError::InvalidSetting { field, problem });
    if !BLOCK_SIZES.contains(&inputs.block_tokens) {
        return invalid(
            "kvCache.blockTokens",
            format!("is {}, it must be 16, 32 or 64", inputs.block_tokens),
        );
    }
    if inputs.max_sequences == 0 {
        return invalid("engine.maxSequences", "is 0, it must be at least 1".to_owned());
    }
    if inputs.max_batched_tokens == 0 {
        return invalid("engine.maxBatchedTokens", "is 0, it must be at least 1".to_owned());
    }
    let longest = inputs.config.max_position_embeddings;
    if longest == 0 {
        // `ModelConfig::parse` refuses it, but what an inspection pod says was not read by that.
        return invalid("model", "says that it was made for 0 tokens; correct its config.json".to_owned());
    }
    if let Some(DraftInputs { config, .. }) = inputs.draft
        && config.vocab_size != inputs.config.vocab_size
    {
        let (theirs, ours) = (config.vocab_size, inputs.config.vocab_size);
        let problem = format!("has {theirs} tokens, the model {ours}; take a draft model of the same family");
        return invalid("engine.speculation.draftModel", problem);
    }
    if inputs.quantization != LoadQuantization::None && inputs.config.quantization.is_some() {
        let problem = "is set, but the checkpoint is quantised already; leave it out".to_owned();
        return invalid("engine.quantization", problem);
    }
    let draft_reads = inputs.draft.map_or(u32::MAX, |draft| draft.config.max_position_embeddings);
    match inputs.max_model_len.or(Some(longest)) {
        Some(length) if length > draft_reads => invalid(
            "engine.maxModelLen",
            format!(
                "is {length}, but the draft model reads {draft_reads} tokens at most; set it to {draft_reads} or less, or take \
                 another draft model"
            ),
        ),
        Some(0) => invalid("engine.maxModelLen", "is 0, it must be at least 1".to_owned()),
        Some(length) if length > longest => invalid(
            "engine.maxModelLen",
            format!("is {length}, but the model was made for {longest} tokens; set it to {longest} or less"),
        ),
        _ => Ok(()),
    }
}

/// The numbers of one plan, before any verdict.
struct Amounts {
    weights: u64,
    kv_bytes_per_token: u64,
    reserve: u64,
    blocks: u64,
    kv_cache: u64,
    max_cached_tokens: u64,
    /// Bytes of the cache for exactly one sequence of `max_model_len`, padding block included.
    one_sequence: u64,
}

impl Amounts {
    fn of(inputs: &PlanInputs<'_>, dtype: RunDtype, max_model_len: u32) -> Self {
        let draft = DraftAmounts::of(inputs, dtype);
        let weights = weight_bytes(inputs.config, inputs.weights, inputs.device, dtype, inputs.quantization)
            .saturating_add(draft.weights);
        let kv_bytes_per_token =
            kv_bytes_per_token(inputs.config, dtype).saturating_add(draft.kv_bytes_per_token);
        let reserve = activation_reserve(inputs, dtype, max_model_len).saturating_add(draft.spare);
        let block_bytes = kv_bytes_per_token.saturating_mul(u64::from(inputs.block_tokens));
        let left = inputs.memory_budget_bytes.saturating_sub(weights).saturating_sub(reserve);
        let blocks = (left / block_bytes.max(1)).min(MAX_BLOCKS);
        let blocks_of_one = u64::from(max_model_len).div_ceil(u64::from(inputs.block_tokens)) + 1;
        Self {
            weights,
            kv_bytes_per_token,
            reserve,
            blocks,
            kv_cache: blocks.saturating_mul(block_bytes),
            max_cached_tokens: blocks.saturating_sub(1) * u64::from(inputs.block_tokens),
            one_sequence: blocks_of_one.saturating_mul(block_bytes),
        }
    }

    fn needed(&self) -> u64 {
        self.weights.saturating_add(self.reserve).saturating_add(self.one_sequence)
    }
}

/// What a draft model adds.
#[derive(Default)]
struct DraftAmounts {
    weights: u64,
    kv_bytes_per_token: u64,
    spare: u64,
}

impl DraftAmounts {
    fn of(inputs: &PlanInputs<'_>, dtype: RunDtype) -> Self {
        let Some(DraftInputs { config, weights, tokens }) = inputs.draft else { return Self::default() };
        let kv_bytes_per_token = kv_bytes_per_token(config, dtype);
        let block_bytes = kv_bytes_per_token.saturating_mul(u64::from(inputs.block_tokens));
        Self {
            weights: weight_bytes(config, weights, inputs.device, dtype, LoadQuantization::None),
            kv_bytes_per_token,
            spare: block_bytes.saturating_mul(u64::from(draft_spare_blocks(tokens, inputs.block_tokens))),
        }
    }
}

/// Bytes of the weights in memory.
#[must_use]
pub fn weight_bytes(
    config: &ModelConfig,
    weights: &WeightsSummary,
    device: DeviceKind,
    dtype: RunDtype,
    at_load: LoadQuantization,
) -> u64 {
    if config.quantization.is_none() && at_load == LoadQuantization::None {
        return weights.parameters.saturating_mul(dtype.bytes());
    }
    // The bound is for shapes that nobody has checked; more layers than any model has save nothing.
    let saved: u64 = (0..config.num_hidden_layers.min(limit::LAYERS))
        .flat_map(|layer| config.projections(layer))
        .map(|projection| {
            let form = config.weight_form(&projection, device, dtype, at_load);
            let dense = WeightForm::Dense.bytes(projection.out, projection.input, dtype);
            dense.saturating_sub(form.bytes(projection.out, projection.input, dtype))
        })
        .fold(0, u64::saturating_add);
    weights.parameters.saturating_mul(dtype.bytes()).saturating_sub(saved)
}

/// Bytes of one token in the KV cache, all layers together: 2 x layers x KV heads x head width x bytes of the number type.
#[must_use]
pub fn kv_bytes_per_token(config: &ModelConfig, dtype: RunDtype) -> u64 {
    [config.num_hidden_layers, config.num_key_value_heads, config.head_dim]
        .into_iter()
        .fold(2 * dtype.bytes(), |bytes, factor| bytes.saturating_mul(u64::from(factor)))
}

/// Bytes kept for a step's intermediate results and the runtime; the module says how they add up.
fn activation_reserve(inputs: &PlanInputs<'_>, dtype: RunDtype, max_model_len: u32) -> u64 {
    let config = inputs.config;
    let [hidden, inner, heads, kv_heads, head_dim, vocabulary] = [
        config.hidden_size,
        config.intermediate_size,
        config.num_attention_heads,
        config.num_key_value_heads,
        config.head_dim,
        config.vocab_size,
    ]
    .map(u64::from);
    let sampled = u64::from(inputs.max_sequences);
    let step_tokens = u64::from(inputs.max_batched_tokens).max(sampled + 1);
    let positions = u64::from(max_model_len);

    let per_token =
        (4 * hidden + 3 * inner).saturating_add((2 * heads + 2 * kv_heads).saturating_mul(head_dim));
    let layer = step_tokens.saturating_mul(per_token).saturating_mul(dtype.bytes());
    let logits = sampled.saturating_mul(vocabulary).saturating_mul(2 * 4);
    let gathered =
        positions.saturating_mul((2 * (kv_heads + heads) * dtype.bytes()).saturating_mul(head_dim));
    let rotary = positions.saturating_mul(2 * head_dim * 4);
    [layer, logits, gathered, rotary, runtime_bytes(inputs.device)].into_iter().fold(0, u64::saturating_add)
}

/// Says what is missing and what would help, most useful remedy first.
fn shortfall(inputs: &PlanInputs<'_>, dtype: RunDtype, max_model_len: u32, amounts: &Amounts) -> String {
    let mut remedies = Vec::new();
    let fits = |inputs: PlanInputs<'_>, dtype| {
        Amounts::of(&inputs, dtype, max_model_len).max_cached_tokens >= u64::from(max_model_len)
    };
    let with_one = activation_reserve(&PlanInputs { max_sequences: 1, ..*inputs }, dtype, max_model_len);
    if with_one < amounts.reserve / 2
        && let Some(sequences) = largest(inputs.max_sequences, |max_sequences| {
            fits(PlanInputs { max_sequences, ..*inputs }, dtype)
        })
    {
        remedies.push(format!("lower engine.maxSequences to {sequences} or less"));
    }
    let longest = largest(max_model_len, |length| {
        Amounts::of(inputs, dtype, length).max_cached_tokens >= u64::from(length)
    });
    if let Some(length) = longest {
        remedies.push(format!("set engine.maxModelLen to {length} or less"));
    }
    if dtype == RunDtype::F32 && fits(*inputs, RunDtype::Bf16) {
        remedies.push("set engine.dtype to bf16".to_owned());
    }
    let smaller_step = inputs.max_batched_tokens.min(512);
    if smaller_step < inputs.max_batched_tokens
        && fits(PlanInputs { max_batched_tokens: smaller_step, ..*inputs }, dtype)
    {
        remedies.push(format!("lower engine.maxBatchedTokens to {smaller_step}"));
    }
    remedies.push(match inputs.device {
        DeviceKind::Gpu => "use a GPU with more memory".to_owned(),
        DeviceKind::Cpu => "raise resources.memory".to_owned(),
    });
    remedies.push("use a smaller model".to_owned());
    format!(
        "does not fit: needs {} of weights ({dtype}) + {} for activations + {} of KV cache for one sequence of {max_model_len} \
         tokens = {}, a replica has {}: {}",
        gib(amounts.weights),
        gib(amounts.reserve),
        gib(amounts.one_sequence),
        gib(amounts.needed()),
        gib(inputs.memory_budget_bytes),
        join_or(&remedies),
    )
}

/// The largest number below `below`, and above 0, that fits, by bisection: a larger one never needs less.
fn largest(below: u32, fits: impl Fn(u32) -> bool) -> Option<u32> {
    let (mut good, mut bad) = (0, below);
    while bad - good > 1 {
        let middle = good + (bad - good) / 2;
        if fits(middle) {
            good = middle;
        } else {
            bad = middle;
        }
    }
    (good > 0).then_some(good)
}

pub(crate) fn join_or(remedies: &[String]) -> String {
    match remedies {
        [] => String::new(),
        [one] => one.clone(),
        [first @ .., last] => format!("{}, or {last}", first.join(", ")),
    }
}

fn sequences(count: u64) -> String {
    if count == 1 { "1 sequence".to_owned() } else { format!("{count} sequences") }
}

/// Bytes as a person reads them: GiB, or MiB below one.
#[allow(clippy::cast_precision_loss)] // one decimal is shown
pub(crate) fn gib(bytes: u64) -> String {
    if bytes >= GIB {
        format!("{:.1} GiB", bytes as f64 / GIB as f64)
    } else {
        format!("{:.1} MiB", bytes as f64 / MIB as f64)
    }
}
