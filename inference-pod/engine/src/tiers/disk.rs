//! The tier in a folder: a thread that reads and writes files, and the queue to it.
//!
//! The thread locks the folder ([`super::folder`]). While another process has it, such as the pod that this one replaces, the
//! tier is empty and takes nothing; the lock is tried again twice a second.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::complaint::Complaint;
use super::counters::{TierCounters, add};
use super::folder::{self, Contents, Folder};
use super::queue::{Job, Queue};
use super::store::Wake;
use super::{BlockHash, DiskOptions, TierError};
use crate::backend::BlockBytes;

/// Name of the thread.
pub const THREAD_NAME: &str = "fairlead-kv-disk";

/// Fetches that may wait for the thread.
const QUEUED_FETCHES: usize = 256;
/// Between two attempts to lock the folder.
const LOCK_PAUSE: Duration = Duration::from_millis(500);
/// After a write failed: a disk that is full or broken stays so for a while.
const WRITE_PAUSE: Duration = Duration::from_secs(30);
/// Without anything to do.
const LONG: Duration = Duration::from_secs(3600);

/// A run of blocks on its way from the disk; the thread fills it while others look.
#[derive(Default)]
pub struct Fetch {
    found: Mutex<Vec<(BlockHash, BlockBytes)>>,
    is_done: AtomicBool,
    is_cancelled: AtomicBool,
}

impl Fetch {
    /// Whether nothing more will come.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.is_done.load(Ordering::Acquire)
    }

    /// Nobody waits any more: what is not read yet need not be.
    pub fn cancel(&self) {
        self.is_cancelled.store(true, Ordering::Release);
    }

    /// What has come so far, in order.
    pub fn found(&self) -> MutexGuard<'_, Vec<(BlockHash, BlockBytes)>> {
        // A push is all that happens under the lock.
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Marks its fetch as done when it goes, whatever became of it.
struct Read {
    run: Vec<BlockHash>,
    fetch: Arc<Fetch>,
    wake: Wake,
}

impl Drop for Read {
    fn drop(&mut self) {
        self.fetch.is_done.store(true, Ordering::Release);
        (self.wake)();
    }
}

enum Write {
    Put { block: BlockHash, parent: Option<BlockHash>, bytes: BlockBytes },
    Remove(BlockHash),
}

/// The way to the thread. Dropping it lets the thread write what is queued, and end.
pub struct DiskTier {
    queue: Arc<Queue<Read, Write>>,
    contents: Contents,
    is_open: Arc<AtomicBool>,
    counters: Arc<TierCounters>,
    wake: Wake,
}

impl Drop for DiskTier {
    fn drop(&mut self) {
        self.queue.close();
    }
}

impl DiskTier {
    /// Starts the thread. At most `queued_bytes` of blocks wait to be written, but one may always. `wake` is called on it whenever a fetch is done.
    ///
    /// # Errors
    /// [`TierError`] for a size that holds no block, or a folder that cannot be made or written. That another process has
    /// the folder is no error.
    pub fn start(
        options: DiskOptions,
        block_bytes: u64,
        queued_bytes: u64,
        counters: Arc<TierCounters>,
        wake: Wake,
    ) -> Result<Self, TierError> {
        let least = folder::file_bytes(block_bytes);
        if options.bytes < least {
            return Err(TierError::TooSmall { field: "kvCache.disk.bytes", bytes: options.bytes, least });
        }
        folder::prepare(&options.path)?;
        let writes = queued_bytes / block_bytes.max(1);
        let queue =
            Arc::new(Queue::new(QUEUED_FETCHES, usize::try_from(writes).unwrap_or(usize::MAX).max(1)));
        let (contents, is_open) = (Contents::new(&options), Arc::new(AtomicBool::new(false)));
        let mut worker = Worker {
            options,
            block_bytes,
            queue: Arc::clone(&queue),
            contents: contents.clone(),
            is_open: Arc::clone(&is_open),
            counters: Arc::clone(&counters),
            complaint: Complaint::default(),
            quiet_until: None,
        };
        let spawned = std::thread::Builder::new().name(THREAD_NAME.to_owned()).spawn(move || {
            // A bug there costs the tier and nothing else.
            let run = std::panic::AssertUnwindSafe(|| worker.run());
            if std::panic::catch_unwind(run).is_err() {
                tracing::error!("the disk tier's thread panicked; the engine goes on without the tier");
                worker.give_up();
            }
        });
        match spawned {
            Ok(_) => Ok(Self { queue, contents, is_open, counters, wake }),
            Err(error) => Err(TierError::Thread(error.to_string())),
        }
    }

    /// Whether the folder is ours and read in.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.is_open.load(Ordering::Acquire)
    }

    /// Whether a block is there, as far as is known.
    #[must_use]
    pub fn contains(&self, block: &BlockHash) -> bool {
        self.contents.contains(block)
    }

    /// Marks blocks as used now.
    pub fn touch(&self, run: &[BlockHash]) {
        self.contents.touch(run);
    }

    /// Has a run of blocks read; `None` if too many wait already.
    pub fn fetch(&self, run: Vec<BlockHash>) -> Option<Arc<Fetch>> {
        let fetch = Arc::new(Fetch::default());
        let blocks = run.len() as u64;
        let read = Read { run, fetch: Arc::clone(&fetch), wake: Arc::clone(&self.wake) };
        match self.queue.read(read) {
            Ok(()) => Some(fetch),
            Err(_) => {
                add(&self.counters.disk.skipped, blocks);
                None
            }
        }
    }

    /// Has a block removed, behind whatever may be about to write it.
    pub fn remove(&self, block: BlockHash) {
        self.queue.write_in_any_case(Write::Remove(block));
    }

    /// Has a block written, if there is room in the queue.
    pub fn put(&self, block: BlockHash, parent: Option<BlockHash>, bytes: BlockBytes) {
        if !self.is_open() || self.queue.write(Write::Put { block, parent, bytes }).is_err() {
            add(&self.counters.disk.skipped, 1);
        }
    }
}

/// What the thread works with.
struct Worker {
    options: DiskOptions,
    block_bytes: u64,
    queue: Arc<Queue<Read, Write>>,
    contents: Contents,
    is_open: Arc<AtomicBool>,
    counters: Arc<TierCounters>,
    complaint: Complaint,
    /// Nothing is written before this.
    quiet_until: Option<Instant>,
}

impl Worker {
    fn run(&mut self) {
        let mut folder = None;
        loop {
            if folder.is_none() {
                folder = self.open();
            }
            match (self.queue.take(if folder.is_some() { LONG } else { LOCK_PAUSE }), &mut folder) {
                (Job::Read(read), Some(folder)) => read_run(folder, &read),
                (Job::Write(write), Some(folder)) => self.write(folder, &write),
                (Job::Write(_), None) => add(&self.counters.disk.skipped, 1),
                (Job::Read(_), None) | (Job::Nothing, _) => {}
                (Job::Closed, _) => return,
            }
        }
    }

    fn open(&mut self) -> Option<Folder> {
        let path = self.options.path.display();
        match Folder::open(&self.options, &self.contents, self.block_bytes, &self.counters) {
            Ok(Some(folder)) => {
                self.is_open.store(true, Ordering::Release);
                return Some(folder);
            }
            Ok(None) => {
                self.complaint.say(|| {
                    format!("{path} is used by another process; going on without it until it is free")
                });
            }
            Err(error) => self.complaint.say(|| format!("{path} cannot be opened: {error}; trying again")),
        }
        None
    }

    fn write(&mut self, folder: &mut Folder, write: &Write) {
        let (block, parent, bytes) = match write {
            Write::Remove(block) => return folder.remove(block),
            Write::Put { block, parent, bytes } => (block, parent, bytes),
        };
        if self.quiet_until.is_some_and(|until| Instant::now() < until) {
            add(&self.counters.disk.skipped, 1);
            return;
        }
        let went_well = folder.write(block, parent.as_ref(), bytes);
        self.quiet_until = (!went_well).then(|| Instant::now() + WRITE_PAUSE);
    }

    /// Takes nothing more and lets nobody wait.
    fn give_up(&self) {
        self.is_open.store(false, Ordering::Release);
        self.queue.close();
        while !matches!(self.queue.take(Duration::ZERO), Job::Closed) {}
    }
}

/// A run is worth as much as comes before its first gap.
fn read_run(folder: &mut Folder, read: &Read) {
    for block in &read.run {
        if read.fetch.is_cancelled.load(Ordering::Acquire) {
            return;
        }
        let Some(bytes) = folder.read(block) else { return };
        read.fetch.found().push((*block, bytes));
    }
}
