//! Endpoint choice: which of a backend's endpoints gets a request. One policy, one file.

pub mod least_load;

use std::sync::Arc;

use rand::Rng;

use crate::endpoint::Endpoint;

/// Chooses among endpoints that may all take the request.
pub trait EndpointPolicy: Send + Sync + 'static {
    /// The index of the chosen candidate; `None` only when there are none.
    fn choose(&self, candidates: &[&Arc<Endpoint>], rng: &mut dyn Rng) -> Option<usize>;
}
