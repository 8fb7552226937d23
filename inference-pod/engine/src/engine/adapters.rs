//! LoRA adapters as the step loop knows them: which are loaded, who uses them, and which are to go.
//!
//! An adapter that is unloaded takes no new request from that moment on, and is freed when the last that began has ended.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use tokio::sync::oneshot;

use super::handle::Event;
use super::step_loop::Engine;
use crate::backend::{AdapterError, AdapterId, Backend, ReadAdapter};
use crate::sequence::{AdapterKey, RequestId};

/// What waits for an answer about a load.
pub(super) type LoadReply = oneshot::Sender<Result<AdapterKey, AdapterError>>;

/// The adapters of one engine.
pub(super) struct AdapterTable {
    most: usize,
    next: AdapterId,
    loaded: BTreeMap<AdapterId, State>,
    /// Adapters of the requests that have not ended, by the request's number.
    users: HashMap<RequestId, AdapterId>,
    /// What the observer was told last.
    told: Report,
}

enum State {
    Serving,
    /// To be freed when nobody uses it; those who asked for that are then told.
    Leaving(Vec<oneshot::Sender<()>>),
}

/// Adapters that requests run and wait with.
#[derive(Default, PartialEq, Eq)]
struct Report {
    running: BTreeSet<AdapterId>,
    waiting: BTreeSet<AdapterId>,
}

impl AdapterTable {
    /// A table for at most so many adapters, those that are leaving included.
    pub(super) fn new(most: usize) -> Self {
        Self { most, next: 1, loaded: BTreeMap::new(), users: HashMap::new(), told: Report::default() }
    }

    /// Whether a request with this adapter may begin.
    pub(super) fn serves(&self, adapter: Option<AdapterKey>) -> bool {
        adapter.is_none_or(|key| matches!(self.loaded.get(&key.id), Some(State::Serving)))
    }

    /// A request has begun.
    pub(super) fn begin(&mut self, request: RequestId, adapter: Option<AdapterKey>) {
        if let Some(key) = adapter {
            self.users.insert(request, key.id);
        }
    }

    fn is_unused(&self, adapter: AdapterId) -> bool {
        self.users.values().all(|used| *used != adapter)
    }
}

impl<B: Backend> Engine<B> {
    pub(super) fn load_adapter(&mut self, adapter: ReadAdapter, reply: LoadReply) {
        let result = self.try_load_adapter(adapter);
        // Whoever asked may have gone; then nobody will name it, and nobody can unload it.
        if let Err(Ok(key)) = reply.send(result) {
            self.unload_adapter(key.id, None);
        }
    }

    fn try_load_adapter(&mut self, adapter: ReadAdapter) -> Result<AdapterKey, AdapterError> {
        let most = self.adapters.most;
        if self.adapters.loaded.len() >= most {
            return Err(AdapterError::NoRoom(format!(
                "{most} adapters are loaded, those that still finish requests included, and engine.maxAdapters allows no \
                 more; unload one, or raise it"
            )));
        }
        let (id, digest, info) = (self.adapters.next, adapter.digest, adapter.info);
        self.backend.load_adapter(id, adapter)?;
        self.adapters.next += 1;
        self.adapters.loaded.insert(id, State::Serving);
        tracing::info!(adapter = id, rank = info.rank, bytes = info.bytes, "adapter loaded");
        Ok(AdapterKey { id, digest })
    }

    pub(super) fn unload_adapter(&mut self, id: AdapterId, reply: Option<oneshot::Sender<()>>) {
        match self.adapters.loaded.get_mut(&id) {
            Some(State::Leaving(replies)) => replies.extend(reply),
            Some(state) => *state = State::Leaving(reply.into_iter().collect()),
            // Whoever asked may have gone.
            None => {
                if let Some(reply) = reply {
                    let _ = reply.send(());
                }
            }
        }
    }

    /// Frees adapters that were unloaded and that nobody uses any more, and tells the observer who uses which.
    pub(super) fn tend_adapters(&mut self) {
        if self.adapters.loaded.is_empty() {
            return;
        }
        let clients = &self.clients;
        self.adapters.users.retain(|request, _| clients.contains_key(request));
        let leaving = |(id, state): (&AdapterId, &State)| match state {
            State::Leaving(_) if self.adapters.is_unused(*id) => Some(*id),
            _ => None,
        };
        let unused: Vec<AdapterId> = self.adapters.loaded.iter().filter_map(leaving).collect();
        for id in unused {
            self.backend.unload_adapter(id);
            tracing::info!(adapter = id, "adapter freed");
            if let Some(State::Leaving(replies)) = self.adapters.loaded.remove(&id) {
                // Whoever asked may have gone.
                for reply in replies {
                    let _ = reply.send(());
                }
            }
        }
        self.report_adapters();
    }

    fn report_adapters(&mut self) {
        let mut report = Report::default();
        for (request, id) in &self.adapters.users {
            let waits = self.clients.get(request).is_some_and(|client| client.slot.is_some());
            if waits { &mut report.waiting } else { &mut report.running }.insert(*id);
        }
        if report != self.adapters.told {
            self.observer.adapters(&report.running, &report.waiting);
            self.adapters.told = report;
        }
    }
}

/// What a request is told that names an adapter which has gone meanwhile.
pub(super) fn gone() -> Event {
    Event::Failed(super::Failure::AdapterGone)
}
