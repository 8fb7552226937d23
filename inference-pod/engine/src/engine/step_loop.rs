//! The step loop: schedule, execute, postprocess, on one OS thread that owns the backend.

use std::collections::HashMap;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use tokio::sync::mpsc;

use super::handle::{Command, EngineHandle, Event, Failure, QueueSlot, Shared};
use super::recovery::Stop;
use super::{EngineOptions, Load, Observer, StepReport};
use crate::backend::{Backend, BackendError, SequenceId};
use crate::scheduler::{Budget, Limits, State, Update, complete, schedule};
use crate::tiers::{TierError, TierStore, Wake};

pub(super) struct Client {
    pub(super) events: mpsc::Sender<Event>,
    /// Until it is admitted for the first time.
    pub(super) slot: Option<QueueSlot>,
}

pub(super) struct Engine<B> {
    pub(super) backend: B,
    pub(super) state: State,
    pub(super) clients: HashMap<SequenceId, Client>,
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) observer: Box<dyn Observer>,
    pub(super) shared: Arc<Shared>,
    pub(super) next_id: SequenceId,
    pub(super) largest: Budget,
    pub(super) budget: Budget,
    pub(super) quiet_steps: u32,
    pub(super) draining: bool,
    pub(super) tiers: Option<TierStore>,
}

impl<B: Backend> Engine<B> {
    pub(super) fn new(
        backend: B,
        options: EngineOptions,
        observer: Box<dyn Observer>,
    ) -> Result<(EngineHandle, Self), TierError> {
        let capacity = backend.kv_capacity();
        let max_sequences = options.max_sequences.max(1);
        let limits = Limits { max_sequences, max_model_len: options.max_model_len };
        let state = State::new(capacity, limits);
        // One more, so that a drain command finds room even when the queue is full.
        let (sender, commands) = mpsc::channel(options.max_queued.saturating_add(1).min(1 << 20));
        let tiers = {
            // Weak: who waits for the disk must not keep the engine from ending.
            let engine = sender.downgrade();
            let wake: Wake = Arc::new(move || {
                // A full channel wakes the engine as well.
                drop(engine.upgrade().map(|engine| engine.try_send(Command::Wake)));
            });
            TierStore::start(options.tiers, capacity.block_bytes, observer.tier_counters(), wake)?
        };
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
            tiers,
        };
        Ok((handle, engine))
    }

    pub(super) fn run(&mut self) -> Stop {
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
            if let Some(client) = self.clients.get_mut(id)
                && client.slot.take().is_some()
            {
                // Whoever has gone need not be told.
                let _ = client.events.try_send(Event::Admitted { at: Instant::now() });
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
            // It has ended the wait for a command; that is all.
            Command::Wake => {}
            Command::Submit { request, events, slot } => {
                let id = self.next_id;
                self.next_id += 1;
                match self.state.add(id, *request) {
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
            self.forget(id)?;
        }
        Ok(())
    }

    /// Drops a sequence wherever it is.
    pub(super) fn forget(&mut self, id: SequenceId) -> Result<(), Stop> {
        if let Some(tiers) = &mut self.tiers {
            tiers.forget(id);
        }
        self.state.abort(id)?;
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

    pub(super) fn report_load(&self) {
        self.observer.load(Load {
            running: self.state.running(),
            waiting: self.state.waiting(),
            used_blocks: self.state.used_blocks(),
            usable_blocks: self.state.usable_blocks(),
        });
    }
}
