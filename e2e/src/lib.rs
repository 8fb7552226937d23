//! The local cluster, the images, the installation and what the end-to-end tests share.
//!
//! Owns: everything between a bare machine and a running Fairlead. Must not: know how Fairlead itself works; the
//! operator, the gateway and the pods are binaries and charts to this crate. Called by: the `fairlead-e2e` binary (the
//! Makefile's `cluster-up`, `images`, `install`, `quickstart`) and by the tests in e2e/tests.

pub mod cluster;
pub mod images;
pub mod install;
pub mod local;
pub mod paths;
pub mod progress;
pub mod quickstart;
pub mod shell;
pub mod tests;
pub mod tools;
