//! The counts of one step of a canary, by backend, as one gateway keeps them.
//!
//! A request takes a lock three times: when it begins, at its first token, at its end. The locks are sixteen for each backend, chosen by
//! the thread (or by the subject, where the split is sticky: then a part of them holds a part of the subjects), so threads do
//! not wait for one another. Memory is bounded by the buckets of the histograms, by the stretches that are kept and by the requests in
//! flight. An epoch that is over is dropped with the last snapshot or request that knows it.

mod cell;
mod slot;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use fairlead_rollout::report::{BackendReport, PARTS};
use fairlead_rollout::window;
use k8s_openapi::jiff::Timestamp;

use super::subjects::Subjects;
use cell::TICK;
use slot::{Slot, Sums};

pub use slot::STEP;

/// What makes an epoch another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EpochKey {
    /// Of the ModelRoute.
    pub uid: String,
    /// Of the rollout.
    pub fingerprint: String,
    /// Of its step.
    pub epoch: u64,
}

/// The counts of one step of a canary.
#[derive(Debug)]
pub struct Epoch {
    key: EpochKey,
    interval: Duration,
    begun: Instant,
    backends: Vec<(String, Vec<Mutex<Slot>>)>,
    subjects: Mutex<Subjects>,
}

/// Where a request is counted; made when it begins.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    backend: usize,
    slot: usize,
    tick: u64,
    counted: slot::Key,
}

/// What a request adds when something of it is known.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fact {
    /// Seconds to its first token.
    FirstToken(f64),
    /// Mean seconds between its tokens.
    BetweenTokens(f64),
    /// Its end.
    End {
        /// How it ended.
        end: Ended,
        /// Seconds that it took.
        seconds: f64,
        /// Whether its first token is still waited for.
        waiting: bool,
    },
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Ended {
    /// Answered, with so many tokens where known.
    Answered(Option<f64>),
    /// By the variant's fault.
    Failed {
        /// Whether it was streamed and no time between its tokens is known.
        between_unknown: bool,
    },
    /// The client left.
    Left,
    /// It says nothing of the variant.
    Void,
}

impl Epoch {
    /// An epoch that begins now.
    pub fn new(key: EpochKey, interval: Duration, backends: &[&str], wall: Timestamp) -> Self {
        let window = window(wall, interval);
        let slots = || (0..PARTS).map(|_| Mutex::new(Slot::new(window))).collect();
        Self {
            key,
            interval,
            begun: Instant::now(),
            backends: backends.iter().map(|name| ((*name).to_owned(), slots())).collect(),
            subjects: Mutex::new(Subjects::new(window)),
        }
    }

    /// What makes it this one.
    pub fn key(&self) -> &EpochKey {
        &self.key
    }

    /// A request begins at a backend. `None` where it is not counted: it is not the first of its subject.
    pub fn begin(
        &self,
        backend: &str,
        subject: Option<u64>,
        streamed: bool,
        (now, wall): (Instant, Timestamp),
    ) -> Option<Place> {
        let backend = self.backends.iter().position(|(name, _)| name == backend)?;
        let window = window(wall, self.interval);
        let (first, slot) = match subject {
            None => (STEP, thread_slot()),
            Some(subject) => {
                let mut subjects = self.subjects.lock().unwrap_or_else(PoisonError::into_inner);
                (subjects.note(subject, window)?, part(subject))
            }
        };
        let place = Place { backend, slot, tick: self.tick(now), counted: (first, window) };
        let mut slot = self.slot(&place)?;
        slot.advance(window);
        slot.cell(place.counted)?.begin(place.tick, streamed);
        drop(slot);
        Some(place)
    }

    /// Something of a request is known.
    pub fn add(&self, place: &Place, fact: Fact) {
        let Some(mut slot) = self.slot(place) else { return };
        // What outlives its stretches, and is not counted in the step, is nobody's.
        if let Some(cell) = slot.cell(place.counted) {
            cell.add(place.tick, fact);
        }
    }

    /// What was counted of each backend. `part`, of `parts`, chooses among the subjects of a sticky split; other requests are in every
    /// slot, so of those all are told, as they are asked for without parts.
    pub fn report(
        &self,
        parts: Option<(u32, u32)>,
        now: Instant,
        wall: Timestamp,
    ) -> BTreeMap<String, BackendReport> {
        let window = window(wall, self.interval);
        let told = |slot: u32| parts.is_none_or(|(part, of)| of == 0 || slot % of == part);
        let tick = self.tick(now);
        let of = |slots: &Vec<Mutex<Slot>>| {
            let mut sums = Sums::default();
            for (_, slot) in (0..).zip(slots).filter(|(number, _)| told(*number)) {
                let mut slot = lock(slot);
                slot.advance(window);
                slot.tell(tick, &mut sums);
            }
            BackendReport::from(sums)
        };
        self.backends.iter().map(|(name, slots)| (name.clone(), of(slots))).collect()
    }

    /// Whether a subject of a sticky split was ever counted.
    pub fn is_sticky(&self) -> bool {
        !self.subjects.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    fn slot(&self, place: &Place) -> Option<MutexGuard<'_, Slot>> {
        self.backends.get(place.backend)?.1.get(place.slot).map(lock)
    }

    fn tick(&self, now: Instant) -> u64 {
        let ticks = now.saturating_duration_since(self.begun).as_millis() / TICK.as_millis();
        u64::try_from(ticks).unwrap_or(u64::MAX)
    }
}

fn lock(slot: &Mutex<Slot>) -> MutexGuard<'_, Slot> {
    // Nothing panics while it holds the lock.
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The part that a subject is in.
fn part(subject: u64) -> usize {
    usize::try_from(subject % u64::from(PARTS)).unwrap_or(0)
}

/// A slot of this thread's own, as long as there are not more threads than slots.
fn thread_slot() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static SLOT: Cell<Option<usize>> = const { Cell::new(None) };
    }
    SLOT.with(|slot| {
        slot.get().unwrap_or_else(|| {
            let mine = NEXT.fetch_add(1, Ordering::Relaxed) % PARTS as usize;
            slot.set(Some(mine));
            mine
        })
    })
}

#[cfg(test)]
mod tests;
