//! The step loop: schedule, execute, postprocess, on one OS thread that owns the backend.
//!
//! The rest of the process holds an [`EngineHandle`] and talks to the thread through bounded channels. Whoever drops the
//! receiver of a request's events aborts it. Must not know HTTP, text or a tokenizer.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use crate::backend::{Backend, BackendError, ChosenToken, KvCapacity, SequenceId};
use crate::scheduler::{Budget, Limits, Refusal, State, StepError, StepPlan, Update, complete, schedule};
use crate::sequence::{EndReason, GenerationRequest, PromptLogprob};

/// Name of the thread that owns the backend.
pub const THREAD_NAME: &str = "fairlead-engine";

/// Steps without trouble after which a batch that had to shrink may grow again.
const STEPS_BEFORE_GROWTH: u32 = 64;

/// Settings of an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineOptions {
    /// Most sequences that run at once.
    pub max_sequences: usize,
    /// Most tokens in a step. Raised to `max_sequences + 1` where it is less, so that readers and writers both get on.
    pub max_batched_tokens: usize,
    /// Longest sequence, prompt and answer together.
    pub max_model_len: u32,
    /// Requests that may wait; more are refused.
    pub max_queued: usize,
}

/// What happens to a request, in order. The last one of each answer has an `end`, or is `Ended`; `Failed`
/// ends them all.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
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
    /// Memory ran out even for this request alone.
    #[error("memory ran out for this request; shorten the prompt, or lower engine.maxBatchedTokens")]
    OutOfMemory,
    /// Its deadline has passed.
    #[error("the request's deadline has passed")]
    DeadlinePassed,
    /// The engine has stopped for good.
    #[error("the engine has stopped: {0}")]
    Dead(String),
}

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
}

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepReport {
    /// Tokens computed.
    pub tokens: usize,
    /// Sequences that took part.
    pub sequences: usize,
    /// Sequences preempted for it.
    pub preempted: usize,
    /// Time in the backend.
    pub elapsed: Duration,
}

/// Where the engine's numbers go. Called on the engine's thread, so it must be quick.
pub trait Observer: Send {
    /// Something about the load may have changed.
    fn load(&self, load: Load);
    /// A step has been run.
    fn step(&self, report: StepReport);
}

enum Command {
    Submit { request: GenerationRequest, events: mpsc::Sender<Event>, slot: QueueSlot },
    Drain,
}

struct Shared {
    queued: AtomicUsize,
    dead: OnceLock<String>,
}

/// A place in the queue; given back when dropped.
struct QueueSlot(Arc<Shared>);

impl Drop for QueueSlot {
    fn drop(&mut self) {
        self.0.queued.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The way to a running engine; cheap to clone.
#[derive(Clone)]
pub struct EngineHandle {
    commands: mpsc::Sender<Command>,
    shared: Arc<Shared>,
    capacity: KvCapacity,
    max_model_len: u32,
    max_queued: usize,
}

impl EngineHandle {
    /// Queues a request. Dropping the receiver aborts it.
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
        // Room for a whole answer, so that the engine never waits for a client that reads slowly.
        let room = request.max_new_tokens.min(self.max_model_len) as usize + 4;
        let (events, receiver) = mpsc::channel(room);
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

    /// Size of the KV cache.
    pub fn capacity(&self) -> KvCapacity {
        self.capacity
    }

    /// Longest sequence that is taken: what the options allow, or the whole cache where that is smaller.
    pub fn max_model_len(&self) -> u32 {
        self.max_model_len
    }

    /// Lets the engine finish what it has, take nothing new, and end its thread.
    pub async fn drain(&self) {
        // A closed channel means that the thread has ended already.
        let _ = self.commands.send(Command::Drain).await;
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
    F: FnOnce() -> Result<(B, EngineOptions), E> + Send + 'static,
{
    let (ready, started) = oneshot::channel();
    std::thread::Builder::new().name(THREAD_NAME.to_owned()).spawn(move || {
        let built = std::panic::catch_unwind(AssertUnwindSafe(build));
        match built {
            Err(panic) => drop(ready.send(Err(StartError::Ended(panic_message(&*panic))))),
            Ok(Err(error)) => drop(ready.send(Err(StartError::Build(error)))),
            Ok(Ok((backend, options))) => {
                let (handle, mut engine) = Engine::new(backend, options, observer);
                if ready.send(Ok(handle)).is_ok() {
                    engine.run_until_the_end();
                }
            }
        }
    })?;
    started.await.unwrap_or_else(|_| Err(StartError::Ended("it gave no reason".to_owned())))
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text =
        panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    format!("it panicked: {}", text.unwrap_or("without a message"))
}

struct Client {
    events: mpsc::Sender<Event>,
    /// Until it is admitted for the first time.
    slot: Option<QueueSlot>,
}

struct Engine<B> {
    backend: B,
    state: State,
    clients: HashMap<SequenceId, Client>,
    commands: mpsc::Receiver<Command>,
    observer: Box<dyn Observer>,
    shared: Arc<Shared>,
    next_id: SequenceId,
    largest: Budget,
    budget: Budget,
    quiet_steps: u32,
    draining: bool,
}

/// The loop ends: with a reason for all to see, or because it was told to.
enum Stop {
    Fatal(String),
    Drained,
}

impl From<StepError> for Stop {
    fn from(error: StepError) -> Self {
        Self::Fatal(error.to_string())
    }
}

impl From<crate::block_pool::PoolError> for Stop {
    fn from(error: crate::block_pool::PoolError) -> Self {
        Self::Fatal(error.to_string())
    }
}

impl<B: Backend> Engine<B> {
    fn new(backend: B, options: EngineOptions, observer: Box<dyn Observer>) -> (EngineHandle, Self) {
        let capacity = backend.kv_capacity();
        let max_sequences = options.max_sequences.max(1);
        let limits = Limits { max_sequences, max_model_len: options.max_model_len };
        let state = State::new(capacity, limits);
        // One more, so that a drain command finds room even when the queue is full.
        let (sender, commands) = mpsc::channel(options.max_queued.saturating_add(1).min(1 << 20));
        let shared = Arc::new(Shared { queued: AtomicUsize::new(0), dead: OnceLock::new() });
        let handle = EngineHandle {
            commands: sender,
            shared: Arc::clone(&shared),
            capacity,
            max_model_len: state.max_model_len(),
            max_queued: options.max_queued,
        };
        let largest =
            Budget { tokens: options.max_batched_tokens.max(max_sequences + 1), sequences: max_sequences };
        let engine = Self {
            backend,
            state,
            clients: HashMap::new(),
            commands,
            observer,
            shared,
            next_id: 1,
            largest,
            budget: largest,
            quiet_steps: 0,
            draining: false,
        };
        (handle, engine)
    }

    fn run_until_the_end(&mut self) {
        let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| self.run()));
        let reason = match outcome {
            Ok(Stop::Drained) => return,
            Ok(Stop::Fatal(reason)) => reason,
            Err(panic) => panic_message(&*panic),
        };
        tracing::error!(%reason, requests = self.clients.len(), "the engine has stopped");
        let reason = self.shared.dead.get_or_init(|| reason).clone();
        for client in self.clients.drain() {
            let _ = client.1.events.try_send(Event::Failed(Failure::Dead(reason.clone())));
        }
        self.commands.close();
        while let Ok(command) = self.commands.try_recv() {
            if let Command::Submit { events, .. } = command {
                let _ = events.try_send(Event::Failed(Failure::Dead(reason.clone())));
            }
        }
        self.observer.load(Load { usable_blocks: self.state.usable_blocks(), ..Load::default() });
    }

    fn run(&mut self) -> Stop {
        loop {
            if let Err(stop) = self.turn() {
                return stop;
            }
        }
    }

    /// One turn: take commands in, drop who has gone, run a step.
    fn turn(&mut self) -> Result<(), Stop> {
        self.take_commands()?;
        self.drop_the_gone(Instant::now())?;
        let plan = schedule(&mut self.state, self.budget)?;
        for id in &plan.admitted {
            if let Some(client) = self.clients.get_mut(id) {
                client.slot = None;
            }
        }
        self.report_load();
        if plan.batch.sequences.is_empty() {
            // Only a sequence that can never run leaves an engine with work and nothing to do; refuse it, do not spin.
            if let Some(id) = self.state.next_waiting() {
                self.fail(id, Failure::OutOfMemory)?;
            }
            return Ok(());
        }
        let begun = Instant::now();
        let result = self.backend.execute(&plan.batch);
        self.observer.step(StepReport {
            tokens: plan.tokens(),
            sequences: plan.batch.sequences.len(),
            preempted: plan.preempted.len(),
            elapsed: begun.elapsed(),
        });
        match result {
            Ok(sampled) => {
                let updates = complete(&mut self.state, &plan, sampled)?;
                self.send_updates(updates)?;
                self.grow_again();
                Ok(())
            }
            Err(BackendError::OutOfMemory(reason)) => self.shrink(&plan, &reason),
            Err(BackendError::NonFinite(ids)) if ids.is_empty() => Err(Stop::Fatal(
                "the backend reported non-finite logits but no sequence that has them".to_owned(),
            )),
            Err(BackendError::NonFinite(ids)) => {
                ids.into_iter().try_for_each(|id| self.fail(id, Failure::NonFinite))
            }
            Err(BackendError::Fatal(reason)) => Err(Stop::Fatal(reason)),
        }
    }

    /// Takes every command that is there; waits for one when there is nothing else to do.
    fn take_commands(&mut self) -> Result<(), Stop> {
        if self.state.is_idle() {
            if self.draining {
                return Err(Stop::Drained);
            }
            self.report_load();
            match self.commands.blocking_recv() {
                Some(command) => self.take(command),
                None => return Err(Stop::Drained),
            }
        }
        while let Ok(command) = self.commands.try_recv() {
            self.take(command);
        }
        Ok(())
    }

    fn take(&mut self, command: Command) {
        match command {
            Command::Drain => {
                self.draining = true;
                self.state.drain();
                self.commands.close();
            }
            Command::Submit { request, events, slot } => {
                let id = self.next_id;
                self.next_id += 1;
                match self.state.add(id, request) {
                    Ok(()) => drop(self.clients.insert(id, Client { events, slot: Some(slot) })),
                    Err(refusal) => drop(events.try_send(Event::Failed(Failure::Refused(refusal)))),
                }
            }
        }
    }

    fn drop_the_gone(&mut self, now: Instant) -> Result<(), Stop> {
        for id in self.state.expired(now) {
            self.fail(id, Failure::DeadlinePassed)?;
        }
        let gone: Vec<SequenceId> =
            self.clients.iter().filter(|(_, client)| client.events.is_closed()).map(|(id, _)| *id).collect();
        for id in gone {
            self.clients.remove(&id);
            self.state.abort(id)?;
        }
        Ok(())
    }

    fn fail(&mut self, id: SequenceId, failure: Failure) -> Result<(), Stop> {
        self.state.abort(id)?;
        if let Some(client) = self.clients.remove(&id) {
            // Whoever has gone need not be told.
            let _ = client.events.try_send(Event::Failed(failure));
        }
        Ok(())
    }

    fn send_updates(&mut self, updates: Vec<Update>) -> Result<(), Stop> {
        for update in updates {
            let (id, event, is_last) = match update {
                Update::PromptLogprobs(id, logprobs) => (id, Event::PromptLogprobs(logprobs), false),
                Update::Ended(id, end) => (id, Event::Ended { choice: 0, end }, true),
                Update::Token { sequence, token, end } => {
                    (sequence, Event::Token { choice: 0, token, end }, end.is_some())
                }
            };
            let delivered = self.clients.get(&id).is_some_and(|client| client.events.try_send(event).is_ok());
            if is_last || !delivered {
                self.clients.remove(&id);
                self.state.abort(id)?;
            }
        }
        Ok(())
    }

    /// Memory ran out: half the batch next time, or, where one sequence alone is too much, that one fails.
    fn shrink(&mut self, plan: &StepPlan, reason: &str) -> Result<(), Stop> {
        let (tokens, sequences) = (plan.tokens(), plan.batch.sequences.len());
        tracing::warn!(%reason, tokens, sequences, "memory ran out in a step; trying again with a smaller one");
        self.quiet_steps = 0;
        if sequences == 1 && tokens <= 2 {
            return plan
                .batch
                .sequences
                .iter()
                .try_for_each(|step| self.fail(step.sequence, Failure::OutOfMemory));
        }
        self.budget = Budget { tokens: (tokens / 2).max(2), sequences: sequences.div_ceil(2) };
        Ok(())
    }

    fn grow_again(&mut self) {
        if self.budget == self.largest {
            return;
        }
        self.quiet_steps += 1;
        if self.quiet_steps >= STEPS_BEFORE_GROWTH {
            self.quiet_steps = 0;
            self.budget = Budget {
                tokens: self.largest.tokens.min(self.budget.tokens * 2),
                sequences: self.largest.sequences.min(self.budget.sequences * 2),
            };
        }
    }

    fn report_load(&self) {
        self.observer.load(Load {
            running: self.state.running(),
            waiting: self.state.waiting(),
            used_blocks: self.state.used_blocks(),
            usable_blocks: self.state.usable_blocks(),
        });
    }
}
