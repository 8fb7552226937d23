//! Canaries under load: they take over without a failed request, and are taken back when users would feel them.
//!
//! The pods are workers without a model, for the rate; `canary.rs` and `versions.rs` do the same with engines.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use fairlead_test_worker::binomial::range;
use fairlead_test_worker::tally::Report;
use serde_json::{Value, json};

use crate::support::figures::{Figure, record};
use crate::support::{
    Load, SERVED, apply, await_phase, await_ready, history, in_namespace, kubectl, model_route, worker,
};

/// Requests a second.
const RATE: u32 = 200;
/// What is recorded of a split: where chance alone puts it 99 times of 100.
const RECORDED: f64 = 0.99;
/// What is asserted of it. Four splits a run inside their 99 % intervals would fail one run of 25 for nothing; this one fails once in
/// ten million splits.
const ASSERTED: f64 = 1.0 - 1e-7;
/// Seconds between two looks at a bad canary's gates.
const INTERVAL: u32 = 5;
/// Requests of the canary that a gate is judged on at least.
const SAMPLE: u64 = 50;
/// Looks after that sample within which a bad canary is taken back.
const LOOKS: f64 = 2.0;

#[tokio::test]
async fn a_good_canary_takes_over_under_load_and_no_request_fails() -> Result<()> {
    in_namespace(async |namespace| {
        workers(&namespace, &[]).await?;
        let model = format!("good-{namespace}");
        let mut route = model_route("chat", &model, &[("v1", 1), ("v2", 0)]);
        apply(&namespace, &route).await?;
        await_ready(&namespace, "modelroute", "chat", SERVED).await?;
        let seconds = 100;
        let load = Load::start(&namespace, "load", &model, RATE, seconds, &[]).await?;
        let hold = "20s";
        route["spec"]["canary"] = json!({
            "backend": "v2",
            "steps": [{"weight": 5, "hold": hold}, {"weight": 25, "hold": hold}, {"weight": 50, "hold": hold}],
            "analysis": {"interval": "5s", "minRequests": 30, "onUndecided": "Promote", "gates": [
                {"metric": "ErrorRate", "maxRegression": "5%"},
                {"metric": "TimeToFirstToken", "quantile": "0.9", "maxRegression": "100%"},
            ]},
        });
        apply(&namespace, &route).await?;
        let live = await_phase(&namespace, "chat", "Promoted").await?;
        let report = load.report(seconds).await?;
        ensure!(report.failed.is_empty() && report.answered == report.sent, "{:?}", report.failed);
        let rollout = &live["status"]["rollout"];
        let weights: Vec<u64> = history(&live)?.iter().map(|(_, weight)| *weight).collect();
        ensure!(weights == [5, 25, 50, 100], "{rollout}");
        let failed = Figure::new(format!("requests that failed of {} while a canary took over", report.sent), "requests", 0.0);
        record(&[splits_are_as_decided(&live, &report)?, vec![failed]].concat()).await
    })
    .await
}

#[tokio::test]
async fn a_canary_that_fails_is_taken_back_and_stable_is_untouched() -> Result<()> {
    taken_back("ErrorRate", "a canary of which 30 % are 5xx", &[("ERROR_RATE", "0.3")]).await
}

#[tokio::test]
async fn a_canary_that_is_slow_to_begin_is_taken_back() -> Result<()> {
    taken_back(
        "TimeToFirstToken",
        "a canary that is twice as slow to the first token",
        &[("FIRST_TOKEN", "80ms")],
    )
    .await
}

#[tokio::test]
async fn a_canary_that_writes_slowly_is_taken_back() -> Result<()> {
    taken_back("InterTokenLatency", "a canary that writes at a fifth of the speed", &[("PER_TOKEN", "20ms")])
        .await
}

#[tokio::test]
async fn users_stay_with_a_growing_canary() -> Result<()> {
    in_namespace(async |namespace| {
        workers(&namespace, &[]).await?;
        let model = format!("sticky-{namespace}");
        let mut route = model_route("chat", &model, &[("v1", 1), ("v2", 0)]);
        route["spec"]["stickiness"] = json!({"by": "User"});
        route["spec"]["canary"] = json!({"backend": "v2", "steps": [
            {"weight": 10, "hold": "10s"}, {"weight": 40, "hold": "10s"}, {"weight": 80, "hold": "10s"},
        ]});
        let paused = route["spec"]["canary"].clone();
        route["spec"].as_object_mut().context("a spec")?.remove("canary");
        apply(&namespace, &route).await?;
        await_ready(&namespace, "modelroute", "chat", SERVED).await?;
        let seconds = 50;
        let load = Load::start(&namespace, "load", &model, RATE, seconds, &["--users", "200"]).await?;
        route["spec"]["canary"] = paused;
        apply(&namespace, &route).await?;
        await_phase(&namespace, "chat", "Promoted").await?;
        let report = load.report(seconds).await?;
        ensure!(report.failed.is_empty(), "{:?}", report.failed);
        // Each of the 200 goes over once, and none comes back.
        let moved = report.switches.get("v1>v2").copied().unwrap_or(0);
        ensure!(
            !report.switches.contains_key("v2>v1") && (150..=200).contains(&moved),
            "{:?}",
            report.switches
        );
        Ok(())
    })
    .await
}

/// A stable version and a canary that behaves as told, beside it.
async fn workers(namespace: &str, canary: &[(&str, &str)]) -> Result<()> {
    // What the canary is told again is what counts.
    let usual = [("TOKENS", "8"), ("FIRST_TOKEN", "40ms"), ("PER_TOKEN", "4ms"), ("SPREAD", "0.3")];
    let told = |name: &str| canary.iter().any(|(other, _)| *other == name);
    let of_canary: Vec<_> =
        usual.into_iter().filter(|(name, _)| !told(name)).chain(canary.to_vec()).collect();
    apply(namespace, &worker("v1", &usual)).await?;
    apply(namespace, &worker("v2", &of_canary)).await?;
    for name in ["v1", "v2"] {
        await_ready(namespace, "modeldeployment", name, SERVED).await?;
    }
    Ok(())
}

/// A canary that behaves so is taken back for this metric, soon, and stable answers all along.
async fn taken_back(metric: &str, what: &str, behaviour: &[(&str, &str)]) -> Result<()> {
    in_namespace(async |namespace| {
        workers(&namespace, behaviour).await?;
        let model = format!("bad-{namespace}");
        let mut route = model_route("chat", &model, &[("v1", 1), ("v2", 0)]);
        apply(&namespace, &route).await?;
        await_ready(&namespace, "modelroute", "chat", SERVED).await?;
        let seconds = 60;
        let load = Load::start(&namespace, "load", &model, RATE, seconds, &[]).await?;
        route["spec"]["canary"] = json!({
            "backend": "v2", "steps": [{"weight": 20, "hold": "10m"}],
            "analysis": {"interval": format!("{INTERVAL}s"), "minRequests": SAMPLE, "gates": [
                {"metric": "ErrorRate", "maxRegression": "5%"},
                {"metric": "TimeToFirstToken", "quantile": "0.9", "maxRegression": "50%"},
                {"metric": "InterTokenLatency", "quantile": "0.9", "maxRegression": "100%"},
            ]},
        });
        apply(&namespace, &route).await?;
        let live = await_phase(&namespace, "chat", "RolledBack").await?;
        let rollout = &live["status"]["rollout"];
        let gates = rollout["analysis"].as_array().context("status.rollout.analysis")?;
        let failed: Vec<&str> = gates
            .iter()
            .filter(|gate| gate["verdict"] == "Fail")
            .filter_map(|gate| gate["metric"].as_str())
            .collect();
        ensure!(failed.contains(&metric), "{metric} did not fail: {rollout}");
        ensure!(rollout["message"].as_str().is_some_and(|message| message.contains("v2")), "{rollout}");
        ensure!(live["status"]["split"] == "v1=100", "{}", live["status"]);
        let report = load.report(seconds).await?;
        let stable = report.backends.get("v1").context("nothing went to v1")?;
        ensure!(stable.failed == 0, "stable failed: {report:?}");
        let events = kubectl(&["-n", &namespace, "get", "events.events.k8s.io", "-o", "json"]).await?;
        ensure!(events.contains("CanaryRolledBack"), "{events}");
        // How soon: from the second in which the canary had had enough requests to be judged at all (streams alone have a first token,
        // and they are half of them, so that a gate on them could be judged a second later still).
        let moves = history(&live)?;
        let [(begun, _), .., (ended, _)] = moves.as_slice() else { bail!("a history of {moves:?}") };
        let mut had = 0;
        let sampled = report.seconds.iter().filter(|second| second.at >= begun.as_second()).find(|second| {
            had += second.backends.get("v2").copied().unwrap_or(0);
            had >= SAMPLE
        });
        let sampled = sampled.context("the canary never had enough requests")?.at + 1;
        let took = ended.as_second() - sampled;
        let looks = took as f64 / f64::from(INTERVAL);
        let all = ended.duration_since(*begun).as_secs();
        let figure = Figure::new(
            format!("{what}: from its minimum sample until it is taken back"),
            "analysis intervals",
            looks,
        )
        .within("limit", LOOKS)
        .with("secondsFromTheStepsBeginning", json!(all));
        record(&[figure]).await?;
        ensure!(
            looks <= LOOKS,
            "taken back {took} s after {SAMPLE} requests, looks are {INTERVAL} s apart: {rollout}"
        );
        // What is over stays so while the load goes on, and nothing more goes to the canary.
        let after = ended.as_second() + 3;
        let late = report.seconds.iter().filter(|second| second.at > after);
        let gone: u64 = late.filter_map(|second| second.backends.get("v2")).sum();
        ensure!(gone == 0, "{gone} requests went to the canary after it was taken back");
        Ok(())
    })
    .await
}

/// Whether, while a weight was in force, the canary had that part of the requests, but for chance: how far it was off.
fn splits_are_as_decided(live: &Value, report: &Report) -> Result<Vec<Figure>> {
    let moves = history(live)?;
    let mut figures = Vec::new();
    for (index, (began, weight)) in moves.iter().enumerate() {
        let end = moves.get(index + 1).map_or(i64::MAX, |(next, _)| next.as_second());
        // A second is left out at each end: the decision falls into it.
        let during =
            report.seconds.iter().filter(|second| second.at > began.as_second() + 1 && second.at < end);
        let mut count: BTreeMap<&str, u64> = BTreeMap::new();
        for (backend, requests) in during.flat_map(|second| &second.backends) {
            *count.entry(backend).or_default() += requests;
        }
        let canary = count.get("v2").copied().unwrap_or(0);
        let all: u64 = count.values().sum();
        ensure!(all > 500, "too few requests at {weight} %: {count:?}");
        let share = *weight as f64 / 100.0;
        let (usual, possible) = (range(all, share, RECORDED), range(all, share, ASSERTED));
        let percent = |requests: f64| 100.0 * requests / all as f64;
        let off = percent(canary as f64 - share * all as f64).abs();
        let metric = format!("how far the canary's part of {RATE} requests/s is off its {weight} %");
        let mut figure = Figure::new(metric, "percentage points", off)
            .with("requests", json!(all))
            .with("ofTheCanary", json!(canary))
            .with("interval99", json!([usual.start(), usual.end()]));
        if *weight < 100 {
            let half = percent((usual.end() - usual.start()) as f64) / 2.0;
            figure = figure.within("half of the 99 % binomial interval", half);
        }
        figures.push(figure);
        ensure!(possible.contains(&canary), "{weight} %: {canary} of {all}, not in {possible:?}");
    }
    Ok(figures)
}
