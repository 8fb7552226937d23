//! The step loop: schedule, execute, postprocess, on one OS thread that owns the backend.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc;

use super::adapters::{AdapterTable, gone};
use super::handle::{Command, EngineHandle, Event, Failure, QueueSlot, Shared};
use super::recovery::Stop;
use super::tier_link::{IDLE_SAVING, SAVING_SHARE, TierLink};
use super::{EngineParts, Load, Observer, StepReport};
use crate::backend::{Backend, BackendError, Sampled};
use crate::proposer::Proposer;
use crate::scheduler::{Budget, Limits, State, StepPlan, Update, complete, schedule};
use crate::sequence::{GivenUp, RequestId};
use crate::tiers::{TierError, TierStore, Traffic, Wake};

pub(super) struct Client {
    pub(super) events: mpsc::Sender<Event>,
    /// Until it is admitted for the first time.
    pub(super) slot: Option<QueueSlot>,
    /// Answers that have not ended.
    pub(super) answers: u32,
    /// Those that are wanted no more.
    pub(super) given_up: GivenUp,
}

pub(super) struct Engine<B> {
    pub(super) backend: B,
    pub(super) proposer: Option<Box<dyn Proposer>>,
    pub(super) state: State,
    pub(super) clients: HashMap<RequestId, Client>,
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) observer: Box<dyn Observer>,
    pub(super) shared: Arc<Shared>,
    pub(super) next_id: RequestId,
    pub(super) largest: Budget,
    pub(super) budget: Budget,
    pub(super) quiet_steps: u32,
    pub(super) draining: bool,
    pub(super) adapters: AdapterTable,
    pub(super) tiers: Option<TierLink>,
    pub(super) started: Instant,
}

impl<B: Backend> Engine<B> {
    pub(super) fn new(
        parts: EngineParts<B>,
        observer: Box<dyn Observer>,
    ) -> Result<(EngineHandle, Self), TierError> {
        let EngineParts { backend, options, proposer } = parts;
        let capacity = backend.kv_capacity();
        let max_sequences = options.max_sequences.max(1);
        let limits = Limits {
            max_sequences,
            max_model_len: options.max_model_len,
            prefix_sharing: options.prefix_sharing,
        };
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
            let counters = observer.tier_counters();
            let store = TierStore::start(options.tiers, capacity.block_bytes, counters, wake)?;
            store.map(|store| TierLink::new(Traffic::new(store, capacity.blocks))).transpose()?
        };
        let shared = Arc::new(Shared::new());
        let handle = EngineHandle {
            commands: sender,
            shared: Arc::clone(&shared),
            capacity,
            max_model_len: state.max_model_len(),
            max_queued: options.max_queued,
            max_adapters: options.max_adapters,
            adapter_reader: backend.adapter_reader(),
        };
        // One more than may run, so that readers get on while everybody else writes.
        let largest = Budget {
            tokens: options.max_batched_tokens.max(max_sequences + 1),
            sequences: max_sequences,
            logits_rows: options.max_logits_rows.max(max_sequences + 1),
        };
        let engine = Self {
            backend,
            proposer,
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
            adapters: AdapterTable::new(options.max_adapters),
            tiers,
            started: Instant::now(),
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
        self.tend_adapters();
        self.take_commands()?;
        let begun = Instant::now();
        self.state.set_time(begun - self.started);
        self.drop_the_gone(begun)?;
        if let Some(tiers) = &mut self.tiers {
            tiers.traffic.before_step(&mut self.state, begun);
        }
        let mut plan = schedule(&mut self.state, self.budget)?;
        self.tell_the_admitted(&plan, begun);
        for (request, problem) in std::mem::take(&mut plan.failed) {
            self.fail(request, Failure::Constraint(problem))?;
        }
        self.report_load();
        if plan.batch.sequences.is_empty() {
            // Only a request that can never run leaves an engine with work and nothing to do; refuse it, do not spin.
            if let Some(id) = self.state.next_waiting().filter(|_| self.state.running() == 0) {
                self.fail(id, Failure::OutOfMemory)?;
            }
            return Ok(());
        }
        let planned = Instant::now();
        self.shared.clock.begins();
        let result = self.backend.execute(&plan.batch);
        self.shared.clock.ends();
        let executed = Instant::now();
        let (tokens, sequences) = (plan.tokens(), plan.batch.sequences.len());
        self.take_result(plan, result)?;
        self.observer.step(StepReport {
            tokens,
            sequences,
            elapsed: executed - planned,
            scheduling: (planned - begun) + executed.elapsed(),
            counts: self.state.take_counts(),
        });
        self.save_blocks((executed - planned) / SAVING_SHARE);
        Ok(())
    }

    fn tell_the_admitted(&mut self, plan: &StepPlan, at: Instant) {
        for admission in &plan.admitted {
            if let Some(client) = self.clients.get_mut(&admission.request)
                && client.slot.take().is_some()
            {
                // Whoever has gone need not be told.
                let event = Event::Admitted { at, cached_tokens: admission.cached_tokens };
                let _ = client.events.try_send(event);
            }
        }
    }

    fn take_result(
        &mut self,
        plan: StepPlan,
        result: Result<Vec<Sampled>, BackendError>,
    ) -> Result<(), Stop> {
        match result {
            Ok(sampled) => {
                let outcome = complete(&mut self.state, plan, sampled)?;
                if let Some(tiers) = &mut self.tiers {
                    tiers.traffic.note(outcome.registered);
                }
                self.send_updates(outcome.updates)?;
                if let Some(proposer) = &mut self.proposer {
                    self.state.propose(&mut **proposer);
                }
                self.grow_again();
                Ok(())
            }
            Err(BackendError::OutOfMemory(reason)) => self.shrink(&plan, &reason),
            Err(BackendError::NonFinite(ids)) => self.discard(&ids),
            Err(BackendError::Fatal(reason)) => Err(Stop::Fatal(reason)),
        }
    }

    /// Takes every command that is there; waits for one when there is nothing else to do.
    fn take_commands(&mut self) -> Result<(), Stop> {
        if self.state.is_idle() && self.tiers.as_ref().is_some_and(|tiers| tiers.traffic.is_behind()) {
            self.save_blocks(IDLE_SAVING);
        } else if self.state.is_idle() {
            if self.draining {
                return Err(Stop::Drained);
            }
            self.report_load();
            match self.commands.blocking_recv() {
                Some(command) => self.take(command),
                None => return Err(Stop::Drained),
            }
        } else if self.state.is_held_up() {
            self.report_load();
            self.wait_for_tiers();
        }
        while let Ok(command) = self.commands.try_recv() {
            self.take(command);
        }
        Ok(())
    }

    pub(super) fn take(&mut self, command: Command) {
        match command {
            Command::Drain => {
                self.draining = true;
                self.state.drain();
                self.commands.close();
            }
            // It has ended the wait for a command; that is all.
            Command::Wake => {}
            Command::LoadAdapter { adapter, reply } => self.load_adapter(*adapter, reply),
            Command::UnloadAdapter { id, reply } => self.unload_adapter(id, Some(reply)),
            Command::Submit { request, events, .. } if !self.adapters.serves(request.adapter) => {
                drop(events.try_send(gone()));
            }
            Command::Submit { request, events, slot } => {
                let adapter = request.adapter;
                let id = self.next_id;
                self.next_id += 1;
                let (answers, given_up) = (request.choices.max(1), request.given_up.clone());
                match self.state.add(id, *request) {
                    Ok(()) => {
                        self.clients.insert(id, Client { events, slot: Some(slot), answers, given_up });
                        self.adapters.begin(id, adapter);
                    }
                    Err(refusal) => drop(events.try_send(Event::Failed(Failure::Refused(refusal)))),
                }
            }
        }
    }

    fn drop_the_gone(&mut self, now: Instant) -> Result<(), Stop> {
        for id in self.state.expired(now) {
            self.fail(id, Failure::DeadlinePassed)?;
        }
        let gone: Vec<RequestId> =
            self.clients.iter().filter(|(_, client)| client.events.is_closed()).map(|(id, _)| *id).collect();
        for id in gone {
            self.clients.remove(&id);
            self.forget(id)?;
        }
        for (id, client) in self.clients.iter_mut().filter(|(_, client)| client.given_up.is_marked()) {
            for choice in client.given_up.take() {
                client.answers -= u32::from(self.state.end_answer(*id, choice)?);
            }
        }
        self.clients.retain(|_, client| client.answers > 0);
        Ok(())
    }

    /// Drops a request wherever it is.
    pub(super) fn forget(&mut self, id: RequestId) -> Result<(), Stop> {
        self.state.abort(id)?;
        Ok(())
    }

    fn send_updates(&mut self, updates: Vec<Update>) -> Result<(), Stop> {
        for update in updates {
            let (id, event, ends) = match update {
                Update::PromptLogprobs(id, logprobs) => (id, Event::PromptLogprobs(logprobs), false),
                Update::Ended { request, choice, end } => (request, Event::Ended { choice, end }, true),
                Update::Token { request, choice, token, end } => {
                    (request, Event::Token { choice, token, end }, end.is_some())
                }
                Update::Failed(id, problem) => {
                    self.fail(id, Failure::Constraint(problem))?;
                    continue;
                }
            };
            let Some(client) = self.clients.get_mut(&id) else { continue };
            client.answers -= u32::from(ends);
            let delivered = client.events.try_send(event).is_ok();
            if !delivered || client.answers == 0 {
                self.clients.remove(&id);
                self.forget(id)?;
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
            named_blocks: self.state.named_blocks() as u32,
        });
    }
}
