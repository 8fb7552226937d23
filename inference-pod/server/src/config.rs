//! The command line, and the one struct that it and the configuration file fill.

mod checks;
pub mod fields;

use std::path::{Path, PathBuf};

use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
use fairlead_fetch::SourceUri;
use fairlead_inference_config::{
    AdapterConfig, Device, DiskTierConfig, Dtype, EngineConfig, InferenceConfig, KvCacheConfig, ModelConfig,
    Quantization, ServerConfig, SpeculationConfig, Task,
};

use self::checks::check;

/// Where a pod listens that runs by hand: on this machine alone. In a cluster the file decides, and leaves it to
/// [`ServerConfig::default`].
const LISTEN_BY_HAND: &str = "127.0.0.1:8000";

/// Serves a language model behind OpenAI's API.
#[derive(Debug, Parser)]
#[command(name = "fairlead-inference", version, about)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// How log lines are written: text or json.
    #[arg(long, global = true, help_heading = "Log", env = "FAIRLEAD_LOG_FORMAT", default_value = "text")]
    pub log_format: LogFormat,
    /// What is logged, such as `info` or `fairlead_engine=debug`.
    #[arg(long, global = true, help_heading = "Log", env = "FAIRLEAD_LOG", default_value = "info")]
    pub log: String,
    /// File that gets one line with the reason when the program fails; left alone where it does not exist.
    #[arg(
        long,
        global = true,
        help_heading = "Log",
        env = "FAIRLEAD_TERMINATION_LOG",
        default_value = "/dev/termination-log"
    )]
    pub termination_log: PathBuf,
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Fetch a model if need be, load it, and answer requests.
    Serve(Box<ServeArgs>),
    /// Fetch a model into a folder, check it and print its digest.
    Fetch(FetchArgs),
    /// Read a model's config.json and headers, and print what they say as JSON.
    Inspect(InspectArgs),
}

/// Settings of `serve`. Those given on the command line go before those in the file.
#[derive(Debug, Default, Args)]
#[command(group = ArgGroup::new("source").args(["model", "config"]).multiple(true).required(true))]
pub struct ServeArgs {
    /// A model's folder, or hf://org/name@revision.
    #[arg(long, value_name = "DIR_OR_URI", help_heading = "Model")]
    pub model: Option<String>,
    /// Configuration file (JSON); what is given on the command line too goes before it.
    #[arg(long, value_name = "FILE", help_heading = "Model")]
    pub config: Option<PathBuf>,
    /// What to do with the model: Generate, Embed or Rerank [default: Generate].
    #[arg(long, value_parser = from_name::<Task>, help_heading = "Model")]
    pub task: Option<Task>,
    /// Folder that models are kept in that were fetched [default: fairlead/models below $XDG_CACHE_HOME or ~/.cache].
    #[arg(long, value_name = "DIR", help_heading = "Model")]
    pub cache_dir: Option<PathBuf>,
    /// `sha256:…` that the model's files must have.
    #[arg(long, help_heading = "Model")]
    pub digest: Option<String>,
    /// LoRA adapter to load at the start and the model name it answers to; may be given several times.
    #[arg(long, value_name = "NAME=DIR_OR_URI", value_parser = adapter, help_heading = "Model")]
    pub adapter: Vec<AdapterConfig>,
    /// Most LoRA adapters at once [default: 8].
    #[arg(long, help_heading = "Model")]
    pub max_adapters: Option<u32>,
    /// Name that clients send as `model`; may be given several times [default: the folder's name, or org/name].
    #[arg(long, value_name = "NAME", help_heading = "Serving")]
    pub served_model_name: Vec<String>,
    /// Address to listen on [default: 127.0.0.1:8000; with --config 0.0.0.0:8000].
    #[arg(long, value_name = "HOST:PORT", help_heading = "Serving")]
    pub listen: Option<String>,
    /// Address of the admin API, which loads and unloads adapters; keep clients away from it [default: none].
    #[arg(long, value_name = "HOST:PORT", help_heading = "Serving")]
    pub admin_listen: Option<String>,
    /// Where tensors live: auto, cpu or cuda; auto is a GPU where one is visible [default: auto].
    #[arg(long, value_parser = from_name::<Device>, help_heading = "Engine")]
    pub device: Option<Device>,
    /// Number type of weights and activations: auto, bf16, f16 or f32; auto is bf16 on a GPU and f32 on a CPU [default: auto].
    #[arg(long, value_parser = from_name::<Dtype>, help_heading = "Engine")]
    pub dtype: Option<Dtype>,
    /// Quantise weights while they are loaded: none, int8 or int4; a checkpoint that is quantised is run as it is [default: none].
    #[arg(long, value_parser = from_name::<Quantization>, help_heading = "Engine")]
    pub quantization: Option<Quantization>,
    /// Longest sequence, prompt and answer together, in tokens [default: the model's own].
    #[arg(long, value_name = "TOKENS", help_heading = "Engine")]
    pub max_model_len: Option<u32>,
    /// Most sequences that run at once, or inputs in a batch of an encoder [default: 256, on a CPU 32; encoders 1024, on a CPU 256].
    #[arg(long, value_name = "N", help_heading = "Engine")]
    pub max_sequences: Option<u32>,
    /// Most tokens in one step [default: 8192, on a CPU 1024; encoders 16384, on a CPU 1024].
    #[arg(long, value_name = "TOKENS", help_heading = "Engine")]
    pub max_batched_tokens: Option<u32>,
    /// Share of a GPU's memory that may be used where --kv-cache-bytes is not given [default: 0.90].
    #[arg(long, value_name = "SHARE", help_heading = "Engine")]
    pub gpu_memory_utilization: Option<f64>,
    /// Threads of libtorch on a CPU [default: the CPUs that this process may use].
    #[arg(long, value_name = "N", help_heading = "Engine")]
    pub threads: Option<u32>,
    /// Bytes of the KV cache [default: what weights and activations leave of a GPU's share; on a CPU as much as --max-sequences
    /// sequences of --max-model-len tokens take, at most 4 GiB].
    #[arg(long, value_name = "BYTES", help_heading = "KV cache")]
    pub kv_cache_bytes: Option<u64>,
    /// Tokens in a KV block: 16, 32 or 64 [default: 16].
    #[arg(long, value_name = "TOKENS", help_heading = "KV cache")]
    pub block_tokens: Option<u32>,
    /// Share the KV blocks of common prefixes between requests [default: true].
    #[arg(long, value_name = "BOOL", help_heading = "KV cache")]
    pub prefix_sharing: Option<bool>,
    /// Bytes of main memory for KV blocks that the cache itself had to give up [default: no such tier].
    #[arg(long, value_name = "BYTES", help_heading = "KV cache")]
    pub host_tier_bytes: Option<u64>,
    /// Folder for KV blocks that main memory had to give up; it survives a restart [default: no such tier].
    #[arg(long, value_name = "DIR", requires = "disk_tier_bytes", help_heading = "KV cache")]
    pub disk_tier: Option<PathBuf>,
    /// Most bytes in that folder.
    #[arg(long, value_name = "BYTES", requires = "disk_tier", help_heading = "KV cache")]
    pub disk_tier_bytes: Option<u64>,
    /// Guess as many tokens ahead at once as this, 1 to 32, by what followed the last ones before or by --draft-model
    /// [default: no guessing].
    #[arg(long, value_name = "TOKENS", help_heading = "Guessing ahead")]
    pub speculative_tokens: Option<u32>,
    /// A smaller model with the same vocabulary that guesses ahead [default: none].
    #[arg(long, value_name = "DIR_OR_URI", requires = "speculative_tokens", help_heading = "Guessing ahead")]
    pub draft_model: Option<String>,
    /// Requests that may wait for the engine; more are answered 429 [default: 1024].
    #[arg(long, value_name = "N", help_heading = "Server")]
    pub max_queued_requests: Option<u32>,
    /// Seconds after SIGTERM in which requests are still taken, while load balancers learn that this pod is leaving [default: 0].
    #[arg(long, value_name = "SECONDS", help_heading = "Server")]
    pub drain_delay_seconds: Option<u64>,
    /// Seconds after that until streams that have not finished are cut [default: 290].
    #[arg(long, value_name = "SECONDS", help_heading = "Server")]
    pub drain_seconds: Option<u64>,
    /// Sent with every answer as x-fairlead-revision [default: none].
    #[arg(long, env = "FAIRLEAD_REVISION", help_heading = "Server")]
    pub revision: Option<String>,
}

/// Settings of `fetch`.
#[derive(Debug, Args)]
pub struct FetchArgs {
    /// hf://org/name@revision, or a folder, which is only read.
    #[arg(long, value_name = "URI")]
    pub model: String,
    /// Folder to fetch into; a model in a folder stays where it is, and needs none.
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// `sha256:…` that the files must have.
    #[arg(long)]
    pub digest: Option<String>,
}

/// Settings of `inspect`.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct InspectArgs {
    /// Configuration file (JSON) that names the model.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// A model's folder, or hf://org/name@revision.
    #[arg(long, value_name = "DIR_OR_URI")]
    pub model: Option<String>,
}

/// A setting is wrong.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(String);

impl ServeArgs {
    /// One configuration from the file, if any, and the command line.
    ///
    /// # Errors
    /// [`ConfigError`] naming the setting.
    pub fn into_config(self) -> Result<InferenceConfig, ConfigError> {
        let Self {
            config,
            model,
            task,
            listen,
            admin_listen,
            adapter,
            max_adapters,
            served_model_name,
            device,
            dtype,
            quantization,
            max_model_len,
            max_sequences,
            max_batched_tokens,
            block_tokens,
            kv_cache_bytes,
            prefix_sharing,
            host_tier_bytes,
            disk_tier,
            disk_tier_bytes,
            speculative_tokens,
            draft_model,
            gpu_memory_utilization,
            threads,
            max_queued_requests,
            drain_delay_seconds,
            drain_seconds,
            revision,
            cache_dir,
            digest,
        } = self;
        let mut merged = match config {
            Some(path) => read_config(&path)?,
            None => InferenceConfig {
                served_model_names: Vec::new(),
                model: ModelConfig { uri: String::new(), cache_dir: None, digest: None },
                task: Task::default(),
                engine: EngineConfig::default(),
                kv_cache: KvCacheConfig::default(),
                adapters: Vec::new(),
                speculation: None,
                server: ServerConfig { listen: LISTEN_BY_HAND.to_owned(), ..ServerConfig::default() },
            },
        };
        set(&mut merged.task, task);
        merged.server.admin_listen = admin_listen.or(merged.server.admin_listen);
        merged.adapters.extend(adapter);
        set(&mut merged.kv_cache.prefix_sharing, prefix_sharing);
        merged.kv_cache.host_bytes = host_tier_bytes.or(merged.kv_cache.host_bytes);
        if let (Some(path), Some(bytes)) = (disk_tier, disk_tier_bytes) {
            merged.kv_cache.disk = Some(DiskTierConfig { path, bytes });
        }
        if let Some(tokens) = speculative_tokens {
            merged.speculation = Some(match draft_model {
                Some(uri) => SpeculationConfig::DraftModel { tokens, uri },
                None => SpeculationConfig::prompt_lookup(tokens),
            });
        }
        let engine = &mut merged.engine;
        set(&mut merged.model.uri, model);
        set(&mut merged.server.listen, listen);
        set(&mut engine.device, device);
        set(&mut engine.dtype, dtype);
        set(&mut engine.quantization, quantization);
        engine.max_model_len = max_model_len.or(engine.max_model_len);
        engine.max_sequences = max_sequences.or(engine.max_sequences);
        engine.max_batched_tokens = max_batched_tokens.or(engine.max_batched_tokens);
        engine.block_tokens = block_tokens.or(engine.block_tokens);
        engine.max_adapters = max_adapters.or(engine.max_adapters);
        engine.kv_cache_bytes = kv_cache_bytes.or(engine.kv_cache_bytes);
        engine.gpu_memory_utilization = gpu_memory_utilization.or(engine.gpu_memory_utilization);
        engine.threads = threads.or(engine.threads);
        set(&mut merged.server.max_queued_requests, max_queued_requests);
        set(&mut merged.server.drain_delay_seconds, drain_delay_seconds);
        set(&mut merged.server.drain_seconds, drain_seconds);
        let revision = revision.filter(|revision| !revision.is_empty());
        merged.server.revision = revision.or(merged.server.revision);
        merged.model.cache_dir = cache_dir.or(merged.model.cache_dir);
        merged.model.digest = digest.or(merged.model.digest);
        if !served_model_name.is_empty() {
            merged.served_model_names = served_model_name;
        }
        if merged.served_model_names.is_empty() {
            merged.served_model_names.push(default_name(&merged.model.uri));
        }
        check(&merged)?;
        Ok(merged)
    }
}

impl InspectArgs {
    /// The model to inspect.
    ///
    /// # Errors
    /// [`ConfigError`] when the file cannot be read.
    pub fn model_uri(self) -> Result<String, ConfigError> {
        match (self.model, self.config) {
            (Some(model), _) => Ok(model),
            (None, Some(path)) => Ok(read_config(&path)?.model.uri),
            (None, None) => Err(ConfigError("--model or --config is required".to_owned())),
        }
    }
}

fn set<T>(target: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *target = value;
    }
}

fn read_config(path: &Path) -> Result<InferenceConfig, ConfigError> {
    let bytes = std::fs::read(path)
        .map_err(|error| ConfigError(format!("--config {}: cannot be read: {error}", path.display())))?;
    serde_json::from_slice(&bytes)
        .map_err(|error| ConfigError(format!("--config {}: {error}; correct it there", path.display())))
}

/// The last part of a folder's path, or org/name of a repository.
fn default_name(uri: &str) -> String {
    match SourceUri::parse_or_folder(uri) {
        Ok(SourceUri::Hub { repository, .. }) => repository.to_string(),
        Ok(SourceUri::Folder { path }) => {
            let path = path.canonicalize().unwrap_or(path);
            path.file_name().map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned())
        }
        _ => "model".to_owned(),
    }
}

fn adapter(text: &str) -> Result<AdapterConfig, String> {
    match text.split_once('=') {
        Some((name, uri)) if !name.is_empty() && !uri.is_empty() => {
            Ok(AdapterConfig { name: name.to_owned(), uri: uri.to_owned() })
        }
        _ => Err("must be NAME=DIR_OR_URI, such as french=/srv/adapters/french".to_owned()),
    }
}

/// Reads a value that is written as in the configuration file, so that there is one list of names.
fn from_name<T: serde::de::DeserializeOwned>(name: &str) -> Result<T, String> {
    serde_json::from_value(serde_json::Value::from(name)).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests;
