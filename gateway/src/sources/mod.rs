//! Where routes come from: the Kubernetes API, or a folder of manifests. Each publishes to [`crate::routing::Routing`].

pub mod cache;
pub mod kubernetes;
pub mod manifests;
pub mod secrets;
