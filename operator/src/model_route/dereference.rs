//! Reads what a ModelRoute's reconcile needs from the stores.

use std::collections::BTreeMap;
use std::sync::Arc;

use fairlead_crds::evaluation::Evaluation;
use fairlead_crds::model_deployment::ModelDeployment;
use fairlead_crds::model_route::ModelRoute;
use kube::ResourceExt;

use super::providers::Keys;
use crate::stores::{Stores, get};

/// What the stores have.
#[derive(Clone, Debug, Default)]
pub struct Dereferenced {
    /// The ModelDeployments that backends name, by name; those that are missing are absent.
    pub deployments: BTreeMap<String, Arc<ModelDeployment>>,
    /// Other routes, of any namespace, that claim the same model name.
    pub rivals: Vec<Arc<ModelRoute>>,
    /// The Evaluations that gates name, by name; those that are missing are absent.
    pub evaluations: BTreeMap<String, Arc<Evaluation>>,
    /// The keys of the Secrets and ConfigMaps that its providers name. Not in the stores: `providers` reads them.
    pub keys: Keys,
}

/// Reads from the stores.
pub fn dereference(object: &ModelRoute, stores: &Stores) -> Dereferenced {
    let namespace = object.namespace().unwrap_or_default();
    let embedder = object.spec.shadow.as_ref().and_then(|shadow| shadow.embedder.as_ref());
    let named = object.spec.backends.iter().filter_map(|backend| backend.model_deployment.as_ref());
    let named = named.chain(embedder.and_then(|embedder| embedder.model_deployment.as_ref()));
    let deployments = named
        .filter_map(|name| Some((name.clone(), get(&stores.model_deployments, &namespace, name)?)))
        .filter(|(_, deployment)| deployment.metadata.deletion_timestamp.is_none())
        .collect();
    let model = object.model_name();
    let rivals = stores.model_routes.state_filter(|other| {
        other.model_name() == model
            && other.uid() != object.uid()
            && other.metadata.deletion_timestamp.is_none()
    });
    let evaluations = evaluations_named(object)
        .filter_map(|name| Some((name.to_owned(), get(&stores.evaluations, &namespace, name)?)))
        .filter(|(_, evaluation)| evaluation.metadata.deletion_timestamp.is_none())
        .collect();
    Dereferenced { deployments, rivals, evaluations, keys: Keys::new() }
}

/// The Evaluations that a canary's gates name.
pub fn evaluations_named(route: &ModelRoute) -> impl Iterator<Item = &str> {
    let analysis = route.spec.canary.iter().filter_map(|canary| canary.analysis.as_ref());
    analysis.flat_map(|analysis| &analysis.gates).filter_map(|gate| gate.evaluation.as_deref())
}
