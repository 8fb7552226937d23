//! What the tiers count. Written by the engine's thread and the disk's, read by whoever shows metrics.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A tier, as a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    /// Main memory.
    Host,
    /// A folder.
    Disk,
}

impl Tier {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Host, Self::Disk];

    /// As it is written in labels.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Disk => "disk",
        }
    }
}

/// The numbers of one tier. All but `blocks` and `bytes` only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TierSnapshot {
    /// Blocks in it.
    pub blocks: u64,
    /// Bytes it takes.
    pub bytes: u64,
    /// Blocks that a sequence was given from it.
    pub hits: u64,
    /// Blocks that a sequence wanted and that it did not have.
    pub misses: u64,
    /// Blocks put in.
    pub stores: u64,
    /// Blocks given up for others.
    pub evictions: u64,
    /// Blocks that were not what had been written.
    pub corrupt: u64,
    /// Blocks that were not put in or fetched because the queue was full, the disk was not ready or a write failed.
    pub skipped: u64,
    /// Bytes read from it.
    pub load_bytes: u64,
    /// Bytes written to it.
    pub store_bytes: u64,
    /// Time that reading took.
    pub load_time: Duration,
    /// Time that writing took.
    pub store_time: Duration,
}

/// The numbers of one tier, as they are counted.
#[derive(Debug, Default)]
pub struct TierCounter {
    pub(super) blocks: AtomicU64,
    pub(super) bytes: AtomicU64,
    pub(super) hits: AtomicU64,
    pub(super) misses: AtomicU64,
    pub(super) stores: AtomicU64,
    pub(super) evictions: AtomicU64,
    pub(super) corrupt: AtomicU64,
    pub(super) skipped: AtomicU64,
    load_bytes: AtomicU64,
    store_bytes: AtomicU64,
    load_nanos: AtomicU64,
    store_nanos: AtomicU64,
}

/// Adds to a counter. Each stands for itself, so no order between them is needed.
pub(super) fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl TierCounter {
    pub(super) fn set_size(&self, blocks: usize, bytes: u64) {
        self.blocks.store(blocks as u64, Ordering::Relaxed);
        self.bytes.store(bytes, Ordering::Relaxed);
    }

    pub(super) fn loaded(&self, bytes: u64, time: Duration) {
        add(&self.load_bytes, bytes);
        add(&self.load_nanos, nanos(time));
    }

    pub(super) fn stored(&self, bytes: u64, time: Duration) {
        add(&self.stores, 1);
        add(&self.store_bytes, bytes);
        add(&self.store_nanos, nanos(time));
    }

    fn snapshot(&self) -> TierSnapshot {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        TierSnapshot {
            blocks: read(&self.blocks),
            bytes: read(&self.bytes),
            hits: read(&self.hits),
            misses: read(&self.misses),
            stores: read(&self.stores),
            evictions: read(&self.evictions),
            corrupt: read(&self.corrupt),
            skipped: read(&self.skipped),
            load_bytes: read(&self.load_bytes),
            store_bytes: read(&self.store_bytes),
            load_time: Duration::from_nanos(read(&self.load_nanos)),
            store_time: Duration::from_nanos(read(&self.store_nanos)),
        }
    }
}

/// The numbers of both tiers; zeros for one that there is not.
#[derive(Debug, Default)]
pub struct TierCounters {
    pub(super) host: TierCounter,
    pub(super) disk: TierCounter,
}

impl TierCounters {
    /// A tier's numbers now.
    #[must_use]
    pub fn snapshot(&self, tier: Tier) -> TierSnapshot {
        match tier {
            Tier::Host => self.host.snapshot(),
            Tier::Disk => self.disk.snapshot(),
        }
    }
}
