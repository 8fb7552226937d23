//! Gets a model looked at before a pod is made: at a hub by range requests from here, otherwise by a short Job that has the
//! claim or the image.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use fairlead_crds::condition::{reconciling, stalled};
use fairlead_crds::model_deployment::{ModelDeployment, ModelPlan};
use fairlead_fetch::{Inspection, SourceUri};
use fairlead_model::Reason;
use futures::future::BoxFuture;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ContainerStateTerminated, ContainerStatus, Pod, Secret};
use kube::{Api, ResourceExt};

use super::build::inspect_job::{self, INPUTS_ANNOTATION};
use super::dereference::Dereferenced;
use super::validate::ValidatedModelDeployment;
use super::{observe, plan};
use crate::context::Context;
use crate::error::Error;
use crate::inspector::{self, HubModel, InspectError};

/// Key of the token in the Secret that `spec.model.secretRef` names.
pub const TOKEN_KEY: &str = "token";
/// Where the spec names the model that guesses ahead.
pub const DRAFT_FIELD: &str = "spec.engine.speculation.draftModel";
/// What is wrong with a model at a hub is not watched; look again now and then.
const LOOK_AGAIN: Duration = Duration::from_secs(300);
/// Between two looks at a Job; its end and its pods' troubles are watched.
const WHILE_INSPECTING: Duration = Duration::from_secs(15);

/// What looking has shown.
pub struct Inspected {
    /// The model.
    pub model: Inspection,
    /// The model that guesses ahead, where the spec names one.
    pub draft: Option<Inspection>,
    /// Commits of what else comes from a hub, by URI.
    pub resolved: BTreeMap<String, String>,
}

/// Gets the model looked at, and all that is served or loaded beside it.
///
/// # Errors
/// [`Error::Invalid`] when it can't be served, [`Error::Waiting`] while a Job is at it, [`Error::Transient`] when the hub
/// does not answer.
pub async fn inspect(
    object: &ModelDeployment,
    validated: &ValidatedModelDeployment,
    inputs: &str,
    known: Option<&ModelPlan>,
    context: &Context,
    found: &Dereferenced,
) -> Result<Inspected, Error> {
    // Where only something else has changed, a moving revision stays where it was.
    let model = match &validated.source {
        SourceUri::Hub { .. } => {
            let pinned = known
                .filter(|known| plan::same_source(known, inputs))
                .and_then(|it| it.resolved_revision.clone());
            let token = token(validated, context).await?;
            at_hub(HubModel { source: at(&validated.source, pinned), token }, context).await?
        }
        SourceUri::Claim { .. } | SourceUri::Image { .. } | SourceUri::Folder { .. } => {
            by_job(object, validated, context, found, inspect_job::MODEL).await?
        }
    };
    let mut resolved = BTreeMap::new();
    let pinned = |uri: &str| known.and_then(|known| known.resolved.get(uri)).cloned();
    let draft = match validated.draft() {
        None => None,
        Some(source @ SourceUri::Hub { .. }) => {
            let uri = source.to_string();
            let token = token(validated, context).await?;
            let inspected = at_hub(HubModel { source: at(source, pinned(&uri)), token }, context).await;
            let inspected = inspected.map_err(|error| of_field(error, DRAFT_FIELD))?;
            resolved.extend(inspected.revision.clone().map(|commit| (uri, commit)));
            Some(inspected)
        }
        Some(_) => Some(by_job(object, validated, context, found, inspect_job::DRAFT).await?),
    };
    for (name, source) in &validated.adapters {
        if !matches!(source, SourceUri::Hub { .. }) {
            continue;
        }
        let uri = source.to_string();
        let commit = match pinned(&uri) {
            Some(commit) => commit,
            None => {
                let token = token(validated, context).await?;
                let asked = ask(context, &uri, || {
                    context.inspector.resolve(HubModel { source: source.clone(), token })
                });
                asked.await.map_err(|error| of_field(error, &format!("spec.adapters[{name}].uri")))?
            }
        };
        resolved.insert(uri, commit);
    }
    Ok(Inspected { model, draft, resolved })
}

/// What is wrong with something beside the model, told by its own field.
fn of_field(error: Error, field: &str) -> Error {
    match error {
        Error::Invalid { reason, message, retry } => {
            Error::Invalid { reason, message: format!("{field}: {message}"), retry }
        }
        Error::Transient(message) => Error::Transient(format!("{field}: {message}")),
        other => other,
    }
}

/// The same place at a commit that is known.
fn at(source: &SourceUri, commit: Option<String>) -> SourceUri {
    match (source, commit) {
        (SourceUri::Hub { repository, .. }, Some(revision)) => {
            SourceUri::Hub { repository: repository.clone(), revision }
        }
        _ => source.clone(),
    }
}

async fn at_hub(model: HubModel, context: &Context) -> Result<Inspection, Error> {
    ask(context, &model.source.to_string(), || context.inspector.inspect(model.clone())).await
}

/// Asks a hub about `key`, unless it has just failed to answer.
async fn ask<'a, T>(
    context: &'a Context,
    key: &str,
    question: impl FnOnce() -> BoxFuture<'a, Result<T, InspectError>>,
) -> Result<T, Error> {
    // Writing a failure into the status wakes the controller at once; where each answer has other words, that would go in
    // circles as fast as the hub answers.
    if let Some(message) = context.hub_pauses.message(key, Instant::now()) {
        return Err(Error::Transient(message));
    }
    let begun = Instant::now();
    let result = question().await;
    context.metrics.inspected(begun);
    result.map_err(|error| match error {
        InspectError::Model { reason, message } => {
            Error::Invalid { reason: plan::stalled_reason(reason), message, retry: Some(LOOK_AGAIN) }
        }
        InspectError::Unreachable(message) => {
            context.hub_pauses.begin(key.to_owned(), message.clone(), Instant::now());
            Error::Transient(message)
        }
    })
}

async fn token(validated: &ValidatedModelDeployment, context: &Context) -> Result<Option<String>, Error> {
    // Of an image it is a pull secret, which has no token in it.
    let secret = validated.secret.as_ref().filter(|_| !matches!(validated.source, SourceUri::Image { .. }));
    let Some(name) = secret else { return Ok(None) };
    let secrets = Api::<Secret>::namespaced(context.client.clone(), &validated.namespace);
    let missing = |problem: String| Error::Waiting {
        reason: reconciling::WAITING,
        message: format!(
            "spec.model.secretRef: {problem}; create it with the hub's token under the key {TOKEN_KEY}"
        ),
        retry: Duration::from_secs(30),
    };
    let Some(secret) = secrets.get_opt(name).await.map_err(Error::kube(format!("read Secret {name}")))?
    else {
        return Err(missing(format!("there is no Secret {name}")));
    };
    let token = secret.data.unwrap_or_default().remove(TOKEN_KEY).and_then(|it| String::from_utf8(it.0).ok());
    match token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty()) {
        Some(token) => Ok(Some(token)),
        None => Err(missing(format!("Secret {name} has no key {TOKEN_KEY}"))),
    }
}

/// A Job's end.
enum Ended {
    Well,
    Badly,
}

async fn by_job(
    object: &ModelDeployment,
    validated: &ValidatedModelDeployment,
    context: &Context,
    found: &Dereferenced,
    container: &str,
) -> Result<Inspection, Error> {
    let waiting = |message: String| Error::Waiting {
        reason: reconciling::INSPECTING,
        message,
        retry: WHILE_INSPECTING,
    };
    let wanted = inspect_job::inspect_job(validated);
    let Some(job) = &found.job else {
        let job = wanted;
        context.model_deployments.apply(None, &job).await?;
        return Err(waiting(format!("Job {} looks at the model", job.name_any())));
    };
    if job.annotations().get(INPUTS_ANNOTATION) != wanted.annotations().get(INPUTS_ANNOTATION) {
        // It was made from an earlier spec. Its deletion is watched, and a new one made then.
        context.model_deployments.delete(&**job).await?;
        return Err(waiting(format!("Job {} of an earlier spec is being removed", job.name_any())));
    }
    let pods: Vec<&Pod> = found
        .inspection_pods
        .iter()
        .map(|pod| &**pod)
        .filter(|pod| {
            pod.owner_references().iter().any(|owner| Some(&owner.uid) == job.metadata.uid.as_ref())
        })
        .collect();
    let Some(ended) = ended(job) else {
        let trouble = pods.iter().find_map(|pod| observe::trouble(pod));
        return Err(waiting(trouble.unwrap_or_else(|| format!("Job {} looks at the model", job.name_any()))));
    };
    let message = match ended {
        Ended::Well => pods.iter().filter_map(|pod| result(pod, container)).next_back(),
        Ended::Badly => pods.iter().filter_map(|pod| failure(pod)).next_back(),
    };
    match (ended, message) {
        (Ended::Well, Some(message)) => inspector::parse_inspection(&message).map_err(|problem| {
            Error::invalid(
                stalled::POD_FAILED,
                format!("Job {} says what can't be read: {problem}", job.name_any()),
            )
        }),
        (Ended::Badly, Some(message)) => {
            let (reason, message) = observe::split_reason(&message);
            let reason = reason.unwrap_or(Reason::PodFailed);
            Err(Error::invalid(plan::stalled_reason(reason), message))
        }
        (Ended::Badly, None) => {
            let trouble = pods.iter().find_map(|pod| observe::trouble(pod)).unwrap_or_default();
            Err(Error::invalid(
                stalled::POD_FAILED,
                format!("Job {} could not look at the model: {trouble}", job.name_any())
                    .trim_end_matches([':', ' '])
                    .to_owned(),
            ))
        }
        (Ended::Well, None) => {
            // The Job's end was seen before its pod's, or the pod has been collected: in doubt once more.
            if pods.is_empty() {
                context.model_deployments.delete(&**job).await?;
            }
            tracing::debug!(name = object.name_any(), "the inspection pod's result is not there yet");
            Err(waiting("the inspection's result is not there yet".to_owned()))
        }
    }
}

fn ended(job: &Job) -> Option<Ended> {
    let conditions = job.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().filter(|it| it.status == "True").find_map(|it| match it.type_.as_str() {
        "Complete" => Some(Ended::Well),
        "Failed" => Some(Ended::Badly),
        _ => None,
    })
}

/// What a container that ended well has left.
fn result(pod: &Pod, container: &str) -> Option<String> {
    let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
    terminated(statuses.iter().find(|it| it.name == container)?)?.message.clone()
}

/// What the container that failed, or an init container, has left.
fn failure(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let statuses = [&status.container_statuses, &status.init_container_statuses];
    let failed = statuses.into_iter().flatten().flatten().find_map(|status| {
        let terminated = terminated(status).filter(|it| it.exit_code != 0)?;
        Some((status.name.as_str(), terminated.message.clone()?))
    })?;
    Some(match failed {
        (inspect_job::DRAFT, message) => {
            let (reason, message) = observe::split_reason(&message);
            let reason = reason.unwrap_or(Reason::PodFailed);
            format!("{reason}: {DRAFT_FIELD}: {message}")
        }
        (_, message) => message,
    })
}

fn terminated(status: &ContainerStatus) -> Option<&ContainerStateTerminated> {
    status.state.as_ref()?.terminated.as_ref()
}
