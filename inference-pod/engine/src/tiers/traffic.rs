//! Between the scheduler and the tiers: what those that wait are given, and what is kept of those that run.
//!
//! Called by the engine's thread: [`Traffic::before_step`] before each step is planned, [`Traffic::note`] and [`Traffic::save`]
//! after it. No step waits for a disk, and no step grows by more than it is told it may for what is kept of it.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use super::complaint::Complaint;
use super::store::TierStore;
use crate::backend::Backend;
use crate::prefix_hash::BlockHash;
use crate::scheduler::{Rank, Registered, State};

struct Unsaved {
    name: BlockHash,
    parent: Option<BlockHash>,
}

/// Blocks on their way between the cache and the tiers.
pub struct Traffic {
    store: TierStore,
    /// Those that have begun to wait and have not been looked up: there is no room for what they might get.
    undecided: VecDeque<Rank>,
    /// Those that are held back while their blocks are fetched.
    held: Vec<Rank>,
    /// How many blocks those that wait have been given.
    offered: HashMap<Rank, usize>,
    /// Blocks of the cache that have not been read yet, the oldest first.
    unsaved: VecDeque<Unsaved>,
    most_unsaved: usize,
    complaint: Complaint,
}

impl Traffic {
    /// Traffic with `store` for a cache of `blocks` blocks.
    #[must_use]
    pub fn new(store: TierStore, blocks: u32) -> Self {
        Self {
            store,
            undecided: VecDeque::new(),
            held: Vec::new(),
            offered: HashMap::new(),
            unsaved: VecDeque::new(),
            most_unsaved: blocks as usize,
            complaint: Complaint::default(),
        }
    }

    /// Looks up those that have begun to wait, and gives those what has come that were waiting for it. What somebody is given
    /// in main memory counts against a bound until he is admitted; while it is reached, nobody new is looked up.
    pub fn before_step(&mut self, state: &mut State, now: Instant) {
        self.undecided.extend(state.take_newly_waiting());
        self.offered.retain(|rank, _| state.waiting_prefix(*rank).is_some());
        for rank in std::mem::take(&mut self.held) {
            if state.waiting_prefix(rank).is_none() {
                self.store.forget(rank);
            } else if self.store.is_fetching(rank, now) {
                self.held.push(rank);
            } else {
                self.deliver(state, rank);
            }
        }
        while self.room() > 0 {
            let Some(rank) = self.undecided.pop_front() else { return };
            self.look_up(state, rank, now);
        }
        // Who has gone, or was admitted without, need not be remembered.
        if self.undecided.len() > 2 * state.waiting() + 16 {
            self.undecided.retain(|rank| state.waiting_prefix(*rank).is_some());
        }
    }

    fn look_up(&mut self, state: &mut State, rank: Rank, now: Instant) {
        let Some(prefix) = state.waiting_prefix(rank) else { return };
        let (names, in_pool) = (prefix.names, prefix.in_pool);
        // What is found in the cache may long have gone from the tiers.
        let lacking: Vec<Unsaved> = (0..in_pool)
            .map(|index| Unsaved { name: names[index], parent: index.checked_sub(1).map(|it| names[it]) })
            .filter(|block| self.store.lacks(&block.name, block.parent))
            .collect();
        let is_coming = self.store.fetch(rank, names, in_pool, self.room(), now);
        for block in lacking {
            self.push(block);
        }
        if is_coming {
            state.hold(rank, true);
            self.held.push(rank);
        } else {
            self.deliver(state, rank);
        }
    }

    fn deliver(&mut self, state: &mut State, rank: Rank) {
        let Some(prefix) = state.waiting_prefix(rank) else { return };
        let given: usize = self.offered.values().sum();
        // One alone may have all he needs: what main memory has it need not hold twice.
        let most = if given == 0 { usize::MAX } else { self.store.staging_blocks().saturating_sub(given) };
        let blocks = self.store.take(rank, prefix.names, prefix.in_pool, most);
        let run: Vec<_> = prefix.names[prefix.in_pool..].iter().copied().zip(blocks).collect();
        if !run.is_empty() {
            self.offered.insert(rank, run.len());
        }
        state.offer(rank, run);
    }

    fn room(&self) -> usize {
        let given: usize = self.offered.values().sum();
        self.store.staging_blocks().saturating_sub(given + self.store.fetching_blocks())
    }

    /// When those that are held back will have waited long enough.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        self.store.next_deadline()
    }

    /// Holds nobody back any more; they get what has come.
    pub fn release(&mut self, state: &mut State) {
        for rank in std::mem::take(&mut self.held) {
            self.deliver(state, rank);
        }
    }

    /// Takes down what a step has filled, to be read by [`Traffic::save`].
    pub fn note(&mut self, registered: Vec<Registered>) {
        for Registered { block: _, name, parent } in registered {
            self.push(Unsaved { name, parent });
        }
    }

    fn push(&mut self, block: Unsaved) {
        if self.unsaved.len() < self.most_unsaved {
            self.unsaved.push_back(block);
        } else {
            self.store.count_skipped();
        }
    }

    /// Whether there are blocks to be saved.
    #[must_use]
    pub fn is_behind(&self) -> bool {
        !self.unsaved.is_empty()
    }

    /// Reads blocks of the cache and keeps them, one at least, until `allowance` is used up. Blocks that the cache has given to
    /// somebody else meanwhile are skipped.
    pub fn save(&mut self, state: &State, backend: &mut impl Backend, allowance: Duration) {
        let begun = Instant::now();
        while let Some(Unsaved { name, parent }) = self.unsaved.pop_front() {
            let Some(block) = state.block_of(&name) else {
                self.store.count_skipped();
                continue;
            };
            if !self.store.lacks(&name, parent) {
                continue;
            }
            let reading = Instant::now();
            match backend.read_blocks(&[block]) {
                Ok(read) => {
                    for bytes in read {
                        self.store.put(name, parent, bytes, reading.elapsed());
                    }
                }
                Err(error) => {
                    self.store.count_skipped();
                    self.complaint.say(|| format!("a block could not be read from the cache: {error}"));
                }
            }
            if begun.elapsed() >= allowance {
                break;
            }
        }
    }

    /// Forgets blocks whose contents turned out to be unsound.
    pub fn discard(&mut self, names: &[BlockHash]) {
        self.store.discard(names);
    }
}
