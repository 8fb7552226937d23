//! Where routes come from: the Kubernetes API, or a folder of manifests. Each publishes to [`crate::routing::Routing`].

pub mod cache;
pub mod credentials;
pub mod kubernetes;
pub mod manifests;
