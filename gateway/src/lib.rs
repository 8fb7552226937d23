//! Fairlead's data plane: takes OpenAI requests and carries each to an inference pod that serves its model.
//!
//! The request path is `proxy` (read, validate) -> `decide` (rule, whose weights, subject) -> `select` (backend, endpoint) ->
//! `forward` and `journey` (attempts, retries, fallbacks) -> `relay` (bytes as they come; `failover` where a pod dies). What it routes by is an immutable
//! [`snapshot::RoutingSnapshot`], rebuilt by one of the `sources`: the Kubernetes API or a folder of manifests.
//! The crate never imports the engine, and keeps no state that outlives the process.

pub mod admin;
pub mod app;
pub mod body;
pub mod client_body;
pub mod config;
pub mod decide;
pub mod ejection;
pub mod endpoint;
pub mod exchange;
pub mod explain;
pub mod failover;
pub mod forward;
pub mod headers;
pub mod held;
pub mod identity;
pub mod journey;
pub mod metrics;
pub mod name;
pub mod observe;
pub mod policy;
pub mod pool;
pub mod prompt;
pub mod provider;
pub mod proxy;
pub mod relay;
pub mod request;
pub mod resilience;
pub mod retry;
pub mod rewrite;
pub mod routing;
pub mod rules;
pub mod select;
pub mod server;
pub mod shadow;
pub mod slices;
pub mod small_writes;
pub mod snapshot;
pub mod sources;
pub mod split;
pub mod sse;
pub mod stall;
pub mod token;
pub mod units;
pub mod upstream;
pub mod within;
