//! What people see of rollouts, as text.

use fairlead_rollout::{Bound, Counts, Finding, Gate, Metric};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::render;
use super::report::Report;
use crate::render::Paint;
use crate::route::Route;

fn now() -> Timestamp {
    "2026-11-29T06:14:12Z".parse().unwrap()
}

fn route(rollout: &Value) -> Route {
    serde_json::from_value(json!({
        "metadata": {"namespace": "shop", "name": "support-chat"},
        "spec": {"canary": {"backend": "v2", "steps": [
            {"weight": 5, "hold": "10m"}, {"weight": 25, "hold": "10m"}, {"weight": 50, "hold": "20m"}]}},
        "status": {
            "effectiveSplit": [{"backend": "v1", "percent": "75"}, {"backend": "v2", "percent": "25"}],
            "rollout": rollout,
        },
    }))
    .unwrap()
}

fn under_way() -> Value {
    json!({
        "phase": "Progressing", "reason": "Holding", "canary": "v2", "stable": "v1", "step": 1, "weight": 25, "served": true,
        "stepBegan": "2026-11-29T06:10:00Z", "message": "v2 has 25 % beside v1 for 10m and then the next step",
        "history": [
            {"at": "2026-11-29T06:00:00Z", "canary": "v2", "phase": "Progressing", "reason": "Holding", "weight": 5},
            {"at": "2026-11-29T06:10:00Z", "canary": "v2", "phase": "Progressing", "reason": "Holding", "weight": 25},
        ],
    })
}

fn judged() -> Value {
    let mut rollout = under_way();
    rollout["message"] = json!("v2 has 25 % beside v1; the hold is over, and TimeToFirstToken is undecided");
    rollout["analysis"] = json!([
        {"metric": "ErrorRate", "bound": "max", "limit": "0.02", "canary": "0.0073", "low": "0.0012", "high": "0.0189",
            "verdict": "Pass", "requests": 412, "window": "Step", "message": "…"},
        {"metric": "TimeToFirstToken", "quantile": "0.95", "bound": "maxRegression", "limit": "0.2", "canary": "1.24",
            "stable": "1.1", "low": "-0.03", "high": "0.4", "verdict": "Undecided", "requests": 412, "stableRequests": 1240,
            "window": "Recent"},
        {"metric": "InterTokenLatency", "quantile": "0.95", "bound": "max", "limit": "0.05", "verdict": "TooFewRequests",
            "requests": 38, "window": "Step"},
        {"metric": "Evaluation", "of": "facts exactMatch", "bound": "maxRegression", "limit": "0.05", "canary": "0.71",
            "stable": "0.9", "low": "0.12", "high": "0.26", "verdict": "Fail", "requests": 120, "stableRequests": 120,
            "window": "Step"},
        {"metric": "Prometheus", "bound": "max", "limit": "3", "verdict": "NotMeasured", "window": "Step"},
    ]);
    rollout
}

fn full(route: &Route, width: usize) -> String {
    render::full(&Report::of(route, now()), now(), width, Paint::PLAIN)
}

#[test]
fn a_rollout_under_way() {
    insta::assert_snapshot!(full(&route(&under_way()), 80));
}

/// What the operator finds of a canary with 412 streamed answers beside 1,240 of stable, and so few of more than a token.
fn findings() -> Value {
    let plan = |metric, quantile, bound| Gate { metric, quantile, bound, of: None };
    let gates = [
        plan(Metric::ErrorRate, 0.5, Bound::Max(0.02)),
        plan(Metric::TimeToFirstToken, 0.95, Bound::MaxRegression(0.2)),
        plan(Metric::InterTokenLatency, 0.95, Bound::Max(0.05)),
    ];
    let counted = |requests: u32, errors, first_token: f64, between: u32| {
        let mut counts = Counts { requests: requests.into(), errors, ..Counts::default() };
        for n in 0..requests {
            counts.time_to_first_token.add(first_token * (0.6 + 0.42 * f64::from(n) / f64::from(requests)));
        }
        counts.inter_token_latency.add_many(0.031, between.into());
        counts
    };
    let (canary, stable) = (counted(412, 1, 0.42, 38), counted(1240, 2, 0.39, 1240));
    // One of three gates in three steps, half of it for the whole step.
    let alpha = 0.05 / 9.0 / 2.0;
    let found = gates.map(|gate| Finding::from(&gate.judge(&canary, &stable, 50, alpha)));
    serde_json::to_value(found).unwrap()
}

#[test]
fn the_page_shows_what_is_printed() {
    let mut rollout = under_way();
    rollout["analysis"] = findings();
    crate::documented::check("kubectl fairlead rollout status support-chat", &full(&route(&rollout), 130));
    rollout["analysis"] = judged()["analysis"].clone();
    rollout["analysis"][1]["since"] = json!("2026-11-29T06:12:30Z");
    let text = full(&route(&rollout), 160);
    assert!(text.contains("TimeToFirstToken p95 (since 06:12:30)"), "{text}");
}

#[test]
fn a_narrow_terminal() {
    let text = full(&route(&under_way()), 44);
    assert!(
        text.lines()
            .filter(|line| !line.starts_with("kubectl"))
            .all(|line| console::measure_text_width(line) <= 60),
        "{text}"
    );
    insta::assert_snapshot!(text);
}

#[test]
fn gates_in_a_table_and_on_a_narrow_terminal() {
    insta::assert_snapshot!("gates_wide", full(&route(&judged()), 160));
    insta::assert_snapshot!("gates_narrow", full(&route(&judged()), 80));
}

#[test]
fn a_rollout_that_was_taken_back() {
    let mut rollout = under_way();
    rollout["phase"] = json!("RolledBack");
    rollout["reason"] = json!("Requested");
    rollout["weight"] = json!(0);
    rollout["message"] =
        json!("v2 has nothing: taken back as was asked; ask to retry, or change spec.canary");
    insta::assert_snapshot!(full(&route(&rollout), 80));
}

#[test]
fn one_that_the_operator_has_not_seen_and_none_at_all() {
    let mut other = under_way();
    other["canary"] = json!("v0");
    let text = full(&route(&other), 80);
    assert!(
        text.contains("Pending") && text.contains("the operator has not looked at this canary yet"),
        "{text}"
    );
    let none: Route =
        serde_json::from_value(json!({"metadata": {"namespace": "shop", "name": "search"}})).unwrap();
    let text = full(&none, 80);
    assert!(text.contains("shop/search   Idle") && text.contains("there is no canary"), "{text}");
}

#[test]
fn colours_only_where_asked_for() {
    let report = Report::of(&route(&under_way()), now());
    assert!(!render::full(&report, now(), 80, Paint::PLAIN).contains('\u{1b}'));
    let painted = render::full(&report, now(), 80, Paint::new(true));
    assert!(painted.contains('\u{1b}'));
    let plain = console::strip_ansi_codes(&painted).into_owned();
    assert_eq!(plain, render::full(&report, now(), 80, Paint::PLAIN), "colours move nothing");
}

#[test]
fn one_line_for_logs() {
    assert_eq!(
        render::line(&Report::of(&route(&under_way()), now())),
        "support-chat Progressing step 2/3, v2 has 25 %: v2 has 25 % beside v1 for 10m and then the next step"
    );
}

#[test]
fn json_for_programs() {
    insta::assert_json_snapshot!(Report::of(&route(&judged()), now()));
}
