//! Writes the children of a ModelDeployment, those first that its pods need.

use k8s_openapi::api::apps::v1::Deployment;

use super::build::Children;
use super::dereference::Dereferenced;
use crate::apply::Applier;
use crate::error::Error;

/// Writes what differs. Returns the Deployment as it then is.
///
/// # Errors
/// As [`Applier::apply`].
pub async fn apply(
    children: &Children,
    found: &Dereferenced,
    applier: &Applier,
) -> Result<Deployment, Error> {
    // Without `..`: a new child must be written here.
    let Children { config_map, service_account, service, pod_disruption_budget, deployment, revision: _ } =
        children;
    applier.apply(found.service_account.as_deref(), service_account).await?;
    applier.apply(found.config_map.as_deref(), config_map).await?;
    applier.apply(found.service.as_deref(), service).await?;
    applier.apply(found.pod_disruption_budget.as_deref(), pod_disruption_budget).await?;
    applier.hand_over_replicas(found.deployment.as_deref(), deployment).await?;
    applier.apply(found.deployment.as_deref(), deployment).await
}

/// Removes the inspection Job once its result is in the status.
///
/// # Errors
/// As [`Applier::delete`].
pub async fn clean_up(found: &Dereferenced, applier: &Applier) -> Result<(), Error> {
    match found.job.as_deref().filter(|job| job.metadata.deletion_timestamp.is_none()) {
        Some(job) => applier.delete(job).await,
        None => Ok(()),
    }
}
