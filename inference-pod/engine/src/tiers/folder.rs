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
mod tests;
