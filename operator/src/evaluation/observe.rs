//! What a Job has come to: pure.

use fairlead_crds::evaluation::{EvaluationResult, Outcome};
use fairlead_evaluation::Summary;
use k8s_openapi::api::batch::v1::{Job, JobCondition};
use k8s_openapi::api::core::v1::{ContainerStateTerminated, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;

use super::build::{Run, job};
use super::validate::ValidatedEvaluation;
use crate::model_deployment::observe;

/// Longest message of a failed run, in characters.
const LONGEST_MESSAGE: usize = 1024;

/// Reason of a Job's failure when its time was up.
const TIMED_OUT: &str = "DeadlineExceeded";

/// What a Job has come to.
#[derive(Clone, Debug, PartialEq)]
pub enum Observed {
    /// It asks, or waits for its pod; what keeps the pod from starting, if anything does.
    Asking(Option<String>),
    /// It has ended, well or badly.
    Ended(Box<EvaluationResult>),
    /// It has ended well, and its pod, which had the result, is gone.
    Lost,
}

/// Whether a Job has ended.
pub fn has_ended(job: &Job) -> bool {
    ended(job).is_some()
}

/// Looks at a run's Job and its pods, the oldest first.
pub fn observe(validated: &ValidatedEvaluation, run: &Run, job: &Job, pods: &[&Pod]) -> Observed {
    let Some(condition) = ended(job) else {
        return Observed::Asking(pods.iter().find_map(|pod| observe::trouble(pod)));
    };
    let blank = EvaluationResult {
        backend: run.target.backend.clone(),
        model_deployment: run.target.deployment.clone(),
        model: Some(run.target.model.clone()),
        revision: run.revision.clone(),
        inputs: validated.inputs.clone(),
        questions: validated.questions.digest.clone(),
        job: Some(job.name_any()),
        request: run.request.clone(),
        started_at: job.status.as_ref().and_then(|status| status.start_time.clone()),
        finished_at: condition.last_transition_time.clone(),
        ..EvaluationResult::default()
    };
    if condition.type_ == "Failed" {
        let timed_out = condition.reason.as_deref() == Some(TIMED_OUT);
        // The Job's end was seen before its pod's, which has the words.
        if !timed_out && !pods.iter().all(|pod| is_over(pod)) {
            return Observed::Asking(None);
        }
        let message = failure(validated, condition, pods);
        return failed(blank, message);
    }
    let summary = pods.iter().rev().find_map(|pod| {
        let state = terminated(pod)?;
        (state.exit_code == 0).then(|| state.message.clone().unwrap_or_default())
    });
    match summary {
        None if pods.is_empty() => Observed::Lost,
        // The Job's end was seen before its pod's.
        None => Observed::Asking(None),
        Some(text) => scored(blank, &text),
    }
}

fn scored(blank: EvaluationResult, text: &str) -> Observed {
    let Summary { questions, asked, scores, latency, items, revisions, started_at, finished_at } =
        match serde_json::from_str(text.trim()) {
            Ok(summary) => summary,
            Err(error) => {
                return failed(blank, format!("the run left what can't be read as its result: {error}"));
            }
        };
    if questions != blank.questions {
        return failed(blank, format!("other questions were asked: their digest is {questions}"));
    }
    // A pod that runs an image of somebody else's may say nothing.
    if let Some((other, answers)) = revisions.iter().find(|(revision, _)| **revision != blank.revision) {
        return failed(
            blank.clone(),
            format!(
                "revision {other} gave {answers} of the answers, in place of {}: the ModelDeployment changed meanwhile",
                blank.revision
            ),
        );
    }
    let time = |text: Option<String>| text.and_then(|text| text.parse().ok()).map(Time);
    Observed::Ended(Box::new(EvaluationResult {
        outcome: Outcome::Completed,
        asked,
        scores,
        latency,
        items,
        started_at: time(started_at).or(blank.started_at),
        finished_at: time(finished_at).or(blank.finished_at),
        ..blank
    }))
}

fn failed(blank: EvaluationResult, message: String) -> Observed {
    let message = message.chars().take(LONGEST_MESSAGE).collect();
    Observed::Ended(Box::new(EvaluationResult { outcome: Outcome::Failed, message: Some(message), ..blank }))
}

/// Why a Job failed: its time was up, or its last pod's last words.
fn failure(validated: &ValidatedEvaluation, condition: &JobCondition, pods: &[&Pod]) -> String {
    let trouble = || pods.iter().rev().find_map(|pod| observe::trouble(pod));
    let words = pods.iter().rev().find_map(|pod| last_words(pod));
    if condition.reason.as_deref() == Some(TIMED_OUT) {
        let limit = format!("it did not end within spec.timeout ({} s)", validated.timeout.as_secs());
        return match words.or_else(trouble) {
            Some(words) => format!("{limit}: {words}"),
            None => format!("{limit}; raise it, or spec.concurrency"),
        };
    }
    words
        .or_else(trouble)
        .or_else(|| condition.message.clone())
        .unwrap_or_else(|| "no reason given".to_owned())
}

fn last_words(pod: &Pod) -> Option<String> {
    let state = terminated(pod).filter(|state| state.exit_code != 0)?;
    if state.reason.as_deref() == Some("OOMKilled") {
        return Some("the pod ran out of memory: raise spec.podTemplate.memory".to_owned());
    }
    // Without a message of the program's own it is the log's end, whose last line says most.
    let message = state.message.as_deref().unwrap_or_default().trim();
    let last = message.lines().last().unwrap_or_default();
    Some(if last.is_empty() {
        format!("pod {} ended with code {}", pod.name_any(), state.exit_code)
    } else {
        last.to_owned()
    })
}

fn is_over(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

fn terminated(pod: &Pod) -> Option<&ContainerStateTerminated> {
    let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
    statuses.iter().find(|it| it.name == job::CONTAINER)?.state.as_ref()?.terminated.as_ref()
}

fn ended(job: &Job) -> Option<&JobCondition> {
    let conditions = job.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|it| it.status == "True" && matches!(it.type_.as_str(), "Complete" | "Failed"))
}
