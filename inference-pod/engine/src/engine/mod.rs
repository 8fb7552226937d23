//! The engine as the rest of the process sees it: started once, held as a handle, watched through an observer.
//!
//! [`start`] puts the backend and the step loop on one OS thread; [`EngineHandle`] talks to that thread through bounded
//! channels. Whoever drops the receiver of a request's events aborts it. Must not know HTTP, text or a tokenizer.

mod adapters;
mod handle;
mod recovery;
mod step_loop;
mod tier_link;

use std::collections::BTreeSet;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

pub(crate) use self::recovery::panic_message;
use self::step_loop::Engine;
use crate::backend::{AdapterId, Backend};
use crate::proposer::Proposer;
use crate::scheduler::StepCounts;
use crate::tiers::{TierCounters, TierError, TierOptions};

pub use self::handle::{EngineHandle, Event, Failure, SubmitError};

/// Name of the thread that owns the backend.
pub const THREAD_NAME: &str = "fairlead-engine";

/// Settings of an engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineOptions {
    /// Most sequences that run at once.
    pub max_sequences: usize,
    /// Most tokens in a step. Raised to `max_sequences + 1` where it is less, so that readers and writers both get on.
    pub max_batched_tokens: usize,
    /// Longest sequence, prompt and answer together.
    pub max_model_len: u32,
    /// Most rows of logits in a step: one for each token that is chosen or scored, and one for each guess. Raised to
    /// `max_sequences + 1` where it is less.
    pub max_logits_rows: usize,
    /// Whether sequences that begin alike share the blocks of their common prefix.
    pub prefix_sharing: bool,
    /// Requests that may wait; more are refused.
    pub max_queued: usize,
    /// Most LoRA adapters at once.
    pub max_adapters: usize,
    /// Where blocks go that the cache gives up.
    pub tiers: TierOptions,
}

/// What an engine is made of.
pub struct EngineParts<B> {
    /// Runs the steps.
    pub backend: B,
    /// Settings.
    pub options: EngineOptions,
    /// Guesses for sequences that the backend has no guesses for.
    pub proposer: Option<Box<dyn Proposer>>,
}

impl<B> EngineParts<B> {
    /// A backend and settings, and nothing else.
    pub fn new(backend: B, options: EngineOptions) -> Self {
        Self { backend, options, proposer: None }
    }
}

/// How busy the engine is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Sequences that run.
    pub running: usize,
    /// Sequences that wait.
    pub waiting: usize,
    /// Blocks of the KV cache that belong to a sequence.
    pub used_blocks: u32,
    /// Blocks of the KV cache that can be given to sequences.
    pub usable_blocks: u32,
    /// Blocks of the KV cache whose content can be found by those that begin alike, owned or not.
    pub named_blocks: u32,
}

/// What a step did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepReport {
    /// Tokens computed.
    pub tokens: usize,
    /// Sequences that took part.
    pub sequences: usize,
    /// Time in the backend.
    pub elapsed: Duration,
    /// Time that everything else took: scheduling, the masks of constraints, guesses, sending events.
    pub scheduling: Duration,
    /// What has happened since the last report.
    pub counts: StepCounts,
}

/// Where the engine's numbers go. Called on the engine's thread, so it must be quick.
pub trait Observer: Send {
    /// Something about the load may have changed.
    fn load(&self, load: Load);
    /// A step has been run.
    fn step(&self, report: StepReport);
    /// The adapters that requests run with and wait with have changed.
    fn adapters(&self, _running: &BTreeSet<AdapterId>, _waiting: &BTreeSet<AdapterId>) {}
    /// Where the KV tiers are to count. Asked for once.
    fn tier_counters(&self) -> Arc<TierCounters> {
        Arc::default()
    }
}

/// Why an engine did not come up.
#[derive(Debug, thiserror::Error)]
pub enum StartError<E> {
    /// The operating system gave no thread.
    #[error("the engine's thread could not be started: {0}")]
    Thread(#[from] std::io::Error),
    /// The backend could not be built.
    #[error(transparent)]
    Build(E),
    /// The KV tiers cannot be set up.
    #[error(transparent)]
    Tiers(TierError),
    /// Building the backend panicked.
    #[error("the engine's thread ended while it was starting: {0}")]
    Ended(String),
}

/// Starts the engine's thread, builds the backend on it, and returns once it takes requests.
///
/// `build` runs on the new thread, so that tensors never change threads.
///
/// # Errors
/// [`StartError`].
pub async fn start<B, E, F>(observer: Box<dyn Observer>, build: F) -> Result<EngineHandle, StartError<E>>
where
    B: Backend + 'static,
    E: Send + 'static,
    F: FnOnce() -> Result<EngineParts<B>, E> + Send + 'static,
{
    let (ready, started) = oneshot::channel();
    std::thread::Builder::new().name(THREAD_NAME.to_owned()).spawn(move || {
        let built = std::panic::catch_unwind(AssertUnwindSafe(build));
        match built {
            Err(panic) => drop(ready.send(Err(StartError::Ended(panic_message(&*panic))))),
            Ok(Err(error)) => drop(ready.send(Err(StartError::Build(error)))),
            Ok(Ok(parts)) => {
                let (handle, mut engine) = match Engine::new(parts, observer) {
                    Ok(made) => made,
                    Err(error) => return drop(ready.send(Err(StartError::Tiers(error)))),
                };
                if ready.send(Ok(handle)).is_ok() {
                    engine.run_until_the_end();
                }
            }
        }
    })?;
    started.await.unwrap_or_else(|_| Err(StartError::Ended("it gave no reason".to_owned())))
}
