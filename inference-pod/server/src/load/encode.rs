//! The same way for encoders: check, size, load, warm up. There is no cache to size: the phase says only that it fits.

use std::sync::Arc;

use fairlead_backend_torch::{ComputeDevice, EncoderLoadOptions, TorchEncoder};
use fairlead_engine::encoder::{self, BatchBudget, EncoderOptions};
use fairlead_fetch::FetchedModel;
use fairlead_inference_config::{
    BatchLimits, DEFAULT_GPU_MEMORY_UTILIZATION, EngineConfig, InferenceConfig, Task,
};
use fairlead_model::encoder::{EncoderPlanInputs, plan_encoder};
use fairlead_model::{DeviceKind, EncoderConfig, Plan, Purpose, WeightsSummary};

use super::{FatalError, device_request, run_dtype, threads};
use crate::encoding::EncoderModel;
use crate::memory::{cpu_budget_bytes, gpu_budget_bytes};
use crate::startup::Phase;
use crate::state::App;
use crate::tokenizer::TextCodec;

/// Brings an encoder up and makes the pod ready.
pub(super) async fn bring_up(
    app: &Arc<App>,
    config: &InferenceConfig,
    fetched: FetchedModel,
    purpose: Purpose,
) -> Result<(), FatalError> {
    let model = fetched.inspection.config.encoder(purpose)?.clone();
    refuse_settings(config)?;
    let codec = {
        let (dir, vocab_size) = (fetched.dir.clone(), model.vocab_size);
        let loading = tokio::task::spawn_blocking(move || TextCodec::load(&dir, vocab_size));
        loading.await.map_err(|error| FatalError::pod(format!("reading the tokenizer failed: {error}")))??
    };
    let max_input_tokens =
        config.engine.max_model_len.unwrap_or_else(|| model.max_input_tokens()).min(model.longest());
    let engine = {
        let (settings, max_queued) = (config.engine.clone(), config.server.max_queued_requests as usize);
        let (observer, app, model) = (Box::new(app.metrics.clone()), Arc::clone(app), model.clone());
        let build = move || {
            let device = ComputeDevice::start(device_request(settings.device), Some(threads(&settings)))?;
            app.startup.enter(Phase::SizingCache);
            let sized = size(&settings, device, &model, &fetched.inspection.weights)?;
            tracing::info!(
                max_input_tokens,
                max_batched_tokens = sized.max_batched_tokens,
                "{}",
                sized.plan.explanation
            );
            app.startup.enter(Phase::Loading);
            let options = EncoderLoadOptions {
                device,
                dtype: Some(sized.plan.dtype),
                max_input_tokens,
                max_batched_tokens: sized.max_batched_tokens,
            };
            let mut progress = |done, total| app.startup.progress(done, total);
            let mut encoder = TorchEncoder::load(&fetched.dir, &model, &options, &mut progress)?;
            app.startup.enter(Phase::WarmingUp);
            encoder.warm_up()?;
            let budget =
                BatchBudget { tokens: sized.max_batched_tokens as usize, inputs: sized.max_inputs as usize };
            Ok((encoder, EncoderOptions { budget, max_queued }))
        };
        encoder::start(observer, build).await?
    };
    app.encoder_ready(EncoderModel { engine, codec: Arc::new(codec), config: model, max_input_tokens });
    Ok(())
}

/// Settings of generation mean nothing here, and who made them expects something.
fn refuse_settings(config: &InferenceConfig) -> Result<(), FatalError> {
    let set = [
        ("adapters", !config.adapters.is_empty()),
        ("speculation", config.speculation.is_some()),
        ("kvCache.hostBytes", config.kv_cache.host_bytes.is_some()),
        ("kvCache.disk", config.kv_cache.disk.is_some()),
    ];
    match set.iter().find(|(_, is_set)| *is_set) {
        None => Ok(()),
        Some((field, _)) => Err(FatalError {
            reason: fairlead_model::Reason::InvalidSpec,
            message: format!("{field}: is for models that continue text (task Generate); leave it out"),
        }),
    }
}

/// What the encoder is built with.
struct Sized {
    plan: Plan,
    max_batched_tokens: u32,
    max_inputs: u32,
}

fn size(
    settings: &EngineConfig,
    device: ComputeDevice,
    config: &EncoderConfig,
    weights: &WeightsSummary,
) -> Result<Sized, FatalError> {
    // Embed and Rerank have the same.
    let limits = match device.kind() {
        DeviceKind::Cpu => BatchLimits::on_cpu(Task::Embed),
        DeviceKind::Gpu => BatchLimits::on_gpu(Task::Embed),
    };
    // Where the system tells nothing, libtorch will when a batch does not fit.
    let memory_budget_bytes = match device.kind() {
        DeviceKind::Cpu => cpu_budget_bytes(),
        DeviceKind::Gpu => device.gpu_memory().map(|memory| {
            let share = settings.gpu_memory_utilization.unwrap_or(DEFAULT_GPU_MEMORY_UTILIZATION);
            gpu_budget_bytes(memory.free, memory.total, share)
        }),
    };
    let max_batched_tokens = settings.max_batched_tokens.unwrap_or(limits.tokens);
    let plan = plan_encoder(&EncoderPlanInputs {
        config,
        weights,
        device: device.kind(),
        dtype: run_dtype(settings.dtype),
        max_model_len: settings.max_model_len,
        memory_budget_bytes: memory_budget_bytes.unwrap_or(u64::MAX / 4),
        max_batched_tokens,
    })?;
    plan.require_fit()?;
    let max_inputs = settings.max_sequences.unwrap_or(limits.sequences).max(1);
    Ok(Sized { plan, max_batched_tokens, max_inputs })
}
