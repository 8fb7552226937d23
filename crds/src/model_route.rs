//! `ModelRoute` (`mr`): a public model name and where its traffic goes.

// Each `printcolumn(…)` group has the same keys.
#![allow(clippy::duplicated_attributes)]

pub mod analysis;
pub mod canary;
pub mod cost;
pub mod duration;
pub mod endpoint_policy;
pub mod provider;
pub mod resilience;
pub mod rules;
pub mod shadow;
pub mod shares;
pub mod stickiness;
mod weights;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, ResourceExt};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::validation::rule;
use canary::{Canary, RolloutRequest, RolloutStatus};
use endpoint_policy::EndpointPolicy;
use provider::Provider;
use resilience::{CircuitBreaker, Fallback, Hedging, Retries, Timeouts};
use rules::Rule;
use shadow::Shadow;
use stickiness::Stickiness;

/// A public model name and where its traffic goes.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = [
    rule(
        "!has(self.canary) || self.backends.exists(b, b.name == self.canary.backend && (!has(b.weight) || b.weight == 0))",
        "spec.canary.backend must be the name of one of spec.backends that has no weight of its own",
    ),
    rule(
        "!has(self.canary) || self.backends.exists(b, b.name != self.canary.backend && has(b.weight) && b.weight > 0)",
        "spec.canary needs a backend to be compared with: give another of spec.backends a weight above 0",
    ),
    rule(
        "!has(self.rules) || self.rules.all(r, !has(r.split) || r.split.all(s, self.backends.exists(b, b.name == s.backend)))",
        "spec.rules[].split[].backend must be the name of one of spec.backends",
    ),
    rule(
        "!has(self.rules) || self.rules.all(r, !has(r.choose) || !has(r.choose.among) || r.choose.among.all(n, \
         self.backends.exists(b, b.name == n && has(b.costPerMillionTokens))))",
        "spec.rules[].choose.among must name backends of spec.backends that have costPerMillionTokens",
    ),
    rule(
        "!has(self.rules) || !self.rules.exists(r, has(r.choose)) || self.backends.exists(b, has(b.costPerMillionTokens))",
        "spec.rules[].choose has no backend to choose by cost; give some of spec.backends costPerMillionTokens",
    ),
    rule(
        "!has(self.fallbacks) || self.fallbacks.all(f, self.backends.exists(b, b.name == f.backend))",
        "spec.fallbacks[].backend must be the name of one of spec.backends",
    ),
    rule(
        "!has(self.shadow) || self.backends.exists(b, b.name == self.shadow.backend)",
        "spec.shadow.backend must be the name of one of spec.backends",
    ),
]))]
#[kube(
    group = "fairlead.dev",
    version = "v1alpha1",
    kind = "ModelRoute",
    plural = "modelroutes",
    shortname = "mr",
    category = "fairlead",
    namespaced,
    status = "ModelRouteStatus",
    derive = "PartialEq",
    doc = "A public model name and where its traffic goes.",
    printcolumn(
        name = "Stable",
        type_ = "string",
        json_path = ".status.stable",
        description = "The backends that stand"
    ),
    printcolumn(
        name = "Canary",
        type_ = "string",
        json_path = ".status.rollout.canary",
        description = "The backend that is tried, or was last"
    ),
    printcolumn(
        name = "Weight",
        type_ = "integer",
        json_path = ".status.rollout.weight",
        description = "The canary's share in percent"
    ),
    printcolumn(
        name = "Phase",
        type_ = "string",
        json_path = ".status.rollout.phase",
        description = "Where the canary is"
    ),
    printcolumn(
        name = "Step",
        type_ = "string",
        json_path = ".status.rollout.progress",
        description = "The canary's step, of how many"
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status",
        description = "Whether every backend that has a weight serves"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason",
        description = "Why it is ready or not"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Model",
        type_ = "string",
        json_path = ".status.model",
        priority = 1,
        description = "The name that clients send as model"
    ),
    printcolumn(
        name = "Split",
        type_ = "string",
        json_path = ".status.split",
        priority = 1,
        description = "Where requests go, in percent"
    ),
    printcolumn(
        name = "Rollout",
        type_ = "string",
        json_path = ".status.rollout.message",
        priority = 1,
        description = "What the canary waits for, or how it ended"
    ),
    printcolumn(
        name = "Providers",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"ProvidersReachable\")].reason",
        priority = 1,
        description = "Whether the gateways can call its providers, or why not"
    ),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].message",
        priority = 1,
        description = "What is going on, in words"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct ModelRouteSpec {
    /// The name that clients send as `model`. Default: the route's own name. One name has one route in the whole
    /// cluster: of two that claim it the older wins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253), extend("x-kubernetes-validations" = [rule(
        "self.matches('^[A-Za-z0-9][A-Za-z0-9._:/@-]*$')",
        "spec.model must begin with a letter or digit and hold only letters, digits and . _ : / @ -",
    )]))]
    pub model: Option<String>,
    /// Where requests go, by weight. With more than one backend at least one needs a weight above 0.
    #[schemars(length(min = 1, max = 16), extend(
        "x-kubernetes-list-type" = "map",
        "x-kubernetes-list-map-keys" = ["name"],
        "x-kubernetes-validations" = [rule(
            "self.exists(b, has(b.weight) ? b.weight > 0 : size(self) == 1)",
            "spec.backends: the weights sum to zero, so no request could go anywhere; give at least one backend a weight above 0",
        )],
    ))]
    pub backends: Vec<Backend>,
    /// Which requests go elsewhere than by the backends' weights. The first whose conditions hold has the request.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub rules: Vec<Rule>,
    /// Who stays with the backend that they were given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stickiness: Option<Stickiness>,
    /// A backend that takes over step by step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<Canary>,
    /// Which pod of a backend gets a request. Default: one that has the beginning of its prompt in the KV cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint_policy: Option<EndpointPolicy>,
    /// How long a backend may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeouts: Option<Timeouts>,
    /// Which failures are tried again, and how often.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retries: Option<Retries>,
    /// When a backend is left alone as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub circuit_breaker: Option<CircuitBreaker>,
    /// Asks a second pod when the first is slow to begin. Default: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hedging: Option<Hedging>,
    /// Backends that are tried, in this order, when those that the weights have chosen could not answer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub fallbacks: Vec<Fallback>,
    /// A backend that is asked the same, whose answers nobody gets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shadow: Option<Shadow>,
}

/// One place that requests can go.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = [
    rule(
        "(has(self.modelDeployment) ? 1 : 0) + (has(self.endpoints) && size(self.endpoints) > 0 ? 1 : 0) + (has(self.provider) ? 1 : 0) == 1",
        "spec.backends[]: set exactly one of modelDeployment, provider, and endpoints (for a gateway run by hand)",
    ),
    rule(
        "!has(self.adapter) || !has(self.provider)",
        "spec.backends[].adapter is of a modelDeployment; a provider's models have names of their own",
    ),
]))]
#[serde(rename_all = "camelCase")]
pub struct Backend {
    /// Name of the backend within the route.
    #[schemars(length(max = 63), extend("x-kubernetes-validations" = [rule(
        "self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",
        "spec.backends[].name must be lower-case letters, digits and -, beginning and ending with a letter or digit",
    )]))]
    pub name: String,
    /// A ModelDeployment in the route's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub model_deployment: Option<String>,
    /// One of the ModelDeployment's `spec.adapters`: requests are answered with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub adapter: Option<String>,
    /// A server of others that speaks OpenAI's API, in place of a ModelDeployment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<Provider>,
    /// Base URLs of inference servers, in place of a ModelDeployment, for a gateway that runs without Kubernetes
    /// (`fairlead-gateway serve --manifests`). A gateway in a cluster refuses them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 1024)))]
    pub endpoints: Vec<String>,
    /// Share of the requests, relative to the other backends' weights. Default: 1 for a route's only backend,
    /// otherwise 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 1_000_000))]
    pub weight: Option<u32>,
    /// What a million tokens cost here, as a decimal in a string; in one currency throughout the route. For rules that choose by
    /// cost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "rules::cost_schema")]
    pub cost_per_million_tokens: Option<String>,
}

/// What the operator has seen and decided.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModelRouteStatus {
    /// The generation that the rest of the status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`, and while abnormal `Reconciling` or `Stalled`. With providers also `ProvidersReachable`, which is False while a
    /// gateway cannot call one of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// The model name that this route answers to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// What requests go to but for the canary: the backends that have a weight, or the one that was promoted over them, as `v1` or
    /// `v1+v2`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stable: Option<String>,
    /// Where requests go by the weights and the canary's step, in percent, backends that take any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["backend"]))]
    pub effective_split: Vec<SplitShare>,
    /// `effectiveSplit` in one line, as `kubectl get` shows it: `v1=80 v2=20`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<String>,
    /// Where the canary is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<RolloutStatus>,
    /// What a person asks of the rollout; the operator reads it and never writes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<RolloutRequest>,
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
}
