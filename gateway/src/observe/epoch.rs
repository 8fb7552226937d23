//! The counts of one step of a canary, by backend, as one gateway keeps them.
//!
//! A request takes a lock three times: when it begins, at its first token, at its end. The locks are sixteen for each backend, chosen by
//! the thread (or by the subject, where the split is sticky: then a part of them holds a part of the subjects), so threads do
//! not wait for one another. Memory is bounded by the buckets of the histograms and by the requests in flight. An epoch that is over is
//! dropped with the last snapshot or request that knows it.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use fairlead_rollout::report::{BackendReport, PARTS};
use fairlead_rollout::{Counts, Histogram, window};
use k8s_openapi::jiff::Timestamp;

use super::subjects::{Judged, Subjects};

/// The resolution of the ages of requests that have not ended.
const TICK: Duration = Duration::from_millis(100);

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

/// The counts of one lock.
#[derive(Debug, Default)]
struct Slot {
    step: Stretch,
    /// Those since each of the last two intervals began, by the interval's number.
    recent: Vec<(i64, Stretch)>,
}

/// What was counted since a moment, of the requests that began since then.
#[derive(Clone, Debug, Default)]
struct Stretch {
    counts: Counts,
    /// How many streamed requests that began in each tick have no token yet.
    waiting: BTreeMap<u64, u64>,
    /// How many requests that began in each tick have not ended.
    running: BTreeMap<u64, u64>,
}

/// Where a request is counted; made when it begins.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    backend: usize,
    slot: usize,
    tick: u64,
    window: i64,
    judged: Judged,
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
    pub fn new(key: EpochKey, interval: Duration, backends: &[&str]) -> Self {
        let slots = || (0..PARTS).map(|_| Mutex::default()).collect();
        Self {
            key,
            interval,
            begun: Instant::now(),
            backends: backends.iter().map(|name| ((*name).to_owned(), slots())).collect(),
            subjects: Mutex::default(),
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
        let (judged, slot) = match subject {
            None => (Judged::ALL, thread_slot()),
            Some(subject) => {
                let mut subjects = self.subjects.lock().unwrap_or_else(PoisonError::into_inner);
                (subjects.note(subject, window), part(subject))
            }
        };
        if judged == Judged::default() {
            return None;
        }
        let place = Place { backend, slot, tick: self.tick(now), window, judged };
        let mut slot = self.slot(&place)?;
        slot.rotate(window);
        slot.each(&place, |stretch| {
            *stretch.running.entry(place.tick).or_default() += 1;
            if streamed {
                *stretch.waiting.entry(place.tick).or_default() += 1;
            }
        });
        drop(slot);
        Some(place)
    }

    /// Something of a request is known.
    pub fn add(&self, place: &Place, fact: Fact) {
        if let Some(mut slot) = self.slot(place) {
            slot.each(place, |stretch| stretch.add(place.tick, fact));
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
            let mut report = BackendReport::default();
            for (_, slot) in (0..).zip(slots).filter(|(number, _)| told(*number)) {
                let mut slot = lock(slot);
                slot.rotate(window);
                report.step.merge(&slot.step.told(tick));
                if let Some((_, stretch)) = slot.recent.iter().find(|(begun, _)| *begun < window) {
                    report.recent.merge(&stretch.told(tick));
                }
            }
            report
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

impl Slot {
    /// Keeps the stretches that began with this interval and with the last.
    fn rotate(&mut self, window: i64) {
        let live = [window.saturating_sub(1), window];
        if self.recent.iter().map(|(begun, _)| *begun).eq(live) {
            return;
        }
        self.recent.retain(|(begun, _)| live.contains(begun));
        for begun in live {
            if !self.recent.iter().any(|(it, _)| *it == begun) {
                self.recent.push((begun, Stretch::default()));
            }
        }
        self.recent.sort_by_key(|(begun, _)| *begun);
    }

    /// The stretches that a request is counted in, as far as they are live.
    fn each(&mut self, place: &Place, mut apply: impl FnMut(&mut Stretch)) {
        let Place { window, judged, .. } = *place;
        if judged.step {
            apply(&mut self.step);
        }
        for (begun, stretch) in &mut self.recent {
            let counted =
                (judged.this && *begun == window) || (judged.last && *begun == window.saturating_sub(1));
            if counted {
                apply(stretch);
            }
        }
    }
}

impl Stretch {
    fn add(&mut self, tick: u64, fact: Fact) {
        let counts = &mut self.counts;
        match fact {
            Fact::FirstToken(seconds) => {
                less(&mut self.waiting, tick);
                counts.time_to_first_token.add(seconds);
            }
            Fact::BetweenTokens(seconds) => counts.inter_token_latency.add(seconds),
            Fact::End { end, seconds, waiting } => {
                less(&mut self.running, tick);
                if waiting {
                    less(&mut self.waiting, tick);
                }
                let first_token = &mut counts.time_to_first_token;
                match end {
                    Ended::Answered(tokens) => {
                        counts.requests += 1;
                        counts.end_to_end_latency.add(seconds);
                        // An answer without any token: its end is the first that the client sees.
                        if waiting {
                            first_token.add(seconds);
                        }
                        if let Some(tokens) = tokens {
                            counts.tokens_per_answer.add(tokens);
                        }
                    }
                    Ended::Failed { between_unknown } => {
                        counts.requests += 1;
                        counts.errors += 1;
                        counts.end_to_end_latency.add(f64::INFINITY);
                        if waiting {
                            first_token.add(f64::INFINITY);
                        }
                        if between_unknown {
                            counts.inter_token_latency.add(f64::INFINITY);
                        }
                    }
                    Ended::Left => {
                        counts.unfinished.add(seconds);
                        if waiting {
                            counts.unanswered.add(seconds);
                        }
                    }
                    Ended::Void => {}
                }
            }
        }
    }

    /// The counts, with the ages of what has not ended.
    fn told(&self, now: u64) -> Counts {
        let mut counts = self.counts.clone();
        add_ages(&mut counts.unanswered, &self.waiting, now);
        add_ages(&mut counts.unfinished, &self.running, now);
        counts
    }
}

fn add_ages(to: &mut Histogram, begun: &BTreeMap<u64, u64>, now: u64) {
    for (tick, count) in begun {
        // Rather too young: from the end of the tick in which they began.
        let age = TICK.mul_f64(ticks(now.saturating_sub(tick.saturating_add(1))));
        to.add_many(age.as_secs_f64(), *count);
    }
}

/// A hundred years have 3·10¹⁰ ticks.
fn ticks(ticks: u64) -> f64 {
    u32::try_from(ticks).map_or(f64::from(u32::MAX), f64::from)
}

fn less(of: &mut BTreeMap<u64, u64>, tick: u64) {
    if let Some(count) = of.get_mut(&tick) {
        *count -= 1;
        if *count == 0 {
            of.remove(&tick);
        }
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
