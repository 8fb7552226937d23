//! Stories.

mod lacking;
mod late;
mod properties;
mod skew;

use super::*;
use std::collections::BTreeMap;

use crate::gate::{Bound, Gate, Metric};
use crate::plan::Step;

const INTERVAL: u64 = 30;
/// The interval in which stories begin; a multiple of 256.
const FIRST: i64 = 60_000_000;

fn plan(weights: &[u32]) -> Plan {
    Plan {
        fingerprint: "one".into(),
        canary: "v2".into(),
        stable: "v1".into(),
        steps: weights.iter().map(|weight| Step { weight: *weight, hold: Duration::from_secs(60) }).collect(),
        interval: Duration::from_secs(INTERVAL),
        min_requests: 50,
        failure_limit: 2,
        alpha: 0.05,
        on_undecided: OnUndecided::Pause,
        gates: vec![Gate { metric: Metric::ErrorRate, quantile: 0.5, bound: Bound::Max(0.05), of: None }],
        progress_deadline: Some(Duration::from_secs(600)),
        paused: false,
    }
}

/// So many requests of the canary and of stable, and so many errors of the canary.
fn seen(requests: u64, errors: u64) -> Observation {
    let counts = |errors| Counts { requests, errors, ..Counts::default() };
    Observation {
        canary_ready: true,
        asked: true,
        canary: counts(errors),
        stable: counts(0),
        ..Observation::default()
    }
}

fn good() -> Observation {
    seen(5000, 10)
}

fn bad() -> Observation {
    seen(5000, 1000)
}

fn undecided() -> Observation {
    seen(60, 3)
}

fn at(seconds: u64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + i64::try_from(seconds).unwrap()).unwrap()
}

/// A rollout that is told what is seen, look after look.
struct Story {
    plan: Option<Plan>,
    /// What stands by the spec.
    stable: String,
    state: Option<State>,
    seconds: u64,
    requests: u32,
}

impl Story {
    fn of(plan: Plan) -> Self {
        let stable = plan.stable.clone();
        let mut story = Self { plan: Some(plan), stable, state: None, seconds: 0, requests: 0 };
        story.decide(&good(), None);
        story
    }

    fn decide(&mut self, seen: &Observation, action: Option<Action>) -> Decision {
        let canary = self.plan.as_ref().map_or("v2", |plan| &plan.canary).to_owned();
        let request = action.map(|action| {
            self.requests += 1;
            Request { id: self.requests.to_string(), action, canary }
        });
        self.decide_on(seen, request.as_ref())
    }

    fn decide_on(&mut self, seen: &Observation, request: Option<&Request>) -> Decision {
        let epoch = self.state.as_ref().map_or(0, |state| state.epoch);
        let seen = Observation { epoch, ..seen.clone() };
        let decision =
            decide(self.plan.as_ref(), &self.stable, self.state.as_ref(), &seen, request, at(self.seconds));
        self.state = Some(decision.state.clone());
        decision
    }

    /// Another plan is in the spec from now on.
    fn plans(&mut self, plan: Plan) -> State {
        self.stable.clone_from(&plan.stable);
        self.plan = Some(plan);
        self.decide(&good(), None).state
    }

    fn look(&mut self, seen: &Observation) -> State {
        self.seconds += INTERVAL;
        self.decide(seen, None).state
    }

    fn ask(&mut self, action: Action) -> Decision {
        self.decide(&good(), Some(action))
    }

    fn is(&self) -> (Phase, Reason, u32) {
        let state = self.state.as_ref().unwrap();
        (state.phase, state.reason, state.weight)
    }
}

#[test]
fn a_good_canary_goes_step_by_step_and_is_promoted() {
    let mut story = Story::of(plan(&[5, 25, 50]));
    assert_eq!(story.is(), (Phase::Progressing, Reason::Holding, 5));
    let weights: Vec<u32> = (0..6).map(|_| story.look(&good()).weight).collect();
    // Each step is held for two looks.
    assert_eq!(weights, [5, 25, 25, 50, 50, 100]);
    assert_eq!(story.is(), (Phase::Promoted, Reason::GatesPassed, 100));
    assert_eq!(story.look(&bad()).phase, Phase::Promoted, "what has ended stays so");
}

#[test]
fn a_bad_canary_is_rolled_back_after_as_many_looks_as_the_limit_says() {
    let mut story = Story::of(plan(&[5, 25]));
    story.look(&bad());
    assert_eq!(story.is(), (Phase::Progressing, Reason::GateFailing, 5));
    story.look(&bad());
    assert_eq!(story.is(), (Phase::RolledBack, Reason::GateFailed, 0));
    assert_eq!(story.look(&good()).weight, 0);
    // A person may try again; the numbers begin anew.
    let epoch = story.state.as_ref().unwrap().epoch;
    assert!(story.ask(Action::Retry).state.epoch > epoch);
    assert_eq!(story.is(), (Phase::Progressing, Reason::Holding, 5));
}

#[test]
fn one_bad_look_between_good_ones_is_no_rollback() {
    let mut story = Story::of(plan(&[5]));
    story.plan.as_mut().unwrap().steps[0].hold = Duration::from_secs(600);
    for _ in 0..4 {
        story.look(&bad());
        story.look(&good());
    }
    assert_eq!(story.is(), (Phase::Progressing, Reason::Holding, 5));
}

#[test]
fn too_little_traffic_is_a_state_of_its_own_and_moves_nothing() {
    let mut story = Story::of(plan(&[5, 25]));
    for _ in 0..10 {
        story.look(&seen(49, 0));
    }
    assert_eq!(story.is(), (Phase::Progressing, Reason::TooFewRequests, 5));
    // Between two looks it still says so.
    story.seconds += 1;
    story.decide(&seen(49, 0), None);
    assert_eq!(story.is(), (Phase::Progressing, Reason::TooFewRequests, 5));
    assert_eq!(story.look(&good()).weight, 25);
}

#[test]
fn the_hold_begins_when_the_canary_serves() {
    let absent = Observation::default();
    let mut story =
        Story { plan: Some(plan(&[5, 25])), stable: "v1".into(), state: None, seconds: 0, requests: 0 };
    (0..10).for_each(|_| drop(story.look(&absent)));
    assert_eq!(story.is(), (Phase::Progressing, Reason::CanaryNotReady, 5));
    let waited = story.state.as_ref().unwrap().epoch;
    assert_eq!(
        story.look(&good()).epoch,
        waited + 1,
        "what was counted of stable meanwhile is not compared with"
    );
    assert_eq!(story.look(&good()).weight, 5, "one interval after it began to serve");
    assert_eq!(story.look(&good()).weight, 25);
}

#[test]
fn what_is_undecided_in_the_end_is_what_the_plan_says() {
    for (choice, expected) in [
        (OnUndecided::Pause, (Phase::Paused, Reason::Undecided, 5)),
        (OnUndecided::Promote, (Phase::Promoted, Reason::Undecided, 100)),
        (OnUndecided::RollBack, (Phase::RolledBack, Reason::Undecided, 0)),
    ] {
        let mut story = Story::of(Plan { on_undecided: choice, ..plan(&[5]) });
        story.look(&undecided());
        story.look(&undecided());
        assert_eq!(story.is(), expected);
    }
    // More requests decide, and a person may.
    let mut story = Story::of(plan(&[5]));
    (0..3).for_each(|_| drop(story.look(&undecided())));
    assert_eq!(story.look(&good()).phase, Phase::Promoted);
    let mut story = Story::of(plan(&[5]));
    (0..3).for_each(|_| drop(story.look(&undecided())));
    story.ask(Action::Promote);
    assert_eq!(story.is(), (Phase::Promoted, Reason::Requested, 100));
}

#[test]
fn a_pause_keeps_the_weight_and_not_a_bad_canary() {
    let mut story = Story::of(plan(&[5, 25]));
    story.ask(Action::Pause);
    for _ in 0..5 {
        story.look(&good());
    }
    assert_eq!(story.is(), (Phase::Paused, Reason::Requested, 5));
    story.ask(Action::Resume);
    assert_eq!(story.look(&good()).weight, 25, "its hold is long over");
    story.plan.as_mut().unwrap().paused = true;
    story.look(&good());
    assert_eq!(story.is(), (Phase::Paused, Reason::PausedInSpec, 25));
    assert!(story.ask(Action::Resume).refused.unwrap().contains("spec.canary.paused"));
    story.look(&bad());
    story.look(&bad());
    assert_eq!(story.is(), (Phase::RolledBack, Reason::GateFailed, 0));
}

#[test]
fn a_request_is_acted_on_once() {
    let mut story = Story::of(plan(&[5]));
    let pause = Request { id: "a".into(), action: Action::Pause, canary: "v2".into() };
    assert_eq!(story.decide_on(&good(), Some(&pause)).state.phase, Phase::Paused);
    story.ask(Action::Resume);
    // The status still holds the request that came before.
    story.state.as_mut().unwrap().handled = Some("a".into());
    let again = story.decide_on(&good(), Some(&pause));
    assert_eq!((again.state.phase, again.refused), (Phase::Progressing, None));
}

#[test]
fn a_request_is_refused_in_words_where_it_makes_no_sense() {
    let mut story = Story::of(plan(&[5]));
    assert!(story.ask(Action::Resume).refused.unwrap().contains("nobody has paused"));
    assert!(story.ask(Action::Retry).refused.unwrap().contains("Progressing has nothing to Retry"));
    let other = Request { id: "other".into(), action: Action::Promote, canary: "v3".into() };
    assert_eq!(
        story.decide_on(&good(), Some(&other)).refused.unwrap(),
        "it was for v3, and the canary is v2"
    );
    let nobody = Observation { canary_ready: false, ..Observation::default() };
    assert!(story.decide(&nobody, Some(Action::Promote)).refused.unwrap().contains("no pod that serves"));
    assert_eq!(story.is().0, Phase::Progressing);
    story.ask(Action::Promote);
    for action in [Action::Abort, Action::Pause, Action::Resume, Action::Promote, Action::Retry] {
        let refused = story.ask(action).refused.unwrap();
        assert!(refused.contains("Promoted") && refused.contains(&format!("{action:?}")), "{refused}");
    }
    assert_eq!(story.is(), (Phase::Promoted, Reason::Requested, 100));
}

#[test]
fn a_request_without_a_canary_is_not_kept_for_the_next() {
    let mut story = Story::of(plan(&[5]));
    story.plan = None;
    let promote = Request { id: "early".into(), action: Action::Promote, canary: "v2".into() };
    assert_eq!(story.decide_on(&good(), Some(&promote)).refused.unwrap(), "there is no canary to Promote");
    story.plan = Some(plan(&[5]));
    assert_eq!(story.decide_on(&good(), Some(&promote)).state.phase, Phase::Progressing);
}

#[test]
fn an_ended_plan_is_known_again_after_another_one() {
    let mut story = Story::of(plan(&[5]));
    (0..2).for_each(|_| drop(story.look(&bad())));
    let other = Plan { fingerprint: "other".into(), canary: "v3".into(), ..plan(&[10]) };
    let begun = story.plans(other.clone());
    assert_eq!(story.is(), (Phase::Progressing, Reason::Holding, 10));
    story.plans(plan(&[5]));
    assert_eq!(
        story.is(),
        (Phase::RolledBack, Reason::GateFailed, 0),
        "v2 was rolled back with this very plan"
    );
    // `other` had not ended: it begins anew.
    assert!(story.plans(other).epoch > begun.epoch);
    // One that was promoted has everything again, and stands.
    story.ask(Action::Promote);
    story.plans(plan(&[5]));
    let state = story.plans(Plan { fingerprint: "other".into(), canary: "v3".into(), ..plan(&[10]) });
    assert_eq!((state.weight, state.promoted.unwrap().backend), (100, "v3".to_owned()));
}

#[test]
fn what_was_promoted_is_what_the_next_canary_is_compared_with() {
    let mut story = Story::of(plan(&[5]));
    story.ask(Action::Promote);
    let next = |stable: &str| Plan {
        fingerprint: format!("next over {stable}"),
        canary: "v3".into(),
        stable: stable.into(),
        ..plan(&[5])
    };
    // Git still has v1 as stable.
    assert_eq!(story.plans(next("v1")).stable, "v2");
    // Git has folded the promotion in, by way of no canary at all.
    (story.plan, story.stable) = (None, "v2".into());
    let state = story.decide(&good(), None).state;
    assert_eq!((story.is(), state.stable.as_str()), ((Phase::Idle, Reason::NoCanary, 0), "v2"));
    assert_eq!(story.plans(next("v2")).stable, "v2");
    // Git has taken it back: what was promoted over v1 once is no longer what stands.
    assert_eq!(story.plans(next("v1")).stable, "v1");
}

#[test]
fn a_plan_for_what_was_promoted_already_moves_nothing() {
    let mut story = Story::of(plan(&[5]));
    story.ask(Action::Promote);
    // Someone changes how long the steps are, and has not folded the promotion into the weights.
    story.plans(Plan { fingerprint: "longer".into(), ..plan(&[5]) });
    assert_eq!(story.is(), (Phase::Promoted, Reason::AlreadyPromoted, 100));
}

#[test]
fn a_canary_that_loses_its_pods_is_judged_and_does_not_grow() {
    let mut story = Story::of(plan(&[5, 25]));
    let gone = |seen: Observation| Observation { canary_ready: false, ..seen };
    (0..5).for_each(|_| drop(story.look(&gone(good()))));
    assert_eq!(story.is(), (Phase::Progressing, Reason::CanaryNotReady, 5));
    (0..2).for_each(|_| drop(story.look(&gone(bad()))));
    assert_eq!(story.is(), (Phase::RolledBack, Reason::GateFailed, 0));
}

#[test]
fn counts_of_another_step_are_not_judged() {
    let mut story = Story::of(plan(&[5, 25]));
    story.seconds = 120;
    let old = Observation { epoch: story.state.as_ref().unwrap().epoch + 7, ..bad() };
    let decision = decide(story.plan.as_ref(), "v1", story.state.as_ref(), &old, None, at(story.seconds));
    assert_eq!((decision.state.phase, decision.state.reason), (Phase::Progressing, Reason::TooFewRequests));
}

#[test]
fn the_next_look_is_at_the_end_of_the_interval_or_of_the_hold() {
    let mut story = Story::of(plan(&[5, 25]));
    story.plan.as_mut().unwrap().steps[0].hold = Duration::from_secs(40);
    let mut next = |seconds: u64| {
        story.seconds = seconds;
        let decision = story.decide(&good(), None);
        (decision.next.unwrap().as_secs(), decision.state.weight)
    };
    assert_eq!([next(1), next(30), next(31), next(40)], [(29, 5), (10, 5), (9, 5), (30, 25)]);
}

#[test]
fn a_clock_that_goes_back_delays_and_does_not_stop() {
    let mut story = Story::of(plan(&[5, 25, 50]));
    story.seconds += 10_000;
    assert_eq!(story.look(&good()).weight, 25);
    story.seconds = 0;
    let weights: Vec<u32> = (0..4).map(|_| story.look(&good()).weight).collect();
    assert_eq!(weights, [25, 25, 50, 50]);
}

#[test]
fn the_state_is_the_same_after_it_was_written_and_read() {
    let mut story = Story::of(plan(&[5, 25]));
    story.look(&bad());
    let state = story.state.unwrap();
    let text = serde_json::to_string(&state).unwrap();
    assert_eq!(serde_json::from_str::<State>(&text).unwrap(), state);
}

#[test]
fn another_revision_under_way_begins_again() {
    let of = |canary: &str, stable: &str| Observation {
        canary_revision: Some(canary.into()),
        stable_revision: Some(stable.into()),
        ..good()
    };
    let mut story = Story::of(plan(&[5, 25]));
    (0..2).for_each(|_| drop(story.look(&of("r1", "s1"))));
    assert_eq!(story.is(), (Phase::Progressing, Reason::Holding, 25));
    let epoch = story.look(&of("r1", "s2")).epoch;
    assert_eq!(story.is(), (Phase::Progressing, Reason::Holding, 25), "only the step begins again");
    assert!(story.look(&of("r2", "s2")).epoch > epoch);
    assert_eq!(story.is(), (Phase::Progressing, Reason::Holding, 5));
    let entry = story.state.as_ref().unwrap().history.last().cloned().unwrap();
    assert!(entry.detail.unwrap().contains("v2 was changed under way"));
    // What is not known, as during a roll-out, is no change.
    story.look(&good());
    story.look(&of("r2", "s2"));
    assert_eq!(story.is().2, 25);
}

#[test]
fn it_is_known_beforehand_when_gates_are_looked_at() {
    let plan = plan(&[5, 25]);
    let mut story = Story::of(plan.clone());
    for seconds in [1, 29, 30, 31, 59, 60, 61, 90, 200] {
        story.seconds = seconds;
        let due = due(&plan, story.state.as_ref(), at(seconds));
        let looked = !story.decide(&good(), None).judgements.is_empty();
        assert_eq!(due, looked, "{seconds}");
    }
    // Without having asked nobody is judged.
    story.seconds += 1000;
    let before = story.state.clone();
    let unasked = Observation { asked: false, ..bad() };
    assert!(story.decide(&unasked, None).judgements.is_empty());
    assert_eq!(story.state.as_ref().unwrap().looked, before.unwrap().looked);
}

#[test]
fn reasons_of_the_future_keep_nobody_from_reading_the_weight() {
    let mut story = Story::of(plan(&[5, 25]));
    story.look(&bad());
    let mut json = serde_json::to_value(story.state.unwrap()).unwrap();
    json["reason"] = serde_json::json!("SomethingNew");
    json["history"][0]["reason"] = serde_json::json!("SomethingNew");
    json["analysis"][0]["verdict"] = serde_json::json!("Perhaps");
    json["newField"] = serde_json::json!({"a": 1});
    let state: State = serde_json::from_value(json).unwrap();
    assert_eq!((state.weight, state.phase, state.analysis.len()), (5, Phase::Progressing, 0));
}

#[test]
fn the_longest_state_is_far_from_what_an_api_server_takes() {
    let gate = |n: usize| Gate {
        metric: Metric::Evaluation,
        quantile: 0.95,
        bound: Bound::MaxRegression(0.123_456),
        of: Some(format!("{:e<63}/{n}", "evaluation")),
    };
    let gates: Vec<Gate> = (0..10).map(gate).collect();
    let mut story = Story::of(Plan { gates, canary: "c".repeat(63), ..plan(&[5]) });
    for n in 0..60 {
        let note = format!("{n} {}", "why ".repeat(60));
        let found = External { verdict: Verdict::Fail, note: Some(note), ..External::default() };
        let external: BTreeMap<_, _> = (0..10).map(|place| (place, found.clone())).collect();
        let unread: Vec<_> = (0..64).map(|n| format!("gateway-{n} does not answer")).collect();
        for _ in 0..2 {
            story.look(&Observation { external: external.clone(), unread: unread.clone(), ..good() });
        }
        story.ask(Action::Retry);
    }
    let length = serde_json::to_string(&story.state.unwrap()).unwrap().len();
    assert!(length < 64 * 1024, "{length}");
}

#[test]
fn a_status_that_was_edited_is_brought_back_to_the_plan_and_does_not_grow() {
    for (phase, step, weight, expected) in [
        (Phase::Progressing, 0, 100, (0, 5)),
        (Phase::Progressing, 1, 5, (0, 5)),
        (Phase::Paused, 2, 30, (1, 25)),
        (Phase::Progressing, u32::MAX, 60, (2, 50)),
        (Phase::Progressing, 7, 0, (0, 5)),
    ] {
        let mut story = Story::of(plan(&[5, 25, 50]));
        let epoch = story.state.as_ref().unwrap().epoch;
        let state = story.state.as_mut().unwrap();
        (state.phase, state.step, state.weight) = (phase, step, weight);
        let mended = story.look(&good());
        assert_eq!((mended.phase, (mended.step, mended.weight)), (Phase::Progressing, expected));
        assert!(mended.epoch > epoch, "what was counted by another weight is not judged");
        assert!(mended.history.last().unwrap().detail.as_ref().unwrap().contains("which the plan has not"));
        (0..6).for_each(|_| drop(story.look(&good())));
        assert_eq!(story.is().0, Phase::Promoted);
    }
    let mut story = Story::of(plan(&[5, 25]));
    story.ask(Action::Promote);
    (story.state.as_mut().unwrap().weight, story.state.as_mut().unwrap().promoted) = (25, None);
    let mended = story.look(&bad());
    assert_eq!((story.is().2, mended.promoted.unwrap().backend), (100, "v2".to_owned()));
    // A person is obeyed at once.
    let mut story = Story::of(plan(&[5, 25]));
    story.state.as_mut().unwrap().weight = 99;
    story.ask(Action::Abort);
    assert_eq!(story.is(), (Phase::RolledBack, Reason::Requested, 0));
    story.state.as_mut().unwrap().weight = 25;
    story.look(&good());
    assert_eq!(story.is(), (Phase::RolledBack, Reason::Requested, 0));
}

#[test]
fn every_reason_is_among_all() {
    let schema = serde_json::to_value(schemars::schema_for!(Reason)).unwrap();
    let known = schema["oneOf"].as_array().unwrap();
    assert_eq!(known.len(), Reason::ALL.len());
    for reason in Reason::ALL {
        assert!(known.iter().any(|it| it["const"] == serde_json::json!(reason)), "{reason:?}");
    }
}
