//! What holds in every story, from whatever status it begins.

use proptest::prelude::*;

use super::*;

fn any_action() -> impl Strategy<Value = Option<Action>> {
    prop_oneof![
        8 => Just(None),
        1 => Just(Some(Action::Promote)),
        1 => Just(Some(Action::Abort)),
        1 => Just(Some(Action::Pause)),
        1 => Just(Some(Action::Resume)),
        1 => Just(Some(Action::Retry)),
    ]
}

fn any_verdict() -> impl Strategy<Value = Option<Verdict>> {
    prop_oneof![
        4 => Just(Some(Verdict::Pass)),
        1 => Just(Some(Verdict::Fail)),
        1 => Just(Some(Verdict::Undecided)),
        1 => Just(Some(Verdict::NotMeasured)),
        1 => Just(None),
    ]
}

fn any_observation() -> impl Strategy<Value = Observation> {
    let counted = (0_u64..3000, 0.0_f64..0.3, any::<bool>(), 0_u64..300, 0.0_f64..0.3);
    let whether = (prop::bool::weighted(0.9), prop::bool::weighted(0.9), prop::bool::weighted(0.1));
    (whether, counted, any_verdict(), prop::option::weighted(0.3, 0_u8..2)).prop_map(
        |((canary_ready, asked, unread), (requests, part, none, late, part_late), verdict, revision)| {
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
            let errors = |of: u64, part: f64| if none { 0 } else { (of as f64 * part) as u64 };
            let found = verdict.map(|verdict| (1, External { verdict, ..External::default() }));
            Observation {
                canary_ready,
                asked,
                unread: if unread { vec!["gateway".into()] } else { vec![] },
                recent_canary: (0..180)
                    .map(|begun| {
                        let errors = errors(late, part_late);
                        (FIRST + begun, Counts { requests: late, errors, ..Counts::default() })
                    })
                    .collect(),
                external: found.into_iter().collect(),
                canary_revision: revision.map(|revision| revision.to_string()),
                ..seen(requests, errors(requests, part))
            }
        },
    )
}

fn any_plan() -> impl Strategy<Value = Plan> {
    let choice =
        prop_oneof![Just(OnUndecided::Pause), Just(OnUndecided::Promote), Just(OnUndecided::RollBack)];
    (prop::collection::btree_set(1_u32..100, 1..5), 0_u64..200, choice, prop::bool::weighted(0.1), 0_u8..3)
        .prop_map(|(weights, hold, on_undecided, paused, gates)| {
            let mut made = plan(&weights.into_iter().collect::<Vec<_>>());
            made.steps.iter_mut().for_each(|step| step.hold = Duration::from_secs(hold));
            (made.on_undecided, made.paused) = (on_undecided, paused);
            match gates {
                0 => made.gates.clear(),
                1 => {
                    let bound = Bound::Max(1.0);
                    made.gates.push(Gate { metric: Metric::Prometheus, quantile: 0.5, bound, of: None });
                }
                _ => {}
            }
            assert_eq!(made.check(), Ok(()));
            made
        })
}

fn any_phase() -> impl Strategy<Value = Phase> {
    prop_oneof![
        1 => Just(Phase::Idle),
        4 => Just(Phase::Progressing),
        2 => Just(Phase::Paused),
        1 => Just(Phase::Promoted),
        1 => Just(Phase::RolledBack),
    ]
}

fn any_reason() -> impl Strategy<Value = Reason> {
    prop::sample::select(Reason::ALL.to_vec())
}

fn any_time() -> impl Strategy<Value = Timestamp> {
    prop_oneof![
        6 => (0_u64..4000).prop_map(at),
        1 => Just(Timestamp::MIN),
        1 => Just(Timestamp::MAX),
        1 => Just(Timestamp::default()),
    ]
}

/// A backend, one of the plans' or another.
fn any_backend() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["v1", "v2", "v3", ""]).prop_map(str::to_owned)
}

/// One of the plans' fingerprints, mostly that of the first.
fn any_fingerprint() -> impl Strategy<Value = String> {
    prop_oneof![4 => Just(0), 1 => 1..4].prop_map(|number| format!("plan {number}"))
}

fn any_entry() -> impl Strategy<Value = Entry> {
    (any_time(), any_backend(), any_phase(), any_reason(), any::<u32>()).prop_map(
        |(at, canary, phase, reason, weight)| Entry { at, canary, phase, reason, weight, detail: None },
    )
}

fn any_ended() -> impl Strategy<Value = Ended> {
    (any_fingerprint(), any_phase(), any_reason()).prop_map(|(fingerprint, phase, reason)| Ended {
        fingerprint,
        phase,
        reason,
    })
}

/// What may stand in a status: what decisions have led to, what somebody has written there by hand, what two backups were mixed to.
fn any_state() -> impl Strategy<Value = State> {
    let numbers = (
        prop_oneof![6 => 0_u32..6, 1 => any::<u32>()],
        prop_oneof![6 => 0_u32..101, 1 => any::<u32>()],
        prop_oneof![4 => 0_u64..9, 1 => Just(u64::MAX)],
        prop_oneof![4 => 0_u32..3, 1 => Just(u32::MAX)],
    );
    let times = (any_time(), prop::option::of(any_time()), prop::option::of(any_time()));
    let revision = || prop::option::of((0_u8..2).prop_map(|revision| revision.to_string()));
    let what = (any_fingerprint(), any_phase(), any_reason(), any_backend(), any_backend());
    let promoted = prop::option::of((any_backend(), any_backend()));
    let past = (prop::collection::vec(any_ended(), 0..30), prop::collection::vec(any_entry(), 0..30));
    let whether = (any::<bool>(), any::<bool>());
    (what, numbers, times, (revision(), revision()), promoted, past, whether).prop_map(
        |(what, numbers, times, revisions, promoted, (ended, history), (served, paused_by_request))| {
            let (fingerprint, phase, reason, canary, stable) = what;
            let (step, weight, epoch, failures) = numbers;
            let (step_began, unready_since, looked) = times;
            let (canary_revision, stable_revision) = revisions;
            let promoted = promoted.map(|(backend, over)| Promotion { backend, over });
            State {
                fingerprint,
                phase,
                reason,
                canary,
                stable,
                step,
                weight,
                step_began,
                epoch,
                served,
                unready_since,
                canary_revision,
                stable_revision,
                looked,
                failures,
                analysis: Vec::new(),
                lacking: None,
                paused_by_request,
                handled: None,
                promoted,
                ended,
                history,
            }
        },
    )
}

proptest! {
    /// From any status, with anything seen and asked for: no gate is skipped, no step exceeded, nothing waits without saying why.
    #[test]
    fn no_rollout_ever_breaks_its_rules(
        plans in prop::collection::vec(any_plan(), 1..4),
        happenings in prop::collection::vec((any_observation(), any_action(), 0_u64..90, 0_usize..40), 1..60),
        status in prop::option::of(any_state()),
    ) {
        let plans: Vec<Plan> = plans.into_iter().enumerate().map(|(number, plan)| Plan { fingerprint: format!("plan {number}"), ..plan }).collect();
        let mut current = 0;
        let mut state = status;
        let mut seconds = 0;
        for (number, (seen, action, passes, change)) in happenings.into_iter().enumerate() {
            seconds += passes;
            if change < 2 { current = (current + 1) % plans.len(); }
            let plan = (change != 3).then(|| &plans[current]);
            let canary = plan.map_or("v2", |plan| &plan.canary).to_owned();
            let request = action.map(|action| Request { id: number.to_string(), action, canary });
            let seen = Observation { epoch: state.as_ref().map_or(0, |state| state.epoch), ..seen };
            let stable = plan.map_or("v1", |plan| &plan.stable);
            let decision = decide(plan, stable, state.as_ref(), &seen, request.as_ref(), at(seconds));
            let now = &decision.state;
            let whole = seen.asked && seen.unread.is_empty();
            let Some(plan) = plan else {
                prop_assert_eq!((now.phase, now.weight), (Phase::Idle, 0));
                state = Some(decision.state);
                continue;
            };
            // Never more than the step's weight, unless promoted.
            match now.phase {
                Phase::Idle => prop_assert!(false, "a canary is idle"),
                Phase::Promoted => prop_assert_eq!(now.weight, 100),
                Phase::RolledBack => prop_assert_eq!(now.weight, 0),
                Phase::Progressing | Phase::Paused => prop_assert_eq!(now.weight, plan.step(now.step).unwrap().weight),
            }
            let same = state.as_ref().filter(|before| before.fingerprint == now.fingerprint && before.phase != Phase::Idle);
            if let Some(before) = same {
                let under_way = matches!(before.phase, Phase::Progressing | Phase::Paused);
                let asked = |wanted: Action| decision.refused.is_none() && action == Some(wanted);
                let begun_again = now.step == 0 && now.canary_revision != before.canary_revision;
                let fits = plan.step(before.step).is_some_and(|step| step.weight == before.weight);
                if under_way && !fits && matches!(now.phase, Phase::Progressing | Phase::Paused) {
                    prop_assert!(now.step <= before.step && (now.step == 0 || now.weight <= before.weight), "it does not grow");
                    prop_assert!(now.epoch != before.epoch, "counting begins anew");
                }
                if under_way && now.epoch == before.epoch && now.phase == Phase::Progressing {
                    prop_assert_eq!(now.weight, before.weight);
                }
                if under_way && fits && now.step != before.step && !begun_again {
                    prop_assert_eq!(now.step, before.step + 1, "one step at a time");
                    prop_assert!(whole || plan.gates.is_empty(), "by what every gateway counted");
                    prop_assert!(now.epoch != before.epoch, "counting begins anew");
                    prop_assert_eq!(decision.judgements.len(), plan.gates.len(), "every gate was judged");
                    let decided = |it: &Judgement| matches!(it.verdict, Verdict::Pass | Verdict::Undecided);
                    prop_assert!(decision.judgements.iter().all(decided));
                    prop_assert!(at(seconds).duration_since(before.step_began) >= signed(plan.step(before.step).unwrap().hold));
                }
                if under_way && now.phase == Phase::Promoted && !asked(Action::Promote) {
                    prop_assert!(plan.is_last(before.step));
                    prop_assert!(whole || plan.gates.is_empty(), "by what every gateway counted");
                    prop_assert_eq!(decision.judgements.len(), plan.gates.len());
                    let all_pass = decision.judgements.iter().all(|it| it.verdict == Verdict::Pass);
                    let none_fails = decision.judgements.iter().all(|it| matches!(it.verdict, Verdict::Pass | Verdict::Undecided));
                    prop_assert!(all_pass || (plan.on_undecided == OnUndecided::Promote && none_fails));
                }
                if !under_way && !asked(Action::Retry) {
                    prop_assert_eq!(now.phase, before.phase, "what has ended stays so");
                }
            }
            // It has ended, or it is looked at again and says why it waits.
            prop_assert_eq!(decision.next.is_some(), matches!(now.phase, Phase::Progressing | Phase::Paused));
            // The reason of what has ended may be one that this version does not know.
            let unknown = state.as_ref().is_some_and(|before| before.reason == Reason::NoCanary && before.phase == now.phase)
                || state.as_ref().is_some_and(|before| before.ended.iter().any(|ended| ended.reason == Reason::NoCanary));
            prop_assert!(now.reason != Reason::NoCanary || unknown);
            prop_assert!(now.history.len() <= KEPT && now.ended.len() <= KEPT);
            // What waits says what for: a look that was not enough is never told as time alone.
            let short = decision.judgements.iter().any(|it| matches!(it.verdict, Verdict::TooFewRequests | Verdict::NotMeasured));
            let hold = plan.step(now.step).map(|step| step.hold).unwrap_or_default();
            let held = at(seconds).duration_since(now.step_began) >= signed(hold);
            if short && held && now.phase == Phase::Progressing && now.looked == Some(at(seconds)) {
                prop_assert!(!matches!(now.reason, Reason::Holding), "{:?}", now.reason);
            }
            state = Some(decision.state);
        }
    }

    /// From any status, a canary that is good and is looked at often enough ends; what was under way, or is new, is promoted.
    #[test]
    fn every_rollout_of_a_good_canary_ends(plan in any_plan(), status in prop::option::of(any_state())) {
        let plan = Plan { fingerprint: "plan 0".into(), paused: false, ..plan };
        let mut state = status;
        let ended_before = |state: &State| {
            let of_plan = state.fingerprint == plan.fingerprint;
            (of_plan && state.phase == Phase::RolledBack)
                || state.ended.iter().any(|ended| ended.fingerprint == plan.fingerprint && ended.phase == Phase::RolledBack)
        };
        let may_be_back = state.as_ref().is_some_and(ended_before);
        // Whoever has paused it asks to go on; to anything else that is no reason to move.
        let resume = Request { id: "go on".into(), action: Action::Resume, canary: plan.canary.clone() };
        let found = External { verdict: Verdict::Pass, ..External::default() };
        // Steps of at most 200 s, looked at every 30 s and at their end; one look more for what had to be mended, one for what changed.
        let looks = plan.steps.len() as u64 * 9 + 4;
        for look in 0..looks {
            let epoch = state.as_ref().map_or(0, |state| state.epoch);
            let seen = Observation { epoch, external: [(1, found.clone())].into(), ..good() };
            let now = at(5000 + look * INTERVAL);
            state = Some(decide(Some(&plan), &plan.stable, state.as_ref(), &seen, Some(&resume), now).state);
        }
        let state = state.unwrap();
        let ended = if may_be_back { vec![Phase::Promoted, Phase::RolledBack] } else { vec![Phase::Promoted] };
        prop_assert!(ended.contains(&state.phase), "{state:?}");
    }
}
