//! The counts of one lock: of the whole step, and of the stretches that are kept.
//!
//! A request counts in every stretch that began before it, but is written down once. Requests that count in the same stretches share a
//! cell, whose key is the first and the last of these; the counts of a stretch are the sum of the cells that it lies in. When a
//! stretch is dropped, cells that only it kept apart are added up. Where all requests count, a cell is the time between two
//! beginnings; of a sticky split's subjects, only those beginnings count that come after the subject's request before.

use std::collections::BTreeMap;

use fairlead_rollout::Counts;
use fairlead_rollout::report::BackendReport;
use fairlead_rollout::stretch::Live;

use super::cell::Cell;

/// The whole step: a stretch that begins before all others and is never dropped.
pub const STEP: i64 = i64::MIN;

/// The first and the last stretch that requests count in.
pub type Key = (i64, i64);

/// The counts of one lock.
#[derive(Debug)]
pub struct Slot {
    live: Live,
    cells: BTreeMap<Key, Cell>,
}

impl Slot {
    /// Nothing was counted before interval `window`.
    pub fn new(window: i64) -> Self {
        Self { live: Live::new(window), cells: BTreeMap::new() }
    }

    /// It is interval `window`.
    pub fn advance(&mut self, window: i64) {
        if !self.live.advance(window) {
            return;
        }
        for (key, cell) in std::mem::take(&mut self.cells) {
            if let Some(key) = self.key(key) {
                self.cells.entry(key).or_default().merge(cell);
            }
        }
    }

    /// The cell of requests that count in all stretches from the first to the last of `key` that are kept, if it is any.
    pub fn cell(&mut self, key: Key) -> Option<&mut Cell> {
        let key = self.key(key)?;
        Some(self.cells.entry(key).or_default())
    }

    fn key(&self, (first, last): Key) -> Option<Key> {
        let begun = self.live.begun();
        let first = if first == STEP { STEP } else { *begun.iter().find(|begun| **begun >= first)? };
        let last = begun.iter().rev().find(|begun| **begun <= last).copied().unwrap_or(STEP);
        (first <= last).then_some((first, last))
    }

    /// How many cells there are.
    #[cfg(test)]
    pub fn cells(&self) -> usize {
        self.cells.len()
    }

    /// Adds what was counted to `sums`, by cell. `now`: the tick.
    pub fn tell(&self, now: u64, sums: &mut Sums) {
        for begun in self.live.begun() {
            sums.stretches.entry(*begun).or_default();
        }
        for (key, cell) in &self.cells {
            sums.cells.entry(*key).or_default().merge(&cell.told(now));
        }
    }
}

/// What several slots have counted.
#[derive(Debug, Default)]
pub struct Sums {
    stretches: BTreeMap<i64, Counts>,
    cells: BTreeMap<Key, Counts>,
}

impl From<Sums> for BackendReport {
    fn from(sums: Sums) -> Self {
        let Sums { mut stretches, cells } = sums;
        let mut step = Counts::default();
        for ((first, last), counts) in cells {
            if first == STEP {
                step.merge(&counts);
            }
            stretches.range_mut(first..=last).for_each(|(_, stretch)| stretch.merge(&counts));
        }
        Self { step, stretches }
    }
}
