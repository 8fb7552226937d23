//! A route's canary: from the spec to a plan, from the plan to a decision, and what people are told of it. Pure; the rules are in
//! `fairlead_rollout::machine`.

use std::time::Duration;

use fairlead_crds::condition::stalled;
use fairlead_crds::model_route::canary::{Canary, RolloutRequest, RolloutStatus};
use fairlead_crds::model_route::{ModelRoute, ModelRouteStatus};
use fairlead_rollout::machine::{Decision, Observation, Phase, Reason, Request, State, decide};
use fairlead_rollout::plan::{OnUndecided, Plan, Step};
use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::dereference::Dereferenced;
use super::validate;
use crate::error::Error;

/// Time between two looks, where steps are not shorter.
const INTERVAL: Duration = Duration::from_secs(10);
/// A step is looked at this often at most.
const SHORTEST: Duration = Duration::from_secs(1);

/// What is decided of a route's canary now.
///
/// # Errors
/// [`Error::Invalid`] for a canary that cannot be followed; what was decided before stays.
pub fn advance(
    object: &ModelRoute,
    before: &ModelRouteStatus,
    found: &Dereferenced,
    now: Timestamp,
) -> Result<(Option<RolloutStatus>, Option<Duration>), Error> {
    let plan = object.spec.canary.as_ref().map(|canary| plan(object, canary)).transpose()?;
    let state = before.rollout.as_ref().map(|rollout| &rollout.state);
    if plan.is_none() && state.is_none() {
        return Ok((None, None));
    }
    let request = before.request.as_ref().map(|RolloutRequest { id, action, canary }| Request {
        id: id.clone(),
        action: *action,
        canary: canary.clone(),
    });
    let seen = Observation { canary_ready: canary_ready(object, found), ..Observation::default() };
    let stable = object.stable_in_spec();
    let Decision { state, judgements: _, refused, next } =
        decide(plan.as_ref(), &stable, state, &seen, request.as_ref(), now);
    let told = before.rollout.as_ref().filter(|rollout| rollout.state.handled == state.handled);
    // A refusal is shown until the next request or the next move.
    let kept = told
        .filter(|rollout| rollout.state.phase == state.phase)
        .and_then(|rollout| rollout.message.clone().filter(|message| message.starts_with(REFUSED)));
    let message = refused
        .map(|why| format!("{REFUSED}{why}"))
        .or(kept)
        .or_else(|| plan.as_ref().map(|plan| words(plan, &state)));
    let progress = plan
        .as_ref()
        .filter(|_| matches!(state.phase, Phase::Progressing | Phase::Paused))
        .map(|plan| format!("{}/{}", state.step + 1, plan.steps.len()));
    Ok((Some(RolloutStatus { state, progress, message }), next))
}

const REFUSED: &str = "the last request was refused: ";

/// The plan of a canary.
///
/// # Errors
/// [`Error::Invalid`] naming the field; the schema refuses most of it before.
fn plan(object: &ModelRoute, canary: &Canary) -> Result<Plan, Error> {
    let Canary { backend, steps, paused } = canary;
    let own = object.spec.backends.iter().find(|known| known.name == *backend);
    match own {
        None => {
            return Err(invalid(format!(
                "backend: there is no backend {backend} in spec.backends; name one of them"
            )));
        }
        Some(own) if own.weight.is_some_and(|weight| weight > 0) => {
            let remedy = "what the canary takes it takes from the others; leave its weight out";
            return Err(invalid(format!("backend: {backend} has a weight of its own; {remedy}")));
        }
        Some(_) => {}
    }
    let stable = object.stable_in_spec();
    if stable.is_empty() {
        return Err(invalid(
            "needs a backend to be compared with; give another of spec.backends a weight above 0",
        ));
    }
    if steps.is_empty() {
        return Err(invalid("steps is empty; give at least one step"));
    }
    let mut made: Vec<Step> = Vec::with_capacity(steps.len());
    for (index, step) in steps.iter().enumerate() {
        let at = format!("steps[{index}]");
        if !(1..=99).contains(&step.weight) || made.last().is_some_and(|last| last.weight >= step.weight) {
            let remedy = "each step takes more than the one before, from 1 to 99; after the last the canary gets everything";
            return Err(invalid(format!("{at}.weight is {}; {remedy}", step.weight)));
        }
        let hold = step.hold.parse::<SignedDuration>().ok().and_then(|hold| Duration::try_from(hold).ok());
        let Some(hold) = hold else {
            return Err(invalid(format!(
                "{at}.hold is {:?}; write hours, minutes and seconds, such as 10m",
                step.hold
            )));
        };
        made.push(Step { weight: step.weight, hold });
    }
    let shortest = made.iter().map(|step| step.hold).min().unwrap_or(INTERVAL);
    Ok(Plan {
        fingerprint: object.rollout_fingerprint(),
        canary: backend.clone(),
        stable,
        steps: made,
        interval: shortest.clamp(SHORTEST, INTERVAL),
        min_requests: 0,
        failure_limit: 1,
        alpha: 0.05,
        on_undecided: OnUndecided::Pause,
        gates: Vec::new(),
        paused: *paused,
    })
}

fn invalid(message: impl std::fmt::Display) -> Error {
    Error::invalid(stalled::INVALID_SPEC, format!("spec.canary.{message}"))
}

/// Whether the canary's ModelDeployment has pods that serve.
fn canary_ready(object: &ModelRoute, found: &Dereferenced) -> bool {
    let Some(canary) = &object.spec.canary else { return false };
    let backend = object.spec.backends.iter().find(|backend| backend.name == canary.backend);
    let name = backend.and_then(|backend| backend.model_deployment.as_deref()).unwrap_or_default();
    found.deployments.get(name).is_some_and(|deployment| validate::not_ready(deployment).is_none())
}

/// What the rollout does, and how to change that.
fn words(plan: &Plan, state: &State) -> String {
    let State { canary, stable, weight, .. } = state;
    let under_way = || {
        let hold = plan.step(state.step).map(|step| step.hold).unwrap_or_default();
        let then =
            if plan.is_last(state.step) { "everything".to_owned() } else { "the next step".to_owned() };
        format!("{canary} has {weight} % beside {stable} for {} and then {then}", seconds(hold))
    };
    match (state.phase, state.reason) {
        (Phase::Idle, _) => "there is no canary".to_owned(),
        (Phase::Progressing, Reason::CanaryNotReady) => {
            format!("waits for a pod of {canary} that serves; its {weight} % go to {stable} until then")
        }
        (Phase::Progressing, _) => under_way(),
        (Phase::Paused, Reason::PausedInSpec) => {
            format!("{canary} stays at {weight} %: paused by spec.canary.paused; set it to false to go on")
        }
        (Phase::Paused, _) => {
            format!("{canary} stays at {weight} %: a person paused it; ask to resume, promote or abort")
        }
        (Phase::Promoted, reason) => {
            let why = if reason == Reason::Requested { "as was asked" } else { "after its last step" };
            format!(
                "{canary} has everything, {why}; give it the weight in spec.backends and remove spec.canary"
            )
        }
        (Phase::RolledBack, _) => {
            format!("{canary} has nothing: taken back as was asked; ask to retry, or change spec.canary")
        }
    }
}

fn seconds(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s}s"),
        (0, m, 0) => format!("{m}m"),
        (0, m, s) => format!("{m}m{s}s"),
        (h, m, 0) => format!("{h}h{m}m"),
        (h, m, s) => format!("{h}h{m}m{s}s"),
    }
}
