//! What the engine tells, as metrics: its adapters by the names that clients know.

use std::collections::BTreeSet;
use std::sync::Arc;

use fairlead_engine::backend::AdapterId;
use fairlead_engine::engine::{Load, Observer, StepReport};
use fairlead_engine::tiers::TierCounters;

use crate::state::{App, unix_seconds};

/// Passes on to [`crate::metrics::Metrics`].
pub struct EngineObserver {
    /// Whose metrics and names.
    pub app: Arc<App>,
    /// Most adapters at once.
    pub max_adapters: usize,
}

impl Observer for EngineObserver {
    fn load(&self, load: Load) {
        self.app.metrics.load(load);
    }

    fn step(&self, report: StepReport) {
        self.app.metrics.step(report);
    }

    fn adapters(&self, running: &BTreeSet<AdapterId>, waiting: &BTreeSet<AdapterId>) {
        let names = |ids| self.app.adapters.names_of(ids);
        let now = unix_seconds() as f64;
        self.app.metrics.lora_requests(self.max_adapters as u64, &names(running), &names(waiting), now);
    }

    fn tier_counters(&self) -> Arc<TierCounters> {
        self.app.metrics.tier_counters()
    }
}
