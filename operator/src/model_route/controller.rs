//! Wires the ModelRoute controller to its watches. No logic of its own.

use std::sync::Arc;
use std::time::Instant;

use fairlead_crds::model_route::ModelRoute;
use futures::StreamExt;
use kube::ResourceExt;
use kube::runtime::Config;
use kube::runtime::controller::{Action, Controller};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use super::triggers::{self, Changed};
use crate::context::Context;
use crate::error::{self, Error};
use crate::metrics::Kind;
use crate::stores::Changes;

/// Reconciles until `stop`, then until the reconciles that have begun are done.
pub async fn run(
    context: Arc<Context>,
    routes: Changes<ModelRoute>,
    changed: mpsc::Receiver<Changed>,
    stop: CancellationToken,
) {
    let store = context.stores.model_routes.clone();
    let of_changed = store.clone();
    Controller::for_stream(routes, store)
        .with_config(Config::default().concurrency(context.settings.concurrency))
        .reconcile_on(
            ReceiverStream::new(changed)
                .flat_map(move |changed| futures::stream::iter(triggers::concerned(&changed, &of_changed))),
        )
        .graceful_shutdown_on(async move { stop.cancelled().await })
        .run(measured, failed, context)
        .for_each(async |result| {
            // Failures of a reconcile were logged where they happened; this is about the watches.
            if let Err(kube::runtime::controller::Error::QueueError(error)) = result {
                tracing::warn!(%error, "watch of ModelRoutes");
            }
        })
        .await;
}

async fn measured(object: Arc<ModelRoute>, context: Arc<Context>) -> Result<Action, Error> {
    let begun = Instant::now();
    context.stores.wait_until_ready().await;
    let result = Box::pin(error::contained(super::reconcile(object.clone(), context.clone()))).await;
    let outcome = result.as_ref().map_or_else(Error::category, |(_, outcome)| *outcome);
    context.metrics.reconciled(Kind::ModelRoute, outcome, begun.elapsed());
    if result.is_ok() {
        context.backoff.succeeded(&key(&object));
    }
    result.map(|(action, _)| action)
}

fn failed(object: Arc<ModelRoute>, error: &Error, context: Arc<Context>) -> Action {
    let delay = context.backoff.failed(&key(&object));
    tracing::warn!(
        namespace = object.namespace(), name = object.name_any(), %error, ?delay,
        "reconciling the ModelRoute failed"
    );
    Action::requeue(delay)
}

fn key(object: &ModelRoute) -> String {
    format!("ModelRoute {}/{}", object.namespace().unwrap_or_default(), object.name_any())
}
