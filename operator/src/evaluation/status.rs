//! An Evaluation's status, as a pure function of what was there before and what has been found. The only place where one is
//! made.

use fairlead_crds::condition::{ready, reconciling, stalled};
use fairlead_crds::evaluation::{Current, EvaluationResult, EvaluationStatus, Outcome, RunOn, Score};
use k8s_openapi::jiff::Timestamp;

use super::plan::Plan;
use super::validate::{Target, ValidatedEvaluation};
use crate::conditions::{Verdict, conditions};
use crate::error::Error;

/// Makes the status. After an error, what was known before stays.
pub fn status(
    before: &EvaluationStatus,
    generation: Option<i64>,
    outcome: &Result<(ValidatedEvaluation, Plan), Error>,
    now: Timestamp,
) -> EvaluationStatus {
    let (validated, plan) = match outcome {
        Ok((validated, plan)) => (validated, plan),
        Err(error) => {
            let verdict = Verdict::of_error(error);
            let unknown = matches!(error, Error::Invalid { .. }) || before.observed_generation != generation;
            return EvaluationStatus {
                observed_generation: generation,
                conditions: conditions(&before.conditions, &verdict, generation, now),
                // Nothing stands for a spec or questions that can't be used, or were not looked at; the results say for
                // themselves what they were made with.
                inputs: before.inputs.clone().filter(|_| !unknown),
                questions: before.questions.clone().filter(|_| !unknown),
                summary: before.summary.clone().filter(|_| !unknown),
                // Written by people.
                request: None,
                ..before.clone()
            };
        }
    };
    let verdict = verdict(validated, plan);
    EvaluationStatus {
        observed_generation: generation,
        conditions: conditions(&before.conditions, &verdict, generation, now),
        target: Some(validated.target.clone()),
        questions: Some(validated.questions.clone()),
        inputs: Some(validated.inputs.clone()),
        summary: summary(validated, plan),
        current: validated.targets.iter().map(|target| current(target, plan)).collect(),
        results: plan.results.clone(),
        request: None,
    }
}

fn current(target: &Target, plan: &Plan) -> Current {
    let asking = plan.asking.as_ref().filter(|asking| asking.run.target.backend == target.backend);
    Current {
        backend: target.backend.clone(),
        model_deployment: target.deployment.clone(),
        revision: target.revision.clone(),
        job: asking.map(|asking| asking.run.job.clone()),
    }
}

/// The result of a target as it is now.
fn result_of<'a>(
    validated: &ValidatedEvaluation,
    target: &Target,
    plan: &'a Plan,
) -> Option<&'a EvaluationResult> {
    plan.results.iter().find(|result| {
        result.backend == target.backend
            && result.model_deployment == target.deployment
            && Some(&result.revision) == target.revision.as_ref()
            && result.inputs == validated.inputs
    })
}

fn verdict(validated: &ValidatedEvaluation, plan: &Plan) -> Verdict {
    // Without `..`: a new part of the plan must be told.
    let Plan { results: _, asking, outdated: _, waiting, queued } = plan;
    if let Some(asking) = asking {
        let mut message = format!(
            "Job {} asks {} {} questions",
            asking.run.job, asking.run.target.backend, validated.questions.count
        );
        if let Some(trouble) = &asking.trouble {
            message = format!("{message}: {trouble}");
        }
        if !queued.is_empty() {
            message = format!("{message}; then {}", queued.join(", "));
        }
        return Verdict::Reconciling { reason: reconciling::EVALUATING, message };
    }
    let of_target = |target| (target, result_of(validated, target, plan));
    let failed = validated.targets.iter().map(of_target).find_map(|(target, result)| {
        let result = result.filter(|result| result.outcome == Outcome::Failed)?;
        Some((target, result.message.clone().unwrap_or_default()))
    });
    if let Some((target, message)) = failed {
        return Verdict::Stalled {
            reason: stalled::RUN_FAILED,
            message: format!(
                "backend {}: the questions could not be asked: {message}. Correct it, or ask for another run in status.request",
                target.backend
            ),
        };
    }
    if let Some((backend, why)) = waiting.first() {
        return Verdict::Reconciling {
            reason: reconciling::WAITING,
            message: format!("backend {backend}: {why}"),
        };
    }
    let missing: Vec<&str> = validated
        .targets
        .iter()
        .filter(|target| result_of(validated, target, plan).is_none())
        .map(|target| target.backend.as_str())
        .collect();
    match (validated.run_on, missing.as_slice()) {
        (_, []) => Verdict::Ready { reason: ready::EVALUATED, message: told(validated, plan) },
        (RunOn::Request, missing) => Verdict::Ready {
            reason: ready::ON_REQUEST,
            message: format!(
                "not asked as they are now: {}; ask for a run in status.request",
                missing.join(", ")
            ),
        },
        // A ModelDeployment that has never had a revision.
        (RunOn::Change, missing) => Verdict::Reconciling {
            reason: reconciling::WAITING,
            message: format!("backend {}: its ModelDeployment has no revision yet", missing.join(", ")),
        },
    }
}

/// The first score of a result: of those that were asked for, otherwise the first that there is.
fn first<'a>(
    validated: &ValidatedEvaluation,
    result: &'a EvaluationResult,
) -> Option<&'a fairlead_crds::evaluation::ScoreResult> {
    match validated.asking.scores.first() {
        Some(wanted) => result.scores.iter().find(|score| score.name == *wanted),
        None => result.scores.first(),
    }
}

/// The first score of each target, in one line.
fn summary(validated: &ValidatedEvaluation, plan: &Plan) -> Option<String> {
    let mut name: Option<Score> = None;
    let mut parts = Vec::new();
    for target in &validated.targets {
        let result = result_of(validated, target, plan);
        let shown = match result {
            Some(result) if result.outcome == Outcome::Failed => "failed".to_owned(),
            Some(result) => {
                match first(validated, result).and_then(|score| Some((score.name, score.measured()?))) {
                    Some((score, measured)) => {
                        name = name.or(Some(score));
                        format!("{:.2}", measured.mean)
                    }
                    None => "-".to_owned(),
                }
            }
            None => continue,
        };
        parts.push(format!("{}={shown}", target.backend));
    }
    if parts.is_empty() {
        return None;
    }
    Some(match name {
        Some(score) => format!("{} {}", score.name(), parts.join(" ")),
        None => parts.join(" "),
    })
}

/// What each target scored, in words.
fn told(validated: &ValidatedEvaluation, plan: &Plan) -> String {
    let parts: Vec<String> = validated
        .targets
        .iter()
        .filter_map(|target| Some(in_words(result_of(validated, target, plan)?)))
        .collect();
    parts.join("; ")
}

/// `v2 at revision 1a2b: exactMatch 0.90 (36 of 40), f1 0.93 (of 40), …`.
pub fn in_words(result: &EvaluationResult) -> String {
    let whom = format!("{} at revision {}", result.backend, result.revision);
    if result.outcome == Outcome::Failed {
        return format!("{whom}: {}", result.message.as_deref().unwrap_or("the run failed"));
    }
    let scores: Vec<String> = result
        .scores
        .iter()
        .filter_map(|score| {
            let measured = score.measured()?;
            let name = score.name.name();
            Some(match measured.hits {
                Some(hits) => format!("{name} {:.2} ({hits} of {})", measured.mean, measured.n),
                None if score.name == Score::Latency => format!("{name} {:.2} s", measured.mean),
                None => format!("{name} {:.2}", measured.mean),
            })
        })
        .collect();
    format!("{whom}: {}", scores.join(", "))
}
