//! From a configuration to a running model: fetch, check, size, load, warm up.
//!
//! With [`encode`], which does the same for encoders, the only place that names the libtorch backend.

mod encode;

use std::path::PathBuf;
use std::sync::Arc;

use fairlead_backend_torch::{ComputeDevice, DeviceRequest, GpuMemory, LoadError, LoadOptions, TorchBackend};
use fairlead_engine::backend::Backend;
use fairlead_engine::engine::{self, EngineHandle, EngineOptions, EngineParts, StartError};
use fairlead_fetch::{FetchError, FetchOptions, FetchedModel, Hub, Inspection, SourceUri, fetch};
use fairlead_inference_config::{
    AdapterConfig, BatchLimits, DEFAULT_GPU_MEMORY_UTILIZATION, Device, Dtype, EngineConfig, InferenceConfig,
    KvCacheConfig, Quantization, Task,
};
use fairlead_model::{
    DeviceKind, DraftInputs, LoadQuantization, ModelError, Plan, PlanInputs, Purpose, Reason, RunDtype, plan,
};

use crate::cache_size::{self, Measured, Planned};
use crate::kv_tiers::{require_memory, tier_options};
use crate::memory::{cpu_budget_bytes, gpu_budget_bytes, with_margin, without_margin};
use crate::model_files::ModelFiles;
use crate::observer::EngineObserver;
use crate::speculation::{DraftModel, of_draft_model, proposer};
use crate::startup::Phase;
use crate::state::{App, Model};

/// Tokens in a block where the configuration leaves it open.
const DEFAULT_BLOCK_TOKENS: u32 = 16;
/// Most rows of logits in a step, unless twice as many sequences run: a scored prompt asks for one for each token, and over a
/// large vocabulary that takes longer than the rest of the step.
const MAX_LOGITS_ROWS: usize = 256;
/// LoRA adapters at once where the configuration leaves it open.
const DEFAULT_MAX_ADAPTERS: u32 = 8;

/// Why the program ends with an error: the condition reason and a message with the remedy.
#[derive(Debug, thiserror::Error)]
#[error("{reason}: {message}")]
pub struct FatalError {
    /// For the operator.
    pub reason: Reason,
    /// For people.
    pub message: String,
}

impl FatalError {
    /// An error that is nobody's setting and no model's fault.
    pub fn pod(message: impl Into<String>) -> Self {
        Self { reason: Reason::PodFailed, message: message.into() }
    }
}

impl From<FetchError> for FatalError {
    fn from(error: FetchError) -> Self {
        Self { reason: error.reason(), message: error.to_string() }
    }
}

impl From<ModelError> for FatalError {
    fn from(error: ModelError) -> Self {
        Self { reason: error.reason(), message: error.to_string() }
    }
}

impl From<LoadError> for FatalError {
    fn from(error: LoadError) -> Self {
        Self { reason: error.reason(), message: error.to_string() }
    }
}

impl From<StartError<FatalError>> for FatalError {
    fn from(error: StartError<FatalError>) -> Self {
        match error {
            StartError::Build(error) => error,
            StartError::Tiers(error) => Self { reason: Reason::InvalidSpec, message: error.to_string() },
            other => Self::pod(other.to_string()),
        }
    }
}

/// Brings the model up and makes the pod ready.
///
/// # Errors
/// [`FatalError`]: the process can do nothing but end.
pub async fn bring_up(app: &Arc<App>, config: &InferenceConfig) -> Result<(), FatalError> {
    let fetched = fetch_model(app, config).await?;
    match config.task {
        Task::Generate => bring_up_decoder(app, config, fetched).await,
        Task::Embed => encode::bring_up(app, config, fetched, Purpose::Embed).await,
        Task::Rerank => encode::bring_up(app, config, fetched, Purpose::Rerank).await,
    }
}

async fn bring_up_decoder(
    app: &Arc<App>,
    config: &InferenceConfig,
    fetched: FetchedModel,
) -> Result<(), FatalError> {
    let files = {
        let (dir, model) = (fetched.dir.clone(), fetched.inspection.config.decoder()?.clone());
        let loading = tokio::task::spawn_blocking(move || ModelFiles::load(&dir, &model));
        loading.await.map_err(|error| FatalError::pod(format!("reading the tokenizer failed: {error}")))??
    };
    if files.template.is_none() {
        tracing::warn!(
            "the model has no chat template: /v1/chat/completions will refuse, /v1/completions works"
        );
    }
    let draft = DraftModel::fetch(config, &fetched).await?;
    let engine = start_engine(app, config, fetched, draft).await?;
    for AdapterConfig { name, uri } in &config.adapters {
        app.adapters.load(&engine, name, uri).await.map_err(|error| error.fatal(name))?;
    }
    let ModelFiles { codec, template, defaults, eos_tokens, grammars } = files;
    app.ready(Model { engine, codec, template, defaults, eos_tokens, grammars });
    Ok(())
}

async fn fetch_model(app: &Arc<App>, config: &InferenceConfig) -> Result<FetchedModel, FatalError> {
    let source = SourceUri::parse_or_folder(&config.model.uri)?;
    let dir = config.model.cache_dir.clone().unwrap_or_else(default_cache_dir).join(source.cache_name());
    let progress = {
        let app = Arc::clone(app);
        Arc::new(move |progress: fairlead_fetch::Progress| {
            app.startup.progress(progress.bytes_done, progress.bytes_total);
        })
    };
    let options = FetchOptions {
        digest: config.model.digest.clone(),
        progress: Some(progress),
        ..FetchOptions::default()
    };
    Ok(fetch(&source, &Hub::from_env()?, &dir, &options).await?)
}

/// Where models go that are fetched by hand.
pub(crate) fn default_cache_dir() -> PathBuf {
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home);
    base.unwrap_or_else(std::env::temp_dir).join("fairlead").join("models")
}

async fn start_engine(
    app: &Arc<App>,
    config: &InferenceConfig,
    fetched: FetchedModel,
    draft: Option<DraftModel>,
) -> Result<EngineHandle, FatalError> {
    let speculation = config.speculation.clone();
    let (settings, max_queued) = (config.engine.clone(), config.server.max_queued_requests as usize);
    let (kv_cache, digest) = (config.kv_cache.clone(), config.model.digest.clone());
    let max_adapters = settings.max_adapters.unwrap_or(DEFAULT_MAX_ADAPTERS) as usize;
    let observer = Box::new(EngineObserver { app: Arc::clone(app), max_adapters });
    let app = Arc::clone(app);
    let build = move || {
        let device = ComputeDevice::start(device_request(settings.device), Some(threads(&settings)))?;
        app.startup.enter(Phase::SizingCache);
        let sized = size(&settings, &kv_cache, device, &fetched.inspection, draft.as_ref())?;
        sized.cache.log(&settings, &sized.plan, sized.max_sequences, sized.max_batched_tokens);
        app.startup.enter(Phase::Loading);
        let options = LoadOptions {
            device,
            dtype: Some(sized.plan.dtype),
            quantization: load_quantization(settings.quantization),
            block_tokens: sized.plan.block_tokens,
            // The cache proper is made when it is known what is left for it; warming up takes the padding block alone.
            kv_cache_bytes: 2 * sized.cache.block_bytes,
            max_batched_tokens: sized.max_batched_tokens,
            max_sequences: sized.max_sequences,
        };
        let progress = &mut |done, total| app.startup.progress(done, total);
        let mut target = TorchBackend::load(&fetched.dir, &options, progress)?;
        let mut guesser = match &draft {
            Some(draft) => {
                let options = LoadOptions { quantization: LoadQuantization::None, ..options };
                let loaded = TorchBackend::load(draft.folder(), &options, progress);
                Some(loaded.map_err(|error| of_draft_model(error.into()))?)
            }
            None => None,
        };
        app.startup.enter(Phase::WarmingUp);
        let before = device.gpu_memory();
        for backend in std::iter::once(&mut target).chain(&mut guesser) {
            backend.warm_up()?;
        }
        app.startup.enter(Phase::SizingCache);
        let weight_bytes = target.weight_bytes() + guesser.as_ref().map_or(0, TorchBackend::weight_bytes);
        let Sized { plan, cache, .. } = &sized;
        let draft_spare_bytes = draft.as_ref().map_or(Ok(0), |draft| draft.spare_bytes(plan))?;
        let measured = measure(&settings, device, weight_bytes, before, draft_spare_bytes);
        let Planned { bytes, least_bytes, block_bytes, .. } = *cache;
        let kv_cache_bytes = cache_size::kv_cache_bytes(plan, bytes, least_bytes, block_bytes, &measured)?;
        let backend: Box<dyn Backend> = match (draft, guesser) {
            (Some(draft), Some(mut guesser)) => {
                let shared = draft.share_cache(plan, kv_cache_bytes)?;
                target.resize_cache(shared.target_bytes)?;
                guesser.resize_cache(shared.draft_bytes)?;
                Box::new(draft.join(target, guesser)?)
            }
            _ => {
                target.resize_cache(kv_cache_bytes)?;
                Box::new(target)
            }
        };
        let tokens = cache.tokens(kv_cache_bytes, plan.block_tokens);
        tracing::info!(kv_cache_bytes, kv_cache_tokens = tokens, "the KV cache holds {tokens} tokens");
        let tiers = tier_options(&kv_cache, &fetched.dir, digest.as_deref(), &sized.plan, device.kind())?;
        let options = EngineOptions {
            max_sequences: sized.max_sequences as usize,
            max_batched_tokens: sized.max_batched_tokens as usize,
            max_model_len: sized.plan.max_model_len,
            max_logits_rows: MAX_LOGITS_ROWS.max(2 * sized.max_sequences as usize),
            prefix_sharing: kv_cache.prefix_sharing,
            max_queued,
            max_adapters,
            tiers,
        };
        let proposer = proposer(speculation.as_ref(), options.max_sequences);
        Ok(EngineParts { proposer, ..EngineParts::new(backend, options) })
    };
    Ok(engine::start(observer, build).await?)
}

/// What there is after loading and warming up; `before` is the GPU's memory between the two.
fn measure(
    settings: &EngineConfig,
    device: ComputeDevice,
    weight_bytes: u64,
    before: Option<GpuMemory>,
    draft_spare_bytes: u64,
) -> Measured {
    let after = device.gpu_memory();
    let left_bytes = match after {
        // What the share leaves to others is not for the cache.
        Some(GpuMemory { free, total }) => {
            let share = settings.gpu_memory_utilization.unwrap_or(DEFAULT_GPU_MEMORY_UTILIZATION);
            let others = match settings.kv_cache_bytes {
                Some(_) => 0,
                None => total - gpu_budget_bytes(total, total, share),
            };
            Some(free.saturating_sub(others))
        }
        None => device.available_memory(),
    };
    Measured {
        device: device.kind(),
        weight_bytes,
        activation_bytes: before.zip(after).map(|(before, after)| before.free.saturating_sub(after.free)),
        left_bytes,
        draft_spare_bytes,
    }
}

/// What the engine is built with.
struct Sized {
    plan: Plan,
    cache: Planned,
    max_sequences: u32,
    max_batched_tokens: u32,
}

/// Bytes that weights, activations and KV cache may take together where nobody has set the cache's size.
fn memory_budget(settings: &EngineConfig, device: ComputeDevice) -> Result<u64, FatalError> {
    let unknown = |whose: &str| FatalError {
        reason: Reason::InvalidSpec,
        message: format!("engine.kvCacheBytes: {whose} does not tell how much memory there is; set it"),
    };
    match device.kind() {
        DeviceKind::Cpu => cpu_budget_bytes().ok_or_else(|| unknown("this system")),
        DeviceKind::Gpu => {
            let memory = device.gpu_memory().ok_or_else(|| unknown("the CUDA runtime"))?;
            let share = settings.gpu_memory_utilization.unwrap_or(DEFAULT_GPU_MEMORY_UTILIZATION);
            tracing::info!(free = memory.free, total = memory.total, share, "measured the GPU's memory");
            Ok(gpu_budget_bytes(memory.free, memory.total, share))
        }
    }
}

fn size(
    settings: &EngineConfig,
    kv_cache: &KvCacheConfig,
    device: ComputeDevice,
    inspection: &Inspection,
    draft: Option<&DraftModel>,
) -> Result<Sized, FatalError> {
    let draft = draft.map(DraftModel::plan_inputs).transpose()?;
    let within = |budget| size_within(settings, kv_cache, device.kind(), inspection, draft, budget);
    let sized = match settings.kv_cache_bytes {
        // Whoever sets the cache's size answers for it.
        Some(_) => within(u64::MAX / 4)?,
        None => {
            let whole = memory_budget(settings, device)?;
            match device.kind() {
                DeviceKind::Gpu => within(whole)?,
                DeviceKind::Cpu => within_tiers(kv_cache, whole, within)?,
            }
        }
    };
    if let Some(budget) = cpu_budget_bytes() {
        let plan = &sized.plan;
        let in_main_memory = match device.kind() {
            DeviceKind::Cpu => plan.weight_bytes + plan.activation_reserve_bytes + sized.cache.bytes,
            DeviceKind::Gpu => 0,
        };
        require_memory(kv_cache, in_main_memory, budget)?;
    }
    Ok(sized)
}

/// On a CPU the tiers take their part first, but leave what the model needs at the least.
fn within_tiers(
    kv_cache: &KvCacheConfig,
    whole: u64,
    within: impl Fn(u64) -> Result<Sized, FatalError>,
) -> Result<Sized, FatalError> {
    let tiers = kv_cache.tier_memory_bytes();
    if tiers == 0 {
        return within(whole);
    }
    let Sized { plan, cache, .. } = within(whole)?;
    let needed = plan.weight_bytes + plan.activation_reserve_bytes + cache.least_bytes;
    // The same margin as the budget has, so that what is then left of it is as much as the model needs.
    require_memory(kv_cache, without_margin(needed).saturating_add(200), whole)?;
    within(whole - with_margin(tiers).min(whole))
}

fn size_within(
    settings: &EngineConfig,
    kv_cache: &KvCacheConfig,
    device: DeviceKind,
    inspection: &Inspection,
    draft: Option<DraftInputs<'_>>,
    memory_budget_bytes: u64,
) -> Result<Sized, FatalError> {
    let limits = match device {
        DeviceKind::Cpu => BatchLimits::on_cpu(Task::Generate),
        DeviceKind::Gpu => BatchLimits::on_gpu(Task::Generate),
    };
    let max_sequences = settings.max_sequences.unwrap_or(limits.sequences);
    // A step must hold one token of each sequence that runs and some of one that is being read.
    let max_batched_tokens =
        settings.max_batched_tokens.unwrap_or(limits.tokens).max(max_sequences.saturating_add(1));
    let config = inspection.config.decoder()?;
    let plan = plan(&PlanInputs {
        config,
        weights: &inspection.weights,
        device,
        dtype: run_dtype(settings.dtype),
        quantization: load_quantization(settings.quantization),
        max_model_len: settings.max_model_len,
        block_tokens: settings.block_tokens.unwrap_or(DEFAULT_BLOCK_TOKENS),
        memory_budget_bytes,
        max_sequences,
        max_batched_tokens,
        draft,
    })?;
    plan.require_fit()?;
    let cache = cache_size::planned(settings, &plan, device, max_sequences, kv_cache.prefix_sharing)?;
    Ok(Sized { plan, cache, max_sequences, max_batched_tokens })
}

/// CPUs that this process may use, its container's quota included: libtorch itself would count the machine's.
fn threads(settings: &EngineConfig) -> u32 {
    let available = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    settings.threads.unwrap_or_else(|| u32::try_from(available()).unwrap_or(u32::MAX))
}

fn device_request(device: Device) -> DeviceRequest {
    match device {
        Device::Auto => DeviceRequest::Auto,
        Device::Cpu => DeviceRequest::Cpu,
        Device::Cuda => DeviceRequest::Cuda,
    }
}

fn load_quantization(quantization: Quantization) -> LoadQuantization {
    match quantization {
        Quantization::None => LoadQuantization::None,
        Quantization::Int8 => LoadQuantization::Int8,
        Quantization::Int4 => LoadQuantization::Int4,
    }
}

fn run_dtype(dtype: Dtype) -> Option<RunDtype> {
    match dtype {
        Dtype::Auto => None,
        Dtype::Bf16 => Some(RunDtype::Bf16),
        Dtype::F16 => Some(RunDtype::F16),
        Dtype::F32 => Some(RunDtype::F32),
    }
}

#[cfg(test)]
mod tests {
    use fairlead_model::{ModelConfig, WeightsSummary};
    use serde_json::json;

    use super::*;

    const GIB: u64 = 1 << 30;

    /// Llama 3.1 8B.
    fn inspection() -> Inspection {
        let config = json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336,
            "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128_256,
            "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 500_000.0, "hidden_act": "silu",
        });
        Inspection {
            config: ModelConfig::parse(config.to_string().as_bytes()).unwrap().into(),
            weights: WeightsSummary { parameters: 8_030_261_248, tensors: 291, ..WeightsSummary::default() },
            weight_files: 4,
            weight_file_bytes: 16_060_522_496,
            revision: None,
            fingerprint: String::new(),
        }
    }

    fn decoder(settings: &EngineConfig, device: DeviceKind, budget: u64) -> Result<Sized, FatalError> {
        size_within(settings, &KvCacheConfig::default(), device, &inspection(), None, budget)
    }

    #[test]
    fn a_cpu_has_the_defaults_of_a_cluster() {
        let sized = decoder(&EngineConfig::default(), DeviceKind::Cpu, 200 * GIB).unwrap();
        assert_eq!((sized.max_sequences, sized.max_batched_tokens), (32, 1024));
        assert_eq!(sized.cache.bytes, 4 * GIB);
    }

    #[test]
    fn what_the_operator_planned_is_kept() {
        // As the operator does on a CPU: the plan's bytes are the setting.
        let planned = decoder(&EngineConfig::default(), DeviceKind::Cpu, 200 * GIB).unwrap().plan;
        let settings =
            EngineConfig { kv_cache_bytes: Some(planned.kv_cache_bytes), ..EngineConfig::default() };
        let sized = decoder(&settings, DeviceKind::Cpu, u64::MAX / 4).unwrap();
        assert_eq!(sized.cache.bytes, planned.kv_cache_bytes);
        assert_eq!(sized.cache.tokens(sized.cache.bytes, planned.block_tokens), planned.max_cached_tokens);
        assert!(planned.max_cached_tokens > 32 * 8192, "more than all sequences at full length");
    }

    #[test]
    fn tiers_leave_what_the_model_needs() {
        let within = |budget| decoder(&EngineConfig::default(), DeviceKind::Cpu, budget);
        let absurd = KvCacheConfig { host_bytes: Some(1 << 60), ..KvCacheConfig::default() };
        let error = within_tiers(&absurd, 90 * GIB, within).err().unwrap().message;
        let (_, rest) = error.split_once("lower it to ").unwrap();
        let host: u64 = rest.split(' ').next().unwrap().parse().unwrap();
        assert!(host > 20 * GIB && host < 90 * GIB, "{error}");
        let most = KvCacheConfig { host_bytes: Some(host), ..absurd.clone() };
        let sized = within_tiers(&most, 90 * GIB, within).unwrap();
        assert!(sized.cache.bytes >= sized.cache.least_bytes);
        let more = KvCacheConfig { host_bytes: Some(host + 1), ..absurd };
        assert!(within_tiers(&more, 90 * GIB, within).is_err());
    }

    #[test]
    fn a_gpu_without_settings_uses_its_share_of_what_is_there() {
        let budget = gpu_budget_bytes(79 * GIB, 80 * GIB, DEFAULT_GPU_MEMORY_UTILIZATION);
        assert_eq!(budget, 72 * GIB);
        let sized = decoder(&EngineConfig::default(), DeviceKind::Gpu, budget).unwrap();
        assert_eq!((sized.max_sequences, sized.max_batched_tokens), (256, 8192));
        // The cache takes all that weights and activations leave, not the cautious default of a CPU.
        assert!(sized.cache.bytes > 50 * GIB, "{}", sized.cache.bytes);
        assert!(sized.cache.bytes + 2 * 8_030_261_248 < budget);
        assert_eq!(sized.cache.bytes, sized.plan.kv_cache_bytes);
    }

    #[test]
    fn a_gpu_that_others_fill_is_refused_before_anything_is_loaded() {
        let budget = gpu_budget_bytes(10 * GIB, 80 * GIB, DEFAULT_GPU_MEMORY_UTILIZATION);
        assert_eq!(budget, 10 * GIB, "no more than is free");
        let error = decoder(&EngineConfig::default(), DeviceKind::Gpu, budget).err().unwrap();
        assert_eq!(error.reason, Reason::DoesNotFit);
    }

    #[test]
    fn a_cache_that_was_sized_by_others_is_taken_as_it_is() {
        let settings = EngineConfig { kv_cache_bytes: Some(GIB + (1 << 28)), ..EngineConfig::default() };
        let sized = decoder(&settings, DeviceKind::Gpu, u64::MAX / 4).unwrap();
        assert_eq!(sized.cache.bytes, GIB + (1 << 28));
    }
}
