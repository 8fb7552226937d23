//! The control plane: brings Fairlead's resources to the state that their specs describe.
//!
//! One controller per kind, each a pipeline: dereference (reads) -> validate (pure) -> build (pure) -> apply (writes)
//! -> status (one writer). The gateway and the pods never call it; it talks to the API server, to hubs, and to `/startup`
//! of pods that are starting.

pub mod apply;
pub mod backoff;
pub mod conditions;
pub mod config;
pub mod context;
pub mod error;
pub mod evaluation;
pub mod events;
pub mod inspector;
pub mod leader;
pub mod metrics;
pub mod model_deployment;
pub mod model_route;
pub mod quantity;
pub mod recorder;
pub mod run;
pub mod server;
pub mod stores;

#[cfg(test)]
mod testing;
