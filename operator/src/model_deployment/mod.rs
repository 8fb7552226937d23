//! The ModelDeployment controller: one model, its engine and its pods.
//!
//! `reconcile` drives the pipeline: [`validate`] what the spec says, [`plan`] whether it fits (looking at the model first,
//! [`inspection`]), [`build`] the children, [`apply`] them, [`observe`] the pods, and write one [`status`].

pub mod apply;
pub mod build;
pub mod controller;
pub mod dereference;
pub mod inspection;
pub mod kv_tiers;
pub mod observe;
pub mod plan;
pub mod status;
pub mod validate;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use fairlead_crds::model_deployment::{ModelDeployment, ModelPlan};
use k8s_openapi::jiff::Timestamp;
use kube::Resource;
use kube::runtime::controller::Action;

use crate::context::Context;
use crate::error::Error;
use crate::events;
use crate::metrics::Outcome;
use dereference::Dereferenced;
use observe::Observation;

/// How often a pod that is starting is asked how far it is.
const WHILE_STARTING: Duration = Duration::from_secs(3);
/// A look at an object that nothing has happened to, in case a watch has missed something.
const NOW_AND_THEN: Duration = Duration::from_secs(600);

/// Brings one ModelDeployment to its wanted state and says how it is.
///
/// # Errors
/// Only what asks for backoff; everything else is in the status already.
pub async fn reconcile(
    object: Arc<ModelDeployment>,
    context: Arc<Context>,
) -> Result<(Action, Outcome), Error> {
    if object.metadata.deletion_timestamp.is_some() {
        // The children are owned, so Kubernetes removes them.
        return Ok((Action::await_change(), Outcome::Success));
    }
    let found = dereference::dereference(&object, &context);
    let mut plan = None;
    let outcome = Box::pin(converge(&object, &context, &found, &mut plan)).await;
    let observation = match &outcome {
        Ok(observation) => observation.clone(),
        // What runs still runs, whatever is wrong with the new spec.
        Err(_) => observe::observe(&found.seen(None)),
    };
    if outcome.as_ref().err().is_none_or(Error::concerns_the_object) {
        write_status(&object, &context, plan, &observation, &outcome).await?;
    }
    match outcome {
        Ok(observation) if observation.starting => Ok((Action::requeue(WHILE_STARTING), Outcome::Success)),
        Ok(_) => Ok((Action::requeue(NOW_AND_THEN), Outcome::Success)),
        Err(error) => match error.action() {
            Some(action) => Ok((action, error.category())),
            None => Err(error),
        },
    }
}

/// The pipeline up to the status. `plan` is set as soon as it is known, also when the model does not fit.
async fn converge(
    object: &ModelDeployment,
    context: &Context,
    found: &Dereferenced,
    plan: &mut Option<ModelPlan>,
) -> Result<Observation, Error> {
    let validated = validate::validate(object, &context.settings)?;
    let budget = plan::memory_budget(&validated, &found.nodes);
    let known = object.status.as_ref().and_then(|status| status.plan.as_ref());
    let held = known.filter(|known| plan::holds(known, &validated, budget.as_ref().ok().copied()));
    let current = match held {
        Some(known) => known.clone(),
        None => {
            let budget = budget?;
            let inputs = plan::inputs(&validated, budget);
            let inspected = inspection::inspect(object, &validated, &inputs, known, context, found).await?;
            plan::make(&validated, &inputs, budget, &inspected)?
        }
    };
    *plan = Some(current.clone());
    plan::require_fit(&current)?;
    let children = build::build(&validated, &current, &found.settings_in_use(), &context.settings);
    let deployment = apply::apply(&children, found, &context.model_deployments).await?;
    // The plan may not be in the status yet; the Job is its only other source.
    if held.is_some() {
        apply::clean_up(found, &context.model_deployments).await?;
    }
    let mut seen = found.seen(Some((&deployment, &children.revision)));
    seen.startup = dereference::startup(&seen, context).await;
    Ok(observe::observe(&seen))
}

async fn write_status(
    object: &ModelDeployment,
    context: &Context,
    plan: Option<ModelPlan>,
    observation: &Observation,
    outcome: &Result<Observation, Error>,
) -> Result<(), Error> {
    let before = object.status.clone().unwrap_or_default();
    let error = outcome.as_ref().err();
    let after =
        status::status(&before, object.metadata.generation, plan, observation, error, Timestamp::now());
    if after == before {
        return Ok(());
    }
    context.model_deployments.status(object, &after).await?;
    if let Some(event) = events::transition(&before.conditions, &after.conditions) {
        context.recorder.publish(&event, &object.object_ref(&())).await;
    }
    Ok(())
}
