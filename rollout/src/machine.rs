//! The rollout's state machine: what was decided, what was seen, what a person asks and the time, to what is decided now.
//!
//! Owns: every move of a canary. Must not: read a clock, sum up counts, write anything. Called by the operator, which keeps the
//! state in the route's status and shows it, and does as it says.
//!
//! Rules, whatever is seen or asked for:
//! - a step ends only after its hold, at a look that judged every gate by what every gateway counted, and none failed;
//! - the canary gets the step's weight and no more, 100 after promotion alone, 0 after a rollback;
//! - a gate that fails is acted on while paused too: a pause keeps a canary from growing, not from being taken back;
//! - what has ended stays so until the plan changes or a person asks to retry, and a plan that has ended once is known again;
//! - a state that does not fit the plan, as after an edit by hand, is brought back to a step of it that has no more, or to the first one.

mod state;

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::counts::Counts;
use crate::finding::{Finding, words};
use crate::gate::{External, Gate, Judgement, Verdict};
use crate::plan::{OnUndecided, Plan, Step, begins, window};
use crate::stretch::is_judged;

pub use state::{Action, Ended, Entry, Observation, Phase, Promotion, Reason, Request, State};

/// How many entries of history, and how many ended plans, are kept.
const KEPT: usize = 20;
/// Characters of a detail in the history.
const LONGEST: usize = 400;
/// The shortest time to the next decision.
const SOON: Duration = Duration::from_millis(100);

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

/// Whether a decision now would look at gates, so that gateways and others have to be asked what they have seen.
pub fn due(plan: &Plan, state: Option<&State>, now: Timestamp) -> bool {
    let Some(state) = state.filter(|state| state.fingerprint == plan.fingerprint) else { return false };
    let under_way = matches!(state.phase, Phase::Progressing | Phase::Paused);
    under_way && state.served && !plan.gates.is_empty() && {
        let (looked, began) = (state.looked.map(|it| it.min(now)), state.step_began.min(now));
        until_look(plan, state.step, began, looked, now) <= SignedDuration::ZERO
    }
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
    keep_latest(&mut state.history);
    keep_latest(&mut state.ended);
    // Whoever changes what stands has taken the promotion over, or taken it back.
    state.promoted = state.promoted.filter(|promoted| promoted.over == stable);
    let request = request.filter(|request| state.handled.as_ref() != Some(&request.id));
    let Some(plan) = plan else { return without_canary(state, stable, request, now) };
    let mut deciding = Deciding { plan, seen, now, judgements: Vec::new(), refused: None };
    let mut mended = false;
    if state.phase == Phase::Idle || state.fingerprint != plan.fingerprint {
        deciding.begin(&mut state);
    } else {
        mended = deciding.mend(&mut state);
    }
    if let Some(request) = request {
        deciding.obey(&mut state, request);
    }
    // A step that has begun anew lasts at least until the next decision.
    if !mended && matches!(state.phase, Phase::Progressing | Phase::Paused) {
        deciding.go_on(&mut state);
    }
    let next = matches!(state.phase, Phase::Progressing | Phase::Paused).then(|| deciding.until_next(&state));
    let Deciding { judgements, refused, .. } = deciding;
    Decision { state, judgements, refused, next }
}

/// The spec has no canary, or no longer. What stands by the spec has everything.
fn without_canary(mut state: State, stable: &str, request: Option<&Request>, now: Timestamp) -> Decision {
    stable.clone_into(&mut state.stable);
    state.weight = 0;
    if state.phase != Phase::Idle {
        state.fingerprint.clear();
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
        let known = state.ended.iter().find(|ended| {
            let ended_so = matches!(ended.phase, Phase::Promoted | Phase::RolledBack);
            ended_so && ended.fingerprint == plan.fingerprint
        });
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

    /// Brings a state that no decision leads to back to the plan: one that somebody has edited, or put together from two backups. What has
    /// ended gets its weight. What is under way begins its step anew, or the highest one below that has no more than its weight, or the
    /// first one. Returns whether a step has begun.
    fn mend(&mut self, state: &mut State) -> bool {
        let plan = self.plan;
        state.canary.clone_from(&plan.canary);
        if state.stable.is_empty() {
            state.stable.clone_from(&plan.stable);
        }
        match state.phase {
            Phase::Idle => false,
            Phase::RolledBack => {
                state.weight = 0;
                false
            }
            Phase::Promoted => {
                state.weight = 100;
                let promoted = Promotion { backend: plan.canary.clone(), over: plan.stable.clone() };
                state.promoted.get_or_insert(promoted);
                false
            }
            Phase::Progressing | Phase::Paused => {
                if plan.step(state.step).is_some_and(|step| step.weight == state.weight) {
                    return false;
                }
                let below = |(step, it): (u32, &Step)| {
                    (step <= state.step && it.weight <= state.weight).then_some(step)
                };
                let step = (0..).zip(&plan.steps).filter_map(below).last().unwrap_or(0);
                let what = format!(
                    "the status had step {} with {} %, which the plan has not",
                    state.step, state.weight
                );
                self.begin_step(state, step);
                note(state, what);
                true
            }
        }
    }

    fn begin_step(&mut self, state: &mut State, step: u32) {
        state.step = step;
        state.weight = self.plan.step(step).map_or(0, |step| step.weight);
        state.step_began = self.now;
        state.epoch = state.epoch.wrapping_add(1);
        state.served = self.seen.canary_ready;
        state.unready_since = None;
        state.canary_revision.clone_from(&self.seen.canary_revision);
        state.stable_revision.clone_from(&self.seen.stable_revision);
        state.looked = None;
        state.failures = 0;
        state.analysis.clear();
        state.lacking = None;
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
        if let Some((step, what)) = self.replaced(state) {
            self.begin_step(state, step);
            return note(state, what);
        }
        state.unready_since = (!self.seen.canary_ready)
            .then(|| state.unready_since.map_or(self.now, |since| since.min(self.now)));
        if self.until_deadline(state).is_some_and(|left| left <= SignedDuration::ZERO) {
            return self.roll_back(state, Reason::NotReadyInTime);
        }
        if !state.served {
            // The step's time begins with the first pod that serves, and what is counted with it.
            (state.step_began, state.served) = (self.now, self.seen.canary_ready);
            if !state.served {
                return self.wait(state, Reason::CanaryNotReady);
            }
            state.epoch = state.epoch.wrapping_add(1);
        }
        let asked = self.seen.asked || self.plan.gates.is_empty();
        if !asked || self.until_look(state) > SignedDuration::ZERO {
            return self.wait(state, self.holding(state));
        }
        state.looked = Some(self.now);
        self.judge(state);
        if self.any(Verdict::Fail) {
            state.failures = state.failures.saturating_add(1);
            if state.failures >= self.plan.failure_limit {
                return self.roll_back(state, Reason::GateFailed);
            }
            return self.wait(state, Reason::GateFailing);
        }
        let held = self.until_held(state) <= SignedDuration::ZERO;
        // What is said only when time is not what keeps the canary from growing.
        let lacks = |reason| if held { reason } else { Reason::Holding };
        if !self.plan.gates.is_empty() && !self.seen.unread.is_empty() {
            return self.wait(state, lacks(Reason::GatewaysNotRead));
        }
        if self.any(Verdict::NotMeasured) {
            return self.wait(state, lacks(Reason::GateNotMeasured));
        }
        if self.any(Verdict::TooFewRequests) {
            return self.wait(state, lacks(Reason::TooFewRequests));
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

    /// Whether one of the two is no longer what it was when the step began: at which step to begin again, and why.
    fn replaced(&self, state: &mut State) -> Option<(u32, String)> {
        let changed = |known: &mut Option<String>, seen: &Option<String>| {
            let changed = known.is_some() && seen.is_some() && known != seen;
            if known.is_none() {
                known.clone_from(seen);
            }
            changed
        };
        if changed(&mut state.canary_revision, &self.seen.canary_revision) {
            // What the earlier steps have shown was shown of another.
            return Some((0, format!("{} was changed under way; it begins again", state.canary)));
        }
        changed(&mut state.stable_revision, &self.seen.stable_revision)
            .then(|| (state.step, format!("{} was changed under way; the step begins again", state.stable)))
    }

    /// Time until a canary without a pod is taken back.
    fn until_deadline(&self, state: &State) -> Option<SignedDuration> {
        let since = state.unready_since?;
        Some(signed(self.plan.progress_deadline?).saturating_sub(self.now.duration_since(since)))
    }

    fn until_look(&self, state: &State) -> SignedDuration {
        until_look(self.plan, state.step, state.step_began, state.looked, self.now)
    }

    fn until_held(&self, state: &State) -> SignedDuration {
        until_held(self.plan, state.step, state.step_began, self.now)
    }

    /// When to decide again.
    fn until_next(&self, state: &State) -> Duration {
        let look = if state.served { self.until_look(state) } else { signed(self.plan.interval) };
        let next = self.until_deadline(state).map_or(look, |deadline| deadline.min(look));
        Duration::try_from(next).unwrap_or_default().max(SOON)
    }

    /// What a rollout says that waits for its next look: what it said at the last one.
    fn holding(&self, state: &State) -> Reason {
        match state.reason {
            said @ (Reason::TooFewRequests
            | Reason::GatewaysNotRead
            | Reason::GateNotMeasured
            | Reason::GateFailing
            | Reason::Undecided) => said,
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

    fn judge(&mut self, state: &mut State) {
        let (plan, seen) = (self.plan, self.seen);
        let stretches = self.stretches(state);
        let nothing = Counts::default();
        // Counts of another epoch, as after a restart, are none of this step's.
        let of_now = |counts| if seen.epoch == state.epoch { counts } else { &nothing };
        let judged = |(place, gate): (usize, &Gate)| {
            if !gate.metric.is_counted() {
                let unknown = External { verdict: Verdict::NotMeasured, ..External::default() };
                return gate.external(seen.external.get(&place).unwrap_or(&unknown));
            }
            let (canary, stable) = (of_now(&seen.canary), of_now(&seen.stable));
            let of_step = gate.judge(canary, stable, plan.min_requests, plan.alpha_of_step());
            if of_step.verdict == Verdict::Fail {
                return of_step;
            }
            // What is recent can only fail: a whole step is what a canary passes by.
            let late = stretches.iter().find_map(|(begun, alpha)| {
                let canary = seen.recent_canary.get(begun)?;
                let stable = seen.recent_stable.get(begun).unwrap_or(&nothing);
                if !gate.may_fail(canary, stable, *alpha) {
                    return None;
                }
                let late = gate.judge(canary, stable, plan.min_recent(), *alpha);
                let since = begins(*begun, plan.interval);
                (late.verdict == Verdict::Fail).then_some(Judgement { since, ..late })
            });
            late.unwrap_or(of_step)
        };
        self.judgements = plan.gates.iter().enumerate().map(judged).collect();
        state.analysis = self.judgements.iter().map(Finding::from).collect();
        state.lacking = (!seen.unread.is_empty()).then(|| brief(&seen.unread));
    }

    /// The stretches that are judged by now, each with its share of alpha; the latest first, as that says best when it began.
    fn stretches(&self, state: &State) -> Vec<(i64, f64)> {
        let (plan, seen) = (self.plan, self.seen);
        if seen.epoch != state.epoch {
            return Vec::new();
        }
        let number = |at| window(at, plan.interval);
        let (now, step) = (number(self.now), number(state.step_began));
        let told = seen.recent_canary.keys().rev().copied();
        told.filter(|begun| is_judged(*begun, now))
            .filter_map(|begun| Some((begun, plan.alpha_of_stretch(begun, step)?)))
            .collect()
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
        let failed = |it: &&Judgement| match reason {
            Reason::GateFailed => it.verdict == Verdict::Fail,
            Reason::Undecided => it.verdict == Verdict::Undecided,
            _ => false,
        };
        let found: Vec<String> = self.judgements.iter().filter(failed).map(words).collect();
        if !found.is_empty() {
            note(state, brief(&found));
        }
    }
}

/// Time to the next look: an interval after the last one or after the step began, and at the end of the hold besides.
fn until_look(
    plan: &Plan,
    step: u32,
    began: Timestamp,
    looked: Option<Timestamp>,
    now: Timestamp,
) -> SignedDuration {
    let last = looked.unwrap_or(began);
    let regular = signed(plan.interval).saturating_sub(now.duration_since(last));
    let held = until_held(plan, step, began, now);
    let held_at_last_look = held.saturating_add(now.duration_since(last)) <= SignedDuration::ZERO;
    if held_at_last_look { regular } else { regular.min(held) }
}

/// Time to the end of the hold.
fn until_held(plan: &Plan, step: u32, began: Timestamp, now: Timestamp) -> SignedDuration {
    let hold = plan.step(step).map(|step| step.hold).unwrap_or_default();
    signed(hold).saturating_sub(now.duration_since(began))
}

/// Adds to the history's last entry what else there is to say.
fn note(state: &mut State, what: String) {
    if let Some(last) = state.history.last_mut() {
        last.detail = Some(what);
    }
}

/// Several things in a text that a status has room for.
fn brief(all: &[String]) -> String {
    let mut text = all.join("; ");
    if let Some((cut, _)) = text.char_indices().nth(LONGEST) {
        text.truncate(cut);
        text.push('…');
    }
    text
}

/// Enters a phase. A change of phase or weight is an entry of the history; another reason only changes the last one.
fn enter(state: &mut State, phase: Phase, reason: Reason, now: Timestamp) {
    (state.phase, state.reason) = (phase, reason);
    let (canary, weight) = (&state.canary, state.weight);
    let same = |last: &Entry| last.phase == phase && last.weight == weight && last.canary == *canary;
    match state.history.last_mut().filter(|last| same(last)) {
        Some(last) => last.reason = reason,
        None => {
            state.history.push(Entry {
                at: now,
                canary: canary.clone(),
                phase,
                reason,
                weight,
                detail: None,
            });
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
