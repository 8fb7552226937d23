//! The front of the tiers: what the engine's thread asks them for and gives them. Nothing here waits for a disk.
//!
//! What has been computed is written through: to main memory at once, to disk when the disk's thread gets to it. What lies on
//! disk is fetched while its sequence waits in the queue, and only for that sequence; from there it also goes to main memory.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::counters::{TierCounters, add};
use super::disk::{DiskTier, Fetch};
use super::host::HostTier;
use super::{BlockHash, TierError, TierOptions};
use crate::backend::BlockBytes;
use crate::scheduler::Rank;

/// Called, on any thread, when something that was asked for has come.
pub type Wake = Arc<dyn Fn() + Send + Sync>;

/// Longest that a sequence waits for the disk before its tokens are computed instead.
pub const PATIENCE: Duration = Duration::from_secs(2);

struct Fetching {
    blocks: usize,
    deadline: Instant,
    fetch: Arc<Fetch>,
}

impl Drop for Fetching {
    fn drop(&mut self) {
        self.fetch.cancel();
    }
}

/// The tiers. The engine's thread owns them.
pub struct TierStore {
    host: Option<HostTier>,
    disk: Option<DiskTier>,
    fetching: HashMap<Rank, Fetching>,
    block_bytes: u64,
    staging_blocks: usize,
    counters: Arc<TierCounters>,
}

impl TierStore {
    /// Sets the tiers up for blocks of `block_bytes` bytes; `None` where there are none. `wake` is called whenever a fetch is
    /// done.
    ///
    /// # Errors
    /// [`TierError`]: a setting is wrong.
    pub fn start(
        options: TierOptions,
        block_bytes: u64,
        counters: Arc<TierCounters>,
        wake: Wake,
    ) -> Result<Option<Self>, TierError> {
        if options.host_bytes.is_none() && options.disk.is_none() {
            return Ok(None);
        }
        let queued = options.transit_bytes / 4;
        let staging = (options.transit_bytes - queued) / block_bytes.max(1);
        let host = options.host_bytes.map(|bytes| HostTier::new(bytes, block_bytes)).transpose()?;
        let disk = options
            .disk
            .map(|disk| DiskTier::start(disk, block_bytes, queued, Arc::clone(&counters), wake))
            .transpose()?;
        Ok(Some(Self {
            host,
            disk,
            fetching: HashMap::new(),
            block_bytes,
            staging_blocks: usize::try_from(staging).unwrap_or(usize::MAX).max(1),
            counters,
        }))
    }

    /// Whether a block that the cache holds should be read and [put](Self::put) here. A block that main memory has and the
    /// disk lacks is passed on by the way.
    pub fn lacks(&mut self, block: &BlockHash, parent: Option<BlockHash>) -> bool {
        let on_disk = self.disk.as_ref().is_none_or(|disk| !disk.is_open() || disk.contains(block));
        let Some(host) = &self.host else { return !on_disk };
        match (host.get(block), &self.disk) {
            (Some(bytes), Some(disk)) if !on_disk => disk.put(*block, parent, Arc::clone(bytes)),
            (Some(_), _) => {}
            (None, _) => return true,
        }
        false
    }

    /// Takes a block in. `took` is how long it took to read it from the cache.
    pub fn put(&mut self, block: BlockHash, parent: Option<BlockHash>, bytes: BlockBytes, took: Duration) {
        // Others' blocks do not belong here, and a disk would not know them again.
        if bytes.len() as u64 != self.block_bytes {
            return;
        }
        if let Some(disk) = &self.disk
            && !disk.contains(&block)
        {
            disk.put(block, parent, Arc::clone(&bytes));
        }
        self.put_in_host(block, parent, bytes, took);
    }

    fn put_in_host(
        &mut self,
        block: BlockHash,
        parent: Option<BlockHash>,
        bytes: BlockBytes,
        took: Duration,
    ) {
        let (Some(host), counter) = (&mut self.host, &self.counters.host) else { return };
        if host.contains(&block) {
            return;
        }
        match host.put(block, parent, bytes) {
            Some(gone) => {
                counter.stored(self.block_bytes, took);
                add(&counter.evictions, gone as u64);
            }
            None => add(&counter.skipped, 1),
        }
        counter.set_size(host.len(), host.bytes());
    }

    /// Has the blocks of `chain` from `from` on that lie on disk fetched for a sequence, at most `most` of them, as far as the
    /// run of blocks that some tier has goes. Says whether anything is on its way: then the sequence had better wait.
    ///
    /// `chain` are the names of all full blocks of its prompt, `from` the first that the cache itself lacks.
    pub fn fetch(
        &mut self,
        sequence: Rank,
        chain: &[BlockHash],
        from: usize,
        most: usize,
        now: Instant,
    ) -> bool {
        let Some(disk) = &self.disk else { return false };
        let mut wanted = Vec::new();
        for block in chain.iter().skip(from) {
            if self.host.as_ref().is_some_and(|host| host.contains(block)) {
                continue;
            }
            if wanted.len() == most || !disk.contains(block) {
                break;
            }
            wanted.push(*block);
        }
        let blocks = wanted.len();
        if blocks == 0 || self.fetching.contains_key(&sequence) {
            return false;
        }
        let Some(fetch) = disk.fetch(wanted) else { return false };
        self.fetching.insert(sequence, Fetching { blocks, deadline: now + PATIENCE, fetch });
        true
    }

    /// Blocks that may be on their way or wait with their sequences.
    #[must_use]
    pub fn staging_blocks(&self) -> usize {
        self.staging_blocks
    }

    /// Blocks that are on their way from the disk.
    #[must_use]
    pub fn fetching_blocks(&self) -> usize {
        self.fetching.values().map(|fetching| fetching.blocks).sum()
    }

    /// Whether a sequence still does well to wait for its fetch.
    #[must_use]
    pub fn is_fetching(&self, sequence: Rank, now: Instant) -> bool {
        let fetching = self.fetching.get(&sequence);
        fetching.is_some_and(|fetching| !fetching.fetch.is_done() && now < fetching.deadline)
    }

    /// When the first of those that wait for a fetch will have waited long enough.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        let open = self.fetching.values().filter(|fetching| !fetching.fetch.is_done());
        open.map(|fetching| fetching.deadline).min()
    }

    /// The run of blocks of `chain` from `from` on that can be had at once, at most `most`, for a sequence that will be
    /// admitted soon; its fetch ends with this. What is missing is counted as such.
    pub fn take(&mut self, sequence: Rank, chain: &[BlockHash], from: usize, most: usize) -> Vec<BlockBytes> {
        let fetching = self.fetching.remove(&sequence);
        let fetched: HashMap<BlockHash, BlockBytes> =
            fetching.map(|fetching| fetching.fetch.found().drain(..).collect()).unwrap_or_default();
        let wanted = chain.get(from..).unwrap_or_default();
        let mut run = Vec::new();
        let mut promoted = Vec::new();
        for (index, block) in wanted.iter().enumerate().take(most) {
            if let Some(bytes) = self.host.as_ref().and_then(|host| host.get(block)) {
                run.push(Arc::clone(bytes));
            } else if let Some(bytes) = fetched.get(block) {
                run.push(Arc::clone(bytes));
                promoted.push(index);
            } else {
                break;
            }
        }
        self.count_hits(run.len() - promoted.len(), promoted.len(), wanted.len());
        for index in promoted {
            let parent = (from + index).checked_sub(1).map(|before| chain[before]);
            self.put_in_host(wanted[index], parent, Arc::clone(&run[index]), Duration::ZERO);
        }
        // Also what the cache itself had: it must not be the first to go here because it is used so much there.
        let used = &chain[..(from + run.len()).min(chain.len())];
        if let Some(host) = &mut self.host {
            host.touch(used.iter().copied());
        }
        if let Some(disk) = &self.disk {
            disk.touch(used);
        }
        run
    }

    fn count_hits(&self, host: usize, disk: usize, wanted: usize) {
        if self.host.is_some() {
            add(&self.counters.host.hits, host as u64);
            add(&self.counters.host.misses, (wanted - host) as u64);
            self.counters.host.loaded(host as u64 * self.block_bytes, Duration::ZERO);
        }
        if self.disk.is_some() {
            add(&self.counters.disk.hits, disk as u64);
            add(&self.counters.disk.misses, (wanted - host - disk) as u64);
        }
    }

    /// A block of the cache was not kept.
    pub fn count_skipped(&self) {
        let counters = &self.counters;
        let tier = if self.host.is_some() { &counters.host } else { &counters.disk };
        add(&tier.skipped, 1);
    }

    /// Forgets blocks whose contents are not to be used any more.
    pub fn discard(&mut self, blocks: &[BlockHash]) {
        for block in blocks {
            if let Some(host) = &mut self.host {
                host.remove(block);
                self.counters.host.set_size(host.len(), host.bytes());
            }
            if let Some(disk) = &self.disk {
                disk.remove(*block);
            }
        }
    }

    /// Forgets a sequence that has gone.
    pub fn forget(&mut self, sequence: Rank) {
        self.fetching.remove(&sequence);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};

    use super::super::{DiskOptions, Tier, folder::file_bytes};
    use super::*;

    const BLOCK_BYTES: u64 = 16;
    const SOON: Duration = Duration::from_secs(30);

    fn rank(number: u64) -> Rank {
        Rank::new(0, number)
    }

    fn hash(number: u8) -> BlockHash {
        BlockHash([number; 32])
    }

    fn bytes(number: u8) -> BlockBytes {
        vec![number; BLOCK_BYTES as usize].into()
    }

    struct Bench {
        store: TierStore,
        counters: Arc<TierCounters>,
        woken: Receiver<()>,
    }

    fn start(host_blocks: Option<u64>, disk: Option<(&std::path::Path, u64)>) -> Bench {
        let options = TierOptions {
            host_bytes: host_blocks.map(|blocks| blocks * BLOCK_BYTES),
            disk: disk.map(|(path, blocks)| DiskOptions {
                path: path.to_owned(),
                bytes: blocks * file_bytes(BLOCK_BYTES),
                fingerprint: [7; 32],
            }),
            transit_bytes: 1 << 10,
        };
        let counters = Arc::new(TierCounters::default());
        let (sender, woken) = channel();
        let wake: Wake = Arc::new(move || {
            let _ = sender.send(());
        });
        let store = TierStore::start(options, BLOCK_BYTES, Arc::clone(&counters), wake).unwrap().unwrap();
        let bench = Bench { store, counters, woken };
        if disk.is_some() {
            bench.until(|bench| bench.store.disk.as_ref().unwrap().is_open());
        }
        bench
    }

    impl Bench {
        fn until(&self, is_so: impl Fn(&Self) -> bool) {
            let begun = Instant::now();
            while !is_so(self) {
                assert!(begun.elapsed() < SOON, "not in time");
                std::thread::yield_now();
            }
        }

        fn put(&mut self, numbers: impl IntoIterator<Item = u8>) {
            for number in numbers {
                let parent = number.checked_sub(1).filter(|it| *it > 0).map(hash);
                assert!(self.store.lacks(&hash(number), parent));
                self.store.put(hash(number), parent, bytes(number), Duration::ZERO);
            }
        }

        fn disk(&self) -> super::super::TierSnapshot {
            self.counters.snapshot(Tier::Disk)
        }

        fn fetch(&mut self, chain: &[BlockHash]) -> Vec<BlockBytes> {
            let now = Instant::now();
            if self.store.fetch(rank(1), chain, 0, usize::MAX, now) {
                assert!(self.store.next_deadline().is_none_or(|deadline| deadline == now + PATIENCE));
                self.woken.recv_timeout(SOON).unwrap();
                assert!(!self.store.is_fetching(rank(1), now));
            }
            self.store.take(rank(1), chain, 0, usize::MAX)
        }
    }

    fn chain(last: u8) -> Vec<BlockHash> {
        (1..=last).map(hash).collect()
    }

    #[test]
    fn main_memory_gives_back_a_run_up_to_the_first_gap() {
        let mut bench = start(Some(4), None);
        bench.put([1, 2, 4]);
        assert!(!bench.store.lacks(&hash(1), None));
        assert!(!bench.store.fetch(rank(1), &chain(5), 0, usize::MAX, Instant::now()));
        assert_eq!(bench.store.take(rank(1), &chain(5), 0, usize::MAX), [bytes(1), bytes(2)]);
        assert_eq!(bench.store.take(rank(1), &chain(5), 1, usize::MAX), [bytes(2)]);
        assert!(bench.store.take(rank(1), &chain(5), 5, usize::MAX).is_empty());
        let host = bench.counters.snapshot(Tier::Host);
        assert_eq!((host.blocks, host.bytes, host.stores), (3, 48, 3));
        assert_eq!((host.hits, host.misses, host.load_bytes), (3, 6, 48));
        assert_eq!(bench.disk(), super::super::TierSnapshot::default());
    }

    #[test]
    fn a_restart_keeps_what_is_on_disk_and_brings_it_back_through_main_memory() {
        let dir = tempfile::tempdir().unwrap();
        let mut bench = start(None, Some((dir.path(), 10)));
        bench.put(1..=5);
        bench.until(|bench| bench.disk().blocks == 5);
        assert_eq!(bench.fetch(&chain(6)), (1..=5).map(bytes).collect::<Vec<_>>());
        drop(bench);

        let mut bench = start(Some(3), Some((dir.path(), 10)));
        assert_eq!(bench.disk().blocks, 5);
        assert_eq!(bench.fetch(&chain(6)), (1..=5).map(bytes).collect::<Vec<_>>());
        let disk = bench.disk();
        assert_eq!((disk.hits, disk.misses, disk.load_bytes, disk.corrupt), (5, 1, 80, 0));
        // Main memory keeps the beginning of what did not fit.
        assert_eq!(bench.store.take(rank(2), &chain(6), 0, usize::MAX), [bytes(1), bytes(2), bytes(3)]);
        assert!(bench.store.lacks(&hash(4), Some(hash(3))), "main memory wants it, though the disk has it");
    }

    #[test]
    fn a_broken_file_ends_the_run_and_is_written_anew() {
        let dir = tempfile::tempdir().unwrap();
        let mut bench = start(None, Some((dir.path(), 10)));
        bench.put(1..=3);
        bench.until(|bench| bench.disk().blocks == 3);
        for entry in std::fs::read_dir(dir.path()).unwrap() {
            let path = entry.unwrap().path();
            let mut contents = std::fs::read(&path).unwrap();
            if contents.ends_with(&bytes(2)) {
                *contents.last_mut().unwrap() ^= 1;
                std::fs::write(&path, contents).unwrap();
            }
        }
        assert_eq!(bench.fetch(&chain(3)), [bytes(1)]);
        assert_eq!((bench.disk().corrupt, bench.disk().blocks), (1, 2));
        bench.put([2]);
        bench.until(|bench| bench.disk().blocks == 3);
        assert_eq!(bench.fetch(&chain(3)).len(), 3);
    }

    #[test]
    fn a_second_process_goes_without_the_folder_until_it_is_free() {
        let dir = tempfile::tempdir().unwrap();
        let mut first = start(None, Some((dir.path(), 10)));
        first.put([1]);
        first.until(|bench| bench.disk().blocks == 1);
        let options = DiskOptions {
            path: dir.path().to_owned(),
            bytes: 10 * file_bytes(BLOCK_BYTES),
            fingerprint: [7; 32],
        };
        let options = TierOptions { host_bytes: None, disk: Some(options), transit_bytes: 0 };
        let counters = Arc::new(TierCounters::default());
        let mut second =
            TierStore::start(options, BLOCK_BYTES, Arc::clone(&counters), Arc::new(|| ())).unwrap().unwrap();
        assert!(!second.fetch(rank(1), &chain(1), 0, usize::MAX, Instant::now()));
        assert!(!second.lacks(&hash(2), None), "there is nowhere to put it yet");
        second.put(hash(2), None, bytes(2), Duration::ZERO);
        assert_eq!(counters.snapshot(Tier::Disk).skipped, 1);
        drop(first);
        let begun = Instant::now();
        while !second.disk.as_ref().unwrap().is_open() {
            assert!(begun.elapsed() < SOON, "the lock is tried again");
            std::thread::yield_now();
        }
        assert!(second.fetch(rank(1), &chain(1), 0, usize::MAX, Instant::now()));
    }

    #[test]
    fn who_has_waited_long_enough_gets_what_has_come() {
        let dir = tempfile::tempdir().unwrap();
        let mut bench = start(None, Some((dir.path(), 10)));
        bench.put(1..=3);
        bench.until(|bench| bench.disk().blocks == 3);
        let now = Instant::now();
        assert!(bench.store.fetch(rank(1), &chain(3), 0, usize::MAX, now));
        assert!(!bench.store.is_fetching(rank(1), now + PATIENCE));
        let run = bench.store.take(rank(1), &chain(3), 0, usize::MAX);
        assert!(run.iter().enumerate().all(|(index, found)| *found == bytes(index as u8 + 1)));
        assert!(bench.store.next_deadline().is_none());
        bench.store.fetch(rank(2), &chain(3), 0, usize::MAX, now);
        bench.store.forget(rank(2));
        assert!(bench.store.fetching.is_empty());
    }

    #[test]
    fn wrong_sizes_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let start = |host_bytes, disk: Option<u64>| {
            let disk = disk.map(|bytes| DiskOptions { path: dir.path().into(), bytes, fingerprint: [0; 32] });
            let wake: Wake = Arc::new(|| ());
            TierStore::start(
                TierOptions { host_bytes, disk, transit_bytes: 0 },
                BLOCK_BYTES,
                Arc::default(),
                wake,
            )
        };
        assert!(start(None, None).unwrap().is_none());
        let error = start(Some(15), None).err().unwrap().to_string();
        assert!(error.contains("kvCache.hostBytes: is 15") && error.contains("16"), "{error}");
        let error = start(None, Some(0)).err().unwrap().to_string();
        assert!(error.contains("kvCache.disk.bytes: is 0") && error.contains("4096"), "{error}");
    }
}
