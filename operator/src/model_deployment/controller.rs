//! Wires the ModelDeployment controller to its watches. No logic of its own.

use std::sync::Arc;
use std::time::Instant;

use fairlead_crds::MODEL_DEPLOYMENT_LABEL;
use fairlead_crds::model_deployment::ModelDeployment;
use futures::StreamExt;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod, Service, ServiceAccount};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::ResourceExt;
use kube::core::PartialObjectMeta;
use kube::runtime::Config;
use kube::runtime::controller::{Action, Controller};
use kube::runtime::reflector::ObjectRef;
use tokio_util::sync::CancellationToken;

use crate::context::Context;
use crate::error::{self, Error};
use crate::metrics::Kind;
use crate::stores::Changes;

/// Whose changes lead to a reconcile.
#[allow(missing_docs)] // named as in stores::Watches
pub struct Triggers {
    pub model_deployments: Changes<ModelDeployment>,
    pub deployments: Changes<Deployment>,
    pub services: Changes<Service>,
    pub config_maps: Changes<ConfigMap>,
    pub service_accounts: Changes<ServiceAccount>,
    pub pod_disruption_budgets: Changes<PodDisruptionBudget>,
    pub jobs: Changes<Job>,
    pub pods: Changes<Pod>,
    pub nodes: Changes<PartialObjectMeta<Node>>,
}

/// Reconciles until `stop`, then until the reconciles that have begun are done.
pub async fn run(context: Arc<Context>, triggers: Triggers, stop: CancellationToken) {
    let Triggers {
        model_deployments,
        deployments,
        services,
        config_maps,
        service_accounts,
        pod_disruption_budgets,
        jobs,
        pods,
        nodes,
    } = triggers;
    let store = context.stores.model_deployments.clone();
    let of_node = store.clone();
    Controller::for_stream(model_deployments, store)
        .with_config(Config::default().concurrency(context.settings.concurrency))
        .owns_stream(deployments)
        .owns_stream(services)
        .owns_stream(config_maps)
        .owns_stream(service_accounts)
        .owns_stream(pod_disruption_budgets)
        .owns_stream(jobs)
        .watches_stream(pods, |pod| of_pod(&pod))
        .watches_stream(nodes, move |_| {
            // A node's label matters to those whose budget comes from it.
            let from_labels = of_node
                .state_filter(|it| it.spec.resources.gpus > 0 && it.spec.resources.gpu_memory.is_none());
            from_labels.iter().map(|it| ObjectRef::from_obj(&**it)).collect::<Vec<_>>()
        })
        .graceful_shutdown_on(async move { stop.cancelled().await })
        .run(measured, failed, context)
        .for_each(async |result| {
            // Failures of a reconcile were logged where they happened; this is about the watches.
            if let Err(kube::runtime::controller::Error::QueueError(error)) = result {
                tracing::warn!(%error, "watch of ModelDeployments and their children");
            }
        })
        .await;
}

fn of_pod(pod: &Pod) -> Option<ObjectRef<ModelDeployment>> {
    let owner = pod.labels().get(MODEL_DEPLOYMENT_LABEL)?;
    Some(ObjectRef::new(owner).within(&pod.namespace()?))
}

async fn measured(object: Arc<ModelDeployment>, context: Arc<Context>) -> Result<Action, Error> {
    let begun = Instant::now();
    context.stores.wait_until_ready().await;
    let result = Box::pin(error::contained(super::reconcile(object.clone(), context.clone()))).await;
    let outcome = result.as_ref().map_or_else(Error::category, |(_, outcome)| *outcome);
    context.metrics.reconciled(Kind::ModelDeployment, outcome, begun.elapsed());
    if result.is_ok() {
        context.backoff.succeeded(&key(&object));
    }
    result.map(|(action, _)| action)
}

fn failed(object: Arc<ModelDeployment>, error: &Error, context: Arc<Context>) -> Action {
    let delay = context.backoff.failed(&key(&object));
    tracing::warn!(
        namespace = object.namespace(), name = object.name_any(), %error, ?delay,
        "reconciling the ModelDeployment failed"
    );
    Action::requeue(delay)
}

fn key(object: &ModelDeployment) -> String {
    format!("ModelDeployment {}/{}", object.namespace().unwrap_or_default(), object.name_any())
}
