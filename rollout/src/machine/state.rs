//! What a rollout remembers, what it is told and what it may be: the data of the state machine.

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::de::{Deserializer, IgnoredAny};
use serde::{Deserialize, Serialize};

use crate::counts::Counts;
use crate::finding::Finding;
use crate::gate::External;

/// Where a rollout is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Phase {
    /// There is no canary.
    #[default]
    Idle,
    /// The canary has its step's weight, and time and gates decide.
    Progressing,
    /// It keeps its weight and does not grow.
    Paused,
    /// It has all traffic.
    Promoted,
    /// It has none.
    RolledBack,
}

/// Why a rollout is where it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Reason {
    /// There is no canary in the spec.
    #[default]
    NoCanary,
    /// A step has begun and lasts.
    Holding,
    /// The canary has no pod that serves.
    CanaryNotReady,
    /// A gate has fewer requests than it is judged on.
    TooFewRequests,
    /// A gateway could not be asked what it has counted: a canary may be taken back, and does not grow.
    GatewaysNotRead,
    /// A gate could not be measured: a query failed or gave nothing, an Evaluation has not run.
    GateNotMeasured,
    /// A gate failed, not yet as often as the limit.
    GateFailing,
    /// A gate failed as often as the limit.
    GateFailed,
    /// The last step is over and a gate is undecided.
    Undecided,
    /// Every gate passed at the last step.
    GatesPassed,
    /// Time alone was asked for, and it is over.
    StepsDone,
    /// The spec says `paused`.
    PausedInSpec,
    /// A person asked for it.
    Requested,
    /// The backend was promoted by an earlier plan and stands.
    AlreadyPromoted,
    /// The canary had no pod that serves for as long as the deadline allows.
    NotReadyInTime,
}

impl Reason {
    /// Every reason.
    pub const ALL: [Self; 15] = [
        Self::NoCanary,
        Self::Holding,
        Self::CanaryNotReady,
        Self::TooFewRequests,
        Self::GatewaysNotRead,
        Self::GateNotMeasured,
        Self::GateFailing,
        Self::GateFailed,
        Self::Undecided,
        Self::GatesPassed,
        Self::StepsDone,
        Self::PausedInSpec,
        Self::Requested,
        Self::AlreadyPromoted,
        Self::NotReadyInTime,
    ];
}

/// What a person asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Action {
    /// Give the canary everything now.
    Promote,
    /// Take it back now.
    Abort,
    /// Keep it where it is.
    Pause,
    /// Go on.
    Resume,
    /// Begin again after a rollback.
    Retry,
}

/// A person's request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Request {
    /// Another for every request; one is acted on once.
    pub id: String,
    /// What is asked for.
    pub action: Action,
    /// Of which canary: a request that was written for one backend says nothing of the next.
    pub canary: String,
}

/// What was seen since the last decision.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observation {
    /// Whether the canary has a pod that serves.
    pub canary_ready: bool,
    /// What the canary's pods serve, where known. When it changes under way the rollout begins again.
    pub canary_revision: Option<String>,
    /// The same of stable. When it changes the step begins again: there is another to compare with.
    pub stable_revision: Option<String>,
    /// Whether gateways and others were asked: see [`super::due`]. Without, no gate is looked at.
    pub asked: bool,
    /// The epoch that the counts are of; those of another are not judged.
    pub epoch: u64,
    /// What gateways counted of the canary in that epoch.
    pub canary: Counts,
    /// The same of stable.
    pub stable: Counts,
    /// What they counted of the canary since an interval began, by its number: see [`crate::stretch`].
    pub recent_canary: BTreeMap<i64, Counts>,
    /// The same of stable.
    pub recent_stable: BTreeMap<i64, Counts>,
    /// The gateways that could not be read, each with why.
    pub unread: Vec<String>,
    /// What others found, by the place of the gate in the plan.
    pub external: BTreeMap<usize, External>,
}

/// One line of what happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// When.
    pub at: Timestamp,
    /// The canary.
    pub canary: String,
    /// Where it was then.
    pub phase: Phase,
    /// And why.
    #[serde(deserialize_with = "lenient")]
    pub reason: Reason,
    /// Its weight in percent from then on.
    pub weight: u32,
    /// The gate that failed and its numbers, or what else there is to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// A plan that has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Ended {
    /// Its fingerprint.
    pub fingerprint: String,
    /// `Promoted` or `RolledBack`.
    pub phase: Phase,
    /// Why it ended so.
    #[serde(deserialize_with = "lenient")]
    pub reason: Reason,
}

/// All that has to be remembered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct State {
    /// Of the plan that the rest speaks of.
    pub fingerprint: String,
    /// Where it is.
    pub phase: Phase,
    /// Why.
    #[serde(deserialize_with = "lenient")]
    pub reason: Reason,
    /// The backend that is tried.
    pub canary: String,
    /// What it is compared with: the spec's stable backend, or the one that was promoted last.
    pub stable: String,
    /// Counted from zero.
    pub step: u32,
    /// The canary's share in percent.
    pub weight: u32,
    /// When the step began.
    pub step_began: Timestamp,
    /// Another whenever counting begins anew, with every step and every retry. Never used again.
    pub epoch: u64,
    /// Whether the canary has had a pod that serves in this step; the step's time counts from then.
    pub served: bool,
    /// Since when the canary has had no pod that serves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unready_since: Option<Timestamp>,
    /// What the canary's pods served when its step began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub canary_revision: Option<String>,
    /// The same of stable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stable_revision: Option<String>,
    /// When the gates were looked at last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub looked: Option<Timestamp>,
    /// Looks in a row at which a gate failed.
    pub failures: u32,
    /// What the gates said at the last look.
    #[serde(deserialize_with = "lenient", skip_serializing_if = "Vec::is_empty")]
    pub analysis: Vec<Finding>,
    /// What the last look lacked, in words: gateways that could not be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lacking: Option<String>,
    /// Whether a person asked to pause, and has not asked to go on.
    pub paused_by_request: bool,
    /// The last request that was acted on or refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub handled: Option<String>,
    /// The last promoted backend and the stable one of the spec at that time: as long as the spec names the same, what was promoted is
    /// what stands.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub promoted: Option<Promotion>,
    /// What has ended, the latest last.
    pub ended: Vec<Ended>,
    /// What happened, the latest last.
    pub history: Vec<Entry>,
}

/// A canary that became what stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Promotion {
    /// The backend that was promoted.
    pub backend: String,
    /// The backend that the spec called stable then.
    pub over: String,
}

/// A gateway of an older version must go on following the weights that a newer operator decides, for reasons it has never heard of.
fn lenient<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Lenient<T> {
        Known(T),
        Other(IgnoredAny),
    }
    Ok(match Lenient::deserialize(from)? {
        Lenient::Known(value) => value,
        Lenient::Other(_) => T::default(),
    })
}
