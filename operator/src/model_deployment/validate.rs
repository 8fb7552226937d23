//! What a ModelDeployment's spec means, with the defaults filled in: pure, and the builders' only input. The schema's rules
//! refuse most of what is refused here; who goes around them (a gateway, an old definition) is told the same.

use std::collections::BTreeMap;

use fairlead_crds::condition::stalled;
use fairlead_crds::model_deployment::{
    AdapterSpec, DraftModelSpec, Dtype, EngineSpec, KvCacheSpec, ModelDeployment, ModelDeploymentSpec,
    ModelSource, PlacementSpec, PodTemplateSpec, Quantization, ResourcesSpec, SpeculationSpec, Task,
    UpdateSpec,
};
use fairlead_fetch::SourceUri;
use fairlead_inference_config::BatchLimits;
use fairlead_model::{DeviceKind, LoadQuantization, RunDtype};
use k8s_openapi::api::core::v1::EnvVar;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{Resource, ResourceExt};

use super::kv_tiers::{self, KvTiers};
use crate::config::Settings;
use crate::error::Error;
use crate::quantity;

/// Share of the memory that is used where the spec names none.
const UTILIZATION: f64 = fairlead_inference_config::DEFAULT_GPU_MEMORY_UTILIZATION;
/// Engine memory where the spec names none.
const MEMORY: &str = "2Gi";
/// Tokens guessed at once where the spec names none.
const GUESSES: u32 = 4;
/// Time to finish streams where the spec names none.
const GRACE_SECONDS: i64 = 300;

/// A ModelDeployment that can be built.
#[derive(Clone, Debug)]
pub struct ValidatedModelDeployment {
    /// Its name, and that of most of its children.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// What children point back with.
    pub owner: OwnerReference,
    /// What the model is for.
    pub task: Task,
    /// Where the model comes from.
    pub source: SourceUri,
    /// Name of the Secret with the hub's token, or of the image pull secret.
    pub secret: Option<String>,
    /// `sha256:…` that pods insist on.
    pub digest: Option<String>,
    /// LoRA adapters, by the names they are served under.
    pub adapters: BTreeMap<String, SourceUri>,
    /// Guessing ahead, if the spec asks for it.
    pub speculation: Option<Speculation>,
    /// How the engine runs.
    pub engine: Engine,
    /// How keys and values are kept beyond the cache itself.
    pub kv_tiers: KvTiers,
    /// What a replica gets.
    pub resources: Resources,
    /// Where replicas may run.
    pub placement: PlacementSpec,
    /// Replicas, or `None` when an autoscaler owns the number.
    pub replicas: Option<i32>,
    /// Replicas above the wanted number during an update.
    pub max_surge: i32,
    /// Replicas that may be missing during an update.
    pub max_unavailable: i32,
    /// What to add to the pods.
    pub pod: Pod,
}

impl ValidatedModelDeployment {
    /// Where the draft model comes from, if there is one.
    pub fn draft(&self) -> Option<&SourceUri> {
        self.speculation.as_ref()?.draft.as_ref()
    }
}

/// Guessing ahead, defaults filled in.
#[derive(Clone, Debug, PartialEq)]
pub struct Speculation {
    /// Most tokens guessed at once.
    pub tokens: u32,
    /// The model that guesses; `None` is prompt lookup.
    pub draft: Option<SourceUri>,
}

/// How the engine runs, defaults filled in.
#[derive(Clone, Debug, PartialEq)]
pub struct Engine {
    /// What it computes on.
    pub device: DeviceKind,
    /// Number type; `None` is `auto`.
    pub dtype: Option<RunDtype>,
    /// Longest sequence; `None` is what the model was made for.
    pub max_model_len: Option<u32>,
    /// Most sequences in one batch.
    pub max_sequences: u32,
    /// Most tokens in one step.
    pub max_batched_tokens: u32,
    /// Share of the memory that may be used.
    pub utilization: f64,
    /// Whether a GPU's memory is told in the spec.
    pub memory_is_explicit: bool,
    /// Tokens in a KV block.
    pub block_tokens: u32,
    /// Quantisation of weights that the checkpoint holds in full.
    pub quantization: LoadQuantization,
}

/// What a replica gets, defaults filled in.
#[derive(Clone, Debug, PartialEq)]
pub struct Resources {
    /// GPUs.
    pub gpus: u32,
    /// Extended resource that they are requested by.
    pub gpu_resource: String,
    /// Bytes of one GPU, where the spec says so.
    pub gpu_memory_bytes: Option<u64>,
    /// CPU request.
    pub cpu: Quantity,
    /// Memory request and limit.
    pub memory: Quantity,
    /// The same in bytes.
    pub memory_bytes: u64,
}

/// What to add to the pods, defaults filled in.
#[derive(Clone, Debug, PartialEq)]
pub struct Pod {
    /// Extra labels.
    pub labels: BTreeMap<String, String>,
    /// Extra annotations.
    pub annotations: BTreeMap<String, String>,
    /// Extra environment.
    pub env: Vec<EnvVar>,
    /// Names of pull secrets, the model image's among them.
    pub image_pull_secrets: Vec<String>,
    /// Priority class.
    pub priority_class_name: Option<String>,
    /// Time to finish streams.
    pub grace_seconds: i64,
    /// The engine's image.
    pub image: String,
}

/// Checks a spec and fills in its defaults.
///
/// # Errors
/// [`Error::Invalid`] that names the field and the remedy.
pub fn validate(object: &ModelDeployment, settings: &Settings) -> Result<ValidatedModelDeployment, Error> {
    // Without `..`: a new field must be handled here before this builds.
    let ModelDeploymentSpec {
        task,
        model,
        adapters,
        engine,
        kv_cache,
        resources,
        placement,
        replicas,
        update,
        pod_template,
    } = &object.spec;
    let ModelSource { uri, secret_ref, digest } = model;
    let source = source(uri)?;
    let secret = secret_ref.as_ref().map(|secret| secret.name.clone()).filter(|name| !name.is_empty());
    let (max_surge, max_unavailable) = surge(update)?;
    if let Some(replicas) = replicas.filter(|replicas| *replicas < 0) {
        return Err(invalid(format!("spec.replicas is {replicas}; it must be 0 or more")));
    }
    if let Some(digest) = digest.as_deref().filter(|it| !is_digest(it)) {
        return Err(invalid(format!(
            "spec.model.digest is {digest}; it must be sha256: and 64 lower-case hexadecimal digits"
        )));
    }
    let resources = validate_resources(resources)?;
    let adapters = validate_adapters(adapters, &object.name_any(), &source)?;
    Ok(ValidatedModelDeployment {
        name: object.name_any(),
        namespace: object.namespace().unwrap_or_default(),
        owner: owner(object)?,
        task: *task,
        speculation: validate_speculation(engine.speculation.as_ref(), &source)?,
        engine: validate_engine(*task, engine, kv_cache, &resources)?,
        kv_tiers: kv_tiers::validate(kv_cache)?,
        pod: validate_pod(pod_template, &source, secret.as_deref(), settings),
        source,
        secret,
        digest: digest.clone(),
        adapters,
        resources,
        placement: placement.clone(),
        replicas: *replicas,
        max_surge,
        max_unavailable,
    })
}

fn owner(object: &ModelDeployment) -> Result<OwnerReference, Error> {
    // Objects from an API server always have a name and a uid.
    let owner = object
        .controller_owner_ref(&())
        .ok_or_else(|| Error::Transient("the object has no uid".to_owned()))?;
    Ok(OwnerReference { block_owner_deletion: Some(true), ..owner })
}

pub(super) fn invalid(message: impl Into<String>) -> Error {
    Error::invalid(stalled::INVALID_SPEC, message)
}

fn source(uri: &str) -> Result<SourceUri, Error> {
    match SourceUri::parse(uri) {
        Ok(SourceUri::Folder { .. }) => Err(invalid(
            "spec.model.uri: file:// is for inference pods that run by hand; a path on a node would need a hostPath volume, which \
             restricted pod security forbids. Put the model on a volume claim (pvc://claim/path) or into an image (oci://image)",
        )),
        Ok(source) => Ok(source),
        // The message begins with the field as the pod knows it.
        Err(error) => Err(invalid(format!("spec.{error}"))),
    }
}

fn validate_adapters(
    adapters: &[AdapterSpec],
    own_name: &str,
    model: &SourceUri,
) -> Result<BTreeMap<String, SourceUri>, Error> {
    let mut sources = BTreeMap::new();
    for AdapterSpec { name, uri } in adapters {
        let field = format!("spec.adapters[{name}]");
        if name == own_name {
            return Err(invalid(format!(
                "{field}.name is the ModelDeployment's own name; choose another one"
            )));
        }
        let source = beside(model, &format!("{field}.uri"), uri)?;
        if sources.insert(name.clone(), source).is_some() {
            return Err(invalid(format!("spec.adapters: two are named {name}; give each its own name")));
        }
    }
    Ok(sources)
}

/// Where something comes from that goes with the model.
fn beside(model: &SourceUri, field: &str, uri: &str) -> Result<SourceUri, Error> {
    let source = SourceUri::parse(uri).map_err(|error| invalid(format!("{field}: {error}")))?;
    match (&source, model) {
        (SourceUri::Hub { .. }, _) => Ok(source),
        (SourceUri::Claim { claim, .. }, SourceUri::Claim { claim: mounted, .. }) if claim == mounted => {
            Ok(source)
        }
        _ => Err(invalid(format!(
            "{field} is {uri}; it must be at a hub (hf://org/name@revision), or on the claim that spec.model.uri names"
        ))),
    }
}

fn validate_speculation(
    spec: Option<&SpeculationSpec>,
    model: &SourceUri,
) -> Result<Option<Speculation>, Error> {
    let Some(SpeculationSpec { tokens, draft_model }) = spec else { return Ok(None) };
    let tokens = tokens.unwrap_or(GUESSES);
    if tokens == 0 {
        return Err(invalid(
            "spec.engine.speculation.tokens is 0; it must be at least 1, or leave spec.engine.speculation out",
        ));
    }
    let draft = draft_model
        .as_ref()
        .map(|DraftModelSpec { uri }| beside(model, "spec.engine.speculation.draftModel.uri", uri))
        .transpose()?;
    Ok(Some(Speculation { tokens, draft }))
}

fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:")
        .is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))
}

fn surge(update: &UpdateSpec) -> Result<(i32, i32), Error> {
    let UpdateSpec { max_surge, max_unavailable } = update;
    let max_surge = max_surge.unwrap_or(1);
    let max_unavailable = max_unavailable.unwrap_or(u32::from(max_surge == 0));
    if max_surge == 0 && max_unavailable == 0 {
        return Err(invalid(
            "spec.update.maxSurge and spec.update.maxUnavailable are both 0, so no pod could ever be replaced; set one to 1",
        ));
    }
    let whole = |field: &str, value: u32| {
        i32::try_from(value)
            .map_err(|_| invalid(format!("spec.update.{field} is {value}; it must be 1000 or less")))
    };
    Ok((whole("maxSurge", max_surge)?, whole("maxUnavailable", max_unavailable)?))
}

fn validate_resources(spec: &ResourcesSpec) -> Result<Resources, Error> {
    let ResourcesSpec { gpus, gpu_resource, gpu_memory, cpu, memory } = spec;
    if *gpus > 1 {
        return Err(invalid(format!(
            "spec.resources.gpus is {gpus}; more than one needs tensor parallelism, which this version does not have: set it to 1"
        )));
    }
    let bytes = |field: &str, value: &Quantity| {
        quantity::bytes(&value.0).filter(|bytes| *bytes > 0).ok_or_else(|| {
            invalid(format!(
                "spec.resources.{field} is {}; it must be a positive quantity, for example 16Gi",
                value.0
            ))
        })
    };
    let memory = memory.clone().unwrap_or_else(|| Quantity(MEMORY.to_owned()));
    let cpu = cpu.clone().unwrap_or_else(|| Quantity("1".to_owned()));
    if quantity::thousandths(&cpu.0).is_none_or(|it| it <= 0) {
        return Err(invalid(format!(
            "spec.resources.cpu is {}; it must be a positive quantity, for example 500m or 4",
            cpu.0
        )));
    }
    Ok(Resources {
        gpus: *gpus,
        gpu_resource: gpu_resource.clone().unwrap_or_else(|| "nvidia.com/gpu".to_owned()),
        gpu_memory_bytes: gpu_memory.as_ref().map(|value| bytes("gpuMemory", value)).transpose()?,
        memory_bytes: bytes("memory", &memory)?,
        cpu,
        memory,
    })
}

fn validate_engine(
    task: Task,
    engine: &EngineSpec,
    kv_cache: &KvCacheSpec,
    resources: &Resources,
) -> Result<Engine, Error> {
    let EngineSpec {
        dtype,
        max_model_len,
        max_sequences,
        max_batched_tokens,
        gpu_memory_utilization,
        quantization,
        speculation,
    } = engine;
    // The rest is `kv_tiers`' business.
    let KvCacheSpec { block_tokens, prefix_sharing: _, tiers: _ } = kv_cache;
    let device = if resources.gpus > 0 { DeviceKind::Gpu } else { DeviceKind::Cpu };
    let runs = match task {
        Task::Generate => fairlead_inference_config::Task::Generate,
        Task::Embed => fairlead_inference_config::Task::Embed,
        Task::Rerank => fairlead_inference_config::Task::Rerank,
    };
    let BatchLimits { sequences, tokens: batched_tokens } = match device {
        DeviceKind::Gpu => BatchLimits::on_gpu(runs),
        DeviceKind::Cpu => BatchLimits::on_cpu(runs),
    };
    if task != Task::Generate && *kv_cache != KvCacheSpec::default() {
        return Err(invalid(format!(
            "spec.kvCache is for models that continue text; with spec.task {task:?} leave it out"
        )));
    }
    if task != Task::Generate && (*quantization != Quantization::None || speculation.is_some()) {
        return Err(invalid(format!(
            "spec.engine.quantization and spec.engine.speculation are for models that continue text; with spec.task {task:?} leave \
             them out"
        )));
    }
    let block_tokens = block_tokens.unwrap_or(16);
    if !fairlead_model::plan::BLOCK_SIZES.contains(&block_tokens) {
        return Err(invalid(format!("spec.kvCache.blockTokens is {block_tokens}; it must be 16, 32 or 64")));
    }
    let utilization = match gpu_memory_utilization {
        None => UTILIZATION,
        Some(text) => text.parse().ok().filter(|share| *share > 0.0 && *share <= 1.0).ok_or_else(|| {
            invalid(format!(
                "spec.engine.gpuMemoryUtilization is {text}; it must be a decimal above 0 and at most 1, in quotes; for example \"0.90\""
            ))
        })?,
    };
    Ok(Engine {
        device,
        dtype: match dtype {
            Dtype::Auto => None,
            Dtype::Bf16 => Some(RunDtype::Bf16),
            Dtype::F16 => Some(RunDtype::F16),
            Dtype::F32 => Some(RunDtype::F32),
        },
        max_model_len: *max_model_len,
        max_sequences: max_sequences.unwrap_or(sequences),
        max_batched_tokens: max_batched_tokens.unwrap_or(batched_tokens),
        utilization,
        memory_is_explicit: resources.gpu_memory_bytes.is_some(),
        block_tokens,
        quantization: match quantization {
            Quantization::None => LoadQuantization::None,
            Quantization::Int8 => LoadQuantization::Int8,
            Quantization::Int4 => LoadQuantization::Int4,
        },
    })
}

fn validate_pod(
    spec: &PodTemplateSpec,
    source: &SourceUri,
    secret: Option<&str>,
    settings: &Settings,
) -> Pod {
    let PodTemplateSpec {
        labels,
        annotations,
        env,
        image_pull_secrets,
        priority_class_name,
        termination_grace_period_seconds,
        image,
    } = spec;
    let mut pull_secrets: Vec<String> = image_pull_secrets.iter().map(|secret| secret.name.clone()).collect();
    if let (SourceUri::Image { .. }, Some(secret)) = (source, secret)
        && !pull_secrets.iter().any(|it| it == secret)
    {
        pull_secrets.push(secret.to_owned());
    }
    Pod {
        labels: labels.clone(),
        annotations: annotations.clone(),
        env: env.clone(),
        image_pull_secrets: pull_secrets,
        priority_class_name: priority_class_name.clone(),
        grace_seconds: termination_grace_period_seconds.unwrap_or(GRACE_SECONDS).max(1),
        image: image.clone().unwrap_or_else(|| settings.inference_image.clone()),
    }
}
