//! Keeps drains of nodes from taking more than one replica at a time. A single replica may be moved: a budget that forbids
//! that would block every drain for ever.

use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{metadata, selector};
use crate::model_deployment::validate::ValidatedModelDeployment;

/// The PodDisruptionBudget.
pub fn pod_disruption_budget(validated: &ValidatedModelDeployment) -> PodDisruptionBudget {
    PodDisruptionBudget {
        metadata: metadata(validated, validated.name.clone()),
        spec: Some(PodDisruptionBudgetSpec {
            max_unavailable: Some(IntOrString::Int(1)),
            selector: Some(selector(validated)),
            // A pod that never became ready serves nobody and should not block a drain.
            unhealthy_pod_eviction_policy: Some("AlwaysAllow".to_owned()),
            ..PodDisruptionBudgetSpec::default()
        }),
        ..PodDisruptionBudget::default()
    }
}
