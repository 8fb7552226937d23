//! `ModelRoute` (`mr`): a public model name and where its traffic goes.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, ResourceExt};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A public model name and where its traffic goes.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "fairlead.dev",
    version = "v1alpha1",
    kind = "ModelRoute",
    plural = "modelroutes",
    shortname = "mr",
    category = "fairlead",
    namespaced,
    status = "ModelRouteStatus",
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ModelRouteSpec {
    /// The name that clients send as `model`. Default: the route's own name. One name has one route in the whole
    /// cluster: of two that claim it the older wins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Where requests go, by weight.
    pub backends: Vec<Backend>,
}

/// One place that requests can go.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Backend {
    /// Name of the backend within the route.
    pub name: String,
    /// A ModelDeployment in the route's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_deployment: Option<String>,
    /// Base URLs of inference servers, in place of a ModelDeployment, for a gateway that runs without Kubernetes
    /// (`fairlead-gateway serve --manifests`). A gateway in a cluster refuses them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<String>,
    /// Share of the requests, relative to the other backends' weights. Default: 1 for a route's only backend,
    /// otherwise 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
}

/// What the operator has seen and decided.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModelRouteStatus {
    /// The generation that the rest of the status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`, and while abnormal `Reconciling` or `Stalled`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// The model name that this route answers to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Where requests go now, in percent, backends that take any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub effective_split: Vec<SplitShare>,
}

/// One backend's share of the requests.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SplitShare {
    /// Name of the backend within the route.
    pub backend: String,
    /// Share of the requests in percent, as a decimal in a string.
    pub percent: String,
}

impl ModelRoute {
    /// The name that clients send as `model`.
    pub fn model_name(&self) -> String {
        self.spec.model.clone().unwrap_or_else(|| self.name_any())
    }

    /// Each backend with its weight, defaults filled in.
    pub fn weights(&self) -> impl Iterator<Item = (&Backend, u32)> {
        let only = self.spec.backends.len() == 1;
        self.spec.backends.iter().map(move |backend| (backend, backend.weight.unwrap_or(u32::from(only))))
    }
}
