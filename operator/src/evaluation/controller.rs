//! Wires the Evaluation controller to its watches. No logic of its own.

use std::sync::Arc;
use std::time::Instant;

use fairlead_crds::EVALUATION_LABEL;
use fairlead_crds::evaluation::Evaluation;
use futures::StreamExt;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::ResourceExt;
use kube::core::PartialObjectMeta;
use kube::runtime::Config;
use kube::runtime::controller::{Action, Controller};
use kube::runtime::reflector::ObjectRef;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use super::triggers::{self, Changed};
use crate::context::Context;
use crate::error::{self, Error};
use crate::metrics::Kind;
use crate::stores::Changes;

/// Whose changes lead to a reconcile.
#[allow(missing_docs)] // named as in stores::Watches
pub struct Triggers {
    pub evaluations: Changes<Evaluation>,
    pub evaluation_jobs: Changes<Job>,
    pub evaluation_pods: Changes<Pod>,
    pub every_config_map: Changes<PartialObjectMeta<ConfigMap>>,
    /// ModelDeployments and ModelRoutes.
    pub changed: mpsc::Receiver<Changed>,
}

/// Reconciles until `stop`, then until the reconciles that have begun are done.
pub async fn run(context: Arc<Context>, triggers: Triggers, stop: CancellationToken) {
    let Triggers { evaluations, evaluation_jobs, evaluation_pods, every_config_map, changed } = triggers;
    let store = context.stores.evaluations.clone();
    let (of_changed, of_config_map) = (store.clone(), store.clone());
    Controller::for_stream(evaluations, store)
        .with_config(Config::default().concurrency(context.settings.concurrency))
        .owns_stream(evaluation_jobs)
        .watches_stream(evaluation_pods, |pod| of_pod(&pod))
        .watches_stream(every_config_map, move |it| {
            triggers::with_questions_in(&it.namespace().unwrap_or_default(), &it.name_any(), &of_config_map)
        })
        .reconcile_on(
            ReceiverStream::new(changed)
                .flat_map(move |changed| futures::stream::iter(triggers::concerned(&changed, &of_changed))),
        )
        .graceful_shutdown_on(async move { stop.cancelled().await })
        .run(measured, failed, context)
        .for_each(async |result| {
            // Failures of a reconcile were logged where they happened; this is about the watches.
            if let Err(kube::runtime::controller::Error::QueueError(error)) = result {
                tracing::warn!(%error, "watch of Evaluations and their children");
            }
        })
        .await;
}

fn of_pod(pod: &Pod) -> Option<ObjectRef<Evaluation>> {
    let owner = pod.labels().get(EVALUATION_LABEL)?;
    Some(ObjectRef::new(owner).within(&pod.namespace()?))
}

async fn measured(object: Arc<Evaluation>, context: Arc<Context>) -> Result<Action, Error> {
    let begun = Instant::now();
    context.stores.wait_until_ready().await;
    let result = Box::pin(error::contained(super::reconcile(object.clone(), context.clone()))).await;
    let outcome = result.as_ref().map_or_else(Error::category, |(_, outcome)| *outcome);
    context.metrics.reconciled(Kind::Evaluation, outcome, begun.elapsed());
    if result.is_ok() {
        context.backoff.succeeded(&key(&object));
    }
    result.map(|(action, _)| action)
}

fn failed(object: Arc<Evaluation>, error: &Error, context: Arc<Context>) -> Action {
    let delay = context.backoff.failed(&key(&object));
    tracing::warn!(
        namespace = object.namespace(), name = object.name_any(), %error, ?delay,
        "reconciling the Evaluation failed"
    );
    Action::requeue(delay)
}

fn key(object: &Evaluation) -> String {
    format!("Evaluation {}/{}", object.namespace().unwrap_or_default(), object.name_any())
}
