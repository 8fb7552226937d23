//! The thread that owns an encoder: takes requests in, drops those whose client has gone, runs batches, answers.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use crate::backend::BackendError;
use crate::encoder::queue::{BatchBudget, EncoderQueue, Item};
use crate::encoder::{Encoder, EncoderInput};
use crate::engine::{Failure, Load, Observer, StartError, StepReport, SubmitError, panic_message};
use crate::scheduler::StepCounts;
use crate::step_clock::StepClock;

/// Name of the thread that owns the encoder.
pub const THREAD_NAME: &str = "fairlead-encoder";

/// Batches without trouble after which one that had to shrink may grow again.
const BATCHES_BEFORE_GROWTH: u32 = 64;

/// Settings of an encoder's thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EncoderOptions {
    /// What a batch may hold.
    pub budget: BatchBudget,
    /// Inputs that may wait; a request is refused while so many do.
    pub max_queued: usize,
}

/// Texts to encode.
#[derive(Clone, Debug, Default)]
pub struct EncodeRequest {
    /// The texts, each as tokens. None may be empty.
    pub inputs: Vec<EncoderInput>,
    /// When nobody waits for the answer any more.
    pub deadline: Option<Instant>,
}

/// The numbers for each input, in order.
pub type Encoded = Vec<Vec<f32>>;

type Reply = oneshot::Sender<Result<Encoded, Failure>>;

enum Command {
    Encode { request: EncodeRequest, reply: Reply, places: Places },
    Drain,
}

struct Shared {
    /// Inputs that wait.
    queued: AtomicUsize,
    dead: OnceLock<String>,
    clock: StepClock,
}

/// Places of a request's inputs in the queue; given back one by one as they run, and the rest when dropped.
struct Places {
    shared: Arc<Shared>,
    left: usize,
}

impl Places {
    fn give_back(&mut self, count: usize) {
        let count = count.min(self.left);
        self.left -= count;
        self.shared.queued.fetch_sub(count, Ordering::AcqRel);
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        self.give_back(self.left);
    }
}

/// The way to a running encoder; cheap to clone.
#[derive(Clone)]
pub struct EncoderHandle {
    commands: mpsc::Sender<Command>,
    shared: Arc<Shared>,
    max_queued: usize,
}

impl EncoderHandle {
    /// Queues a request. Dropping the receiver aborts it.
    ///
    /// # Errors
    /// [`SubmitError`].
    pub fn submit(
        &self,
        request: EncodeRequest,
    ) -> Result<oneshot::Receiver<Result<Encoded, Failure>>, SubmitError> {
        if let Some(reason) = self.dead() {
            return Err(SubmitError::Dead(reason.to_owned()));
        }
        let inputs = request.inputs.len();
        // A request of more inputs than may wait is taken where fewer do: otherwise it never would be.
        let grown = |queued: usize| (queued < self.max_queued).then_some(queued + inputs);
        let places = match self.shared.queued.fetch_update(Ordering::AcqRel, Ordering::Acquire, grown) {
            Ok(_) => Places { shared: Arc::clone(&self.shared), left: inputs },
            Err(waiting) => return Err(SubmitError::Full { waiting }),
        };
        let (reply, receiver) = oneshot::channel();
        self.commands.try_send(Command::Encode { request, reply, places }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => SubmitError::Full { waiting: self.max_queued },
            mpsc::error::TrySendError::Closed(_) => {
                SubmitError::Dead(self.dead().unwrap_or("it was drained").to_owned())
            }
        })?;
        Ok(receiver)
    }

    /// Why the encoder has stopped for good; `None` while it lives.
    pub fn dead(&self) -> Option<&str> {
        self.shared.dead.get().map(String::as_str)
    }

    /// How long the model has been at the batch that it runs; `None` between two batches.
    pub fn step_age(&self) -> Option<Duration> {
        self.shared.clock.age()
    }

    /// Lets all requests finish, takes no more, and ends the thread.
    pub async fn drain(&self) {
        // Refused only where the thread has ended already.
        let _ = self.commands.send(Command::Drain).await;
        self.commands.closed().await;
    }
}

/// Starts the encoder's thread, builds the model on it, and returns once it takes requests.
///
/// # Errors
/// [`StartError`].
pub async fn start<M, E, F>(observer: Box<dyn Observer>, build: F) -> Result<EncoderHandle, StartError<E>>
where
    M: Encoder + 'static,
    E: Send + 'static,
    F: FnOnce() -> Result<(M, EncoderOptions), E> + Send + 'static,
{
    let (ready, started) = oneshot::channel();
    std::thread::Builder::new().name(THREAD_NAME.to_owned()).spawn(move || {
        let built = std::panic::catch_unwind(AssertUnwindSafe(build));
        match built {
            Err(panic) => drop(ready.send(Err(StartError::Ended(panic_message(&*panic))))),
            Ok(Err(error)) => drop(ready.send(Err(StartError::Build(error)))),
            Ok(Ok((model, options))) => {
                let (handle, mut worker) = Worker::new(model, options, observer);
                if ready.send(Ok(handle)).is_ok() {
                    worker.run_until_the_end();
                }
            }
        }
    })?;
    started.await.unwrap_or_else(|_| Err(StartError::Ended("it gave no reason".to_owned())))
}

struct Client {
    inputs: Vec<EncoderInput>,
    encoded: Encoded,
    deadline: Option<Instant>,
    reply: Reply,
    places: Places,
}

struct Worker<M> {
    model: M,
    queue: EncoderQueue,
    clients: HashMap<u64, Client>,
    commands: mpsc::Receiver<Command>,
    observer: Box<dyn Observer>,
    shared: Arc<Shared>,
    next_id: u64,
    largest: BatchBudget,
    budget: BatchBudget,
    quiet_batches: u32,
    draining: bool,
}

/// The loop ends: with a reason for all to see, or because it was told to.
enum Stop {
    Fatal(String),
    Drained,
}

impl<M: Encoder> Worker<M> {
    fn new(model: M, options: EncoderOptions, observer: Box<dyn Observer>) -> (EncoderHandle, Self) {
        // One more, so that a drain command finds room even when the queue is full.
        let (sender, commands) = mpsc::channel(options.max_queued.saturating_add(1).min(1 << 20));
        let shared =
            Arc::new(Shared { queued: AtomicUsize::new(0), dead: OnceLock::new(), clock: StepClock::new() });
        let handle = EncoderHandle {
            commands: sender,
            shared: Arc::clone(&shared),
            max_queued: options.max_queued.max(1),
        };
        let worker = Self {
            model,
            queue: EncoderQueue::default(),
            clients: HashMap::new(),
            commands,
            observer,
            shared,
            next_id: 1,
            largest: options.budget,
            budget: options.budget,
            quiet_batches: 0,
            draining: false,
        };
        (handle, worker)
    }

    fn run_until_the_end(&mut self) {
        let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| self.run()));
        let reason = match outcome {
            Ok(Stop::Drained) => return,
            Ok(Stop::Fatal(reason)) => reason,
            Err(panic) => panic_message(&*panic),
        };
        tracing::error!(%reason, requests = self.clients.len(), "the encoder has stopped");
        let reason = self.shared.dead.get_or_init(|| reason).clone();
        for (_, client) in self.clients.drain() {
            let _ = client.reply.send(Err(Failure::Dead(reason.clone())));
        }
        self.commands.close();
        while let Ok(command) = self.commands.try_recv() {
            if let Command::Encode { reply, .. } = command {
                let _ = reply.send(Err(Failure::Dead(reason.clone())));
            }
        }
        self.observer.load(Load::default());
    }

    fn run(&mut self) -> Stop {
        loop {
            if let Err(stop) = self.turn() {
                return stop;
            }
        }
    }

    /// One turn: take commands in, drop who has gone, run a batch.
    fn turn(&mut self) -> Result<(), Stop> {
        self.take_commands()?;
        let taken = Instant::now();
        self.drop_the_gone(taken);
        let batch = self.queue.next_batch(self.budget);
        self.report_load(&batch);
        if batch.is_empty() {
            return Ok(());
        }
        let inputs: Vec<&EncoderInput> =
            batch.iter().filter_map(|item| self.clients.get(&item.request)?.inputs.get(item.index)).collect();
        let begun = Instant::now();
        self.shared.clock.begins();
        let result = self.model.encode(&inputs);
        self.shared.clock.ends();
        self.observer.step(StepReport {
            tokens: batch.iter().map(|item| item.tokens).sum(),
            sequences: batch.len(),
            elapsed: begun.elapsed(),
            scheduling: begun - taken,
            counts: StepCounts::default(),
        });
        match result {
            Ok(encoded) if encoded.len() == batch.len() => {
                self.queue.done(&batch);
                self.deliver(&batch, encoded);
                self.grow_again();
                Ok(())
            }
            Ok(encoded) => Err(Stop::Fatal(format!(
                "the encoder gave {} answers to {} inputs",
                encoded.len(),
                batch.len()
            ))),
            Err(BackendError::OutOfMemory(reason)) => {
                self.shrink(&batch, &reason);
                Ok(())
            }
            Err(error) => Err(Stop::Fatal(error.to_string())),
        }
    }

    /// Takes every command that is there; waits for one when there is nothing else to do.
    fn take_commands(&mut self) -> Result<(), Stop> {
        if self.queue.is_empty() {
            if self.draining {
                return Err(Stop::Drained);
            }
            self.report_load(&[]);
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
                self.commands.close();
            }
            Command::Encode { request, reply, places } => {
                let EncodeRequest { inputs, deadline } = request;
                if inputs.is_empty() {
                    let _ = reply.send(Ok(Vec::new()));
                    return;
                }
                let id = self.next_id;
                self.next_id += 1;
                self.queue.add(id, inputs.iter().map(|input| input.tokens.len()).collect());
                let encoded = Vec::with_capacity(inputs.len());
                self.clients.insert(id, Client { inputs, encoded, deadline, reply, places });
            }
        }
    }

    fn drop_the_gone(&mut self, now: Instant) {
        let over = |client: &Client| client.deadline.is_some_and(|deadline| deadline <= now);
        let ended: Vec<u64> = self
            .clients
            .iter()
            .filter(|(_, client)| client.reply.is_closed() || over(client))
            .map(|(id, _)| *id)
            .collect();
        for id in ended {
            self.fail(id, Failure::DeadlinePassed);
        }
    }

    fn fail(&mut self, id: u64, failure: Failure) {
        self.queue.remove(id);
        if let Some(client) = self.clients.remove(&id) {
            // Whoever has gone need not be told.
            let _ = client.reply.send(Err(failure));
        }
    }

    fn deliver(&mut self, batch: &[Item], encoded: Encoded) {
        for (item, numbers) in batch.iter().zip(encoded) {
            if numbers.iter().any(|number| !number.is_finite()) {
                self.fail(item.request, Failure::NonFinite);
                continue;
            }
            let Some(client) = self.clients.get_mut(&item.request) else { continue };
            // A request's inputs run in their order, so this is where the numbers belong.
            client.encoded.push(numbers);
            client.places.give_back(1);
            if client.encoded.len() == client.inputs.len()
                && let Some(client) = self.clients.remove(&item.request)
            {
                let _ = client.reply.send(Ok(client.encoded));
            }
        }
    }

    /// Memory ran out: half the batch next time, or, where one input alone is too much, its request fails.
    fn shrink(&mut self, batch: &[Item], reason: &str) {
        let tokens: usize = batch.iter().map(|item| item.tokens).sum();
        tracing::warn!(%reason, tokens, inputs = batch.len(), "memory ran out in a batch; trying again with a smaller one");
        self.quiet_batches = 0;
        if let [only] = batch {
            self.fail(only.request, Failure::OutOfMemory);
            return;
        }
        self.budget = BatchBudget { tokens: (tokens / 2).max(1), inputs: batch.len().div_ceil(2) };
    }

    fn grow_again(&mut self) {
        if self.budget == self.largest {
            return;
        }
        self.quiet_batches += 1;
        if self.quiet_batches >= BATCHES_BEFORE_GROWTH {
            self.quiet_batches = 0;
            self.budget = BatchBudget {
                tokens: self.largest.tokens.min(self.budget.tokens * 2),
                inputs: self.largest.inputs.min(self.budget.inputs * 2),
            };
        }
    }

    fn report_load(&self, batch: &[Item]) {
        let mut running: Vec<u64> = batch.iter().map(|item| item.request).collect();
        running.sort_unstable();
        running.dedup();
        let waiting = self.clients.len().saturating_sub(running.len());
        self.observer.load(Load { running: running.len(), waiting, ..Load::default() });
    }
}
