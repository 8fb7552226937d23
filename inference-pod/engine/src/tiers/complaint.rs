//! A warning that may come up thousands of times a second and is written once a minute.

use std::time::{Duration, Instant};

const PAUSE: Duration = Duration::from_secs(60);

/// Counts what it does not write.
#[derive(Debug, Default)]
pub struct Complaint {
    last: Option<Instant>,
    unsaid: u64,
}

impl Complaint {
    /// Writes a warning about the disk tier, unless there was one within the last minute.
    pub fn say(&mut self, problem: impl FnOnce() -> String) {
        if self.last.is_some_and(|last| last.elapsed() < PAUSE) {
            self.unsaid += 1;
            return;
        }
        tracing::warn!(since_last = self.unsaid, "disk tier: {}", problem());
        self.last = Some(Instant::now());
        self.unsaid = 0;
    }
}
