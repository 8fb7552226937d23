//! The routing snapshot: what the request path knows about routes, backends and endpoints, immutable once built.
//!
//! [`RoutingSnapshot::build`] is pure: objects and the previous snapshot in, the next one out. The `sources` call it and
//! publish the result through [`crate::routing::Routing`]; the request path only reads.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use fairlead_crds::condition;
use fairlead_crds::model_deployment::ModelDeployment;
use fairlead_crds::model_route::canary::RolloutStatus;
use fairlead_crds::model_route::endpoint_policy::EndpointPolicy;
use fairlead_crds::model_route::resilience;
use fairlead_crds::model_route::rules::check;
use fairlead_crds::model_route::shadow::ShadowEmbedder;
use fairlead_crds::model_route::{Backend, ModelRoute, shares};
use foldhash::fast::RandomState;
use http::header::HeaderName;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use crate::decide::Stick;
use crate::endpoint::Endpoint;
use crate::name::Name;
use crate::observe::RouteObserver;
use crate::provider::credentials::Credentials;
use crate::provider::target::Target;
use crate::resilience::circuit::Circuit;
use crate::resilience::rules::Rules as Resilience;
use crate::rules::Rules;
use crate::shadow::rule::{Embedder, ShadowRule};
use crate::slices::{self, ReadyPods};
use crate::split;

/// Where routing objects come from decides what a backend may name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The Kubernetes API: backends name ModelDeployments; literal addresses are refused.
    Cluster,
    /// Files of whoever runs the gateway: backends name addresses.
    Manifests,
}

/// Everything that a snapshot is built from.
#[derive(Clone, Debug)]
pub struct Objects {
    /// Where they come from.
    pub origin: Origin,
    /// All routes.
    pub routes: Vec<Arc<ModelRoute>>,
    /// All model deployments.
    pub deployments: Vec<Arc<ModelDeployment>>,
    /// The endpoint slices of model deployments' Services.
    pub slices: Vec<Arc<EndpointSlice>>,
    /// The revision that each pod of a model deployment is labelled with, by (namespace, name).
    pub revisions: HashMap<(String, String), String>,
    /// Keys and certificates that routes name.
    pub credentials: Credentials,
    /// Hosts of providers that may be called; `None` where any may.
    pub provider_hosts: Option<Arc<[String]>>,
}

/// Routes by model name.
#[derive(Debug, Default)]
pub struct RoutingSnapshot {
    routes: HashMap<String, Arc<Route>, RandomState>,
    /// By address and revision.
    endpoints: HashMap<(String, Option<String>), Arc<Endpoint>>,
    problems: Vec<String>,
}

/// A model name and where its requests go.
#[derive(Debug, Default)]
pub struct Route {
    /// `namespace/name` of the ModelRoute.
    pub id: Name,
    /// Of the spec that this is of; `None` where the ModelRoute does not say, as in a file.
    pub generation: Option<i64>,
    /// What clients send as `model`.
    pub model: Name,
    /// When the ModelRoute was created, in Unix seconds; 0 where it does not say.
    pub created: u64,
    /// Its backends, in the route's order.
    pub backends: Vec<RouteBackend>,
    /// How an endpoint is chosen; `None` where the route does not say.
    pub endpoint_policy: Option<EndpointPolicy>,
    /// What is observed of it.
    pub observed: RouteObserver,
    /// Its own split in one line.
    pub split: Name,
    /// Which requests go elsewhere.
    pub rules: Arc<Rules>,
    /// Whose requests stay where they are.
    pub stick: Stick,
    /// What the operator has decided of its canary.
    pub rollout: Option<RolloutStatus>,
    /// What it says of slow and broken backends.
    pub resilience: Resilience,
    /// Who is asked the same.
    pub shadow: Option<Arc<ShadowRule>>,
}

/// One backend of a route.
#[derive(Debug, Default)]
pub struct RouteBackend {
    /// Its name within the route.
    pub name: Name,
    /// What subjects know it by; from the name.
    pub key: u64,
    /// Its share of the route's own split, relative to the others', with what a canary has.
    pub weight: u32,
    /// What a million tokens cost there, as the route has it.
    pub cost: Option<Name>,
    /// What its pods call the model; `None` where they use the name that clients send.
    pub served_model: Option<String>,
    /// The revision that all of its pods serve, when that is certain.
    pub revision: Option<String>,
    /// Its endpoints that can take requests.
    pub endpoints: Vec<Arc<Endpoint>>,
    /// How many requests it has, and whether it is left alone as a whole.
    pub circuit: Arc<Circuit>,
    /// Whose it is, where it is not ours.
    pub provider: Option<Arc<Target>>,
    /// Why it is no provider that can be called, where it should be one.
    pub unusable: Option<Unusable>,
}

/// Why a provider cannot be called at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unusable {
    /// The field of the backend, and the remedy.
    pub problem: String,
    /// Since when that is so.
    pub since: Timestamp,
}

impl RoutingSnapshot {
    /// Builds the next snapshot. Endpoints that `previous` had too keep their counts and ejections.
    pub fn build(objects: &Objects, previous: &Self) -> Self {
        let mut builder = Builder {
            objects,
            previous,
            deployments: objects
                .deployments
                .iter()
                .map(|deployment| {
                    ((deployment.namespace().unwrap_or_default(), deployment.name_any()), deployment)
                })
                .collect(),
            pods: slices::ready_pods(&objects.slices),
            next: Self::default(),
        };
        let mut routes: Vec<_> = objects.routes.iter().collect();
        routes.sort_by_cached_key(|route| precedence(route));
        for route in routes {
            builder.add(route);
        }
        builder.next.problems.sort();
        builder.next
    }

    /// The route that answers to a model name.
    pub fn route(&self, model: &str) -> Option<&Arc<Route>> {
        self.routes.get(model)
    }

    /// All routes, by model name.
    pub fn routes(&self) -> Vec<&Arc<Route>> {
        let mut routes: Vec<_> = self.routes.values().collect();
        routes.sort_by(|a, b| a.model.cmp(&b.model));
        routes
    }

    /// How many endpoints the routes reach together.
    pub fn endpoint_count(&self) -> usize {
        self.endpoints.len()
    }

    /// What in the objects cannot be used, in a person's words, sorted.
    pub fn problems(&self) -> &[String] {
        &self.problems
    }
}

/// Order in which routes may claim a model name: the older first, then by namespace and name. A route that does not know
/// its age, as in a file, comes after those that do.
fn precedence(route: &ModelRoute) -> (i128, String, String) {
    let created = route.metadata.creation_timestamp.as_ref().map_or(i128::MAX, |time| time.0.as_nanosecond());
    (created, route.namespace().unwrap_or_default(), route.name_any())
}

struct Builder<'a> {
    objects: &'a Objects,
    previous: &'a RoutingSnapshot,
    deployments: HashMap<(String, String), &'a Arc<ModelDeployment>>,
    pods: ReadyPods,
    next: RoutingSnapshot,
}

impl Builder<'_> {
    fn add(&mut self, route: &ModelRoute) {
        let namespace = route.namespace().unwrap_or_else(|| "default".to_owned());
        let id = format!("{namespace}/{}", route.name_any());
        let model = route.model_name();
        if let Some(older) = self.next.routes.get(&model) {
            let problem =
                format!("ModelRoute {id}: spec.model {model:?} belongs to the older ModelRoute {}", older.id);
            self.next.problems.push(problem);
            return;
        }
        let previous = self.previous.routes.get(&model).filter(|previous| previous.id == id).cloned();
        let resilience = Resilience::of(
            &route.spec,
            previous.as_ref().map(|previous| &previous.resilience),
            Instant::now(),
        );
        // What cannot be read is as if it was left out, and told.
        let unusable = resilience::check::problems(&route.spec).into_iter();
        self.next.problems.extend(unusable.map(|problem| format!("ModelRoute {id}: {problem}")));
        let mut backends = Vec::with_capacity(route.spec.backends.len());
        for (index, (backend, weight)) in route.weights().into_iter().enumerate() {
            let before = previous
                .as_ref()
                .and_then(|previous| previous.backends.iter().find(|known| known.name == backend.name));
            let circuit = before
                .map(|before| &before.circuit)
                .filter(|circuit| *circuit.breaker() == resilience.breaker)
                .cloned()
                .unwrap_or_else(|| Arc::new(Circuit::new(resilience.breaker.clone())));
            let known = before.and_then(|before| before.provider.as_ref());
            match self.backend(&namespace, backend, weight, known, Arc::clone(&circuit)) {
                Ok(backend) => backends.push(backend),
                // The backend stays, without endpoints: its weight still says what the route's author wanted.
                Err(problem) => {
                    self.next.problems.push(format!("ModelRoute {id}: spec.backends[{index}].{problem}"));
                    let known = before.and_then(|before| before.unusable.clone());
                    let known = known.filter(|known| known.problem == problem);
                    let unusable = known.unwrap_or_else(|| Unusable { problem, since: Timestamp::now() });
                    backends.push(RouteBackend {
                        key: split::key_of(&backend.name),
                        name: backend.name.as_str().into(),
                        weight,
                        cost: backend.cost_per_million_tokens.as_deref().map(Name::from),
                        circuit,
                        unusable: backend.provider.is_some().then_some(unusable),
                        ..RouteBackend::default()
                    });
                }
            }
        }
        if backends.iter().all(|backend| backend.weight == 0) {
            let problem =
                "spec.backends: the weights sum to zero; give at least one backend a weight above 0";
            self.next.problems.push(format!("ModelRoute {id}: {problem}"));
        }
        let shadow = match self.shadow(&namespace, route, previous.as_deref()) {
            Ok(shadow) => shadow,
            Err(problem) => {
                self.next.problems.push(format!("ModelRoute {id}: spec.shadow.{problem}"));
                None
            }
        };
        let created = route.metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second());
        let created = u64::try_from(created).unwrap_or(0);
        let mut endpoint_policy = route.spec.endpoint_policy.clone();
        if let Some(Err(problem)) = endpoint_policy.as_ref().map(EndpointPolicy::check) {
            self.next.problems.push(format!("ModelRoute {id}: {problem}"));
            endpoint_policy = None;
        }
        let previous = previous.as_ref().map(|previous| &previous.observed);
        let observed = RouteObserver::of(&id, route, previous);
        let rules = self.rules(&id, &model, route);
        let generation = route.metadata.generation;
        let route = Route {
            created,
            generation,
            split: shares::line(backends.iter().map(|it| (it.name.as_str(), it.weight))).into(),
            rules,
            stick: self.stick(&id, route),
            rollout: route.status.as_ref().and_then(|status| status.rollout.clone()),
            backends,
            endpoint_policy,
            observed,
            resilience,
            shadow,
            model: model.as_str().into(),
            id: id.into(),
        };
        self.next.routes.insert(model, Arc::new(route));
    }

    /// A route's rules; those of the previous snapshot when they are the same, since regular expressions take long to compile.
    fn rules(&mut self, id: &str, model: &str, route: &ModelRoute) -> Arc<Rules> {
        let known = self.previous.routes.get(model).map(|route| &route.rules);
        let rules = match known.filter(|rules| rules.are_of(&route.spec)) {
            Some(rules) => Arc::clone(rules),
            None => Arc::new(Rules::new(&route.spec)),
        };
        self.next.problems.extend(rules.problems.iter().map(|problem| format!("ModelRoute {id}: {problem}")));
        rules
    }

    fn stick(&mut self, id: &str, route: &ModelRoute) -> Stick {
        let Some(stickiness) = &route.spec.stickiness else { return Stick::default() };
        if let Some(problem) = check::stickiness_problem(stickiness) {
            self.next.problems.push(format!("ModelRoute {id}: {problem}"));
            return Stick::default();
        }
        let header = stickiness.header.as_ref().and_then(|name| HeaderName::try_from(name.as_str()).ok());
        Stick { by: stickiness.by, header }
    }

    fn backend(
        &mut self,
        namespace: &str,
        backend: &Backend,
        weight: u32,
        known: Option<&Arc<Target>>,
        circuit: Arc<Circuit>,
    ) -> Result<RouteBackend, String> {
        let name = Name::from(backend.name.as_str());
        let key = split::key_of(&name);
        let cost = backend.cost_per_million_tokens.as_deref().map(Name::from);
        if let Some(provider) = &backend.provider {
            let target = providers::target(self.objects, namespace, backend, provider, known)
                .map_err(|problem| format!("provider.{problem}"))?;
            let parsed =
                Endpoint::of_provider(&provider.url).map_err(|problem| format!("provider.url: {problem}"))?;
            let endpoints = vec![self.known_endpoint(parsed, None)];
            return Ok(RouteBackend {
                name,
                key,
                weight,
                cost,
                served_model: None,
                revision: None,
                endpoints,
                circuit,
                provider: Some(target),
                unusable: None,
            });
        }
        match (self.objects.origin, &backend.model_deployment, backend.endpoints.as_slice()) {
            (Origin::Cluster, _, [_, ..]) => {
                Err("endpoints: addresses are refused in a cluster; name a modelDeployment instead".to_owned())
            }
            (Origin::Cluster, None, []) => Err("modelDeployment: missing; name a ModelDeployment".to_owned()),
            (Origin::Cluster, Some(deployment), []) => {
                let of_deployment = (namespace.to_owned(), deployment.clone());
                let Some(object) = self.deployments.get(&of_deployment).copied() else {
                    return Err(format!(
                        "modelDeployment: there is no ModelDeployment {namespace}/{deployment}; create it or correct the name"
                    ));
                };
                if let Some(adapter) = &backend.adapter
                    && !object.spec.adapters.iter().any(|known| known.name == *adapter)
                {
                    return Err(format!(
                        "adapter: ModelDeployment {namespace}/{deployment} has no adapter {adapter}; add it to its \
                         spec.adapters or correct the name"
                    ));
                }
                let revision = settled_revision(object);
                let pods = self.pods.get(&of_deployment).map(Vec::as_slice).unwrap_or_default();
                let bases: Vec<(String, Option<String>)> = pods
                    .iter()
                    .map(|pod| {
                        let label = pod.name.as_ref().and_then(|pod| {
                            self.objects.revisions.get(&(namespace.to_owned(), pod.clone()))
                        });
                        (format!("http://{}", pod.address), label.or(revision.as_ref()).cloned())
                    })
                    .collect();
                let endpoints = self.endpoints(&bases)?;
                let served_model = Some(backend.adapter.as_ref().unwrap_or(deployment).clone());
                Ok(RouteBackend { name, key, weight, cost, served_model, revision, endpoints, circuit, provider: None, unusable: None })
            }
            (Origin::Manifests, _, []) => {
                Err("endpoints: missing; without Kubernetes a backend lists addresses, such as [\"http://127.0.0.1:8001\"]"
                    .to_owned())
            }
            (Origin::Manifests, served, bases) => {
                let bases: Vec<_> = bases.iter().map(|base| (base.clone(), None)).collect();
                let endpoints = self.endpoints(&bases)?;
                let served_model = backend.adapter.as_ref().or(served.as_ref()).cloned();
                Ok(RouteBackend { name, key, weight, cost, served_model, revision: None, endpoints, circuit, provider: None, unusable: None })
            }
        }
    }

    /// Who is asked the same, and what the answers are compared with.
    fn shadow(
        &mut self,
        namespace: &str,
        route: &ModelRoute,
        previous: Option<&Route>,
    ) -> Result<Option<Arc<ShadowRule>>, String> {
        let Some(spec) = &route.spec.shadow else { return Ok(None) };
        // `resilience::check` has told of it.
        if !route.spec.backends.iter().any(|backend| backend.name == spec.backend) {
            return Ok(None);
        }
        let embedder = match &spec.embedder {
            None => None,
            Some(embedder) => {
                Some(self.embedder(namespace, embedder).map_err(|problem| format!("embedder.{problem}"))?)
            }
        };
        let previous = previous.and_then(|previous| previous.shadow.as_deref());
        Ok(Some(Arc::new(ShadowRule::of(spec, embedder, previous))))
    }

    fn embedder(&mut self, namespace: &str, embedder: &ShadowEmbedder) -> Result<Embedder, String> {
        let ShadowEmbedder { model_deployment, endpoint, model } = embedder;
        let (bases, model) = match (self.objects.origin, model_deployment, endpoint) {
            (Origin::Cluster, Some(deployment), None) => {
                let pods = self.pods.get(&(namespace.to_owned(), deployment.clone()));
                let pods = pods.map(Vec::as_slice).unwrap_or_default();
                (
                    pods.iter().map(|pod| (format!("http://{}", pod.address), None)).collect(),
                    deployment.clone(),
                )
            }
            (Origin::Cluster, ..) => {
                return Err("modelDeployment: missing; name one of the task Embed".to_owned());
            }
            (Origin::Manifests, _, Some(endpoint)) => {
                let model =
                    model.clone().ok_or("model: missing; say what the server at endpoint calls it")?;
                (vec![(endpoint.clone(), None)], model)
            }
            (Origin::Manifests, _, None) => {
                return Err("endpoint: missing; without Kubernetes name an address".to_owned());
            }
        };
        Ok(Embedder { model, endpoints: self.endpoints(&bases)? })
    }

    /// Endpoints at base URLs, of the revisions where known.
    fn endpoints(&mut self, bases: &[(String, Option<String>)]) -> Result<Vec<Arc<Endpoint>>, String> {
        let mut seen = HashSet::new();
        let mut endpoints = Vec::with_capacity(bases.len());
        for (index, (base, revision)) in bases.iter().enumerate() {
            let parsed = Endpoint::parse(base).map_err(|problem| format!("endpoints[{index}]: {problem}"))?;
            if seen.insert(parsed.address().to_owned()) {
                endpoints.push(self.known_endpoint(parsed, revision.clone()));
            }
        }
        Ok(endpoints)
    }

    /// The endpoint as it was known before, with its counts and ejections, or this new one.
    fn known_endpoint(&mut self, parsed: Endpoint, revision: Option<String>) -> Arc<Endpoint> {
        let key = (parsed.address().to_owned(), revision.clone());
        let known = self.next.endpoints.get(&key).or_else(|| self.previous.endpoints.get(&key));
        let endpoint = known.cloned().unwrap_or_else(|| Arc::new(parsed.at_revision(revision)));
        self.next.endpoints.insert(key, Arc::clone(&endpoint));
        endpoint
    }
}

/// The revision that every pod of a deployment serves, when its status is sure of it. During a roll-out pods of two revisions
/// answer side by side; then only each pod's own label says which is which.
fn settled_revision(deployment: &ModelDeployment) -> Option<String> {
    let status = deployment.status.as_ref()?;
    let current = status.observed_generation == deployment.metadata.generation;
    let ready = status.conditions.iter().any(|c| c.type_ == condition::READY && c.status == "True");
    status.revision.clone().filter(|_| current && ready)
}

mod providers;
#[cfg(test)]
mod tests;
