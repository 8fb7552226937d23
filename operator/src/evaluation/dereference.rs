//! Reads what an Evaluation's reconcile needs: from the stores, and the questions from the API server, since ConfigMaps that are
//! not ours are kept in no store.

use std::collections::BTreeMap;
use std::sync::Arc;

use fairlead_crds::EVALUATION_LABEL;
use fairlead_crds::evaluation::Evaluation;
use fairlead_crds::model_deployment::ModelDeployment;
use fairlead_crds::model_route::ModelRoute;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Api, Resource, ResourceExt};

use crate::context::Context;
use crate::error::Error;
use crate::stores::get;

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Dereferenced {
    /// The ConfigMap that the questions should be in, if it is there.
    pub questions: Option<ConfigMap>,
    /// The route that the target names, if it is there.
    pub route: Option<Arc<ModelRoute>>,
    /// The ModelDeployments that the target and the route's backends name, by name; those that are missing are absent.
    pub deployments: BTreeMap<String, Arc<ModelDeployment>>,
    /// Jobs of this Evaluation, the oldest first.
    pub jobs: Vec<Arc<Job>>,
    /// Pods of these Jobs, the oldest first.
    pub pods: Vec<Arc<Pod>>,
}

/// Reads it all.
///
/// # Errors
/// [`Error::Kube`] when the questions can't be read.
pub async fn dereference(object: &Evaluation, context: &Context) -> Result<Dereferenced, Error> {
    let stores = &context.stores;
    let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
    let config_map = &object.spec.questions.config_map_ref.name;
    let questions = Api::<ConfigMap>::namespaced(context.client.clone(), &namespace)
        .get_opt(config_map)
        .await
        .map_err(Error::kube(format!("read ConfigMap {config_map}")))?;
    let route =
        object.spec.target.route.as_ref().and_then(|route| get(&stores.model_routes, &namespace, route));
    let route = route.filter(|route| route.metadata.deletion_timestamp.is_none());
    let of_route = route.iter().flat_map(|route| &route.spec.backends);
    let named = of_route
        .filter_map(|backend| backend.model_deployment.as_ref())
        .chain(object.spec.target.model_deployment.as_ref());
    let deployments = named
        .filter_map(|name| Some((name.clone(), get(&stores.model_deployments, &namespace, name)?)))
        .filter(|(_, deployment)| deployment.metadata.deletion_timestamp.is_none())
        .collect();
    let ours = |meta: &ObjectMeta| {
        let label = meta.labels.as_ref().and_then(|labels| labels.get(EVALUATION_LABEL));
        meta.namespace.as_ref() == Some(&namespace) && label == Some(&name)
    };
    // A Job of an Evaluation that was deleted and made anew is on its way out.
    let owned = |meta: &ObjectMeta| {
        meta.owner_references.iter().flatten().any(|owner| Some(&owner.uid) == object.meta().uid.as_ref())
    };
    let mut jobs = stores.evaluation_jobs.state_filter(|job| ours(&job.metadata) && owned(&job.metadata));
    jobs.sort_by_key(|job| (job.creation_timestamp(), job.name_any()));
    let mut pods = stores.evaluation_pods.state_filter(|pod| ours(&pod.metadata));
    pods.sort_by_key(|pod| (pod.creation_timestamp(), pod.name_any()));
    Ok(Dereferenced { questions, route, deployments, jobs, pods })
}

impl Dereferenced {
    /// A Job's pods, the oldest first.
    pub fn pods_of(&self, job: &Job) -> Vec<&Pod> {
        let owned = |pod: &&Arc<Pod>| {
            pod.owner_references().iter().any(|owner| Some(&owner.uid) == job.metadata.uid.as_ref())
        };
        self.pods.iter().filter(owned).map(|pod| &**pod).collect()
    }
}
