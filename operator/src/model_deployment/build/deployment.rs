//! The Deployment around the engine pods.

use fairlead_crds::REVISION_LABEL;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{metadata, selector};
use crate::model_deployment::validate::ValidatedModelDeployment;

/// A large model may take an hour to fetch; the operator itself says what goes wrong, and sooner.
const PROGRESS_DEADLINE_SECONDS: i32 = 7200;

/// The Deployment.
pub fn deployment(
    validated: &ValidatedModelDeployment,
    mut template: PodTemplateSpec,
    revision: &str,
) -> Deployment {
    if let Some(metadata) = &mut template.metadata {
        metadata.labels.get_or_insert_default().insert(REVISION_LABEL.to_owned(), revision.to_owned());
    }
    Deployment {
        metadata: metadata(validated, validated.name.clone()),
        spec: Some(DeploymentSpec {
            // Absent while an autoscaler, or a person, owns it.
            replicas: validated.replicas,
            selector: selector(validated),
            template,
            strategy: Some(DeploymentStrategy {
                type_: Some("RollingUpdate".to_owned()),
                rolling_update: Some(RollingUpdateDeployment {
                    max_surge: Some(IntOrString::Int(validated.max_surge)),
                    max_unavailable: Some(IntOrString::Int(validated.max_unavailable)),
                }),
            }),
            revision_history_limit: Some(3),
            progress_deadline_seconds: Some(PROGRESS_DEADLINE_SECONDS),
            ..DeploymentSpec::default()
        }),
        ..Deployment::default()
    }
}
