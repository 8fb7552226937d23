//! An Evaluation decides about a canary that no latency and no status code tells from a good one: real pods, real answers.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use crate::support::figures::{Figure, record};
use crate::support::kubectl::list;
use crate::support::trickle::{Asked, Trickle};
use crate::support::{
    DECIDED, Gateway, SERVED, apply, await_phase, await_ready, chat, eventually, example, get, history,
    in_namespace, model_route,
};

/// Seconds between two looks at the gates.
const INTERVAL: i64 = 10;
const GOOD: &str = "tiny-v1";
const BAD: &str = "tiny-undertrained";
const ROUTE: &str = "support-chat";

#[tokio::test]
async fn a_canary_that_answers_worse_is_taken_back_and_one_that_answers_better_takes_over() -> Result<()> {
    in_namespace(async |namespace| {
        for file in ["quickstart/modeldeployment.yaml", "canary/tiny-undertrained.yaml"] {
            apply(&namespace, &example(file)?).await?;
        }
        apply(&namespace, &example("evaluation/questions.yaml")?).await?;
        apply(&namespace, &example("evaluation/evaluation.yaml")?).await?;
        let model = format!("gated-{namespace}");
        let mut route = model_route(ROUTE, &model, &[(GOOD, 1), (BAD, 0)]);
        apply(&namespace, &route).await?;
        await_ready(&namespace, "modelroute", ROUTE, SERVED).await?;
        await_ready(&namespace, "modeldeployment", BAD, SERVED).await?;
        let gateway = Arc::new(Gateway::open().await?);
        gateway.await_answer(&model, SERVED).await?;
        let pods = serving(&namespace).await?;

        // It would stay for an hour, if nobody asked it anything.
        route["spec"]["canary"] = canary(BAD, "1h", &json!({"maxRegression": "20%"}));
        apply(&namespace, &route).await?;
        let requests = Trickle::start(&gateway, &model);
        let live = await_phase(&namespace, ROUTE, "RolledBack").await?;
        let requests = requests.stop().await?;
        let rollout = &live["status"]["rollout"];
        ensure!(gate(&live)?["verdict"] == "Fail" && rollout["reason"] == "GateFailed", "{rollout}");
        ensure!(rollout["message"].as_str().is_some_and(|it| it.contains("support-quality/contains")), "{rollout}");
        let took = history(&live)?.last().context("a history")?.0.as_second()
            - found_at(&namespace, &live).await?.as_second();
        let to_canary = requests.iter().filter(|it| it.backend == BAD).count();
        let metric = "a canary that fails its Evaluation: from when both had been asked until it is taken back";
        let figure = Figure::new(metric, "analysis intervals", took as f64 / INTERVAL as f64)
            .within("limit", 2.0)
            .with("requests", json!(requests.len()))
            .with("ofTheCanary", json!(to_canary));
        record(&[figure]).await?;
        ensure!(took <= 2 * INTERVAL, "taken back after {took} s: {rollout}");

        // Stable is untouched: it has answered everything, has the pods that it had, and gets all requests.
        ensure!(live["status"]["split"] == format!("{GOOD}=100"), "{}", live["status"]);
        let failed: Vec<&Asked> = requests.iter().filter(|it| it.failure.is_some()).collect();
        ensure!(failed.is_empty(), "{failed:?}");
        ensure!(serving(&namespace).await? == pods, "pods were restarted");
        all_go_to(&gateway, &model, GOOD).await?;

        // The other way round: the bad version stands, and the good one has to be better.
        route["spec"]["backends"] = json!([
            {"name": GOOD, "modelDeployment": GOOD, "weight": 0}, {"name": BAD, "modelDeployment": BAD, "weight": 1},
        ]);
        route["spec"]["canary"] = canary(GOOD, "5s", &json!({"minImprovement": "10%"}));
        apply(&namespace, &route).await?;
        let live = await_phase(&namespace, ROUTE, "Promoted").await?;
        ensure!(gate(&live)?["verdict"] == "Pass", "{}", live["status"]["rollout"]);
        ensure!(live["status"]["split"] == format!("{GOOD}=100"), "{}", live["status"]);
        all_go_to(&gateway, &model, GOOD).await
    })
    .await
}

/// Waits until twenty requests in a row go to one backend.
async fn all_go_to(gateway: &Gateway, model: &str, backend: &str) -> Result<()> {
    eventually(DECIDED, async || {
        for _ in 0..20 {
            let (_, headers, body) = gateway.post("/v1/chat/completions", &chat(model, 1)).await?;
            let by = headers.get("x-fairlead-backend").and_then(|value| value.to_str().ok());
            ensure!(by == Some(backend), "{by:?} answers, not {backend}: {body}");
        }
        Ok(())
    })
    .await
}

/// A canary of one step that answers decide about.
fn canary(backend: &str, hold: &str, bound: &Value) -> Value {
    let mut evaluation =
        json!({"metric": "Evaluation", "evaluation": "support-quality", "score": "contains"});
    for (field, value) in bound.as_object().into_iter().flatten() {
        evaluation[field] = value.clone();
    }
    json!({
        "backend": backend, "steps": [{"weight": 20, "hold": hold}],
        "analysis": {"interval": format!("{INTERVAL}s"), "gates": [evaluation]},
    })
}

/// What the last look said of the Evaluation.
fn gate(route: &Value) -> Result<&Value> {
    let gates = route["status"]["rollout"]["analysis"].as_array().context("no analysis")?;
    gates.iter().find(|gate| gate["metric"] == "Evaluation").context("no gate of an Evaluation")
}

/// When the gate could first fail: the step has begun, and all that are compared have been asked.
async fn found_at(namespace: &str, route: &Value) -> Result<Timestamp> {
    let moves = history(route)?;
    let begun = moves.len().checked_sub(2).and_then(|at| moves.get(at)).context("the step's beginning")?.0;
    let evaluation = get(namespace, "evaluation", "support-quality").await?;
    let results = evaluation["status"]["results"].as_array().context("no results")?;
    let ended = results.iter().filter_map(|result| result["finishedAt"].as_str()?.parse().ok());
    Ok(ended.fold(begun, Timestamp::max))
}

/// The pods of the good version, and how often each was restarted.
async fn serving(namespace: &str) -> Result<Vec<(Value, Value)>> {
    let pods = list(namespace, "pod", &format!("fairlead.dev/model-deployment={GOOD}")).await?;
    let of = |pod: &Value| {
        (pod["metadata"]["uid"].clone(), pod["status"]["containerStatuses"][0]["restartCount"].clone())
    };
    Ok(pods.iter().map(of).collect())
}
