//! Images without a registry.
//!
//! Owns: building them and getting them into a cluster. Must not: know what the programs in them do. Called by the
//! binary's `images`, by the quickstart and, for single programs, by the local cluster.

pub mod oci;
