//! The rollout's state machine: what was decided, what was seen, what a person asks and the time, to what is decided now.
//!
//! Owns: every move of a canary. Must not: read a clock, sum up counts, write anything. Called by the operator, which keeps the
//! state in the route's status and shows it, and does as it says.
//!
//! Rules, whatever is seen or asked for:
//! - a step ends only after its hold, at a look that judged every gate, and none failed;
//! - the canary gets the step's weight and no more, 100 after promotion alone, 0 after a rollback;
//! - a gate that fails is acted on while paused too: a pause keeps a canary from growing, not from being taken back;
//! - what has ended stays so until the plan changes or a person asks to retry, and a plan that has ended once is known again.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::gate::{Counts, Judgement, Verdict};
use crate::plan::{OnUndecided, Plan};

/// How many entries of history, and how many ended plans, are kept.
const KEPT: usize = 20;
/// The shortest time to the next decision.
const SOON: Duration = Duration::from_millis(100);

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
    /// The epoch that the counts are of; those of another are not judged.
    pub epoch: u64,
    /// What gateways counted of the canary in that epoch.
    pub canary: Counts,
    /// The same of stable.
    pub stable: Counts,
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
    pub reason: Reason,
    /// Its weight in percent from then on.
    pub weight: u32,
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
    /// When the gates were looked at last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub looked: Option<Timestamp>,
    /// Looks in a row at which a gate failed.
    pub failures: u32,
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

/// What was decided, and what it was decided on.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// To be remembered.
    pub state: State,
    /// What the gates say; empty where they were not looked at.
    pub judgements: Vec<Judgement>,
    /// A request that could not be followed, in words.
    pub refused: Option<String>,
    /// When to decide again at the latest.
    pub next: Option<Duration>,
}

/// Decides. `plan`: `None` where the spec has no canary; `stable`: what stands by the spec, as in the plan; `request`: the latest,
/// whether it was acted on or not.
pub fn decide(
    plan: Option<&Plan>,
    stable: &str,
    before: Option<&State>,
    seen: &Observation,
    request: Option<&Request>,
    now: Timestamp,
) -> Decision {
    let mut state = before.cloned().unwrap_or_default();
    // Whoever changes what stands has taken the promotion over, or taken it back.
    state.promoted = state.promoted.filter(|promoted| promoted.over == stable);
    let request = request.filter(|request| state.handled.as_ref() != Some(&request.id));
    let Some(plan) = plan else { return without_canary(state, stable, request, now) };
    let mut deciding = Deciding { plan, seen, now, judgements: Vec::new(), refused: None };
    if state.phase == Phase::Idle || state.fingerprint != plan.fingerprint {
        deciding.begin(&mut state);
    }
    if let Some(request) = request {
        deciding.obey(&mut state, request);
    }
    if matches!(state.phase, Phase::Progressing | Phase::Paused) {
        deciding.go_on(&mut state);
    }
    let next = matches!(state.phase, Phase::Progressing | Phase::Paused).then(|| deciding.until_next(&state));
    let Deciding { judgements, refused, .. } = deciding;
    Decision { state, judgements, refused, next }
}

/// The spec has no canary, or no longer. What stands by the spec has everything.
fn without_canary(mut state: State, stable: &str, request: Option<&Request>, now: Timestamp) -> Decision {
    stable.clone_into(&mut state.stable);
    if state.phase != Phase::Idle {
        state.fingerprint.clear();
        state.weight = 0;
        state.paused_by_request = false;
        enter(&mut state, Phase::Idle, Reason::NoCanary, now);
    }
    // Not kept for the next canary.
    let refused = request.map(|request| {
        state.handled = Some(request.id.clone());
        format!("there is no canary to {:?}", request.action)
    });
    Decision { state, judgements: Vec::new(), refused, next: None }
}

/// What one decision is made with.
struct Deciding<'a> {
    plan: &'a Plan,
    seen: &'a Observation,
    now: Timestamp,
    judgements: Vec<Judgement>,
    refused: Option<String>,
}

impl Deciding<'_> {
    /// A plan that is new, or that has ended once and is back.
    fn begin(&mut self, state: &mut State) {
        let plan = self.plan;
        state.fingerprint.clone_from(&plan.fingerprint);
        state.canary.clone_from(&plan.canary);
        state.stable.clone_from(&plan.stable);
        // Git may still name what stood before the last promotion.
        if let Some(Promotion { backend, over }) = &state.promoted
            && *over == plan.stable
            && *backend != plan.canary
        {
            state.stable.clone_from(backend);
        }
        state.paused_by_request = false;
        let promoted = Promotion { backend: plan.canary.clone(), over: plan.stable.clone() };
        // What stands already is not tried once more: that would give most of its traffic back to what it replaced.
        if state.promoted.as_ref() == Some(&promoted) {
            state.weight = 100;
            return self.end(state, Phase::Promoted, Reason::AlreadyPromoted);
        }
        let known = state.ended.iter().find(|ended| ended.fingerprint == plan.fingerprint);
        let Some(Ended { phase, reason, .. }) = known.cloned() else {
            return self.begin_step(state, 0);
        };
        state.weight = 0;
        if phase == Phase::Promoted {
            state.weight = 100;
            state.promoted = Some(promoted);
        }
        enter(state, phase, reason, self.now);
    }

    fn begin_step(&mut self, state: &mut State, step: u32) {
        state.step = step;
        state.weight = self.plan.step(step).map_or(0, |step| step.weight);
        state.step_began = self.now;
        state.epoch += 1;
        state.served = self.seen.canary_ready;
        state.looked = None;
        state.failures = 0;
        let phase = if self.pauses(state) { Phase::Paused } else { Phase::Progressing };
        enter(state, phase, Reason::Holding, self.now);
    }

    fn pauses(&self, state: &State) -> bool {
        self.plan.paused || state.paused_by_request
    }

    fn obey(&mut self, state: &mut State, request: &Request) {
        state.handled = Some(request.id.clone());
        let under_way = matches!(state.phase, Phase::Progressing | Phase::Paused);
        if request.canary != state.canary {
            self.refused = Some(format!("it was for {}, and the canary is {}", request.canary, state.canary));
            return;
        }
        match request.action {
            Action::Promote if under_way && !self.seen.canary_ready => {
                self.refused =
                    Some(format!("{} has no pod that serves: wait for one, or abort", state.canary));
            }
            Action::Promote if under_way => self.promote(state, Reason::Requested),
            Action::Abort if under_way => self.roll_back(state, Reason::Requested),
            Action::Pause if under_way => state.paused_by_request = true,
            Action::Resume if under_way && self.plan.paused => {
                self.refused =
                    Some("the rollout is paused by spec.canary.paused: set that to false".to_owned());
            }
            Action::Resume if under_way && !state.paused_by_request => {
                self.refused = Some("nobody has paused the rollout: ask to promote or to abort".to_owned());
            }
            Action::Resume if under_way => state.paused_by_request = false,
            Action::Retry if state.phase == Phase::RolledBack => {
                state.ended.retain(|ended| ended.fingerprint != state.fingerprint);
                state.paused_by_request = false;
                self.begin_step(state, 0);
            }
            action => {
                self.refused = Some(format!("a rollout that is {:?} has nothing to {action:?}", state.phase));
            }
        }
    }

    /// Looks at the gates when it is time, and moves.
    fn go_on(&mut self, state: &mut State) {
        // A clock that was set back must not make a step last for ever.
        state.step_began = state.step_began.min(self.now);
        state.looked = state.looked.map(|looked| looked.min(self.now));
        if !state.served {
            // The step's time begins with the first pod that serves, and what is counted with it.
            (state.step_began, state.served) = (self.now, self.seen.canary_ready);
            if !state.served {
                return self.wait(state, Reason::CanaryNotReady);
            }
            state.epoch += 1;
        }
        if self.until_look(state) > SignedDuration::ZERO {
            return self.wait(state, self.holding(state));
        }
        state.looked = Some(self.now);
        self.judge(state);
        if self.any(Verdict::Fail) {
            state.failures += 1;
            if state.failures >= self.plan.failure_limit {
                return self.roll_back(state, Reason::GateFailed);
            }
            return self.wait(state, Reason::GateFailing);
        }
        let held = self.until_held(state) <= SignedDuration::ZERO;
        if self.any(Verdict::TooFewRequests) {
            return self.wait(state, if held { Reason::TooFewRequests } else { Reason::Holding });
        }
        state.failures = 0;
        // Whoever has lost its pods may be judged, and grows no further.
        if !self.seen.canary_ready {
            return self.wait(state, Reason::CanaryNotReady);
        }
        if !held || self.pauses(state) {
            return self.wait(state, Reason::Holding);
        }
        if !self.plan.is_last(state.step) {
            return self.begin_step(state, state.step + 1);
        }
        if !self.any(Verdict::Undecided) {
            let reason = if self.plan.gates.is_empty() { Reason::StepsDone } else { Reason::GatesPassed };
            return self.promote(state, reason);
        }
        match self.plan.on_undecided {
            OnUndecided::Promote => self.promote(state, Reason::Undecided),
            OnUndecided::RollBack => self.roll_back(state, Reason::Undecided),
            // The looks go on: more requests may decide.
            OnUndecided::Pause => enter(state, Phase::Paused, Reason::Undecided, self.now),
        }
    }

    /// Time to the next look: an interval after the last one or after the step began, and at the end of the hold besides.
    fn until_look(&self, state: &State) -> SignedDuration {
        let last = state.looked.unwrap_or(state.step_began);
        let regular = signed(self.plan.interval) - self.now.duration_since(last);
        let held = self.until_held(state);
        let held_at_last_look = held + self.now.duration_since(last) <= SignedDuration::ZERO;
        if held_at_last_look { regular } else { regular.min(held) }
    }

    /// Time to the end of the hold.
    fn until_held(&self, state: &State) -> SignedDuration {
        let hold = self.plan.step(state.step).map(|step| step.hold).unwrap_or_default();
        signed(hold) - self.now.duration_since(state.step_began)
    }

    /// When to decide again.
    fn until_next(&self, state: &State) -> Duration {
        let look = if state.served { self.until_look(state) } else { signed(self.plan.interval) };
        Duration::try_from(look).unwrap_or_default().max(SOON)
    }

    /// What a rollout says that waits for its next look: what it said at the last one.
    fn holding(&self, state: &State) -> Reason {
        match state.reason {
            said @ (Reason::TooFewRequests | Reason::GateFailing | Reason::Undecided) => said,
            _ if !self.seen.canary_ready => Reason::CanaryNotReady,
            _ => Reason::Holding,
        }
    }

    fn wait(&self, state: &mut State, reason: Reason) {
        let (phase, reason) = match reason {
            Reason::Undecided => (Phase::Paused, reason),
            Reason::Holding if self.plan.paused => (Phase::Paused, Reason::PausedInSpec),
            Reason::Holding if state.paused_by_request => (Phase::Paused, Reason::Requested),
            _ if self.pauses(state) => (Phase::Paused, reason),
            _ => (Phase::Progressing, reason),
        };
        enter(state, phase, reason, self.now);
    }

    fn judge(&mut self, state: &State) {
        let (plan, seen) = (self.plan, self.seen);
        let alpha = plan.alpha_each();
        let nothing = Observation::default();
        // Counts of another epoch, as after a restart, are none of this step's.
        let seen = if seen.epoch == state.epoch { seen } else { &nothing };
        self.judgements = plan
            .gates
            .iter()
            .map(|gate| gate.judge(&seen.canary, &seen.stable, plan.min_requests, alpha))
            .collect();
    }

    fn any(&self, verdict: Verdict) -> bool {
        self.judgements.iter().any(|judgement| judgement.verdict == verdict)
    }

    fn promote(&self, state: &mut State, reason: Reason) {
        state.weight = 100;
        state.promoted =
            Some(Promotion { backend: self.plan.canary.clone(), over: self.plan.stable.clone() });
        self.end(state, Phase::Promoted, reason);
    }

    fn roll_back(&self, state: &mut State, reason: Reason) {
        state.weight = 0;
        self.end(state, Phase::RolledBack, reason);
    }

    fn end(&self, state: &mut State, phase: Phase, reason: Reason) {
        state.paused_by_request = false;
        state.ended.retain(|ended| ended.fingerprint != state.fingerprint);
        state.ended.push(Ended { fingerprint: state.fingerprint.clone(), phase, reason });
        keep_latest(&mut state.ended);
        enter(state, phase, reason, self.now);
    }
}

/// Enters a phase. A change of phase or weight is an entry of the history; another reason only changes the last one.
fn enter(state: &mut State, phase: Phase, reason: Reason, now: Timestamp) {
    (state.phase, state.reason) = (phase, reason);
    let (canary, weight) = (&state.canary, state.weight);
    let same = |last: &Entry| last.phase == phase && last.weight == weight && last.canary == *canary;
    match state.history.last_mut().filter(|last| same(last)) {
        Some(last) => last.reason = reason,
        None => {
            state.history.push(Entry { at: now, canary: canary.clone(), phase, reason, weight });
            keep_latest(&mut state.history);
        }
    }
}

fn keep_latest<T>(all: &mut Vec<T>) {
    let excess = all.len().saturating_sub(KEPT);
    all.drain(..excess);
}

fn signed(duration: Duration) -> SignedDuration {
    SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX)
}

#[cfg(test)]
mod tests;
