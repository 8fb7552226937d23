//! Whether a ModelRoute can do what it says: pure. The schema's rules refuse most of what is refused here; who goes around
//! them is told the same.

use std::collections::BTreeSet;

use fairlead_crds::condition::{READY, reconciling, stalled};
use fairlead_crds::model_deployment::ModelDeployment;
use fairlead_crds::model_route::cost::Cost;
use fairlead_crds::model_route::rules::{Rule, check};
use fairlead_crds::model_route::{Backend, ModelRoute, ModelRouteSpec};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use super::dereference::Dereferenced;
use super::{providers, resilience};
use crate::error::Error;

/// A route that works: its message for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Routed {
    /// Names of the backends that take requests by the route's own split.
    pub backends: Vec<String>,
    /// How many rules there are.
    pub rules: usize,
}

/// Checks a route against what is there.
///
/// # Errors
/// [`Error::Invalid`] when only a person can help, [`Error::Waiting`] while a backend with a weight is not ready.
pub fn validate(object: &ModelRoute, found: &Dereferenced) -> Result<Routed, Error> {
    let ModelRouteSpec {
        model: _,
        backends,
        rules,
        stickiness,
        canary,
        endpoint_policy: _,
        // `resilience::check` reads these.
        timeouts: _,
        retries: _,
        circuit_breaker: _,
        hedging: _,
        fallbacks: _,
        shadow: _,
    } = &object.spec;
    check_backends(backends)?;
    if let Some(problem) = check::problems(&object.spec).into_iter().next() {
        return Err(invalid(problem.text));
    }
    if let Some(problem) = stickiness.as_ref().and_then(check::stickiness_problem) {
        return Err(invalid(problem));
    }
    resilience::check(&object.spec)?;
    let takers: Vec<&Backend> =
        object.weights().into_iter().filter(|(_, weight)| *weight > 0).map(|(backend, _)| backend).collect();
    if takers.is_empty() {
        return Err(invalid(
            "spec.backends: the weights sum to zero, so no request could go anywhere; give at least one backend a weight above 0",
        ));
    }
    if let Some(older) =
        found.rivals.iter().filter(|other| is_older(other, object)).min_by_key(|other| seniority(other))
    {
        return Err(Error::invalid(
            stalled::MODEL_NAME_TAKEN,
            format!(
                "spec.model: the older route {}/{} answers to {} already; choose another name, or delete that route",
                older.namespace().unwrap_or_default(),
                older.name_any(),
                object.model_name()
            ),
        ));
    }
    // A backend without a weight takes nothing now, but naming one that is not there is a mistake all the same.
    for backend in backends.iter().filter(|backend| backend.provider.is_none()) {
        let name = backend.model_deployment.as_deref().unwrap_or_default();
        let Some(deployment) = found.deployments.get(name) else {
            return Err(Error::invalid(
                stalled::BACKEND_NOT_FOUND,
                format!(
                    "spec.backends[{}].modelDeployment: there is no ModelDeployment {name} in namespace {}; create it, or correct \
                     the name",
                    backend.name,
                    object.namespace().unwrap_or_default()
                ),
            ));
        };
        if let Some(adapter) = &backend.adapter
            && !deployment.spec.adapters.iter().any(|known| known.name == *adapter)
        {
            return Err(Error::invalid(
                stalled::BACKEND_NOT_FOUND,
                format!(
                    "spec.backends[{}].adapter: ModelDeployment {name} has no adapter {adapter}; add it to its spec.adapters, or \
                     correct the name",
                    backend.name
                ),
            ));
        }
    }
    providers::check(object, &found.keys)?;
    resilience::check_embedder(object, found)?;
    // A canary that is not ready is the rollout's matter: its part goes to the others meanwhile.
    let tried = |backend: &Backend| {
        takers.len() > 1 && canary.as_ref().is_some_and(|canary| canary.backend == backend.name)
    };
    for backend in takers.iter().filter(|backend| !tried(backend)) {
        let name = backend.model_deployment.as_deref().unwrap_or_default();
        if let Some(why) = found.deployments.get(name).and_then(|deployment| not_ready(deployment)) {
            return Err(Error::Waiting {
                reason: reconciling::WAITING,
                message: format!("backend {}: ModelDeployment {name} is not ready ({why})", backend.name),
                // Its becoming ready is watched.
                retry: std::time::Duration::from_secs(600),
            });
        }
    }
    // What a rule names it names for good, the canary too: nobody else answers its requests.
    for (rule, backend) in targets(rules, backends) {
        let name = backend.model_deployment.as_deref().unwrap_or_default();
        if let Some(why) = found.deployments.get(name).and_then(|deployment| not_ready(deployment)) {
            return Err(Error::Waiting {
                reason: reconciling::WAITING,
                message: format!(
                    "rule {rule}, backend {}: ModelDeployment {name} is not ready ({why})",
                    backend.name
                ),
                retry: std::time::Duration::from_secs(600),
            });
        }
    }
    Ok(Routed { backends: takers.iter().map(|backend| backend.name.clone()).collect(), rules: rules.len() })
}

/// The backends that rules send requests to, with the rule's name. A rule that chooses by cost passes over what is not ready.
fn targets<'a>(rules: &'a [Rule], backends: &'a [Backend]) -> impl Iterator<Item = (&'a str, &'a Backend)> {
    rules.iter().flat_map(move |rule| {
        let named = rule.split.iter().filter(|share| share.weight != Some(0));
        named.filter_map(move |share| {
            let backend = backends.iter().find(|backend| backend.name == share.backend)?;
            Some((rule.name.as_str(), backend))
        })
    })
}

fn check_backends(backends: &[Backend]) -> Result<(), Error> {
    if backends.is_empty() {
        return Err(invalid("spec.backends is empty; name at least one"));
    }
    let mut names = BTreeSet::new();
    for backend in backends {
        let Backend {
            name,
            model_deployment,
            adapter,
            provider,
            endpoints,
            weight: _,
            cost_per_million_tokens,
        } = backend;
        if !names.insert(name) {
            return Err(invalid(format!("spec.backends: two are named {name}; give each its own name")));
        }
        if !endpoints.is_empty() {
            return Err(invalid(format!(
                "spec.backends[{name}].endpoints is for a gateway that runs by hand (fairlead-gateway serve --manifests); in a \
                 cluster name a modelDeployment instead"
            )));
        }
        match (model_deployment, provider) {
            (None, None) => {
                return Err(invalid(format!(
                    "spec.backends[{name}].modelDeployment is missing; name a ModelDeployment, or a provider"
                )));
            }
            (Some(_), Some(_)) => {
                return Err(invalid(format!(
                    "spec.backends[{name}] has a modelDeployment and a provider; leave one of them out"
                )));
            }
            (None, Some(provider)) => resilience::check_provider(name, provider, adapter.is_some())?,
            (Some(_), None) => {}
        }
        if let Some(Err(problem)) = cost_per_million_tokens.as_deref().map(str::parse::<Cost>) {
            return Err(invalid(format!("spec.backends[{name}].costPerMillionTokens: {problem}")));
        }
    }
    Ok(())
}

pub(super) fn invalid(message: impl Into<String>) -> Error {
    Error::invalid(stalled::INVALID_SPEC, message)
}

/// Why a ModelDeployment can't take requests, or `None` when it can. What its status says of an earlier spec does not count.
pub fn not_ready(deployment: &ModelDeployment) -> Option<String> {
    let status = deployment.status.as_ref();
    let ready = status.and_then(|status| status.conditions.iter().find(|it| it.type_ == READY));
    match ready {
        Some(ready) if status.and_then(|it| it.observed_generation) == deployment.metadata.generation => {
            // Its message is left where it is: it changes often, and this one would with it.
            (ready.status != "True").then(|| ready.reason.clone())
        }
        _ => Some("not looked at yet".to_owned()),
    }
}

fn is_older(one: &ModelRoute, other: &ModelRoute) -> bool {
    seniority(one) < seniority(other)
}

/// The smallest has the name: by creation, then by namespace and name.
fn seniority(route: &ModelRoute) -> (Option<Timestamp>, String, String) {
    (route.creation_timestamp().map(|time| time.0), route.namespace().unwrap_or_default(), route.name_any())
}
