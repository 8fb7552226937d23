//! A ModelDeployment's status, as a pure function of what was there before and what has been found. The only place where
//! one is made.

use fairlead_crds::model_deployment::{ModelDeploymentStatus, ModelPlan};
use k8s_openapi::jiff::Timestamp;

use super::observe::Observation;
use crate::conditions::{Verdict, conditions};
use crate::error::Error;

/// Makes the status. `plan` is the current one if it is known; otherwise the earlier one stays, for those who ask what runs.
pub fn status(
    before: &ModelDeploymentStatus,
    generation: Option<i64>,
    plan: Option<ModelPlan>,
    observation: &Observation,
    error: Option<&Error>,
    now: Timestamp,
) -> ModelDeploymentStatus {
    // Without `..`: a new field of an observation must be put somewhere.
    let Observation { verdict, replicas, ready_replicas, wanted, selector, revision, startup, starting: _ } =
        observation;
    let verdict = error.map_or_else(|| verdict.clone(), Verdict::of_error);
    ModelDeploymentStatus {
        observed_generation: generation,
        conditions: conditions(&before.conditions, &verdict, generation, now),
        serving: Some(format!("{ready_replicas}/{wanted}")),
        replicas: *replicas,
        ready_replicas: *ready_replicas,
        selector: selector.clone(),
        revision: revision.clone(),
        plan: plan.or_else(|| before.plan.clone()),
        startup: startup.clone(),
    }
}
