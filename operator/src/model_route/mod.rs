//! The ModelRoute controller: says whether a route's backends are there and ready, whether its providers can be called, where its
//! traffic goes, and which of two routes has a model name. It creates nothing; the gateways read routes themselves.

pub mod controller;
pub mod dereference;
pub mod evaluations;
pub mod gateways;
pub mod look;
pub mod moves;
pub mod plan;
pub mod poll;
pub mod prometheus;
pub mod providers;
pub mod reach;
pub mod resilience;
pub mod rollout;
pub mod status;
pub mod triggers;
pub mod validate;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use fairlead_crds::model_route::{ModelRoute, ModelRouteStatus};
use k8s_openapi::jiff::Timestamp;
use kube::Resource;
use kube::runtime::controller::Action;

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
    let mut found = dereference::dereference(&object, &context.stores);
    found.keys = providers::keys(&object, &context).await?;
    let before = object.status.clone().unwrap_or_default();
    let now = Timestamp::now();
    let plan = plan::plan(&object);
    let (rollout, look_again) = match &plan {
        Ok(plan) => {
            let (plan, state) = (plan.as_ref(), before.rollout.as_ref().map(|rollout| &rollout.state));
            let seen = Box::pin(look::look(&object, plan, state, &found, &context, now)).await;
            rollout::advance(&object, &before, plan, &seen, now)
        }
        // What was decided on the last spec that could be followed.
        Err(_) => (before.rollout.clone(), None),
    };
    // With what was just decided.
    let mut decided_object = (*object).clone();
    decided_object.status.get_or_insert_default().rollout.clone_from(&rollout);
    let outcome = plan.and_then(|_| validate::validate(&decided_object, &found));
    let about = object.object_ref(&());
    let reach = reach::reach(&object, &context.heard.now());
    let after = status::status(&decided_object, &before, &outcome, &reach, now);
    if after != (ModelRouteStatus { request: None, ..before.clone() }) {
        context.model_routes.status(&*object, &after).await?;
        let told = [
            events::transition(&before.conditions, &after.conditions),
            events::providers(&before.conditions, &after.conditions),
            events::lacks(before.rollout.as_ref(), after.rollout.as_ref()),
        ];
        for event in told.iter().flatten() {
            context.recorder.publish(event, &about).await;
        }
    }
    if let (Some(rollout), Some(uid)) = (&after.rollout, &about.uid) {
        context.moves.tell(uid, rollout, &about, &context.recorder, now).await;
    }
    // Whatever would change the outcome is watched.
    match outcome {
        Ok(_) => {
            let look_again = look_again.into_iter().chain(providers::look_again(&object)).min();
            Ok((Action::requeue(look_again.unwrap_or(NOW_AND_THEN)), Outcome::Success))
        }
        Err(error) => match error.action() {
            // A canary goes on while another backend is not ready.
            Some(action) => Ok((look_again.map_or(action, Action::requeue), error.category())),
            None => Err(error),
        },
    }
}
