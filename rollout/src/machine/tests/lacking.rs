//! Gateways that are not read, measurements and pods that are not there.

use super::*;

#[test]
fn a_gateway_that_is_not_read_keeps_a_canary_from_growing_and_not_from_being_taken_back() {
    let unread = |seen: Observation| Observation { unread: vec!["gateway-2 does not answer".into()], ..seen };
    let mut story = Story::of(plan(&[5, 25]));
    (0..5).for_each(|_| drop(story.look(&unread(good()))));
    assert_eq!(story.is(), (Phase::Progressing, Reason::GatewaysNotRead, 5));
    assert!(story.state.as_ref().unwrap().lacking.as_ref().unwrap().contains("gateway-2"));
    assert_eq!(story.look(&good()).weight, 25);
    (0..2).for_each(|_| drop(story.look(&unread(bad()))));
    assert_eq!(story.is(), (Phase::RolledBack, Reason::GateFailed, 0));
}

#[test]
fn counts_that_a_gateway_has_lost_delay_and_decide_nothing() {
    let mut story = Story::of(plan(&[5]));
    story.look(&good());
    // All gateways were restarted: a few requests, some of which failed.
    for seen in [seen(0, 0), seen(20, 1), seen(49, 2)] {
        story.look(&seen);
        assert_eq!(story.is(), (Phase::Progressing, Reason::TooFewRequests, 5));
    }
    assert_eq!(story.look(&good()).phase, Phase::Promoted);
}

fn external(verdict: Verdict) -> Observation {
    let found = External { verdict, canary: Some(1.0), ..External::default() };
    Observation { external: [(1, found)].into(), ..good() }
}

#[test]
fn what_others_judge_counts_as_much() {
    let of_prometheus = || {
        let mut plan = plan(&[5, 25]);
        plan.gates.push(Gate { metric: Metric::Prometheus, quantile: 0.5, bound: Bound::Max(3.0), of: None });
        plan
    };
    let mut story = Story::of(Plan { on_undecided: OnUndecided::Promote, ..of_prometheus() });
    // No answer is no reason to go on, whatever is to be done with what is undecided.
    (0..4).for_each(|_| drop(story.look(&good())));
    assert_eq!(story.is(), (Phase::Progressing, Reason::GateNotMeasured, 5));
    (0..4).for_each(|_| drop(story.look(&external(Verdict::NotMeasured))));
    assert_eq!(story.is(), (Phase::Progressing, Reason::GateNotMeasured, 5));
    assert_eq!(story.look(&external(Verdict::Pass)).weight, 25);
    (0..2).for_each(|_| drop(story.look(&external(Verdict::Fail))));
    assert_eq!(story.is(), (Phase::RolledBack, Reason::GateFailed, 0));
    let mut story = Story::of(of_prometheus());
    (0..4).for_each(|_| drop(story.look(&external(Verdict::Pass))));
    assert_eq!(story.is(), (Phase::Promoted, Reason::GatesPassed, 100));
}

#[test]
fn a_canary_that_never_serves_is_taken_back_in_the_end() {
    let mut story =
        Story { plan: Some(plan(&[5, 25])), stable: "v1".into(), state: None, seconds: 0, requests: 0 };
    let absent = Observation::default();
    story.decide(&absent, None);
    (0..19).for_each(|_| drop(story.look(&absent)));
    assert_eq!(story.is(), (Phase::Progressing, Reason::CanaryNotReady, 5));
    story.look(&absent);
    assert_eq!(story.is(), (Phase::RolledBack, Reason::NotReadyInTime, 0));
    // Retrying gives it all the time again; without a deadline it waits for ever.
    story.decide(&absent, Some(Action::Retry));
    (0..19).for_each(|_| drop(story.look(&absent)));
    assert_eq!(story.is(), (Phase::Progressing, Reason::CanaryNotReady, 5));
    story.plan.as_mut().unwrap().progress_deadline = None;
    (0..1000).for_each(|_| drop(story.look(&absent)));
    assert_eq!(story.is(), (Phase::Progressing, Reason::CanaryNotReady, 5));
}

#[test]
fn pods_that_come_back_in_time_are_forgiven() {
    let mut story = Story::of(plan(&[5]));
    story.plan.as_mut().unwrap().steps[0].hold = Duration::from_secs(100_000);
    let gone = Observation { canary_ready: false, ..good() };
    for _ in 0..5 {
        (0..15).for_each(|_| drop(story.look(&gone)));
        story.look(&good());
    }
    assert_eq!(story.is(), (Phase::Progressing, Reason::Holding, 5));
}
