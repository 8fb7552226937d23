//! What the engine pods run as: an account without any permission, and without a token in the pods.

use k8s_openapi::api::core::v1::ServiceAccount;

use super::metadata;
use crate::model_deployment::validate::ValidatedModelDeployment;

/// The ServiceAccount.
pub fn service_account(validated: &ValidatedModelDeployment) -> ServiceAccount {
    ServiceAccount {
        metadata: metadata(validated, validated.name.clone()),
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    }
}
