//! What Prometheus can know of the operator. All labels are closed enums.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// The kinds that have a controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Kind {
    /// ModelDeployment.
    ModelDeployment,
    /// ModelRoute.
    ModelRoute,
    /// Evaluation.
    Evaluation,
}

/// How a reconcile ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Outcome {
    /// Nothing in the way.
    Success,
    /// Only a person can help.
    Invalid,
    /// Something is not there yet.
    Waiting,
    /// A call failed.
    Error,
}

/// The conditions that objects are counted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum State {
    /// Ready.
    Ready,
    /// Being worked on.
    Reconciling,
    /// Waiting for a person.
    Stalled,
}

/// Labels of reconciles.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReconcileLabels {
    kind: Kind,
    outcome: Outcome,
}

/// Labels of what is told apart by kind only.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct KindLabels {
    kind: Kind,
}

/// Labels of object counts.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ObjectLabels {
    kind: Kind,
    state: State,
}

/// Every metric, and the registry they are in.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Arc<Registry>,
    reconciles: Family<ReconcileLabels, Counter>,
    duration: Family<KindLabels, Histogram>,
    writes: Family<KindLabels, Counter>,
    objects: Family<ObjectLabels, Gauge>,
    leader: Gauge,
    inspection: Histogram,
    last_success: Gauge<f64, AtomicU64>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("fairlead_operator");
        let reconciles = Family::default();
        registry.register("reconciles", "Reconciles, by how they ended", reconciles.clone());
        let duration = Family::new_with_constructor(
            (|| Histogram::new(exponential_buckets(0.001, 2.0, 14))) as fn() -> Histogram,
        );
        registry.register("reconcile_duration_seconds", "Time of one reconcile", duration.clone());
        let writes = Family::default();
        registry.register(
            "writes",
            "Objects and statuses written; settled objects cause none",
            writes.clone(),
        );
        let objects = Family::default();
        registry.register("objects", "Objects by state", objects.clone());
        let leader = Gauge::default();
        registry.register("leader", "1 while this process is the leader", leader.clone());
        let inspection = Histogram::new(exponential_buckets(0.01, 2.0, 14));
        registry.register(
            "inspection_duration_seconds",
            "Time to inspect a model at its hub",
            inspection.clone(),
        );
        let last_success = Gauge::default();
        registry.register(
            "last_success_timestamp_seconds",
            "When a reconcile last succeeded",
            last_success.clone(),
        );
        Self {
            registry: Arc::new(registry),
            reconciles,
            duration,
            writes,
            objects,
            leader,
            inspection,
            last_success,
        }
    }
}

impl Metrics {
    /// Notes a finished reconcile.
    pub fn reconciled(&self, kind: Kind, outcome: Outcome, took: Duration) {
        self.reconciles.get_or_create(&ReconcileLabels { kind, outcome }).inc();
        self.duration.get_or_create(&KindLabels { kind }).observe(took.as_secs_f64());
        if outcome == Outcome::Success {
            self.last_success.set(Timestamp::now().as_second() as f64);
        }
    }

    /// Notes a write to the API server.
    pub fn wrote(&self, kind: Kind) {
        self.writes.get_or_create(&KindLabels { kind }).inc();
    }

    /// Writes so far, for tests and for the shutdown line.
    pub fn writes(&self, kind: Kind) -> u64 {
        self.writes.get_or_create(&KindLabels { kind }).get()
    }

    /// Sets how many objects of a kind are in each state.
    pub fn count_objects(&self, kind: Kind, ready: usize, reconciling: usize, stalled: usize) {
        for (state, count) in
            [(State::Ready, ready), (State::Reconciling, reconciling), (State::Stalled, stalled)]
        {
            self.objects
                .get_or_create(&ObjectLabels { kind, state })
                .set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// Notes whether this process leads.
    pub fn leads(&self, leads: bool) {
        self.leader.set(i64::from(leads));
    }

    /// Notes how long an inspection took.
    pub fn inspected(&self, since: Instant) {
        self.inspection.observe(since.elapsed().as_secs_f64());
    }

    /// The metrics in the OpenMetrics text format.
    ///
    /// # Errors
    /// When a metric can't be written, which would be a bug of this module.
    pub fn encode(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}
