//! Builds what a run needs: pure functions of a validated spec and the run, one file per kind.

pub mod access;
pub mod items;
pub mod job;

use std::collections::BTreeMap;

use fairlead_crds::EVALUATION_LABEL;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::validate::{Target, ValidatedEvaluation};
use crate::model_deployment::build::{INSTANCE_LABEL, MANAGED_BY_LABEL, NAME_LABEL};
use crate::model_deployment::plan::short_hash;

/// [`NAME_LABEL`] of everything that asks.
const EVALUATION: &str = "fairlead-evaluation";

/// One run: a target at a revision, asked once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Who is asked.
    pub target: Target,
    /// The revision that is expected to answer.
    pub revision: String,
    /// The request that is in force for it, if any.
    pub request: Option<String>,
    /// Name of its Job: [`Run::form`], and for a run that somebody asked for a hash of the request.
    pub job: String,
    /// The first part of the name: the Evaluation's and a hash of all that the Job is made from.
    pub form: String,
}

/// Names a run. `asked_for`: the request is not answered yet, which makes it another run than one that ended before.
pub fn run(
    validated: &ValidatedEvaluation,
    target: &Target,
    revision: String,
    request: Option<String>,
    asked_for: bool,
) -> Run {
    let mut run = Run { target: target.clone(), revision, request, job: String::new(), form: String::new() };
    // Whether it is ready comes and goes, and makes no other run.
    run.target.not_ready = None;
    let template = job::job(validated, &run).spec;
    let template = serde_json::to_string(&template).unwrap_or_default();
    let hash = short_hash(&format!("{} {} {} {template}", target.backend, run.revision, validated.inputs));
    run.form = format!("{}-{hash}", validated.name);
    run.job = match &run.request {
        Some(id) if asked_for => format!("{}-{}", run.form, short_hash(id)),
        _ => run.form.clone(),
    };
    run
}

impl Run {
    /// Whether a Job of this name was made from the same, whether or not somebody asked for it.
    pub fn has_form_of(&self, job: &str) -> bool {
        job.strip_prefix(&self.form).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    }
}

/// Name of the account that asks, and of what it may.
pub fn account(validated: &ValidatedEvaluation) -> String {
    format!("{}-evaluation", validated.name)
}

/// Labels of every child.
pub fn labels(validated: &ValidatedEvaluation) -> BTreeMap<String, String> {
    BTreeMap::from([
        (NAME_LABEL.to_owned(), EVALUATION.to_owned()),
        (INSTANCE_LABEL.to_owned(), validated.name.clone()),
        (MANAGED_BY_LABEL.to_owned(), "fairlead-operator".to_owned()),
        (EVALUATION_LABEL.to_owned(), validated.name.clone()),
    ])
}

/// Metadata of a child called `name`.
pub fn metadata(validated: &ValidatedEvaluation, name: String) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        namespace: Some(validated.namespace.clone()),
        labels: Some(labels(validated)),
        owner_references: Some(vec![validated.owner.clone()]),
        ..ObjectMeta::default()
    }
}
