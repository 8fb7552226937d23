//! Canaries that break after they were good for long: what the stretches since lately tell.

use super::*;
use crate::finding::Window;
use crate::stretch::Live;

/// What gateways tell of traffic, interval after interval, as they count it.
struct Traffic {
    live: Live,
    step: [Counts; 2],
    stretches: [BTreeMap<i64, Counts>; 2],
}

impl Traffic {
    fn new() -> Self {
        Self { live: Live::new(FIRST), step: Default::default(), stretches: Default::default() }
    }

    /// What is seen at the end of the next interval, with so many requests and errors of the canary and of stable in it.
    fn next(&mut self, tallies: [(u64, u64); 2]) -> Observation {
        for (place, (requests, errors)) in tallies.into_iter().enumerate() {
            let counts = Counts { requests, errors, ..Counts::default() };
            self.step[place].merge(&counts);
            self.stretches[place].retain(|begun, _| self.live.begun().contains(begun));
            for begun in self.live.begun() {
                self.stretches[place].entry(*begun).or_default().merge(&counts);
            }
        }
        let now = self.live.begun().last().copied().unwrap_or(FIRST);
        self.live.advance(now + 1);
        let ([canary, stable], [recent_canary, recent_stable]) = (self.step.clone(), self.stretches.clone());
        Observation {
            canary_ready: true,
            asked: true,
            canary,
            stable,
            recent_canary,
            recent_stable,
            ..Observation::default()
        }
    }
}

/// How many intervals of errors it takes until a canary of 150 requests an interval is taken back that had so many good ones.
fn intervals_until_caught(good: u64, errors: u64, bound: Bound) -> (u64, State) {
    let mut long = plan(&[50]);
    long.steps[0].hold = Duration::from_secs(30 * 24 * 3600);
    long.gates = vec![Gate { metric: Metric::ErrorRate, quantile: 0.5, bound, of: None }];
    let (mut story, mut traffic) = (Story::of(Plan { failure_limit: 1, ..long }), Traffic::new());
    for n in 0..good {
        // One and a half of 150.
        let state = story.look(&traffic.next([(150, 1 + n % 2), (150, 1 + (n + 1) % 2)]));
        assert_eq!(state.phase, Phase::Progressing, "{:?}", state.history);
    }
    for n in 1..200 {
        let state = story.look(&traffic.next([(150, errors), (150, 1 + n % 2)]));
        if state.phase == Phase::RolledBack {
            return (n, state);
        }
    }
    panic!("never caught");
}

#[test]
fn a_canary_that_breaks_late_is_caught_as_soon_however_long_it_was_good() {
    for (errors, bound, limit) in [
        (50, Bound::MaxRegression(0.0), 2),
        (30, Bound::MaxRegression(0.0), 3),
        (8, Bound::MaxRegression(0.0), 16),
        (50, Bound::Max(0.02), 2),
        (8, Bound::Max(0.02), 16),
    ] {
        for good in [150, 667, 3_000] {
            let (intervals, state) = intervals_until_caught(good, errors, bound);
            assert!(intervals <= limit, "{errors} of 150 after {good} intervals: {intervals}");
            let found = &state.analysis[0];
            assert_eq!((found.verdict, found.window), (Verdict::Fail, Window::Recent), "{}", found.message);
            // It began with the trouble or not long before.
            let broke = at(good * INTERVAL);
            let since = found.since.unwrap();
            let apart = since.duration_since(broke).as_secs().unsigned_abs();
            assert!(apart <= 16 * INTERVAL, "{since} {broke}");
            let detail = state.history.last().unwrap().detail.as_deref().unwrap();
            assert!(detail.contains(&format!("since {since}")), "{detail}");
        }
    }
}

#[test]
fn what_a_stretch_tells_is_judged_the_more_strictly_the_more_there_were() {
    // What is suspicious once in a step is to be expected at some look of many.
    let odd = Counts { requests: 100, errors: 20, ..Counts::default() };
    let phase_with = |looks: u64, begun: i64, epoch: u64| {
        let mut long = plan(&[5]);
        long.steps[0].hold = Duration::from_secs(3_000_000);
        let mut story = Story::of(Plan { failure_limit: 1, ..long });
        story.seconds += INTERVAL * (looks + 1);
        let seen =
            Observation { recent_canary: [(FIRST + begun, odd.clone())].into(), ..seen(1_000_000, 10_000) };
        let seen = Observation { epoch: story.state.as_ref().unwrap().epoch + epoch, ..seen };
        let decision =
            decide(story.plan.as_ref(), "v1", story.state.as_ref(), &seen, None, at(story.seconds));
        decision.state.phase
    };
    let (caught, passed) = (Phase::RolledBack, Phase::Progressing);
    assert_eq!([phase_with(3, 3, 0), phase_with(50_001, 50_001, 0)], [caught, passed]);
    // What the whole step covers, what is over, what began before the step or is of another.
    let others = [phase_with(3, 1, 0), phase_with(9, 3, 0), phase_with(3, -1, 0), phase_with(3, 3, 1)];
    assert_eq!(others, [passed; 4]);
}
