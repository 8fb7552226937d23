//! The way to a running engine: requests go in, events come out, a bounded number may wait.
//!
//! Held by request handlers; the other end of its channel is [`super::step_loop`].

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use super::adapters::LoadReply;
use crate::backend::{AdapterError, AdapterId, AdapterReader, ChosenToken, KvCapacity, ReadAdapter};
use crate::scheduler::{MAX_CHOICES, Refusal};
use crate::sequence::{AdapterKey, EndReason, GenerationRequest, PromptLogprob};
use crate::step_clock::StepClock;

/// What happens to a request, in order. The last one of each answer has an `end`, or is `Ended`; `Failed`
/// ends them all.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// It no longer waits; comes once, before everything else.
    Admitted {
        /// When its first step was planned.
        at: Instant,
        /// Tokens of its prompt that were in the cache already.
        cached_tokens: u32,
    },
    /// The prompt's log-probabilities, from its second token on; comes before any token. Not sent for a prompt of one token.
    PromptLogprobs(Vec<PromptLogprob>),
    /// A new token of one answer.
    Token {
        /// Number of the answer, from 0 to `choices` - 1.
        choice: u32,
        /// The token and what is known of it.
        token: ChosenToken,
        /// Set when it is the answer's last one.
        end: Option<EndReason>,
    },
    /// An answer ended without a token.
    Ended {
        /// Number of the answer.
        choice: u32,
        /// Why.
        end: EndReason,
    },
    /// It failed.
    Failed(Failure),
}

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// It cannot be run.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Its logits were not finite.
    #[error(
        "the model gave numbers that are not finite for this request; its weights or its dtype may be broken"
    )]
    NonFinite,
    /// What it generates cannot have the form that it demands.
    #[error("the answer cannot go on in the form that the request demands: {0}")]
    Constraint(String),
    /// Memory ran out even for this request alone.
    #[error("memory ran out for this request; shorten the prompt, or lower engine.maxBatchedTokens")]
    OutOfMemory,
    /// Its adapter has been unloaded.
    #[error("the LoRA adapter of this request has been unloaded")]
    AdapterGone,
    /// Its deadline has passed.
    #[error("the request's deadline has passed")]
    DeadlinePassed,
    /// The engine has stopped for good.
    #[error("the engine has stopped: {0}")]
    Dead(String),
}

/// Events that wait for one client at most. One that reads so slowly is given up: with alternatives an event takes up to a kibibyte.
const MOST_EVENTS: usize = 16_384;

/// Why a request is not even queued.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// As many as may are waiting already.
    #[error("{waiting} requests are waiting already")]
    Full {
        /// Requests that wait.
        waiting: usize,
    },
    /// The engine has stopped for good.
    #[error("the engine has stopped: {0}")]
    Dead(String),
}

pub(super) enum Command {
    Submit {
        request: Box<GenerationRequest>,
        events: mpsc::Sender<Event>,
        slot: QueueSlot,
    },
    LoadAdapter {
        adapter: Box<ReadAdapter>,
        reply: LoadReply,
    },
    UnloadAdapter {
        id: AdapterId,
        reply: oneshot::Sender<()>,
    },
    Drain,
    /// Something that the engine waits for has come.
    Wake,
}

pub(super) struct Shared {
    pub(super) queued: AtomicUsize,
    pub(super) dead: OnceLock<String>,
    pub(super) clock: StepClock,
}

impl Shared {
    pub(super) fn new() -> Self {
        Self { queued: AtomicUsize::new(0), dead: OnceLock::new(), clock: StepClock::new() }
    }
}

/// A place in the queue; given back when dropped.
pub(super) struct QueueSlot(pub(super) Arc<Shared>);

impl Drop for QueueSlot {
    fn drop(&mut self) {
        self.0.queued.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The way to a running engine; cheap to clone.
#[derive(Clone)]
pub struct EngineHandle {
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) shared: Arc<Shared>,
    pub(super) capacity: KvCapacity,
    pub(super) max_model_len: u32,
    pub(super) max_queued: usize,
    pub(super) max_adapters: usize,
    pub(super) adapter_reader: Option<Arc<dyn AdapterReader>>,
}

impl EngineHandle {
    /// Queues a request. Dropping the receiver aborts it, and so does leaving more than some thousands of events unread: the channel
    /// then ends without an end.
    ///
    /// # Errors
    /// [`SubmitError`]; a request that can never run is told so by its first event instead.
    pub fn submit(&self, request: GenerationRequest) -> Result<mpsc::Receiver<Event>, SubmitError> {
        if let Some(reason) = self.dead() {
            return Err(SubmitError::Dead(reason.to_owned()));
        }
        let grown = |queued| (queued < self.max_queued).then_some(queued + 1);
        let slot = match self.shared.queued.fetch_update(Ordering::AcqRel, Ordering::Acquire, grown) {
            Ok(_) => QueueSlot(Arc::clone(&self.shared)),
            Err(waiting) => return Err(SubmitError::Full { waiting }),
        };
        // Room for all answers, so that the engine never waits for a client that reads slowly, but no more than memory can bear.
        let answers = request.choices.clamp(1, MAX_CHOICES) as usize;
        let room = answers * (request.max_new_tokens.min(self.max_model_len) as usize + 1) + 4;
        let room = room.min(MOST_EVENTS);
        let (events, receiver) = mpsc::channel(room);
        let request = Box::new(request);
        self.commands.try_send(Command::Submit { request, events, slot }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => SubmitError::Full { waiting: self.max_queued },
            mpsc::error::TrySendError::Closed(_) => {
                SubmitError::Dead(self.dead().unwrap_or("it was drained").to_owned())
            }
        })?;
        Ok(receiver)
    }

    /// Why the engine has stopped for good; `None` while it lives.
    pub fn dead(&self) -> Option<&str> {
        self.shared.dead.get().map(String::as_str)
    }

    /// How long the backend has been at the step that it runs; `None` between two steps. One that never ends shows here only: the
    /// thread that would tell is in it.
    pub fn step_age(&self) -> Option<Duration> {
        self.shared.clock.age()
    }

    /// Requests that have not been admitted yet, those included that the engine's thread has not seen.
    pub fn queued(&self) -> usize {
        self.shared.queued.load(Ordering::Acquire)
    }

    /// Size of the KV cache.
    pub fn capacity(&self) -> KvCapacity {
        self.capacity
    }

    /// Longest sequence that is taken: what the options allow, or the whole cache where that is smaller.
    pub fn max_model_len(&self) -> u32 {
        self.max_model_len
    }

    /// Requests that may wait; more are refused.
    pub fn max_queued(&self) -> usize {
        self.max_queued
    }

    /// Most LoRA adapters at once.
    pub fn max_adapters(&self) -> usize {
        self.max_adapters
    }

    /// What reads adapters for [`EngineHandle::load_adapter`]; `None` where the model takes none.
    pub fn adapter_reader(&self) -> Option<Arc<dyn AdapterReader>> {
        self.adapter_reader.clone()
    }

    /// Hands an adapter over between two steps. Dropping the future unloads it again.
    ///
    /// # Errors
    /// [`AdapterError`]; everything else runs on as before.
    pub async fn load_adapter(&self, adapter: ReadAdapter) -> Result<AdapterKey, AdapterError> {
        let (reply, answer) = oneshot::channel();
        // A closed channel drops the reply, and so answers.
        let _ = self.commands.send(Command::LoadAdapter { adapter: Box::new(adapter), reply }).await;
        answer.await.unwrap_or_else(|_| Err(self.no_engine()))
    }

    /// Takes no more requests with an adapter, and returns when those that had begun are done and its memory is free. An
    /// adapter that is not loaded is gone already.
    ///
    /// # Errors
    /// [`AdapterError::Dead`] where the engine ends first.
    pub async fn unload_adapter(&self, id: AdapterId) -> Result<(), AdapterError> {
        let (reply, answer) = oneshot::channel();
        let _ = self.commands.send(Command::UnloadAdapter { id, reply }).await;
        answer.await.map_err(|_| self.no_engine())
    }

    fn no_engine(&self) -> AdapterError {
        AdapterError::Dead(self.dead().unwrap_or("it was drained").to_owned())
    }

    /// Lets the engine finish what it has, take nothing new, and end its thread.
    pub async fn drain(&self) {
        // A closed channel means that the thread has ended already.
        let _ = self.commands.send(Command::Drain).await;
    }
}
