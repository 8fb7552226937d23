//! End-to-end tests on a real cluster with Fairlead installed: `make test-e2e` prepares it and runs them.
//!
//! Nothing is mocked between kubectl and the container. Each test works in a namespace of its own, awaits conditions
//! with a deadline, and on failure prints what the namespace held. They use kubectl, as a person would.

mod ab;
mod bad_models;
mod canary;
mod changes;
mod embeddings;
mod engine_features;
mod evaluation;
mod evaluation_gate;
mod failover;
mod first_light;
mod gateway_errors;
mod model_sources;
mod plugin;
mod pod_loss;
mod provider;
mod retrieval;
mod revisions;
mod rollout;
mod routes;
mod rules;
mod sdk;
mod settled;
mod shadow;
mod support;
mod survives;
mod versions;
