//! Removes what nobody waits for, and writes what the next run needs, the Job last.

use super::build::{access, items, job};
use super::plan::{Asking, Plan};
use super::validate::ValidatedEvaluation;
use crate::context::Context;
use crate::error::Error;

/// Writes it.
///
/// # Errors
/// As [`crate::apply::Applier::apply`].
pub async fn apply(validated: &ValidatedEvaluation, plan: &Plan, context: &Context) -> Result<(), Error> {
    let applier = &context.evaluations;
    for job in &plan.outdated {
        applier.delete(&**job).await?;
    }
    let Some(Asking { run, job: None, trouble: _ }) = &plan.asking else { return Ok(()) };
    applier.apply(None, &access::service_account(validated)).await?;
    applier.apply(None, &access::role(validated)).await?;
    applier.apply(None, &access::role_binding(validated)).await?;
    applier.apply(None, &items::config_map(validated, &run.target.backend)).await?;
    // One of this name that the store does not show yet is the same: its name is of a hash of what it is made from.
    applier.apply(None, &job::job(validated, run)).await?;
    Ok(())
}
