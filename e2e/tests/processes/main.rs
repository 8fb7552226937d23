//! The gateway and inference pods as a person runs them by hand: two programs, a folder of manifests, no Kubernetes.
//!
//! Runs the binaries that `cargo build --workspace --bins` has left in the checkout's target folder. Every test starts its
//! own processes on free loopback ports, awaits conditions with a deadline, and kills what it started.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bad_input;
mod encoders;
mod evaluation;
mod failover;
mod failure;
mod first_chat;
mod model;
mod programs;
mod small_model;
mod weights;
