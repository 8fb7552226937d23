//! The ModelRoute controller: says whether a route's backends are there and ready, where its traffic goes, and which of two
//! routes has a model name. It creates nothing; the gateways read routes themselves.

pub mod controller;
pub mod dereference;
pub mod status;
pub mod triggers;
pub mod validate;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use fairlead_crds::model_route::ModelRoute;
use k8s_openapi::jiff::Timestamp;
use kube::runtime::controller::Action;
use kube::{Resource, ResourceExt};

use crate::context::Context;
use crate::error::Error;
use crate::events;
use crate::metrics::Outcome;

/// A look at an object that nothing has happened to, in case a watch has missed something.
const NOW_AND_THEN: Duration = Duration::from_secs(600);

/// Says how one ModelRoute is.
///
/// # Errors
/// Only what asks for backoff; everything else is in the status already.
pub async fn reconcile(object: Arc<ModelRoute>, context: Arc<Context>) -> Result<(Action, Outcome), Error> {
    if object.metadata.deletion_timestamp.is_some() {
        return Ok((Action::await_change(), Outcome::Success));
    }
    let found = dereference::dereference(&object, &context.stores);
    let outcome = validate::validate(&object, &found);
    let before = object.status.clone().unwrap_or_default();
    let after = status::status(&object, &before, &outcome, Timestamp::now());
    if after != before {
        context.model_routes.status(&*object, &after).await?;
        if let Some(event) = events::transition(&before.conditions, &after.conditions)
            && let Err(error) = context.recorder.publish(&event, &object.object_ref(&())).await
        {
            tracing::warn!(name = object.name_any(), %error, "the event could not be published");
        }
    }
    // Whatever would change the outcome is watched.
    match outcome {
        Ok(_) => Ok((Action::requeue(NOW_AND_THEN), Outcome::Success)),
        Err(error) => match error.action() {
            Some(action) => Ok((action, error.category())),
            None => Err(error),
        },
    }
}
