//! What gateways tell and what stands in statuses, as the first version wrote it. These files are never written anew: gateways and
//! operators of two versions run side by side in every upgrade. Where a change makes one of these tests fail, either read both forms, or
//! raise `report::FORMAT` (then canaries with gates wait until the upgrade is done) and add a file for the new form.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use fairlead_rollout::report::{BackendReport, FORMAT, Report, RouteReport, Sum, Wanted, sum};
use fairlead_rollout::{Counts, Histogram, Phase, Reason, State, Verdict};
use serde_json::Value;

const REPORT: &str = include_str!("golden/report-1.json");
const STATE: &str = include_str!("golden/state-1.json");

fn histogram(values: &[(f64, u64)]) -> Histogram {
    let mut made = Histogram::default();
    values.iter().for_each(|(value, times)| made.add_many(*value, *times));
    made
}

/// What the file's gateway has seen.
fn step() -> Counts {
    Counts {
        requests: 100,
        errors: 2,
        time_to_first_token: histogram(&[(0.05, 90), (0.3, 8), (f64::INFINITY, 2)]),
        inter_token_latency: histogram(&[(0.001, 3), (0.02, 95)]),
        end_to_end_latency: histogram(&[(1.5, 98), (f64::INFINITY, 2)]),
        tokens_per_answer: histogram(&[(250.0, 98)]),
        unanswered: histogram(&[(4.0, 1)]),
        unfinished: histogram(&[(30.0, 2)]),
    }
}

fn recent() -> Counts {
    Counts {
        requests: 10,
        errors: 1,
        time_to_first_token: histogram(&[(0.05, 9), (f64::INFINITY, 1)]),
        end_to_end_latency: histogram(&[(1.5, 9), (f64::INFINITY, 1)]),
        tokens_per_answer: histogram(&[(250.0, 9)]),
        unfinished: histogram(&[(0.0, 1)]),
        ..Counts::default()
    }
}

fn report() -> Report {
    let canary = BackendReport { step: step(), stretches: [(60_000_001, recent())].into() };
    let route = RouteReport {
        route: "models/chat".into(),
        uid: "8d1c".into(),
        fingerprint: "b1f655b37ee8456b".into(),
        epoch: 3,
        backends: [("v1".to_owned(), BackendReport::default()), ("v2".to_owned(), canary)].into(),
    };
    Report { format: 1, instance: "0f3a".into(), synced: true, routes: vec![route] }
}

/// Whether everything of `old` is in `new`, which may have more.
fn keeps(old: &Value, new: &Value) -> bool {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => {
            old.iter().all(|(key, old)| new.get(key).is_some_and(|new| keeps(old, new)))
        }
        (Value::Array(old), Value::Array(new)) => {
            old.len() == new.len() && old.iter().zip(new).all(|(old, new)| keeps(old, new))
        }
        _ => old == new,
    }
}

#[test]
fn a_gateway_of_the_first_version_is_understood_and_understands() {
    assert_eq!(FORMAT, 1, "a form of its own needs a file of its own: see above");
    assert_eq!(serde_json::from_str::<Report>(REPORT).unwrap(), report());
    let written = serde_json::to_value(report()).unwrap();
    assert!(keeps(&serde_json::from_str(REPORT).unwrap(), &written), "{written:#}");
}

#[test]
fn counts_of_the_first_version_and_of_this_one_add_up() {
    let older: Report = serde_json::from_str(REPORT).unwrap();
    let wanted =
        Wanted { uid: "8d1c", fingerprint: "b1f655b37ee8456b", epoch: 3, canary: "v2", stable: "v1" };
    let newer_form = Report { format: FORMAT + 1, ..report() };
    let answers = [("old", older), ("new", report()), ("next", newer_form)];
    let answers: Vec<_> = answers.into_iter().map(|(name, report)| (name.to_owned(), Ok(report))).collect();
    let Sum { canary, unread, .. } = sum(&answers, wanted);
    let mut twice = step();
    twice.merge(&step());
    assert_eq!(canary.step, twice);
    assert_eq!(canary.step.time_to_first_token.count(), 200);
    assert_eq!(canary.stretches.keys().copied().collect::<Vec<_>>(), [60_000_001]);
    assert_eq!(unread, ["next counts in form 2, not 1: it is of another version"]);
}

/// The edges of all buckets: what one version counts below a latency another must not count above it.
#[test]
fn buckets_are_where_the_first_version_had_them() {
    let numbers: BTreeMap<u16, u64> = (0..=1086).map(|number| (number, 1)).collect();
    let all: Histogram = serde_json::from_value(serde_json::to_value(numbers).unwrap()).unwrap();
    let edges: Vec<_> = all.buckets().map(|(low, high, _)| (low, high)).collect();
    assert_eq!(edges.len(), 1087);
    let edge = |number: usize| 1e-5 * (number as f64 / 32.0).exp2();
    assert_eq!(edges[0], (0.0, edge(0)));
    assert_eq!(edges[1086].1, f64::INFINITY);
    for (number, (low, high)) in edges.iter().enumerate().skip(1) {
        assert!((low / edge(number - 1) - 1.0).abs() < 1e-12, "{number}");
        assert!(number == 1086 || (high / edge(number) - 1.0).abs() < 1e-12, "{number}");
        // A value in its middle is counted in it.
        let middle = edge(number - 1) * (1.0_f64 / 64.0).exp2();
        let counted = serde_json::to_value(histogram(&[(middle, 1)])).unwrap();
        assert_eq!(counted, serde_json::json!({number.to_string(): 1}));
    }
}

#[test]
fn a_status_of_the_first_version_is_read_whole_and_written_whole() {
    let state: State = serde_json::from_str(STATE).unwrap();
    assert_eq!((state.phase, state.reason, state.step), (Phase::Progressing, Reason::GateFailing, 1));
    assert_eq!((state.weight, state.epoch, state.failures), (25, 3, 1));
    assert_eq!(state.step_began.to_string(), "2026-11-29T11:26:36.123456789Z");
    assert_eq!(
        state.analysis.iter().map(|it| it.verdict).collect::<Vec<_>>(),
        [Verdict::Fail, Verdict::NotMeasured]
    );
    assert_eq!(state.promoted.as_ref().unwrap().over, "v0");
    assert_eq!((state.ended[0].reason, state.history.len()), (Reason::NotReadyInTime, 2));
    let written = serde_json::to_value(&state).unwrap();
    assert!(keeps(&serde_json::from_str(STATE).unwrap(), &written), "{written:#}");
}
