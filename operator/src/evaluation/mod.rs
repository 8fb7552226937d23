//! The Evaluation controller: has the backends of a route answer a question set whenever they serve something new, and says how
//! well they did.
//!
//! `reconcile` drives the pipeline: [`dereference`] what the spec names, [`validate`] it, [`plan`] which backend is to be asked,
//! [`build`] and [`apply`] the Job that asks, [`observe`] what Jobs have left, and write one [`status`]. How answers are scored is
//! `fairlead_evaluation`'s business; `fairlead-rag` asks.

pub mod apply;
pub mod build;
pub mod controller;
pub mod dereference;
pub mod observe;
pub mod plan;
pub mod status;
pub mod triggers;
pub mod validate;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use fairlead_crds::evaluation::{Evaluation, EvaluationResult, EvaluationStatus};
use k8s_openapi::jiff::Timestamp;
use kube::Resource;
use kube::runtime::controller::Action;

use crate::context::Context;
use crate::error::Error;
use crate::events;
use crate::metrics::Outcome;
use plan::Plan;
use validate::ValidatedEvaluation;

/// A look at an object that nothing has happened to, in case a watch has missed something.
const NOW_AND_THEN: Duration = Duration::from_secs(600);
/// Between two looks at a Job; its end and its pods' troubles are watched.
const WHILE_ASKING: Duration = Duration::from_secs(30);

/// Brings one Evaluation forward and says how it is.
///
/// # Errors
/// Only what asks for backoff; everything else is in the status already.
pub async fn reconcile(object: Arc<Evaluation>, context: Arc<Context>) -> Result<(Action, Outcome), Error> {
    if object.metadata.deletion_timestamp.is_some() {
        // Jobs, ConfigMaps and the account are owned, so Kubernetes removes them.
        return Ok((Action::await_change(), Outcome::Success));
    }
    let outcome = Box::pin(converge(&object, &context)).await;
    if outcome.as_ref().err().is_none_or(Error::concerns_the_object) {
        write_status(&object, &context, &outcome).await?;
    }
    match outcome {
        Ok((_, plan)) if plan.asking.is_some() => Ok((Action::requeue(WHILE_ASKING), Outcome::Success)),
        Ok(_) => Ok((Action::requeue(NOW_AND_THEN), Outcome::Success)),
        Err(error) => match error.action() {
            Some(action) => Ok((action, error.category())),
            None => Err(error),
        },
    }
}

/// The pipeline up to the status.
async fn converge(object: &Evaluation, context: &Context) -> Result<(ValidatedEvaluation, Plan), Error> {
    let found = dereference::dereference(object, context).await?;
    let validated = validate::validate(object, &found, &context.settings)?;
    let before = object.status.clone().unwrap_or_default();
    let plan = plan::plan(&validated, &before, &found);
    apply::apply(&validated, &plan, context).await?;
    Ok((validated, plan))
}

async fn write_status(
    object: &Evaluation,
    context: &Context,
    outcome: &Result<(ValidatedEvaluation, Plan), Error>,
) -> Result<(), Error> {
    let before = object.status.clone().unwrap_or_default();
    let after = status::status(&before, object.metadata.generation, outcome, Timestamp::now());
    if after == (EvaluationStatus { request: None, ..before.clone() }) {
        return Ok(());
    }
    context.evaluations.status(object, &after).await?;
    let known = |result: &EvaluationResult| {
        before.results.iter().any(|it| (&it.job, &it.finished_at) == (&result.job, &result.finished_at))
    };
    let ended = after.results.iter().filter(|result| !known(result));
    let told = ended.map(events::evaluated).chain(events::transition(&before.conditions, &after.conditions));
    for event in told {
        context.recorder.publish(&event, &object.object_ref(&())).await;
    }
    Ok(())
}
