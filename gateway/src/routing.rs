//! What this gateway routes by now, and whether it is ready to.
//!
//! Owns the current snapshot and the facts behind /readyz. Sources publish, the request path reads, `app` sets draining.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use crate::metrics::Metrics;
use crate::shadow::metrics::ShadowLabels;
use crate::snapshot::{Objects, RoutingSnapshot};

/// The current snapshot and the gateway's readiness.
#[derive(Debug)]
pub struct Routing {
    snapshot: ArcSwap<RoutingSnapshot>,
    synced: AtomicBool,
    draining: AtomicBool,
    build: Mutex<BuildState>,
    metrics: Arc<Metrics>,
}

#[derive(Debug)]
struct BuildState {
    built: Instant,
    waiting_for: String,
}

impl Routing {
    /// Nothing known yet, hence not ready.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            snapshot: ArcSwap::default(),
            synced: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            build: Mutex::new(BuildState {
                built: Instant::now(),
                waiting_for: "routes are not read yet".to_owned(),
            }),
            metrics,
        }
    }

    /// The current snapshot.
    pub fn snapshot(&self) -> Arc<RoutingSnapshot> {
        self.snapshot.load_full()
    }

    /// Builds a snapshot from what a source has now and puts it in force.
    pub fn publish(&self, objects: &Objects) {
        let begun = Instant::now();
        let mut build = self.build.lock().unwrap_or_else(PoisonError::into_inner);
        let previous = self.snapshot.load_full();
        let next = RoutingSnapshot::build(objects, &previous);
        for problem in next.problems().iter().filter(|problem| !previous.problems().contains(problem)) {
            tracing::warn!(problem, "a routing object cannot be used as it is");
        }
        let (routes, endpoints) = (next.routes().len(), next.endpoint_count());
        self.metrics.keep_variants(next.routes().into_iter().flat_map(|route| route.observed.variants()));
        self.metrics.shadows.keep(&shadows(&next));
        let problems = next.problems().len();
        self.snapshot.store(Arc::new(next));
        build.built = Instant::now();
        self.metrics.snapshot_built(begun.elapsed(), routes, endpoints, problems);
        drop(build);
        let first = !self.synced.swap(true, Ordering::SeqCst);
        if first {
            tracing::info!(routes, endpoints, "routing is in force");
        } else {
            tracing::debug!(routes, endpoints, "routing was rebuilt");
        }
    }

    /// Says what keeps the first snapshot from being built.
    pub fn waiting_for(&self, what: String) {
        self.build.lock().unwrap_or_else(PoisonError::into_inner).waiting_for = what;
    }

    /// How old the snapshot in force is.
    pub fn age(&self) -> Duration {
        self.build.lock().unwrap_or_else(PoisonError::into_inner).built.elapsed()
    }

    /// From now on the gateway is leaving.
    pub fn start_draining(&self) {
        self.draining.store(true, Ordering::SeqCst);
    }

    /// Whether the gateway is leaving.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    /// Whether a first snapshot is in force.
    pub fn is_synced(&self) -> bool {
        self.synced.load(Ordering::SeqCst)
    }

    /// `Ok` when requests may be sent here; otherwise why not.
    pub fn ready(&self) -> Result<(), String> {
        if self.is_draining() {
            return Err("draining".to_owned());
        }
        if self.is_synced() {
            return Ok(());
        }
        Err(self.build.lock().unwrap_or_else(PoisonError::into_inner).waiting_for.clone())
    }
}

fn shadows(snapshot: &RoutingSnapshot) -> BTreeSet<ShadowLabels> {
    let routes = snapshot.routes().into_iter();
    let mirrored = routes.filter_map(|route| Some((route, route.shadow.as_ref()?)));
    mirrored
        .map(|(route, rule)| ShadowLabels { route: route.id.to_string(), backend: rule.backend.clone() })
        .collect()
}
