//! The gateway's binary on loopback, with workers of the test's own behind it: what clients and pods see of it.

mod apiserver;
mod drain;
mod harness;
mod kubernetes;
mod manifests;
mod requests;
mod retries;
mod streaming;
mod worker;
