//! What a replica may use, whether the model fits into it, and when that must be worked out again. Pure; the arithmetic
//! itself is `fairlead_model::plan`, which the pods use too.

use std::collections::BTreeMap;

use fairlead_crds::condition::{reconciling, stalled};
use fairlead_crds::model_deployment::{ModelPlan, Task};
use fairlead_fetch::{Inspection, SourceUri};
use fairlead_model::encoder::{EncoderPlanInputs, plan_encoder};
use fairlead_model::{DraftInputs, LoadQuantization, ModelError, Plan, PlanInputs, Purpose, Reason};
use sha2::{Digest as _, Sha256};

use super::inspection::{DRAFT_FIELD, Inspected};
use super::validate::{Engine, Speculation, ValidatedModelDeployment};
use crate::error::Error;

/// Label with a node's memory of one GPU in MiB, set by NVIDIA's GPU feature discovery.
pub const GPU_MEMORY_LABEL: &str = "nvidia.com/gpu.memory";

/// Version of what [`inputs`] means; a new one makes every plan anew.
const FORMAT: &str = "1";

/// Bytes that weights, activations and KV cache of a replica may take together.
///
/// # Errors
/// [`Error::Waiting`] when no node says how much memory its GPUs have.
pub fn memory_budget(
    validated: &ValidatedModelDeployment,
    nodes: &[BTreeMap<String, String>],
) -> Result<u64, Error> {
    let resources = &validated.resources;
    let whole = if resources.gpus == 0 {
        resources.memory_bytes
    } else {
        let one = match resources.gpu_memory_bytes {
            Some(bytes) => bytes,
            None => smallest_gpu(nodes, &validated.placement.node_selector).ok_or_else(|| Error::Waiting {
                reason: reconciling::WAITING,
                message: format!(
                    "no node that matches spec.placement.nodeSelector has the label {GPU_MEMORY_LABEL}, so it is not known how much \
                     memory a GPU has: set spec.resources.gpuMemory, or install NVIDIA's GPU feature discovery"
                ),
                retry: std::time::Duration::from_secs(300),
            })?,
        };
        one.saturating_mul(u64::from(resources.gpus))
    };
    // Both sides are far below 2^53, where f64 stops being exact.
    Ok((whole as f64 * validated.engine.utilization) as u64)
}

fn smallest_gpu(nodes: &[BTreeMap<String, String>], selector: &BTreeMap<String, String>) -> Option<u64> {
    nodes
        .iter()
        .filter(|labels| selector.iter().all(|(key, value)| labels.get(key) == Some(value)))
        .filter_map(|labels| labels.get(GPU_MEMORY_LABEL)?.parse::<u64>().ok())
        .filter(|mebibytes| *mebibytes > 0)
        .min()
        .map(|mebibytes| mebibytes.saturating_mul(1 << 20))
}

/// Hash of all that a plan is made from, in three parts joined by dots: where the model comes from, the rest of the spec,
/// and the memory. While the first part stays the same, a moving revision stays where it was.
pub fn inputs(validated: &ValidatedModelDeployment, budget: u64) -> String {
    format!("{}{}", of_spec(validated), short_hash(&budget.to_string()))
}

/// Whether a plan is still the one to go by. Where the memory is that of nodes' GPUs, a plan that fits stays while the spec
/// does: nodes come and go (and their labels, while the feature discovery restarts), and none of that may stall, or roll,
/// what serves. A pod that lands on a GPU too small for it says so itself.
pub fn holds(known: &ModelPlan, validated: &ValidatedModelDeployment, budget: Option<u64>) -> bool {
    let resources = &validated.resources;
    let of_nodes = resources.gpus > 0 && resources.gpu_memory_bytes.is_none();
    budget.is_some_and(|budget| known.inputs == inputs(validated, budget))
        || (of_nodes && known.fits && known.inputs.starts_with(&of_spec(validated)))
}

/// The first two parts of [`inputs`], each with its dot.
fn of_spec(validated: &ValidatedModelDeployment) -> String {
    let engine = &validated.engine;
    let rest = format!(
        "{FORMAT} {} {:?} {:?} {:?} {:?} {} {} {}",
        engine.utilization,
        validated.placement.node_selector,
        engine.device,
        engine.dtype,
        engine.max_model_len,
        engine.max_sequences,
        engine.max_batched_tokens,
        engine.block_tokens
    );
    // Left out where it is the default, so that plans made before there was another stay.
    let rest = match validated.task {
        Task::Generate => rest,
        task => format!("{rest} {task:?}"),
    };
    let rest = match engine.quantization {
        LoadQuantization::None => rest,
        quantization => format!("{rest} {quantization:?}"),
    };
    let rest = match &validated.speculation {
        Some(speculation @ Speculation { draft: Some(_), .. }) => format!("{rest} {speculation:?}"),
        // Prompt lookup takes no memory.
        _ => rest,
    };
    // Their commits are part of the plan.
    let adapters = validated.adapters.values().filter(|source| matches!(source, SourceUri::Hub { .. }));
    let rest = adapters.fold(rest, |rest, source| format!("{rest} {source}"));
    format!("{}.{}.", source_key(&validated.source), short_hash(&rest))
}

/// The first part of [`inputs`].
fn source_key(source: &SourceUri) -> String {
    short_hash(&format!("{FORMAT} {source:?}"))
}

/// Whether a plan's model came from the same place.
pub fn same_source(known: &ModelPlan, inputs: &str) -> bool {
    known.inputs.split('.').next() == inputs.split('.').next()
}

/// Ten hexadecimal digits of the SHA-256 of a text.
pub fn short_hash(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().take(5).map(|byte| format!("{byte:02x}")).collect()
}

/// Makes the plan of a model that has been looked at.
///
/// # Errors
/// [`Error::Invalid`] when a setting contradicts the model.
pub fn make(
    validated: &ValidatedModelDeployment,
    inputs: &str,
    budget: u64,
    inspected: &Inspected,
) -> Result<ModelPlan, Error> {
    let engine = &validated.engine;
    let Inspected { model: inspected, draft, resolved } = inspected;
    let plan = match validated.task {
        Task::Generate => {
            let tokens = validated.speculation.as_ref().map_or(0, |speculation| speculation.tokens);
            if let Some(error) = draft.as_ref().and_then(|draft| draft.config.decoder().err()) {
                let architecture = draft.as_ref().map_or("", |draft| draft.config.architecture());
                return Err(Error::invalid(
                    stalled_reason(error.reason()),
                    format!(
                        "{DRAFT_FIELD}: it is a {architecture}, which continues no text; name a smaller model of the model's family"
                    ),
                ));
            }
            decoder(engine, budget, inspected, draft.as_ref().map(|draft| (draft, tokens)))
        }
        Task::Embed => encoder(engine, budget, inspected, Purpose::Embed),
        Task::Rerank => encoder(engine, budget, inspected, Purpose::Rerank),
    }
    .map_err(|error| match &error {
        ModelError::InvalidSetting { field, problem } => {
            Error::invalid(stalled::INVALID_SPEC, format!("spec.{field} {problem}"))
        }
        _ => Error::invalid(stalled_reason(error.reason()), error.to_string()),
    })?;
    Ok(ModelPlan {
        inputs: inputs.to_owned(),
        architecture: inspected.config.architecture().to_owned(),
        resolved_revision: inspected.revision.clone(),
        resolved: resolved.clone(),
        parameters: plan.parameters,
        weight_bytes: plan.weight_bytes,
        kv_bytes_per_token: plan.kv_bytes_per_token,
        max_model_len: plan.max_model_len,
        memory_budget_bytes: plan.memory_budget_bytes,
        kv_cache_bytes: plan.kv_cache_bytes,
        max_cached_tokens: plan.max_cached_tokens,
        fits: plan.fits,
        dtype: Some(plan.dtype.as_str().to_owned()),
        explanation: Some(plan.explanation),
    })
}

fn decoder(
    engine: &Engine,
    budget: u64,
    inspected: &Inspection,
    draft: Option<(&Inspection, u32)>,
) -> Result<Plan, ModelError> {
    let draft = match draft {
        Some((Inspection { config, weights, .. }, tokens)) => {
            Some(DraftInputs { config: config.decoder()?, weights, tokens })
        }
        None => None,
    };
    fairlead_model::plan(&PlanInputs {
        config: inspected.config.decoder()?,
        weights: &inspected.weights,
        device: engine.device,
        dtype: engine.dtype,
        quantization: engine.quantization,
        max_model_len: engine.max_model_len,
        block_tokens: engine.block_tokens,
        memory_budget_bytes: budget,
        max_sequences: engine.max_sequences,
        max_batched_tokens: engine.max_batched_tokens,
        draft,
    })
}

fn encoder(
    engine: &Engine,
    budget: u64,
    inspected: &Inspection,
    purpose: Purpose,
) -> Result<Plan, ModelError> {
    plan_encoder(&EncoderPlanInputs {
        config: inspected.config.encoder(purpose)?,
        weights: &inspected.weights,
        device: engine.device,
        dtype: engine.dtype,
        max_model_len: engine.max_model_len,
        memory_budget_bytes: budget,
        max_batched_tokens: engine.max_batched_tokens,
    })
}

/// Refuses a plan that does not fit.
///
/// # Errors
/// [`Error::Invalid`] with the numbers and the remedies.
pub fn require_fit(plan: &ModelPlan) -> Result<(), Error> {
    if plan.fits {
        return Ok(());
    }
    let message = plan.explanation.clone().unwrap_or_else(|| {
        format!("does not fit the {} bytes that a replica has: lower spec.engine.maxModelLen, or give more memory", plan.memory_budget_bytes)
    });
    Err(Error::invalid(stalled::DOES_NOT_FIT, message))
}

/// The constant of `condition::stalled` for a reason of the model crate.
pub fn stalled_reason(reason: Reason) -> &'static str {
    match reason {
        Reason::InvalidSpec => stalled::INVALID_SPEC,
        Reason::ModelNotFound => stalled::MODEL_NOT_FOUND,
        Reason::ModelInvalid => stalled::MODEL_INVALID,
        Reason::UnsupportedArchitecture => stalled::UNSUPPORTED_ARCHITECTURE,
        Reason::DoesNotFit => stalled::DOES_NOT_FIT,
        Reason::PodFailed => stalled::POD_FAILED,
    }
}
