//! How far a fetch has come, told to whoever asks for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of all files together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes that are on the disk; can fall when a file has to be fetched again.
    pub bytes_done: u64,
    /// Bytes in all.
    pub bytes_total: u64,
}

/// Told about progress, from any thread, often; must return at once.
pub type ProgressFn = Arc<dyn Fn(Progress) + Send + Sync>;

/// Bytes between two reports.
const REPORT_EVERY: u64 = 1 << 20;

/// Adds up the bytes of concurrent downloads.
pub(crate) struct Meter {
    done: AtomicU64,
    reported: AtomicU64,
    total: u64,
    listener: Option<ProgressFn>,
}

impl Meter {
    pub(crate) fn new(total: u64, listener: Option<ProgressFn>) -> Self {
        let meter = Self { done: AtomicU64::new(0), reported: AtomicU64::new(0), total, listener };
        meter.report();
        meter
    }

    pub(crate) fn add(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let reported = self.reported.load(Ordering::Relaxed);
        if done >= self.total || done.abs_diff(reported) >= REPORT_EVERY {
            self.reported.store(done, Ordering::Relaxed);
            self.report();
        }
    }

    /// Takes back bytes that must be fetched again.
    pub(crate) fn take_back(&self, bytes: u64) {
        self.done.fetch_sub(bytes, Ordering::Relaxed);
        self.report();
    }

    fn report(&self) {
        if let Some(listener) = &self.listener {
            listener(Progress { bytes_done: self.done.load(Ordering::Relaxed), bytes_total: self.total });
        }
    }
}
