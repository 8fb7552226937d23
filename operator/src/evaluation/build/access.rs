//! The account that asks, and the one thing that it may: to write into the ConfigMaps for its results.

use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::api::rbac::v1::{PolicyRule, Role, RoleBinding, RoleRef, Subject};

use super::{account, items, metadata};
use crate::evaluation::validate::ValidatedEvaluation;

/// The ServiceAccount. Its token is mounted by the Job alone.
pub fn service_account(validated: &ValidatedEvaluation) -> ServiceAccount {
    ServiceAccount {
        metadata: metadata(validated, account(validated)),
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    }
}

/// The Role: patching these ConfigMaps, not creating, reading or listing any.
pub fn role(validated: &ValidatedEvaluation) -> Role {
    let names = validated.targets.iter().map(|target| items::name(validated, &target.backend)).collect();
    Role {
        metadata: metadata(validated, account(validated)),
        rules: Some(vec![PolicyRule {
            api_groups: Some(vec![String::new()]),
            resources: Some(vec!["configmaps".to_owned()]),
            resource_names: Some(names),
            verbs: vec!["patch".to_owned()],
            ..PolicyRule::default()
        }]),
    }
}

/// Gives the Role to the account.
pub fn role_binding(validated: &ValidatedEvaluation) -> RoleBinding {
    RoleBinding {
        metadata: metadata(validated, account(validated)),
        role_ref: RoleRef {
            api_group: Some("rbac.authorization.k8s.io".to_owned()),
            kind: "Role".to_owned(),
            name: account(validated),
        },
        subjects: Some(vec![Subject {
            kind: "ServiceAccount".to_owned(),
            name: account(validated),
            namespace: Some(validated.namespace.clone()),
            api_group: None,
        }]),
    }
}
