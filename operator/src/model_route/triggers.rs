//! Which routes to look at again when something else has changed: a ModelDeployment that they name, another route that
//! claims, or claimed, their model name, an Evaluation that a canary may be judged by, or what gateways say of their providers.
//!
//! The watches of both kinds feed one stream each, for their own controllers; here they also tell the route controller, after
//! the stores are up to date. The channel is bounded: a watch waits until the route controller has taken what it was told.

use fairlead_crds::condition::{READY, stalled};
use fairlead_crds::evaluation::Evaluation;
use fairlead_crds::model_deployment::ModelDeployment;
use fairlead_crds::model_route::ModelRoute;
use kube::ResourceExt;
use kube::runtime::reflector::{ObjectRef, Store};
use tokio::sync::mpsc;

use super::dereference::evaluations_named;
use crate::stores::{Changes, told};

const CAPACITY: usize = 256;

/// What has changed.
#[derive(Clone, Debug)]
pub enum Changed {
    /// A ModelDeployment, of this namespace and name.
    Deployment(String, String),
    /// A route that claims this model name.
    Route(String),
    /// An Evaluation, of this namespace and name.
    Evaluation(String, String),
    /// What gateways say of the providers of the route of this namespace and name.
    Providers(String, String),
}

/// A channel for changes.
pub fn channel() -> (mpsc::Sender<Changed>, mpsc::Receiver<Changed>) {
    mpsc::channel(CAPACITY)
}

/// Passes ModelDeployments on, and tells of each.
pub fn tell_of_deployments(
    changes: Changes<ModelDeployment>,
    tell: mpsc::Sender<Changed>,
) -> Changes<ModelDeployment> {
    told(changes, tell, |it| Changed::Deployment(it.namespace().unwrap_or_default(), it.name_any()))
}

/// Passes routes on, and tells of each.
pub fn tell_of_routes(changes: Changes<ModelRoute>, tell: mpsc::Sender<Changed>) -> Changes<ModelRoute> {
    told(changes, tell, |it| Changed::Route(it.model_name()))
}

/// Passes Evaluations on, and tells of each.
pub fn tell_of_evaluations(changes: Changes<Evaluation>, tell: mpsc::Sender<Changed>) -> Changes<Evaluation> {
    told(changes, tell, |it| Changed::Evaluation(it.namespace().unwrap_or_default(), it.name_any()))
}

/// The routes that a change concerns.
pub fn concerned(changed: &Changed, routes: &Store<ModelRoute>) -> Vec<ObjectRef<ModelRoute>> {
    let concerned = routes.state_filter(|route| match changed {
        Changed::Deployment(namespace, name) => {
            route.metadata.namespace.as_ref() == Some(namespace) && names_deployment(route, name)
        }
        Changed::Evaluation(namespace, name) => {
            route.metadata.namespace.as_ref() == Some(namespace)
                && evaluations_named(route).any(|named| named == name)
        }
        Changed::Providers(namespace, name) => {
            route.metadata.namespace.as_ref() == Some(namespace) && route.metadata.name.as_ref() == Some(name)
        }
        // A route that was renamed gives a name up that is not told here; whoever waits for one looks again.
        Changed::Route(model) => route.model_name() == *model || waits_for_name(route),
    });
    concerned.iter().map(|route| ObjectRef::from_obj(&**route)).collect()
}

fn names_deployment(route: &ModelRoute, name: &str) -> bool {
    let embedder = route.spec.shadow.as_ref().and_then(|shadow| shadow.embedder.as_ref());
    let backends = route.spec.backends.iter().map(|backend| backend.model_deployment.as_deref());
    backends.chain(embedder.map(|embedder| embedder.model_deployment.as_deref())).any(|it| it == Some(name))
}

fn waits_for_name(route: &ModelRoute) -> bool {
    let conditions = route.status.iter().flat_map(|status| &status.conditions);
    conditions.into_iter().any(|it| it.type_ == READY && it.reason == stalled::MODEL_NAME_TAKEN)
}
