//! Fairlead's Kubernetes API: group `fairlead.dev`, version `v1alpha1`, one kind per file.
//!
//! Owns the types and what can be said of an object from itself alone. It has no client and does no IO; the operator,
//! the gateway and the tests depend on it, never the other way round. `charts/fairlead-crds` and `docs/reference` are
//! generated from here.

pub mod condition;
pub mod evaluation;
pub mod model_deployment;
pub mod model_route;
pub mod reference;
pub mod schema;
mod validation;

/// The API group of every kind.
pub const GROUP: &str = "fairlead.dev";
/// The only served version so far.
pub const VERSION: &str = "v1alpha1";

/// Label on every child of a ModelDeployment, and on its EndpointSlices: the ModelDeployment's name.
pub const MODEL_DEPLOYMENT_LABEL: &str = "fairlead.dev/model-deployment";
/// Label on engine pods: the revision (hash of all that changes what a pod serves) they run.
pub const REVISION_LABEL: &str = "fairlead.dev/revision";
/// Label on every child of an Evaluation: the Evaluation's name.
pub const EVALUATION_LABEL: &str = "fairlead.dev/evaluation";
/// Name of the container and Service port that speaks the OpenAI API.
pub const HTTP_PORT_NAME: &str = "http";
