//! Who is to be asked now: pure, from what is known, what has been asked already, and what Jobs there are.
//!
//! One backend is asked at a time, so that their latencies are not one another's.

use std::sync::Arc;

use fairlead_crds::evaluation::{
    EvaluationRequest, EvaluationResult, EvaluationStatus, Outcome, RequestedRun, RunOn,
};
use k8s_openapi::api::batch::v1::Job;
use kube::ResourceExt;

use super::build::{self, Run};
use super::dereference::Dereferenced;
use super::observe::{self, Observed};
use super::validate::{Target, ValidatedEvaluation};

/// What is to be done, and what is known by now.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Results of runs that have ended and are not in the status yet, and those that are and still count; the newest first.
    pub results: Vec<EvaluationResult>,
    /// The run that is asked for now.
    pub asking: Option<Asking>,
    /// Jobs that nobody waits for any more.
    pub outdated: Vec<Arc<Job>>,
    /// Backends that are to be asked and can't be yet, with the reason.
    pub waiting: Vec<(String, String)>,
    /// Backends that are to be asked after the one that is asked now.
    pub queued: Vec<String>,
}

/// A run that is to be made or goes on.
#[derive(Clone, Debug)]
pub struct Asking {
    /// What is asked.
    pub run: Run,
    /// Its Job, if it is there.
    pub job: Option<Arc<Job>>,
    /// What keeps the Job from getting on, if anything does.
    pub trouble: Option<String>,
}

/// Makes the plan.
pub fn plan(validated: &ValidatedEvaluation, before: &EvaluationStatus, found: &Dereferenced) -> Plan {
    let mut plan = Plan { results: standing(validated, before), ..Plan::default() };
    let mut due: Vec<Asking> = Vec::new();
    for target in &validated.targets {
        let Some(run) = run(validated, target, before.request.as_ref(), &plan.results) else { continue };
        let job = found.jobs.iter().find(|job| job.name_any() == run.job).cloned();
        match job.as_ref().map(|job| observe::observe(validated, &run, job, &found.pods_of(job))) {
            Some(Observed::Ended(result)) => record(&mut plan.results, *result),
            Some(Observed::Lost) => {
                // Its result can't be had any more: it is removed, and made anew once it is gone.
                plan.outdated.extend(job);
                plan.waiting.push((
                    target.backend.clone(),
                    "its last run left no result and is made anew".to_owned(),
                ));
            }
            Some(Observed::Asking(trouble)) => due.push(Asking { run, job, trouble }),
            None => match &target.not_ready {
                Some(why) => plan.waiting.push((
                    target.backend.clone(),
                    format!("ModelDeployment {} is not ready ({why})", target.deployment),
                )),
                None => due.push(Asking { run, job: None, trouble: None }),
            },
        }
    }
    // One that has begun goes on; otherwise the first in the target's order begins.
    let next = due.iter().position(|asking| asking.job.is_some()).unwrap_or(0);
    if next < due.len() {
        plan.asking = Some(due.remove(next));
    }
    plan.queued = due.iter().map(|asking| asking.run.target.backend.clone()).collect();
    let goes_on = plan.asking.as_ref().map(|asking| asking.run.job.clone());
    let outdated = found.jobs.iter().filter(|job| {
        Some(job.name_any()) != goes_on
            && !observe::has_ended(job)
            && job.metadata.deletion_timestamp.is_none()
    });
    for job in outdated {
        if !plan.outdated.iter().any(|known| known.name_any() == job.name_any()) {
            plan.outdated.push(Arc::clone(job));
        }
    }
    let keep = validated.history;
    prune(&mut plan.results, validated, keep);
    plan
}

/// The results that still count: a backend that is asked by another name than before has not answered.
fn standing(validated: &ValidatedEvaluation, before: &EvaluationStatus) -> Vec<EvaluationResult> {
    let same_model = |result: &&EvaluationResult| {
        let target = validated
            .targets
            .iter()
            .find(|target| target.backend == result.backend && target.deployment == result.model_deployment);
        target.is_none_or(|target| result.model.as_ref().is_none_or(|model| *model == target.model))
    };
    before.results.iter().filter(same_model).cloned().collect()
}

/// The run that a target needs, if it needs one.
fn run(
    validated: &ValidatedEvaluation,
    target: &Target,
    request: Option<&EvaluationRequest>,
    results: &[EvaluationResult],
) -> Option<Run> {
    let revision = target.revision.clone()?;
    let request = request.filter(|request| {
        let EvaluationRequest { id: _, action: RequestedRun::Run, backend } = request;
        backend.as_ref().is_none_or(|backend| *backend == target.backend)
    });
    let request = request.map(|request| request.id.clone());
    let of_backend = || results.iter().filter(|result| result.backend == target.backend);
    let asked_for = request.is_some() && !of_backend().any(|result| result.request == request);
    let run = build::run(validated, target, revision, request, asked_for);
    let known = of_backend().find(|result| {
        result.model_deployment == target.deployment
            && result.revision == run.revision
            && result.inputs == validated.inputs
    });
    let answered = known.is_some_and(|result| match result.outcome {
        Outcome::Completed => true,
        // It failed in this very form: trying again would end alike. Another image, or more memory, is another form.
        Outcome::Failed => result.job.as_deref().is_some_and(|job| run.has_form_of(job)),
    });
    let changed = validated.run_on == RunOn::Change && !answered;
    // One that was asked for and failed is tried in its new form too.
    let failed_otherwise = known
        .is_some_and(|result| result.outcome == Outcome::Failed && result.request.is_some())
        && !answered;
    (asked_for || changed || failed_otherwise).then_some(run)
}

/// Puts a result first, in place of an earlier one of the same backend, revision and inputs.
///
/// How often it was completed is remembered, so that asking again until it passes is no way to pass: `model_route::evaluations`.
fn record(results: &mut Vec<EvaluationResult>, mut result: EvaluationResult) {
    let same = |one: &EvaluationResult| {
        (&one.backend, &one.revision, &one.inputs) == (&result.backend, &result.revision, &result.inputs)
    };
    // The ConfigMap with a backend's items is written over by its next run.
    let lost = |one: &mut EvaluationResult| {
        let theirs =
            |items: &Option<fairlead_crds::evaluation::ItemsAt>| items.clone().map(|items| items.config_map);
        if result.items.is_some() && theirs(&one.items) == theirs(&result.items) {
            one.items = None;
        }
    };
    let completed = results.iter().find(|one| same(one)).map_or(0, |one| match (one.run, one.outcome) {
        (Some(run), _) => run,
        (None, Outcome::Completed) => 1,
        (None, Outcome::Failed) => 0,
    });
    result.run = Some(completed.saturating_add(u32::from(result.outcome == Outcome::Completed)));
    results.retain(|one| !same(one));
    results.iter_mut().for_each(lost);
    results.insert(0, result);
}

/// Keeps the newest, and whatever stands for a backend as it is now.
fn prune(results: &mut Vec<EvaluationResult>, validated: &ValidatedEvaluation, keep: usize) {
    let is_current = |result: &EvaluationResult| {
        result.inputs == validated.inputs
            && validated.targets.iter().any(|target| {
                target.backend == result.backend && target.revision.as_ref() == Some(&result.revision)
            })
    };
    let current = results.iter().filter(|result| is_current(result)).count();
    let mut others = keep.saturating_sub(current);
    results.retain(|result| {
        if is_current(result) {
            return true;
        }
        let kept = others > 0;
        others = others.saturating_sub(1);
        kept
    });
}
