//! A route's shadow, read once for each snapshot.

use std::sync::Arc;
use std::time::Duration;

use fairlead_crds::model_route::duration::parse;
use fairlead_crds::model_route::shadow::Shadow;
use tokio::sync::Semaphore;

use crate::endpoint::Endpoint;

const MOST_IN_FLIGHT: u32 = 16;
const TIMEOUT: Duration = Duration::from_secs(120);

/// A route's shadow.
#[derive(Debug)]
pub struct ShadowRule {
    /// Name of the backend.
    pub backend: String,
    /// Share of the requests, in percent.
    pub percent: u32,
    /// How long it may take.
    pub timeout: Duration,
    /// Mirrored requests at a time.
    pub places: Arc<Semaphore>,
    /// What answers' meanings are compared with.
    pub embedder: Option<Embedder>,
    spec: Shadow,
}

/// A model for embeddings.
#[derive(Clone, Debug)]
pub struct Embedder {
    /// What its servers call it.
    pub model: String,
    /// Where it can be asked.
    pub endpoints: Vec<Arc<Endpoint>>,
}

impl ShadowRule {
    /// The rule of a spec. Places that are taken stay taken where the spec is the same.
    pub fn of(spec: &Shadow, embedder: Option<Embedder>, previous: Option<&Self>) -> Self {
        let Shadow { backend, percent, max_in_flight, timeout, embedder: _ } = spec;
        let places =
            previous.filter(|previous| previous.spec == *spec).map(|previous| Arc::clone(&previous.places));
        Self {
            backend: backend.clone(),
            percent: *percent,
            timeout: timeout.as_deref().and_then(parse).unwrap_or(TIMEOUT),
            places: places.unwrap_or_else(|| {
                Arc::new(Semaphore::new(max_in_flight.unwrap_or(MOST_IN_FLIGHT) as usize))
            }),
            embedder,
            spec: spec.clone(),
        }
    }
}
