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
use serde::{Deserialize, Serialize};

use crate::gate::{Counts, Judgement, Verdict};
use crate::plan::{OnUndecided, Plan};

/// How many entries of history, and how many ended plans, are kept.
const KEPT: usize = 20;

/// Where a rollout is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
}

/// What a person asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Another for every request; one is acted on once.
    pub id: String,
    /// What is asked for.
    pub action: Action,
}

/// What was seen since the last decision.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observation {
    /// Whether the canary has a pod that serves.
    pub canary_ready: bool,
    /// What gateways counted of the canary since the step began.
    pub canary: Counts,
    /// The same of stable.
    pub stable: Counts,
}

/// One line of what happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// Its fingerprint.
    pub fingerprint: String,
    /// `Promoted` or `RolledBack`.
    pub phase: Phase,
    /// Why it ended so.
    pub reason: Reason,
}

/// All that has to be remembered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
    pub step: usize,
    /// The canary's share in percent.
    pub weight: u32,
    /// When the step began, and its counts with it.
    pub step_began: Timestamp,
    /// When the gates were looked at last.
    pub looked: Option<Timestamp>,
    /// Looks in a row at which a gate failed.
    pub failures: u32,
    /// Whether a person asked to pause, and has not asked to go on.
    pub paused_by_request: bool,
    /// The last request that was acted on or refused.
    pub handled: Option<String>,
    /// The last promoted backend and the stable one of the spec at that time: as long as the spec names the same, what was promoted is
    /// what stands.
    pub promoted: Option<Promotion>,
    /// What has ended, the latest last.
    pub ended: Vec<Ended>,
    /// What happened, the latest last.
    pub history: Vec<Entry>,
}

/// A canary that became what stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    /// Whether a step began, so that counting begins again.
    pub step_began: bool,
    /// When to decide again at the latest.
    pub next: Option<Duration>,
}

/// Decides. `plan`: `None` where the spec has no canary; `request`: the latest, whether it was acted on or not.
pub fn decide(
    plan: Option<&Plan>,
    before: Option<&State>,
    seen: &Observation,
    request: Option<&Request>,
    now: Timestamp,
) -> Decision {
    let mut state = before.cloned().unwrap_or_default();
    let Some(plan) = plan else { return without_canary(state, now) };
    let mut deciding = Deciding { plan, seen, now, judgements: Vec::new(), refused: None, step_began: false };
    if state.phase == Phase::Idle || state.fingerprint != plan.fingerprint {
        deciding.begin(&mut state);
    }
    if let Some(request) = request.filter(|request| state.handled.as_ref() != Some(&request.id)) {
        deciding.obey(&mut state, request);
    }
    if matches!(state.phase, Phase::Progressing | Phase::Paused) {
        deciding.go_on(&mut state);
    }
    let next = matches!(state.phase, Phase::Progressing | Phase::Paused).then_some(plan.interval);
    let Deciding { judgements, refused, step_began, .. } = deciding;
    Decision { state, judgements, refused, step_began, next }
}

/// The canary has left the spec. What it was promoted over is kept, in case the spec still names that.
fn without_canary(mut state: State, now: Timestamp) -> Decision {
    if state.phase != Phase::Idle {
        state.fingerprint.clear();
        state.weight = 0;
        state.paused_by_request = false;
        enter(&mut state, Phase::Idle, Reason::NoCanary, now);
    }
    Decision { state, judgements: Vec::new(), refused: None, step_began: false, next: None }
}

/// What one decision is made with.
struct Deciding<'a> {
    plan: &'a Plan,
    seen: &'a Observation,
    now: Timestamp,
    judgements: Vec<Judgement>,
    refused: Option<String>,
    step_began: bool,
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
        let known = state.ended.iter().find(|ended| ended.fingerprint == plan.fingerprint);
        let Some(Ended { phase, reason, .. }) = known.cloned() else {
            return self.begin_step(state, 0);
        };
        state.weight = if phase == Phase::Promoted { 100 } else { 0 };
        enter(state, phase, reason, self.now);
    }

    fn begin_step(&mut self, state: &mut State, step: usize) {
        state.step = step;
        state.weight = self.plan.steps.get(step).map_or(0, |step| step.weight);
        state.step_began = self.now;
        state.looked = None;
        state.failures = 0;
        self.step_began = true;
        let phase = if self.pauses(state) { Phase::Paused } else { Phase::Progressing };
        enter(state, phase, Reason::Holding, self.now);
    }

    fn pauses(&self, state: &State) -> bool {
        self.plan.paused || state.paused_by_request
    }

    fn obey(&mut self, state: &mut State, request: &Request) {
        state.handled = Some(request.id.clone());
        let under_way = matches!(state.phase, Phase::Progressing | Phase::Paused);
        match request.action {
            Action::Promote if under_way => self.promote(state, Reason::Requested),
            Action::Abort if under_way => self.roll_back(state, Reason::Requested),
            Action::Pause if under_way => state.paused_by_request = true,
            Action::Resume if under_way && self.plan.paused => {
                self.refused =
                    Some("the rollout is paused by spec.canary.paused: set that to false".to_owned());
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
        if !self.seen.canary_ready {
            // Nobody can judge what nobody serves; the hold begins with the first pod.
            if state.looked.is_none() {
                state.step_began = self.now;
            }
            return self.wait(state, Reason::CanaryNotReady);
        }
        let now = self.now;
        let since = |then: Timestamp| now.duration_since(then);
        let due =
            state.looked.is_none_or(|looked| looked > now || since(looked) >= signed(self.plan.interval));
        // The first look is one interval after the step began: before, there is nothing to see.
        if !due || since(state.step_began) < signed(self.plan.interval) {
            return self.wait(state, self.holding(state));
        }
        state.looked = Some(self.now);
        self.judge();
        if self.any(Verdict::Fail) {
            state.failures += 1;
            if state.failures >= self.plan.failure_limit {
                return self.roll_back(state, Reason::GateFailed);
            }
            return self.wait(state, Reason::GateFailing);
        }
        state.failures = 0;
        let held =
            self.plan.steps.get(state.step).is_none_or(|step| since(state.step_began) >= signed(step.hold));
        let last = state.step + 1 >= self.plan.steps.len();
        if self.any(Verdict::TooFewRequests) {
            return self.wait(state, if held { Reason::TooFewRequests } else { Reason::Holding });
        }
        if !held || self.pauses(state) {
            return self.wait(state, Reason::Holding);
        }
        if !last {
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

    /// What a rollout says that waits for its next look: what it said at the last one.
    fn holding(&self, state: &State) -> Reason {
        match state.reason {
            said @ (Reason::TooFewRequests | Reason::GateFailing | Reason::Undecided) => said,
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

    fn judge(&mut self) {
        let (plan, seen) = (self.plan, self.seen);
        let alpha = plan.alpha_each();
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

/// Enters a phase; what has changed goes into the history.
fn enter(state: &mut State, phase: Phase, reason: Reason, now: Timestamp) {
    (state.phase, state.reason) = (phase, reason);
    let entry = Entry { at: now, canary: state.canary.clone(), phase, reason, weight: state.weight };
    let same = |last: &Entry| Entry { at: now, ..last.clone() } == entry;
    if !state.history.last().is_some_and(same) {
        state.history.push(entry);
        keep_latest(&mut state.history);
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
