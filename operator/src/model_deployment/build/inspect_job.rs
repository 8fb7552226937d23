//! The inspection Job of a model that only a pod can see: it reads config.json and the safetensors headers and leaves what
//! it finds in its termination message.

use std::collections::BTreeMap;

use fairlead_crds::MODEL_DEPLOYMENT_LABEL;
use fairlead_fetch::SourceUri;
use k8s_openapi::api::batch::v1::{Job, JobSpec};
use k8s_openapi::api::core::v1::{Container, EnvVar, PodSpec, PodTemplateSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::pod::{MODELS_DIR, base, copy_containers, model_uri, model_volumes, mount, restricted, scratch};
use super::{INSTANCE_LABEL, MANAGED_BY_LABEL, NAME_LABEL};
use crate::model_deployment::plan::short_hash;
use crate::model_deployment::validate::ValidatedModelDeployment;

/// Annotation of the Job: hash of what it looks at. A Job of another hash is of an earlier spec.
pub const INPUTS_ANNOTATION: &str = "fairlead.dev/inspects";
/// [`NAME_LABEL`] of inspection pods; another than the engine pods', so that no Service or budget takes them for those.
const INSPECTION: &str = "fairlead-inspection";
/// The container that looks at the model.
pub const MODEL: &str = "inspect";
/// The container that looks at the draft model, where that is on the model's claim.
pub const DRAFT: &str = "inspect-draft";
/// Where a container leaves what it finds.
const TERMINATION_LOG: &str = "/dev/termination-log";

/// The Job's hash: all that its pod is made from, so that a pull secret or a toleration that was missing makes a new one.
pub fn inputs(job: &Job) -> String {
    // Plain data always has a JSON form.
    short_hash(&serde_json::to_string(&job.spec).unwrap_or_default())
}

/// The Job.
pub fn inspect_job(validated: &ValidatedModelDeployment) -> Job {
    let mut job = without_inputs(validated);
    let inputs = inputs(&job);
    job.metadata.annotations = Some(BTreeMap::from([(INPUTS_ANNOTATION.to_owned(), inputs)]));
    job
}

fn without_inputs(validated: &ValidatedModelDeployment) -> Job {
    let labels = BTreeMap::from([
        (NAME_LABEL.to_owned(), INSPECTION.to_owned()),
        (INSTANCE_LABEL.to_owned(), validated.name.clone()),
        (MANAGED_BY_LABEL.to_owned(), "fairlead-operator".to_owned()),
        (MODEL_DEPLOYMENT_LABEL.to_owned(), validated.name.clone()),
    ]);
    let mut volumes = model_volumes(&validated.source);
    volumes.push(scratch("tmp"));
    let spec = PodSpec {
        containers: containers(validated),
        init_containers: copy_containers(&validated.source, &validated.pod.image),
        volumes: Some(volumes),
        restart_policy: Some("Never".to_owned()),
        // The engine's own account comes later, with the children; nothing is needed of it here.
        service_account_name: None,
        ..base(validated)
    };
    Job {
        metadata: ObjectMeta {
            name: Some(format!("{}-inspect", validated.name)),
            namespace: Some(validated.namespace.clone()),
            labels: Some(labels.clone()),
            owner_references: Some(vec![validated.owner.clone()]),
            ..ObjectMeta::default()
        },
        spec: Some(JobSpec {
            // What is wrong with a model is not better the second time; a pod that was evicted is.
            backoff_limit: Some(1),
            active_deadline_seconds: Some(3600),
            // A failed one is tried anew after this time; a good one is removed as soon as its result is in the status.
            ttl_seconds_after_finished: Some(600),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta { labels: Some(labels), ..ObjectMeta::default() }),
                spec: Some(spec),
            },
            ..JobSpec::default()
        }),
        ..Job::default()
    }
}

/// One for each model that lies on a volume.
fn containers(validated: &ValidatedModelDeployment) -> Vec<Container> {
    let draft = validated.draft().filter(|source| !matches!(source, SourceUri::Hub { .. }));
    let sources = std::iter::once((MODEL, &validated.source)).chain(draft.map(|source| (DRAFT, source)));
    sources.map(|(name, source)| container(name, source, &validated.pod.image)).collect()
}

fn container(name: &str, source: &SourceUri, image: &str) -> Container {
    Container {
        name: name.to_owned(),
        image: Some(image.to_owned()),
        args: Some(vec!["inspect".to_owned(), "--model".to_owned(), model_uri(source)]),
        env: Some(vec![EnvVar {
            name: "FAIRLEAD_TERMINATION_LOG".to_owned(),
            value: Some(TERMINATION_LOG.to_owned()),
            value_from: None,
        }]),
        resources: Some(ResourceRequirements {
            requests: Some(BTreeMap::from([
                ("cpu".to_owned(), Quantity("100m".to_owned())),
                ("memory".to_owned(), Quantity("128Mi".to_owned())),
            ])),
            limits: Some(BTreeMap::from([("memory".to_owned(), Quantity("512Mi".to_owned()))])),
            claims: None,
        }),
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        security_context: Some(restricted()),
        volume_mounts: Some(vec![mount("models", MODELS_DIR, true), mount("tmp", "/tmp", false)]),
        ..Container::default()
    }
}
