//! Clocks that differ: two gateways, each with a clock of its own, and an operator with a third.

use super::*;
use crate::report::{BackendReport, FORMAT, Report, RouteReport, Wanted, sum};
use crate::stretch::Live;

/// Requests come in so many portions an interval.
const PORTIONS: i64 = 10;
/// A portion, in milliseconds.
const PORTION: i64 = 1000 * INTERVAL as i64 / PORTIONS;
/// Requests of a variant in a portion at one gateway.
const REQUESTS: u64 = 5;

/// A gateway, or an operator, whose clock is so many tenths of an interval ahead.
fn clock(portion: i64, ahead: i64) -> Timestamp {
    Timestamp::from_millisecond(1_800_000_000_000 + (portion + ahead) * PORTION).unwrap()
}

/// As gateways count: the whole step, and the stretches that begin by their clock.
struct Gateway {
    ahead: i64,
    epoch: u64,
    live: Live,
    backends: [BackendReport; 2],
}

impl Gateway {
    fn new(ahead: i64, epoch: u64, portion: i64) -> Self {
        let now = window(clock(portion, ahead), Duration::from_secs(INTERVAL));
        Self { ahead, epoch, live: Live::new(now), backends: Default::default() }
    }

    /// It carries a portion, with so many errors of the canary and of stable in it.
    fn carries(&mut self, portion: i64, errors: [u64; 2]) {
        self.live.advance(window(clock(portion, self.ahead), Duration::from_secs(INTERVAL)));
        for (backend, errors) in self.backends.iter_mut().zip(errors) {
            let counts = Counts { requests: REQUESTS, errors, ..Counts::default() };
            backend.step.merge(&counts);
            backend.stretches.retain(|begun, _| self.live.begun().contains(begun));
            for begun in self.live.begun() {
                backend.stretches.entry(*begun).or_default().merge(&counts);
            }
        }
    }

    fn report(&self) -> Report {
        let [canary, stable] = self.backends.clone();
        let route = RouteReport {
            route: "ns/chat".into(),
            uid: "u".into(),
            fingerprint: "one".into(),
            epoch: self.epoch,
            backends: [("v2".to_owned(), canary), ("v1".to_owned(), stable)].into(),
        };
        Report { format: FORMAT, instance: "i".into(), synced: true, routes: vec![route] }
    }
}

/// A rollout until it ends, or for so many intervals: how it ended, and after how many. `errors`: of the canary, in a portion of an interval.
fn goes(
    plan: &Plan,
    [operator, one, other]: [i64; 3],
    most: i64,
    errors: impl Fn(i64) -> u64,
) -> (State, i64) {
    let mut state: Option<State> = None;
    let mut gateways: Vec<Gateway> = Vec::new();
    for portion in 0..most * PORTIONS {
        let epoch = state.as_ref().map_or(0, |state: &State| state.epoch);
        if gateways.first().is_none_or(|gateway| gateway.epoch != epoch) {
            gateways = [one, other].map(|ahead| Gateway::new(ahead, epoch, portion)).into();
        }
        let now = clock(portion, operator);
        let asked = due(plan, state.as_ref(), now);
        let wanted = Wanted { uid: "u", fingerprint: "one", epoch, canary: "v2", stable: "v1" };
        let report = |it: &Gateway| ("gateway".to_owned(), Ok(it.report()));
        let answers: Vec<_> = gateways.iter().filter(|_| asked).map(report).collect();
        let sum = sum(&answers, wanted);
        let seen = Observation {
            canary_ready: true,
            asked,
            epoch,
            canary: sum.canary.step,
            stable: sum.stable.step,
            recent_canary: sum.canary.stretches,
            recent_stable: sum.stable.stretches,
            unread: sum.unread,
            ..Observation::default()
        };
        let decided = decide(Some(plan), "v1", state.as_ref(), &seen, None, now).state;
        if !matches!(decided.phase, Phase::Progressing | Phase::Paused) {
            return (decided, portion / PORTIONS);
        }
        state = Some(decided);
        for (place, gateway) in (0..).zip(&mut gateways) {
            // Stable fails one request of a hundred.
            let stable = u64::from((portion + 5 * place) % 20 == 0);
            gateway.carries(portion, [errors(portion + 3 * place), stable]);
        }
    }
    (state.unwrap(), most)
}

/// Tenths of an interval by which the operator, one gateway and the other are ahead.
fn clocks() -> Vec<[i64; 3]> {
    let gateways = [0, 9, -9, 30, -30];
    let mut all = Vec::new();
    for operator in [0, 9, -9] {
        for one in gateways {
            all.extend(gateways.map(|other| [operator, one, other]));
        }
    }
    all
}

fn judged() -> Plan {
    let mut plan = plan(&[5, 25, 50]);
    plan.failure_limit = 1;
    plan.steps.iter_mut().for_each(|step| step.hold = Duration::from_secs(4 * INTERVAL));
    plan.gates = vec![
        Gate { metric: Metric::ErrorRate, quantile: 0.5, bound: Bound::Max(0.05), of: None },
        Gate { metric: Metric::ErrorRate, quantile: 0.5, bound: Bound::MaxRegression(0.04), of: None },
    ];
    plan
}

/// One failure of a hundred requests, as stable has them.
fn good_portion(portion: i64) -> u64 {
    u64::from(portion % 20 == 0)
}

/// One of ten.
fn bad_portion(portion: i64) -> u64 {
    u64::from(portion % 2 == 0)
}

#[test]
fn clocks_that_differ_keep_no_good_canary_from_its_promotion() {
    let unskewed = goes(&judged(), [0; 3], 200, good_portion).1;
    for clocks in clocks() {
        let (state, intervals) = goes(&judged(), clocks, 200, good_portion);
        assert_eq!(state.phase, Phase::Promoted, "{clocks:?}: {:?}", state.history);
        assert!((intervals - unskewed).abs() <= 1, "{clocks:?}: {intervals}, and {unskewed} without");
    }
}

#[test]
fn clocks_that_differ_hide_no_bad_canary() {
    let unskewed = goes(&judged(), [0; 3], 200, bad_portion).1;
    for clocks in clocks() {
        let (state, intervals) = goes(&judged(), clocks, 200, bad_portion);
        assert_eq!((state.phase, state.reason), (Phase::RolledBack, Reason::GateFailed), "{clocks:?}");
        assert!((intervals - unskewed).abs() <= 1, "{clocks:?}: {intervals}, and {unskewed} without");
    }
}

/// How much later depends on which of the stretches the trouble falls into.
#[test]
fn clocks_that_differ_hide_nothing_that_breaks_late() {
    let mut plan = judged();
    plan.steps = vec![Step { weight: 50, hold: Duration::from_secs(100_000 * INTERVAL) }];
    let breaks =
        |portion| if portion < 300 * PORTIONS { good_portion(portion) } else { bad_portion(portion) };
    let unskewed = goes(&plan, [0; 3], 400, breaks).1;
    // Each of these takes some thousand looks.
    let gateways = [[9, -9], [9, 9], [-9, -9], [0, 30], [0, -30], [30, 30], [30, -30], [-30, -30]];
    for clocks in gateways.map(|[one, other]| [0, one, other]) {
        let (state, intervals) = goes(&plan, clocks, 400, breaks);
        assert_eq!((state.phase, state.reason), (Phase::RolledBack, Reason::GateFailed), "{clocks:?}");
        assert!((intervals - unskewed).abs() <= 3, "{clocks:?}: {intervals}, and {unskewed} without");
    }
}

/// A plan without gates, at its first step since a moment, as the leader before has left it.
fn left_at_the_first_step() -> Story {
    let mut plan = plan(&[5, 25, 50]);
    plan.gates.clear();
    let mut story = Story::of(plan);
    story.seconds = 10_000;
    story.plans(Plan { fingerprint: "another".into(), ..story.plan.clone().unwrap() });
    story
}

#[test]
fn a_leader_whose_clock_is_ahead_shortens_one_step_and_no_other() {
    let mut story = left_at_the_first_step();
    story.seconds += 3600;
    let weights: Vec<u32> = (0..5).map(|_| story.look(&good()).weight).collect();
    assert_eq!(weights, [25, 25, 50, 50, 100], "each of the next is held in full");
}

#[test]
fn a_leader_whose_clock_is_behind_holds_one_step_for_at_most_its_hold_more() {
    let mut story = left_at_the_first_step();
    story.seconds -= 3600;
    story.decide(&good(), None);
    let weights: Vec<u32> = (0..6).map(|_| story.look(&good()).weight).collect();
    assert_eq!(weights, [5, 25, 25, 50, 50, 100]);
}
