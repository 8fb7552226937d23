//! The gateway's binary on loopback, with workers of the test's own behind it: what clients and pods see of it.
// A helper that cannot go on fails its test; clippy's own exception covers only functions marked as tests.
#![allow(clippy::expect_used, clippy::panic)]

mod apiserver;
mod drain;
mod endpoint_choice;
mod failover;
mod harness;
mod kubernetes;
mod manifests;
mod observe;
mod providers;
mod requests;
mod resilience;
mod retries;
mod routing;
mod shadow;
mod streaming;
mod worker;
