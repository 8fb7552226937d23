//! Reads what a ModelRoute's reconcile needs from the stores.

use std::collections::BTreeMap;
use std::sync::Arc;

use fairlead_crds::evaluation::Evaluation;
use fairlead_crds::model_deployment::ModelDeployment;
use fairlead_crds::model_route::ModelRoute;
use kube::ResourceExt;

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
}

/// Reads from the stores.
pub fn dereference(object: &ModelRoute, stores: &Stores) -> Dereferenced {
    let namespace = object.namespace().unwrap_or_default();
    let named = object.spec.backends.iter().filter_map(|backend| backend.model_deployment.as_ref());
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
    Dereferenced { deployments, rivals, evaluations: BTreeMap::new() }
}
