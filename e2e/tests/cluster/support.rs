//! What every end-to-end test uses: kubectl, namespaces, port-forwards, waiting, manifests.

pub mod cloud;
pub mod figures;
pub mod gateway;
pub mod gateways;
pub mod kubectl;
pub mod manifests;
pub mod namespace;
pub mod pair;
pub mod plugin;
pub mod rollouts;
pub mod trickle;
pub mod wait;
pub mod workers;

pub use gateway::{Gateway, chat};
pub use kubectl::{apply, get, kubectl};
pub use manifests::{example, model_deployment, model_route};
pub use namespace::in_namespace;
pub use rollouts::{await_phase, history};
pub use wait::{await_ready, await_reason, eventually};
pub use workers::{Load, worker};

/// Longest that a model may take to be served here: images are loaded already, the model is a few megabytes.
pub const SERVED: std::time::Duration = std::time::Duration::from_secs(180);
/// Longest that a decision of the operator may take that needs no pod.
pub const DECIDED: std::time::Duration = std::time::Duration::from_secs(60);

/// An image of ours by name, in the registry of the cluster in use; `fairlead-e2e test` names it.
pub fn image(name: &str) -> String {
    let registry = std::env::var("FAIRLEAD_E2E_REGISTRY").unwrap_or_else(|_| "localhost".to_owned());
    format!("{registry}/{name}:dev")
}

/// The example model as an image, as `spec.model.uri` names it.
pub fn model_image() -> String {
    format!("oci://{}", image("fairlead-tiny-v1"))
}
