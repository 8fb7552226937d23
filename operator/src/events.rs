//! Events: what `kubectl describe` tells of an object's past. One for each transition of its `Ready` condition and of what gateways say of
//! its providers, each move of a canary, each run of an Evaluation; the reasons are those of `fairlead_crds::condition`, so that conditions and
//! Events can be searched for alike. Pure; [`crate::recorder`] publishes them.

use fairlead_crds::condition::{PROVIDERS_REACHABLE, READY, STALLED, evaluation, rollout};
use fairlead_crds::evaluation::{EvaluationResult, Outcome};
use fairlead_crds::model_route::canary::RolloutStatus;
use fairlead_rollout::machine::Entry;
use fairlead_rollout::{Phase, Reason};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::runtime::events::{Event, EventType};

/// The action of every event of ours: events are about reconciling.
const ACTION: &str = "Reconcile";

/// The longest note that an API server takes.
const LONGEST_NOTE: usize = 1024;

/// The event that a change of conditions deserves, if any: when `Ready`'s status or reason has changed.
pub fn transition(before: &[Condition], after: &[Condition]) -> Option<Event> {
    let find =
        |conditions: &[Condition], wanted: &str| conditions.iter().find(|it| it.type_ == wanted).cloned();
    let ready = find(after, READY)?;
    if find(before, READY).is_some_and(|old| old.status == ready.status && old.reason == ready.reason) {
        return None;
    }
    let type_ = if find(after, STALLED).is_some() { EventType::Warning } else { EventType::Normal };
    Some(event(type_, ready.reason, &ready.message))
}

/// The event that a change of what gateways say of a route's providers deserves. That all is well is told only of those that were not.
pub fn providers(before: &[Condition], after: &[Condition]) -> Option<Event> {
    let find =
        |conditions: &[Condition]| conditions.iter().find(|it| it.type_ == PROVIDERS_REACHABLE).cloned();
    let (before, after) = (find(before), find(after)?);
    let type_ = if after.status == "True" { EventType::Normal } else { EventType::Warning };
    match before {
        Some(before) if before.status == after.status && before.reason == after.reason => None,
        None if after.status == "True" => None,
        _ => Some(event(type_, after.reason, &after.message)),
    }
}

/// The event that the end of a run deserves.
pub fn evaluated(result: &EvaluationResult) -> Event {
    let (type_, reason) = match result.outcome {
        Outcome::Completed => (EventType::Normal, evaluation::SCORED),
        Outcome::Failed => (EventType::Warning, evaluation::RUN_FAILED),
    };
    event(type_, reason.to_owned(), &crate::evaluation::status::in_words(result))
}

/// The event of a move of a canary. `message`: what the status says of it, where it still does.
pub fn moved(entry: &Entry, message: Option<&str>) -> Event {
    let Entry { at: _, canary, phase, reason: why, weight, detail } = entry;
    let (type_, reason) = match phase {
        Phase::Idle => (EventType::Normal, rollout::CANARY_REMOVED),
        Phase::Progressing => (EventType::Normal, rollout::CANARY_STEP),
        Phase::Paused => (EventType::Normal, rollout::CANARY_PAUSED),
        Phase::Promoted => (EventType::Normal, rollout::CANARY_PROMOTED),
        Phase::RolledBack => (EventType::Warning, rollout::CANARY_ROLLED_BACK),
    };
    let of_history = || {
        let detail = detail.as_ref().map_or_else(String::new, |detail| format!(": {detail}"));
        format!("{canary} has {weight} % ({why:?}){detail}")
    };
    event(type_, reason.to_owned(), &message.map_or_else(of_history, str::to_owned))
}

/// The event that a canary deserves which has not moved and has begun to lack something.
pub fn lacks(before: Option<&RolloutStatus>, after: Option<&RolloutStatus>) -> Option<Event> {
    let (before, after) = (before?, after?);
    let seen =
        |rollout: &RolloutStatus| (rollout.state.phase, rollout.state.weight, rollout.state.canary.clone());
    if seen(before) != seen(after) || before.state.reason == after.state.reason {
        return None;
    }
    let (type_, reason) = match after.state.reason {
        Reason::GateFailing => (EventType::Warning, rollout::CANARY_FAILING),
        Reason::CanaryNotReady
        | Reason::TooFewRequests
        | Reason::GatewaysNotRead
        | Reason::GateNotMeasured
        | Reason::Undecided => (EventType::Normal, rollout::CANARY_WAITING),
        _ => return None,
    };
    Some(event(type_, reason.to_owned(), after.message.as_deref().unwrap_or_default()))
}

fn event(type_: EventType, reason: String, message: &str) -> Event {
    let note = message.chars().scan(0, |bytes, c| {
        *bytes += c.len_utf8();
        (*bytes <= LONGEST_NOTE).then_some(c)
    });
    Event { type_, reason, note: Some(note.collect()), action: ACTION.to_owned(), secondary: None }
}
