//! Where the pod is on its way to being ready, for `/startup`, `/readyz`, the log and the metrics.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde::Serialize;

use crate::metrics::Metrics;

/// A phase of the pod's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Phase {
    /// Bringing the model's files.
    Fetching,
    /// Reading the weights.
    Loading,
    /// First steps, so that no client pays for them.
    WarmingUp,
    /// Giving what memory is left to the KV cache.
    SizingCache,
    /// Serving.
    Ready,
    /// It cannot be served.
    Failed,
    /// Finishing what it has.
    Draining,
}

impl Phase {
    /// The phase as `/startup` and the metrics name it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fetching => "Fetching",
            Self::Loading => "Loading",
            Self::WarmingUp => "WarmingUp",
            Self::SizingCache => "SizingCache",
            Self::Ready => "Ready",
            Self::Failed => "Failed",
            Self::Draining => "Draining",
        }
    }
}

/// What `/startup` answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StartupReport {
    /// Where the pod is.
    pub phase: Phase,
    /// Bytes fetched, while fetching.
    pub bytes_done: Option<u64>,
    /// Bytes to fetch, while fetching.
    pub bytes_total: Option<u64>,
    /// What went wrong, or what it is doing.
    pub message: Option<String>,
}

struct Now {
    report: StartupReport,
    since: Instant,
}

/// The pod's way to being ready.
pub struct Startup {
    now: Mutex<Now>,
    metrics: Metrics,
}

impl Startup {
    /// At the beginning.
    pub fn new(metrics: Metrics) -> Self {
        let report =
            StartupReport { phase: Phase::Fetching, bytes_done: None, bytes_total: None, message: None };
        Self { now: Mutex::new(Now { report, since: Instant::now() }), metrics }
    }

    /// Goes on to the next phase.
    pub fn enter(&self, phase: Phase) {
        self.change(phase, None);
    }

    /// Ends the start-up for a reason.
    pub fn fail(&self, message: String) {
        self.change(Phase::Failed, Some(message));
    }

    /// Bytes fetched so far.
    pub fn progress(&self, bytes_done: u64, bytes_total: u64) {
        let mut now = self.lock();
        now.report.bytes_done = Some(bytes_done);
        now.report.bytes_total = Some(bytes_total);
    }

    /// Where the pod is.
    pub fn report(&self) -> StartupReport {
        self.lock().report.clone()
    }

    fn change(&self, phase: Phase, message: Option<String>) {
        let mut now = self.lock();
        let was = now.report.phase;
        if was == phase {
            return;
        }
        let took = now.since.elapsed();
        if !matches!(was, Phase::Ready | Phase::Failed | Phase::Draining) {
            self.metrics.phase(was.as_str(), took);
        }
        tracing::info!(from = was.as_str(), to = phase.as_str(), seconds = took.as_secs_f64(), "phase");
        *now = Now {
            report: StartupReport { phase, bytes_done: None, bytes_total: None, message },
            since: Instant::now(),
        };
    }

    fn lock(&self) -> MutexGuard<'_, Now> {
        // The data is whole after every statement, so a panic elsewhere does not spoil it.
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
