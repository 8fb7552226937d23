//! What all request handlers share.

use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use fairlead_engine::engine::EngineHandle;
use fairlead_model::GenerationDefaults;
use fairlead_openai::ApiError;

use crate::chat_template::ChatTemplate;
use crate::drain::{Drain, InFlight};
use crate::metrics::Metrics;
use crate::startup::{Phase, Startup};
use crate::tokenizer::TextCodec;

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
}

/// State of the process.
pub struct App {
    /// Names the pod answers to; the first is the one it lists first.
    pub served_names: Vec<String>,
    /// Unix seconds of the process's start.
    pub created: u64,
    /// The way to being ready.
    pub startup: Startup,
    /// The way out.
    pub drain: Arc<Drain>,
    /// All metrics.
    pub metrics: Metrics,
    model: OnceLock<Model>,
}

impl App {
    /// A process that has just started.
    pub fn new(served_names: Vec<String>) -> Arc<Self> {
        let metrics = Metrics::new(served_names.first().map_or("", String::as_str));
        Arc::new(Self {
            created: unix_seconds(),
            startup: Startup::new(metrics.clone()),
            drain: Drain::new(),
            metrics,
            served_names,
            model: OnceLock::new(),
        })
    }

    /// The model is loaded: requests are answered from now on.
    pub fn ready(&self, model: Model) {
        self.metrics.set_cache(model.engine.capacity());
        if self.model.set(model).is_ok() && !self.drain.is_draining() {
            self.startup.enter(Phase::Ready);
        }
    }

    /// The model, once it is loaded.
    pub fn model(&self) -> Option<&Model> {
        self.model.get()
    }

    /// Takes a request in.
    ///
    /// # Errors
    /// 503 while the pod starts, drains, or has lost its engine.
    pub fn admit(&self) -> Result<(&Model, InFlight), ApiError> {
        let Some(guard) = self.drain.enter() else {
            return Err(ApiError::unavailable(
                "draining",
                "this server is shutting down; send the request again",
                1,
            ));
        };
        let Some(model) = self.model() else {
            let phase = self.startup.report().phase.as_str();
            let message = format!("the model is not ready yet (phase {phase}); send the request again later");
            return Err(ApiError::unavailable("not_ready", message, 5));
        };
        if let Some(reason) = model.engine.dead() {
            return Err(engine_dead(reason));
        }
        Ok((model, guard))
    }

    /// Checks that a request names a model of ours.
    ///
    /// # Errors
    /// 404 with the names there are.
    pub fn check_model(&self, name: &str) -> Result<(), ApiError> {
        if self.served_names.iter().any(|served| served == name) {
            return Ok(());
        }
        Err(ApiError::model_not_found(name, &format!("this server has {}", self.served_names.join(", "))))
    }
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
