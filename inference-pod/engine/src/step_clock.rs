//! How long a backend has been at the step that it runs, seen from outside: the thread that would tell is in it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Shared by the thread that runs steps and by whoever watches it.
pub(crate) struct StepClock {
    started: Instant,
    /// Milliseconds from `started` to where the step began; 0 between two steps.
    began: AtomicU64,
}

impl StepClock {
    pub fn new() -> Self {
        Self { started: Instant::now(), began: AtomicU64::new(0) }
    }

    pub fn begins(&self) {
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.began.store(now.max(1), Ordering::Relaxed);
    }

    pub fn ends(&self) {
        self.began.store(0, Ordering::Relaxed);
    }

    /// `None` between two steps.
    pub fn age(&self) -> Option<Duration> {
        let began = self.began.load(Ordering::Relaxed);
        (began > 0).then(|| self.started.elapsed().saturating_sub(Duration::from_millis(began)))
    }
}
