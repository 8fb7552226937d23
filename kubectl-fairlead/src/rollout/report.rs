//! Where a rollout is, put together from a route and the time. Pure. What `-o json` prints, and what the text is made of.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use crate::route::{Entry, Rollout, Route, Step};

use super::gates::GateReport;

/// Where a rollout is.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// The route's namespace.
    pub namespace: String,
    /// The route's name.
    pub route: String,
    /// What clients send.
    pub model: String,
    /// `Idle`, `Progressing`, `Paused`, `Promoted`, `RolledBack`, or `Pending` where the operator has not looked yet.
    pub phase: String,
    /// Why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// In words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The backend that is tried.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub canary: Option<String>,
    /// What it is compared with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stable: Option<String>,
    /// The canary's share in percent.
    pub weight: u32,
    /// The steps, while under way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<Steps>,
    /// Where requests go.
    pub split: Vec<Share>,
    /// What the gates say.
    pub gates: Vec<GateReport>,
    /// What happened, the latest last.
    pub history: Vec<Moment>,
    /// Why the operator cannot act on the route.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stalled: Option<String>,
}

/// How far the steps are.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Steps {
    /// The step, counted from one.
    pub number: usize,
    /// Every step's weight in percent.
    pub weights: Vec<u32>,
    /// Every step's hold.
    pub hold_seconds: Vec<u64>,
    /// How long the step has been held; none while it has not begun.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held_seconds: Option<u64>,
    /// How long it will be held yet, at least.
    pub left_seconds: u64,
    /// How long until everything is held, at least.
    pub all_left_seconds: u64,
}

/// A backend's share.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Share {
    /// The backend.
    pub backend: String,
    /// Percent.
    pub percent: f64,
}

/// One line of the history.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Moment {
    /// When.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<Timestamp>,
    /// The canary.
    pub canary: String,
    /// Where it was then.
    pub phase: String,
    /// Why.
    pub reason: String,
    /// Percent from then on.
    pub weight: u32,
}

/// How a rollout stands for whoever waits for its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It goes on.
    UnderWay,
    /// The canary has everything, or there is none.
    Done,
    /// It was taken back.
    Failed,
}

impl Report {
    /// What is known of a route's rollout at `now`.
    pub fn of(route: &Route, now: Timestamp) -> Self {
        let Route { metadata, spec, status } = route;
        let planned = spec.canary.as_ref();
        let rollout = status.rollout.as_ref();
        let mut report = Self {
            namespace: metadata.namespace.clone(),
            route: metadata.name.clone(),
            model: route.model().to_owned(),
            canary: planned.map(|canary| canary.backend.clone()),
            split: shares(route),
            stalled: route.stalled().map(|condition| condition.message.clone()),
            ..Self::default()
        };
        // What the operator has decided on another spec says nothing of this one.
        let current = rollout.filter(|rollout| match planned {
            Some(canary) => canary.backend == rollout.canary && rollout.phase != "Idle",
            None => true,
        });
        let Some(rollout) = current else {
            report.phase = if planned.is_some() { "Pending" } else { "Idle" }.to_owned();
            report.message = Some(
                if planned.is_some() {
                    "the operator has not looked at this canary yet"
                } else {
                    "there is no canary"
                }
                .to_owned(),
            );
            report.history = rollout.map(history).unwrap_or_default();
            return report;
        };
        report.phase.clone_from(&rollout.phase);
        report.reason = Some(rollout.reason.clone());
        report.message.clone_from(&rollout.message);
        report.stable = Some(rollout.stable.clone()).filter(|stable| !stable.is_empty());
        report.weight = rollout.weight;
        report.history = history(rollout);
        if planned.is_some() && report.standing() == Standing::UnderWay {
            report.steps = planned.map(|canary| steps(&canary.steps, rollout, now));
        }
        report.gates = GateReport::all(route, rollout);
        report
    }

    /// How it stands.
    pub fn standing(&self) -> Standing {
        match self.phase.as_str() {
            "Promoted" | "Idle" => Standing::Done,
            "RolledBack" => Standing::Failed,
            _ => Standing::UnderWay,
        }
    }
}

fn shares(route: &Route) -> Vec<Share> {
    let shares = route.status.effective_split.iter();
    shares
        .filter_map(|share| Some(Share { backend: share.backend.clone(), percent: share.percent? }))
        .collect()
}

fn history(rollout: &Rollout) -> Vec<Moment> {
    let moment = |entry: &Entry| Moment {
        at: entry.at,
        canary: entry.canary.clone(),
        phase: entry.phase.clone(),
        reason: entry.reason.clone(),
        weight: entry.weight,
    };
    rollout.history.iter().map(moment).collect()
}

fn steps(steps: &[Step], rollout: &Rollout, now: Timestamp) -> Steps {
    let holds: Vec<Duration> = steps.iter().map(|step| hold(&step.hold)).collect();
    let hold = holds.get(rollout.step).copied().unwrap_or_default();
    // A step's time begins with the canary's first pod.
    let began = rollout.step_began.filter(|_| rollout.served);
    let held = began.map(|began| Duration::try_from(now.duration_since(began)).unwrap_or_default());
    let left = hold.saturating_sub(held.unwrap_or_default());
    let later: Duration = holds.iter().skip(rollout.step + 1).sum();
    Steps {
        number: rollout.step + 1,
        weights: steps.iter().map(|step| step.weight).collect(),
        hold_seconds: holds.iter().map(Duration::as_secs).collect(),
        held_seconds: held.map(|held| held.as_secs()),
        left_seconds: left.as_secs(),
        all_left_seconds: (left + later).as_secs(),
    }
}

fn hold(text: &str) -> Duration {
    text.parse::<SignedDuration>().ok().and_then(|hold| hold.try_into().ok()).unwrap_or_default()
}
