//! The disk tier's folder: its lock, its files and what is known of them. Blocking; the disk tier's thread calls it.
//!
//! Files are named `KEY-KEY OF THE BLOCK BEFORE.fairlead-kv`, or `KEY-first.fairlead-kv`. A key is the BLAKE3 of the block's
//! hash keyed with the fingerprint, so several models may use one folder after another and the oldest files go first,
//! whosever they are. Whatever has another name is left alone. Files count with the 4 KiB pages they take.

use std::collections::HashSet;
use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

use super::block_file::{self, HEADER_BYTES, ReadError};
use super::complaint::Complaint;
use super::counters::{TierCounters, add};
use super::index::Index;
use super::{BlockHash, DiskOptions, TierError};
use crate::backend::BlockBytes;

const LOCK_FILE: &str = "fairlead-kv.lock";
const TEMPORARY_FILE: &str = "writing.fairlead-kv.tmp";
const SUFFIX: &str = ".fairlead-kv";
/// Stands in a file's name for the block before the first.
const NO_PARENT: &str = "first";
/// Pages of a file system.
const PAGE_BYTES: u64 = 4096;

/// A file, as the index knows it.
#[derive(Clone, Copy, Debug)]
struct Stored {
    parent: Option<BlockHash>,
    bytes: u64,
}

/// What the folder has, for those who do not touch files. The lock is never held while a file is.
#[derive(Clone)]
pub struct Contents {
    index: Arc<Mutex<Index<Stored>>>,
    fingerprint: [u8; 32],
}

impl Contents {
    /// Nothing yet.
    #[must_use]
    pub fn new(options: &DiskOptions) -> Self {
        Self { index: Arc::new(Mutex::new(Index::new(options.bytes))), fingerprint: options.fingerprint }
    }

    /// Whether a block is there, as far as is known.
    #[must_use]
    pub fn contains(&self, block: &BlockHash) -> bool {
        self.lock().contains(&self.key(block))
    }

    /// Marks blocks as used now; their files keep their times.
    pub fn touch(&self, run: &[BlockHash]) {
        let keys: Vec<BlockHash> = run.iter().map(|block| self.key(block)).collect();
        self.lock().touch(keys);
    }

    fn lock(&self) -> MutexGuard<'_, Index<Stored>> {
        // Nothing panics while it holds the lock, so what is in there is whole.
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn key(&self, block: &BlockHash) -> BlockHash {
        BlockHash(*blake3::keyed_hash(&self.fingerprint, &block.0).as_bytes())
    }
}

/// Bytes that the file of a block takes.
#[must_use]
pub fn file_bytes(block_bytes: u64) -> u64 {
    on_disk(block_bytes.saturating_add(HEADER_BYTES as u64))
}

fn on_disk(bytes: u64) -> u64 {
    bytes.div_ceil(PAGE_BYTES).max(1).saturating_mul(PAGE_BYTES)
}

/// Makes the folder if need be, and checks that files can be written there.
///
/// # Errors
/// [`TierError::Folder`] with what the system says.
pub fn prepare(path: &Path) -> Result<(), TierError> {
    let problem = |error: std::io::Error| TierError::Folder {
        path: path.display().to_string(),
        problem: error.to_string(),
    };
    std::fs::create_dir_all(path).map_err(problem)?;
    open_lock(path).map(drop).map_err(problem)
}

fn open_lock(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().create(true).truncate(false).write(true).open(path.join(LOCK_FILE))
}

/// The folder, locked: no other process writes or removes files in it.
pub struct Folder {
    path: PathBuf,
    contents: Contents,
    block_bytes: u64,
    counters: Arc<TierCounters>,
    complaint: Complaint,
    _lock: File,
}

impl Folder {
    /// Locks the folder and reads what is in it; `None` while another process has it.
    ///
    /// # Errors
    /// What the system says.
    pub fn open(
        options: &DiskOptions,
        contents: &Contents,
        block_bytes: u64,
        counters: &Arc<TierCounters>,
    ) -> std::io::Result<Option<Self>> {
        let lock = open_lock(&options.path)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        let mut folder = Self {
            path: options.path.clone(),
            contents: contents.clone(),
            block_bytes,
            counters: Arc::clone(counters),
            complaint: Complaint::default(),
            _lock: lock,
        };
        folder.scan()?;
        Ok(Some(folder))
    }

    /// Fills the index from names, sizes and times; no file is opened.
    fn scan(&mut self) -> std::io::Result<()> {
        let begun = Instant::now();
        // Left behind by a process that ended in the middle of a write.
        let _ = std::fs::remove_file(self.path.join(TEMPORARY_FILE));
        let mut files = Vec::new();
        for entry in std::fs::read_dir(&self.path)?.flatten() {
            let Some((key, parent)) = entry.file_name().to_str().and_then(parse_name) else { continue };
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_file() {
                let used = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                files.push((used, key, Stored { parent, bytes: on_disk(metadata.len()) }));
            }
        }
        files.sort_unstable_by_key(|(used, key, _)| (*used, *key));
        let mut seen = HashSet::new();
        for (_, key, stored) in files {
            // The same block under two names: one is enough.
            let gone = if seen.insert(key) {
                self.contents.lock().insert(key, stored.parent, stored.bytes, stored)
            } else {
                vec![(key, stored)]
            };
            for (key, stored) in gone {
                if let Err(error) = self.remove_file(&key, &stored) {
                    self.complaint.say(|| format!("a file could not be removed: {error}"));
                }
            }
        }
        self.report_size();
        // Not in the macro: what it is given lives to its end, and so would two locks.
        let (blocks, bytes) = {
            let index = self.contents.lock();
            (index.len(), index.bytes())
        };
        tracing::info!(
            folder = %self.path.display(),
            blocks,
            bytes,
            seconds = begun.elapsed().as_secs_f64(),
            "the disk tier is open"
        );
        Ok(())
    }

    /// Reads a block; `None` is a miss, whatever the reason.
    pub fn read(&mut self, block: &BlockHash) -> Option<BlockBytes> {
        let key = self.contents.key(block);
        let stored = *self.contents.lock().get(&key)?;
        let begun = Instant::now();
        let path = self.file(&key, stored.parent);
        let problem = match block_file::read(&path, &self.contents.fingerprint, block, self.block_bytes) {
            Ok(bytes) => {
                self.contents.lock().touch([key]);
                self.counters.disk.loaded(bytes.len() as u64, begun.elapsed());
                return Some(bytes);
            }
            Err(problem) => problem,
        };
        self.contents.lock().remove(&key);
        if !matches!(&problem, ReadError::Io(error) if error.kind() == std::io::ErrorKind::NotFound) {
            add(&self.counters.disk.corrupt, 1);
            self.complaint.say(|| format!("{} is no good and is removed: {problem}", path.display()));
            // What cannot be removed is not counted any more, but neither is it ever read.
            let _ = std::fs::remove_file(&path);
        }
        self.report_size();
        None
    }

    /// Writes a block, unless it is there already, and removes others for it. Says whether all went well; if not, nothing is
    /// lost but the block, and it is better to leave the disk alone for a while.
    pub fn write(&mut self, block: &BlockHash, parent: Option<&BlockHash>, bytes: &[u8]) -> bool {
        let (key, parent) = (self.contents.key(block), parent.map(|parent| self.contents.key(parent)));
        if self.contents.contains(block) {
            return true;
        }
        let begun = Instant::now();
        let stored = Stored { parent, bytes: file_bytes(bytes.len() as u64) };
        let gone = self.contents.lock().insert(key, parent, stored.bytes, stored);
        let mut outcome = Ok(());
        for (old, stored) in &gone {
            if *old == key {
                add(&self.counters.disk.skipped, 1);
                return true;
            }
            match self.remove_file(old, stored) {
                Ok(()) => add(&self.counters.disk.evictions, 1),
                Err(error) => {
                    outcome = Err(error);
                    self.contents.lock().remove(&key);
                    self.contents.lock().insert(*old, stored.parent, stored.bytes, *stored);
                }
            }
        }
        let outcome = outcome.and_then(|()| {
            let (path, temporary) = (self.file(&key, parent), self.path.join(TEMPORARY_FILE));
            block_file::write(&path, &temporary, &self.contents.fingerprint, block, bytes)
                .inspect_err(|_| drop(std::fs::remove_file(&temporary)))
        });
        match &outcome {
            Ok(()) => self.counters.disk.stored(bytes.len() as u64, begun.elapsed()),
            Err(error) => {
                self.contents.lock().remove(&key);
                add(&self.counters.disk.skipped, 1);
                self.complaint
                    .say(|| format!("a block could not be written to {}: {error}", self.path.display()));
            }
        }
        self.report_size();
        outcome.is_ok()
    }

    /// Removes a block that is not to be read any more.
    pub fn remove(&mut self, block: &BlockHash) {
        let key = self.contents.key(block);
        let removed = self.contents.lock().remove(&key);
        if let Some(stored) = removed
            && let Err(error) = self.remove_file(&key, &stored)
        {
            self.complaint.say(|| format!("a file could not be removed: {error}"));
        }
        self.report_size();
    }

    fn report_size(&self) {
        let index = self.contents.lock();
        self.counters.disk.set_size(index.len(), index.bytes());
    }

    fn remove_file(&self, key: &BlockHash, stored: &Stored) -> std::io::Result<()> {
        match std::fs::remove_file(self.file(key, stored.parent)) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            outcome => outcome,
        }
    }

    fn file(&self, key: &BlockHash, parent: Option<BlockHash>) -> PathBuf {
        let parent = parent.map_or_else(|| NO_PARENT.to_owned(), |parent| format!("{parent:?}"));
        self.path.join(format!("{key:?}-{parent}{SUFFIX}"))
    }
}

fn parse_name(name: &str) -> Option<(BlockHash, Option<BlockHash>)> {
    let (key, parent) = name.strip_suffix(SUFFIX)?.split_once('-')?;
    let parent = if parent == NO_PARENT { None } else { Some(parse_key(parent)?) };
    Some((parse_key(key)?, parent))
}

fn parse_key(text: &str) -> Option<BlockHash> {
    // `from_hex` takes upper case too, which is a name that we would not give.
    let hash = blake3::Hash::from_hex(text).ok()?;
    (hash.to_hex().as_str() == text).then(|| BlockHash(*hash.as_bytes()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const BLOCK_BYTES: u64 = 64;

    struct Bench {
        dir: tempfile::TempDir,
        options: DiskOptions,
        counters: Arc<TierCounters>,
    }

    impl Bench {
        fn new(blocks: u64) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let bytes = blocks * file_bytes(BLOCK_BYTES);
            let options = DiskOptions { path: dir.path().to_owned(), bytes, fingerprint: [1; 32] };
            Self { dir, options, counters: Arc::default() }
        }

        fn open(&self) -> Option<Folder> {
            let contents = Contents::new(&self.options);
            Folder::open(&self.options, &contents, BLOCK_BYTES, &self.counters).unwrap()
        }

        fn files(&self) -> Vec<PathBuf> {
            let all = std::fs::read_dir(self.dir.path()).unwrap().map(|entry| entry.unwrap().path());
            let mut files: Vec<_> = all.filter(|path| path.to_str().unwrap().ends_with(SUFFIX)).collect();
            files.sort();
            files
        }
    }

    fn hash(number: u8) -> BlockHash {
        BlockHash([number; 32])
    }

    fn bytes(number: u8) -> Vec<u8> {
        vec![number; BLOCK_BYTES as usize]
    }

    fn write(folder: &mut Folder, numbers: impl IntoIterator<Item = u8>) {
        for number in numbers {
            assert!(folder.write(&hash(number), None, &bytes(number)));
        }
    }

    /// Takes every field of every event in, as a process's log does: what is only worked out for a log runs here too.
    struct Reader;

    impl tracing::Subscriber for Reader {
        fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
            true
        }

        fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
            tracing::span::Id::from_u64(1)
        }

        fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

        fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

        fn event(&self, event: &tracing::Event<'_>) {
            event.record(&mut |_: &tracing::field::Field, value: &dyn std::fmt::Debug| {
                drop(format!("{value:?}"));
            });
        }

        fn enter(&self, _: &tracing::span::Id) {}

        fn exit(&self, _: &tracing::span::Id) {}
    }

    #[test]
    fn a_log_that_is_read_stops_nothing() {
        let (done, finished) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let bench = Bench::new(3);
            tracing::subscriber::with_default(Reader, || {
                let mut folder = bench.open().unwrap();
                write(&mut folder, [1, 2]);
                std::fs::write(&bench.files()[0], b"broken").unwrap();
                assert_eq!([1, 2].iter().filter(|number| folder.read(&hash(**number)).is_some()).count(), 1);
            });
            let _ = done.send(());
        });
        finished.recv_timeout(Duration::from_secs(30)).expect("it waits for itself");
    }

    #[test]
    fn a_restart_finds_what_was_written_and_sweeps_up() {
        let bench = Bench::new(10);
        let mut folder = bench.open().unwrap();
        write(&mut folder, 1..=3);
        assert!(folder.write(&hash(4), Some(&hash(3)), &bytes(4)));
        drop(folder);
        // What a crash between write and rename leaves.
        std::fs::write(bench.dir.path().join(TEMPORARY_FILE), b"half").unwrap();
        let mut folder = bench.open().unwrap();
        assert!(!bench.dir.path().join(TEMPORARY_FILE).exists());
        for number in 1..=4 {
            assert_eq!(folder.read(&hash(number)).unwrap()[..], bytes(number)[..]);
        }
        assert!(folder.read(&hash(5)).is_none());
        let parent = folder.contents.lock().parent(&folder.contents.key(&hash(4)));
        assert_eq!(parent, Some(folder.contents.key(&hash(3))));
        let snapshot = bench.counters.snapshot(super::super::Tier::Disk);
        assert_eq!((snapshot.blocks, snapshot.bytes, snapshot.corrupt), (4, 4 * PAGE_BYTES, 0));
    }

    #[test]
    fn bytes_stay_within_the_bound_also_when_it_shrinks() {
        let mut bench = Bench::new(4);
        let mut folder = bench.open().unwrap();
        for number in 1..=20 {
            write(&mut folder, [number]);
            assert!(bench.files().len() <= 4);
        }
        assert_eq!(bench.counters.snapshot(super::super::Tier::Disk).evictions, 16);
        assert!(folder.read(&hash(16)).is_none());
        // The time of a use is kept with the file, in steps that a file system can tell apart.
        for (age, number) in [(30, 19_u8), (40, 20), (50, 17), (60, 18)] {
            let path = folder.file(&folder.contents.key(&hash(number)), None);
            let time = SystemTime::now() - Duration::from_secs(age);
            File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
        }
        assert!(folder.read(&hash(18)).is_some());
        drop(folder);
        bench.options.bytes = 2 * PAGE_BYTES;
        let mut folder = bench.open().unwrap();
        assert_eq!(bench.files().len(), 2);
        assert!(folder.read(&hash(18)).is_some() && folder.read(&hash(19)).is_some());
    }

    #[test]
    fn every_broken_file_is_a_miss_and_goes() {
        let bench = Bench::new(100);
        let mut folder = bench.open().unwrap();
        let good = {
            write(&mut folder, [1]);
            std::fs::read(&bench.files()[0]).unwrap()
        };
        for bit in (0..good.len() * 8).step_by(7) {
            let mut flipped = good.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&bench.files()[0], &flipped).unwrap();
            assert!(folder.read(&hash(1)).is_none(), "bit {bit}");
            assert!(bench.files().is_empty());
            assert!(!folder.contents.contains(&hash(1)));
            write(&mut folder, [1]);
        }
        std::fs::remove_file(&bench.files()[0]).unwrap();
        let before = bench.counters.snapshot(super::super::Tier::Disk).corrupt;
        assert!(folder.read(&hash(1)).is_none(), "somebody removed it");
        assert_eq!(bench.counters.snapshot(super::super::Tier::Disk).corrupt, before);
        assert!(before > 100);
    }

    #[test]
    fn another_models_blocks_are_never_read_but_make_room() {
        let mut bench = Bench::new(3);
        let mut folder = bench.open().unwrap();
        write(&mut folder, 1..=3);
        drop(folder);
        bench.options.fingerprint = [2; 32];
        let mut folder = bench.open().unwrap();
        assert!((1..=3).all(|number| folder.read(&hash(number)).is_none()));
        write(&mut folder, 1..=3);
        assert!((1..=3).all(|number| folder.read(&hash(number)).is_some()));
        assert_eq!(bench.files().len(), 3);
    }

    #[test]
    fn other_files_stay_as_they_are() {
        let bench = Bench::new(1);
        let foreign = ["notes.txt", "x.fairlead-kv", "lost+found", "A-first.fairlead-kv"];
        for name in foreign {
            std::fs::write(bench.dir.path().join(name), b"mine").unwrap();
        }
        let folder_of_theirs = bench.dir.path().join(format!("{:?}-first.fairlead-kv", hash(9)));
        std::fs::create_dir(&folder_of_theirs).unwrap();
        let mut folder = bench.open().unwrap();
        write(&mut folder, 1..=5);
        for name in foreign {
            assert_eq!(std::fs::read(bench.dir.path().join(name)).unwrap(), b"mine");
        }
        assert!(folder_of_theirs.is_dir());
    }

    #[test]
    fn the_folder_has_one_owner_at_a_time() {
        let bench = Bench::new(3);
        let folder = bench.open().unwrap();
        assert!(bench.open().is_none());
        drop(folder);
        assert!(bench.open().is_some());
    }

    #[test]
    fn a_folder_that_takes_nothing_more_costs_only_the_block() {
        let bench = Bench::new(3);
        let mut folder = bench.open().unwrap();
        write(&mut folder, [1]);
        // Also for root, whom permissions do not stop.
        std::fs::create_dir(bench.dir.path().join(TEMPORARY_FILE)).unwrap();
        assert!(!folder.write(&hash(2), None, &bytes(2)));
        assert!(!folder.contents.contains(&hash(2)));
        assert!(folder.read(&hash(2)).is_none());
        assert!(folder.read(&hash(1)).is_some());
        assert_eq!(bench.counters.snapshot(super::super::Tier::Disk).skipped, 1);
        std::fs::remove_dir(bench.dir.path().join(TEMPORARY_FILE)).unwrap();
        write(&mut folder, [2]);
        assert!(folder.read(&hash(2)).is_some());
    }

    #[test]
    fn a_path_that_is_no_folder_is_named() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), b"").unwrap();
        let error = prepare(&dir.path().join("file/kv")).unwrap_err().to_string();
        assert!(error.contains("kvCache.disk.path") && error.contains("file/kv"), "{error}");
        prepare(&dir.path().join("new/folder")).unwrap();
    }
}
