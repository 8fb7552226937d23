//! A route's canary: from what is seen to a decision, and what people are told of it. Pure; the rules are in
//! `fairlead_rollout::machine`.

use std::time::Duration;

use fairlead_crds::model_route::canary::{REFUSED, RolloutRequest, RolloutStatus};
use fairlead_crds::model_route::{ModelRoute, ModelRouteStatus};
use fairlead_rollout::machine::{Decision, Observation, Phase, Reason, Request, State, decide};
use fairlead_rollout::{Plan, Verdict};
use k8s_openapi::jiff::Timestamp;

/// What is decided of a route's canary now, and when to look again.
pub fn advance(
    object: &ModelRoute,
    before: &ModelRouteStatus,
    plan: Option<&Plan>,
    seen: &Observation,
    now: Timestamp,
) -> (Option<RolloutStatus>, Option<Duration>) {
    let mut state = before.rollout.as_ref().map(|rollout| rollout.state.clone());
    // A backend that was promoted and is no more in the spec stands no more: the spec's weights are in force.
    if let Some(state) = &mut state {
        let is_there = |name: &str| object.spec.backends.iter().any(|backend| backend.name == name);
        state.promoted = state.promoted.take().filter(|promoted| is_there(&promoted.backend));
    }
    let state = state.as_ref();
    if plan.is_none() && state.is_none() {
        return (None, None);
    }
    let request = before.request.as_ref().map(|RolloutRequest { id, action, canary }| Request {
        id: id.clone(),
        action: *action,
        canary: canary.clone(),
    });
    let stable = object.stable_in_spec();
    let Decision { state, judgements: _, refused, next } =
        decide(plan, &stable, state, seen, request.as_ref(), now);
    let told = before.rollout.as_ref().filter(|rollout| rollout.state.handled == state.handled);
    // A refusal is shown until the next request or the next move.
    let kept = told
        .filter(|rollout| rollout.state.phase == state.phase)
        .and_then(|rollout| rollout.message.clone().filter(|message| message.starts_with(REFUSED)));
    let message = refused
        .map(|why| format!("{REFUSED}{why}"))
        .or(kept)
        .or_else(|| plan.map(|plan| words(plan, &state)));
    let progress = plan
        .filter(|_| matches!(state.phase, Phase::Progressing | Phase::Paused))
        .map(|plan| format!("{}/{}", state.step + 1, plan.steps.len()));
    (Some(RolloutStatus { state, progress, message }), next)
}

/// What the rollout does, and how to change that.
fn words(plan: &Plan, state: &State) -> String {
    let State { canary, stable, weight, .. } = state;
    let stays = format!("{canary} stays at {weight} %");
    match (state.phase, state.reason) {
        (Phase::Idle, _) => "there is no canary".to_owned(),
        (Phase::Progressing | Phase::Paused, Reason::CanaryNotReady) => {
            let within = plan.progress_deadline.map_or_else(String::new, |deadline| {
                format!("; without one for {} it is taken back", time(deadline))
            });
            format!(
                "waits for a pod of {canary} that serves; its {weight} % go to {stable} until then{within}"
            )
        }
        (Phase::Progressing | Phase::Paused, Reason::TooFewRequests) => {
            format!("{stays}: too little traffic to judge it; {}", found(state, Verdict::TooFewRequests))
        }
        (Phase::Progressing | Phase::Paused, Reason::GatewaysNotRead) => {
            let lacking = state.lacking.as_deref().unwrap_or("a gateway cannot be read");
            format!("{stays} until every gateway has told what it counted: {lacking}")
        }
        (Phase::Progressing | Phase::Paused, Reason::GateNotMeasured) => {
            format!("{stays} until every gate is measured; {}", found(state, Verdict::NotMeasured))
        }
        (Phase::Progressing | Phase::Paused, Reason::GateFailing) => {
            let (failures, limit) = (state.failures, plan.failure_limit);
            let failed = found(state, Verdict::Fail);
            format!(
                "{canary} has {weight} % and failed {failures} of {limit} looks that take it back; {failed}"
            )
        }
        (Phase::Progressing, _) => {
            let hold = plan.step(state.step).map(|step| step.hold).unwrap_or_default();
            let then = if plan.is_last(state.step) { "everything" } else { "the next step" };
            let gates = if plan.gates.is_empty() { "" } else { ", unless a gate fails" };
            format!("{canary} has {weight} % beside {stable} for {} and then {then}{gates}", time(hold))
        }
        (Phase::Paused, Reason::PausedInSpec) => {
            format!("{stays}: paused by spec.canary.paused; set it to false to go on")
        }
        (Phase::Paused, Reason::Undecided) => {
            let undecided = found(state, Verdict::Undecided);
            format!(
                "{stays}: its last step is over and it is not clear that it keeps every gate; more requests may tell, or ask to \
                     promote or abort; {undecided}"
            )
        }
        (Phase::Paused, _) => format!("{stays}: a person paused it; ask to resume, promote or abort"),
        (Phase::Promoted, reason) => {
            let why = match reason {
                Reason::Requested => "as was asked",
                Reason::GatesPassed => "as every gate passed",
                Reason::Undecided => "as no gate failed (onUndecided: Promote)",
                Reason::AlreadyPromoted => "as before: it was promoted already",
                _ => "after its last step",
            };
            format!(
                "{canary} has everything, {why}; give it the weight in spec.backends and remove spec.canary"
            )
        }
        (Phase::RolledBack, reason) => {
            let why = match reason {
                Reason::GateFailed => format!("a gate failed: {}", found(state, Verdict::Fail)),
                Reason::Undecided => {
                    format!(
                        "a gate was undecided (onUndecided: RollBack): {}",
                        found(state, Verdict::Undecided)
                    )
                }
                Reason::NotReadyInTime => {
                    let deadline = plan.progress_deadline.map_or_else(String::new, time);
                    format!("it had no pod that serves for {deadline} (spec.canary.progressDeadline)")
                }
                _ => "as was asked".to_owned(),
            };
            format!("{canary} has nothing: taken back, {why}; ask to retry, or change spec.canary")
        }
    }
}

/// What was found of the gates with a verdict, in words that fit an event.
fn found(state: &State, verdict: Verdict) -> String {
    let findings = state.analysis.iter().filter(|finding| finding.verdict == verdict);
    let text = findings.map(|finding| finding.message.as_str()).collect::<Vec<_>>().join("; ");
    if text.is_empty() {
        // A status that was restored without it, or that this version cannot read.
        return "see status.rollout.history".to_owned();
    }
    match text.char_indices().nth(600) {
        Some((cut, _)) => format!("{}…", &text[..cut]),
        None => text,
    }
}

fn time(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s}s"),
        (0, m, 0) => format!("{m}m"),
        (0, m, s) => format!("{m}m{s}s"),
        (h, 0, 0) => format!("{h}h"),
        (h, m, 0) => format!("{h}h{m}m"),
        (h, m, s) => format!("{h}h{m}m{s}s"),
    }
}
