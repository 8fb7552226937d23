//! What all request handlers share.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::http::HeaderValue;
use fairlead_engine::engine::EngineHandle;
use fairlead_engine::grammar::GrammarCompiler;
use fairlead_engine::sequence::AdapterKey;
use fairlead_inference_config::Task;
use fairlead_model::GenerationDefaults;
use fairlead_openai::ApiError;
use tokio::sync::Semaphore;
use tokio::time::timeout_at;

use crate::adapters::Adapters;
use crate::chat_template::ChatTemplate;
use crate::drain::{Drain, InFlight};
use crate::encoding::EncoderModel;
use crate::http::request_body::BodyMemory;
use crate::metrics::Metrics;
use crate::startup::{Phase, Startup};
use crate::tokenizer::TextCodec;
use crate::traces::Traces;

/// Memory for bodies that have come and are not read yet: a few of the largest, thousands of the usual.
const BODY_BYTES: usize = 128 << 20;

/// A loaded model and everything around it that handlers need.
pub struct Model {
    /// Where tokens are made.
    pub engine: EngineHandle,
    /// Text to tokens and back.
    pub codec: Arc<TextCodec>,
    /// Messages to text, where the model has a template.
    pub template: Option<ChatTemplate>,
    /// Sampling defaults of the model's authors.
    pub defaults: GenerationDefaults,
    /// Tokens that end an answer.
    pub eos_tokens: Vec<u32>,
    /// Makes constraints for answers of a given form, where the vocabulary allows it.
    pub grammars: Option<Arc<GrammarCompiler>>,
}

/// State of the process.
pub struct App {
    /// Names the pod answers to; the first is the one it lists first.
    pub served_names: Vec<String>,
    /// Revision of the ModelDeployment that this pod serves, where it was told.
    pub revision: Option<HeaderValue>,
    /// Unix seconds of the process's start.
    pub created: u64,
    /// LoRA adapters, each a model name too.
    pub adapters: Adapters,
    /// The way to being ready.
    pub startup: Startup,
    /// The way out.
    pub drain: Arc<Drain>,
    /// All metrics.
    pub metrics: Metrics,
    /// One span for each request, where they are wanted.
    pub traces: Traces,
    /// What the pod does with its model.
    pub task: Task,
    model: OnceLock<Arc<Model>>,
    encoder: OnceLock<Arc<EncoderModel>>,
    large: Arc<Semaphore>,
    /// Memory for request bodies.
    pub bodies: BodyMemory,
}

/// Requests of this size and more are read on threads of their own, so that nobody's stream waits for them…
const LARGE_REQUEST: usize = 16 << 10;
/// … and no more of them at once than this: reading takes many times their size for a moment.
const LARGE_AT_ONCE: usize = 2;
/// Text up to this size is always tokenized before it is called too long.
const ALWAYS_TOKENIZED: usize = 64 << 10;

impl Model {
    /// A prompt's tokens, with the special tokens that the model wants around a text or without.
    ///
    /// # Errors
    /// 400 where the text cannot fit whatever its tokens are: making them would take memory and time for nothing.
    pub fn encode(&self, text: &str, add_special_tokens: bool, param: &str) -> Result<Vec<u32>, ApiError> {
        let longest = self.engine.max_model_len();
        let most = (longest as usize).saturating_mul(self.codec.longest_token()).max(ALWAYS_TOKENIZED);
        if text.len() > most {
            let message = format!(
                "{param}: the prompt has {} bytes, more than this model's {longest} tokens can stand for; shorten it",
                text.len()
            );
            return Err(ApiError::invalid(param, message).with_code("context_length_exceeded"));
        }
        self.codec.encode(text, add_special_tokens).map_err(|error| ApiError::internal(error.to_string()))
    }

    /// Checks that the model has these tokens, which come from the request's field `param`.
    ///
    /// # Errors
    /// 400 with the first one that it does not have.
    pub fn check_tokens(&self, param: &str, tokens: &[u32]) -> Result<(), ApiError> {
        let vocabulary = self.codec.vocab_size();
        match tokens.iter().enumerate().find(|(_, token)| **token >= vocabulary) {
            None => Ok(()),
            Some((index, token)) => {
                let most = vocabulary.saturating_sub(1);
                let message = format!(
                    "{param}: token {index} is {token}, but this model's tokens are 0 to {most}; send only those"
                );
                Err(ApiError::invalid(param, message))
            }
        }
    }
}

impl App {
    /// A process that has just started. Adapters from a hub go into `cache_dir`. Must be called within the runtime.
    pub fn new(
        served_names: Vec<String>,
        revision: Option<&str>,
        cache_dir: PathBuf,
        task: Task,
    ) -> Arc<Self> {
        let metrics = Metrics::new(served_names.first().map_or("", String::as_str));
        Arc::new(Self {
            created: unix_seconds(),
            startup: Startup::new(metrics.clone()),
            drain: Drain::new(),
            metrics,
            traces: Traces::from_env(),
            adapters: Adapters::new(served_names.clone(), cache_dir),
            served_names,
            revision: revision.and_then(|revision| HeaderValue::from_str(revision).ok()),
            task,
            model: OnceLock::new(),
            encoder: OnceLock::new(),
            large: Arc::new(Semaphore::new(LARGE_AT_ONCE)),
            bodies: BodyMemory::new(BODY_BYTES),
        })
    }

    /// The model is loaded: requests are answered from now on.
    pub fn ready(&self, model: Model) {
        self.metrics.set_cache(model.engine.capacity());
        if self.model.set(Arc::new(model)).is_ok() && !self.drain.is_leaving() {
            self.startup.enter(Phase::Ready);
        }
    }

    /// The encoder is loaded: requests are answered from now on.
    pub fn encoder_ready(&self, encoder: EncoderModel) {
        if self.encoder.set(Arc::new(encoder)).is_ok() && !self.drain.is_leaving() {
            self.startup.enter(Phase::Ready);
        }
    }

    /// Longest input in tokens, once the model is loaded.
    pub fn max_model_len(&self) -> Option<u32> {
        let encoder = self.encoder.get().map(|encoder| encoder.max_input_tokens);
        self.model.get().map(|model| model.engine.max_model_len()).or(encoder)
    }

    /// Adapters that may be loaded at once, where the model is loaded and can have any.
    pub fn max_adapters(&self) -> Option<usize> {
        self.model.get().map(|model| model.engine.max_adapters())
    }

    /// Why what makes the answers has stopped for good; `None` while it lives or is not there yet.
    pub fn dead(&self) -> Option<&str> {
        let encoder = || self.encoder.get().and_then(|encoder| encoder.engine.dead());
        self.model.get().and_then(|model| model.engine.dead()).or_else(encoder)
    }

    /// Requests that have not been admitted yet, those included that the engine's thread has not seen.
    pub fn queued(&self) -> usize {
        self.model.get().map_or(0, |model| model.engine.queued())
    }

    /// How long the backend has been at the step that it runs, if that is longer than `most`: a kernel that never ends, or threads
    /// that wait for one another.
    pub fn step_longer_than(&self, most: Duration) -> Option<Duration> {
        let encoder = || self.encoder.get().and_then(|encoder| encoder.engine.step_age());
        self.model.get().and_then(|model| model.engine.step_age()).or_else(encoder).filter(|age| *age > most)
    }

    /// Lets the thread that owns the tensors finish what it has, and ends it.
    pub async fn drain_engine(&self) {
        if let Some(model) = self.model.get() {
            model.engine.drain().await;
        }
        if let Some(encoder) = self.encoder.get() {
            encoder.engine.drain().await;
        }
    }

    /// Takes a request for text in.
    ///
    /// # Errors
    /// 400 where the model is for something else; 503 while the pod starts, drains, or has lost its engine.
    pub fn admit(&self) -> Result<(Arc<Model>, InFlight), ApiError> {
        self.admit_for(Task::Generate, &self.model)
    }

    /// Takes a request for vectors or scores in.
    ///
    /// # Errors
    /// 400 where the model is for something else; 503 while the pod starts, drains, or has lost its encoder.
    pub fn admit_encoder(&self, task: Task) -> Result<(Arc<EncoderModel>, InFlight), ApiError> {
        self.admit_for(task, &self.encoder)
    }

    fn admit_for<M>(&self, task: Task, model: &OnceLock<Arc<M>>) -> Result<(Arc<M>, InFlight), ApiError> {
        if task != self.task {
            return Err(wrong_task(self.task));
        }
        let Some(guard) = self.drain.enter() else {
            return Err(ApiError::unavailable(
                "draining",
                "this server is shutting down; send the request again",
                1,
            ));
        };
        let Some(model) = model.get() else {
            let phase = self.startup.report().phase.as_str();
            let message = format!("the model is not ready yet (phase {phase}); send the request again later");
            return Err(ApiError::unavailable("not_ready", message, 5));
        };
        if let Some(reason) = self.dead() {
            return Err(engine_dead(reason));
        }
        Ok((Arc::clone(model), guard))
    }

    /// Reads a request of `bytes` bytes: at once, or, where it is large, away from the threads that carry the streams.
    ///
    /// # Errors
    /// What `read` says, or 504 where its turn has not come before the deadline.
    pub async fn read_request<T: Send + 'static>(
        &self,
        bytes: usize,
        deadline: Option<Instant>,
        read: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        if bytes < LARGE_REQUEST {
            return read();
        }
        // Never closed, so this waits for its turn and nothing else.
        let turn = Arc::clone(&self.large).acquire_owned();
        let turn = match deadline {
            None => turn.await,
            Some(deadline) => timeout_at(deadline.into(), turn).await.map_err(|_| {
                ApiError::deadline_passed(
                    "the time that x-request-timeout-ms allows has passed while other large requests were read; allow more",
                )
            })?,
        };
        let reading = tokio::task::spawn_blocking(move || {
            // Held to the end even when the client goes away meanwhile.
            let _turn = turn;
            read()
        });
        reading.await.unwrap_or_else(|error| {
            Err(ApiError::internal(format!("the request could not be read: {error}; send it again")))
        })
    }

    /// Checks that a request names a model of ours, and returns the adapter that answers, if it is one.
    ///
    /// # Errors
    /// 404 with the names there are.
    pub fn check_model(&self, name: &str) -> Result<Option<AdapterKey>, ApiError> {
        if self.served_names.iter().any(|served| served == name) {
            return Ok(None);
        }
        if let Some(adapter) = self.adapters.find(name) {
            return Ok(Some(adapter.key));
        }
        let adapters = self.adapters.all().into_iter().map(|(name, _)| name);
        let names: Vec<String> = self.served_names.iter().cloned().chain(adapters).collect();
        Err(ApiError::model_not_found(name, &format!("this server has {}", names.join(", "))))
    }
}

/// 400: the model is for something else.
fn wrong_task(task: Task) -> ApiError {
    let message = match task {
        Task::Generate => "this model continues text: use /v1/chat/completions or /v1/completions",
        Task::Embed => "this model makes embeddings: use /v1/embeddings",
        Task::Rerank => "this model scores documents against a query: use /v1/rerank",
    };
    ApiError::invalid("model", format!("model: {message}")).with_code("unsupported_task")
}

/// 503: the engine has stopped; the pod is about to be restarted.
pub fn engine_dead(reason: &str) -> ApiError {
    ApiError::unavailable(
        "engine_dead",
        format!("the engine has stopped ({reason}); send the request again"),
        10,
    )
}

/// Seconds since 1970.
pub fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
