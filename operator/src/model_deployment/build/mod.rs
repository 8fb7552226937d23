//! Builds the children of a ModelDeployment: pure functions of a validated spec and its plan, one file per kind.

pub mod config_map;
pub mod deployment;
pub mod inspect_job;
pub mod pod;
pub mod pod_disruption_budget;
pub mod service;
pub mod service_account;

use std::collections::BTreeMap;

use fairlead_crds::MODEL_DEPLOYMENT_LABEL;
use fairlead_crds::model_deployment::ModelPlan;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Service, ServiceAccount};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};

use super::validate::ValidatedModelDeployment;
use crate::config::Settings;

/// What an object is, among those that make up an application.
pub const NAME_LABEL: &str = "app.kubernetes.io/name";
/// Which ModelDeployment it belongs to.
pub const INSTANCE_LABEL: &str = "app.kubernetes.io/instance";
/// Who looks after it.
pub const MANAGED_BY_LABEL: &str = "app.kubernetes.io/managed-by";
/// [`NAME_LABEL`] of engine pods and what serves them.
pub const INFERENCE: &str = "fairlead-inference";

/// Everything that one ModelDeployment owns while it serves.
#[derive(Clone, Debug)]
pub struct Children {
    /// The engine's settings.
    pub config_map: ConfigMap,
    /// What the pods run as.
    pub service_account: ServiceAccount,
    /// What the gateway finds the pods by.
    pub service: Service,
    /// Keeps drains of nodes from taking all replicas at once.
    pub pod_disruption_budget: PodDisruptionBudget,
    /// The pods.
    pub deployment: Deployment,
    /// Hash of all that changes what a pod serves.
    pub revision: String,
}

/// Builds them all. `kept` are settings that pods of other revisions mount.
pub fn build(
    validated: &ValidatedModelDeployment,
    plan: &ModelPlan,
    kept: &BTreeMap<String, String>,
    settings: &Settings,
) -> Children {
    let config = config_map::inference_config(validated, plan);
    let template = pod::template(validated, &config, settings);
    let revision = pod::revision(&template);
    Children {
        config_map: config_map::config_map(validated, &config, kept),
        service_account: service_account::service_account(validated),
        service: service::service(validated),
        pod_disruption_budget: pod_disruption_budget::pod_disruption_budget(validated),
        deployment: deployment::deployment(validated, template, &revision),
        revision,
    }
}

/// Labels that select the engine pods; they never change.
pub fn selector(validated: &ValidatedModelDeployment) -> LabelSelector {
    LabelSelector {
        match_labels: Some(BTreeMap::from([
            (NAME_LABEL.to_owned(), INFERENCE.to_owned()),
            (INSTANCE_LABEL.to_owned(), validated.name.clone()),
        ])),
        match_expressions: None,
    }
}

/// Labels of every child but the inspection Job.
pub fn labels(validated: &ValidatedModelDeployment) -> BTreeMap<String, String> {
    BTreeMap::from([
        (NAME_LABEL.to_owned(), INFERENCE.to_owned()),
        (INSTANCE_LABEL.to_owned(), validated.name.clone()),
        (MANAGED_BY_LABEL.to_owned(), "fairlead-operator".to_owned()),
        (MODEL_DEPLOYMENT_LABEL.to_owned(), validated.name.clone()),
    ])
}

/// Metadata of a child called `name`.
pub fn metadata(validated: &ValidatedModelDeployment, name: String) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        namespace: Some(validated.namespace.clone()),
        labels: Some(labels(validated)),
        owner_references: Some(vec![validated.owner.clone()]),
        ..ObjectMeta::default()
    }
}
