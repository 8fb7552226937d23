//! Canaries that take over step by step, and do what a person asks of them.

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::support::{
    Gateway, SERVED, apply, await_phase, await_ready, chat, eventually, example, get, in_namespace, kubectl,
    model_deployment, model_image, model_route,
};

#[tokio::test]
async fn a_canary_takes_over_step_by_step_and_git_sees_no_drift() -> Result<()> {
    in_namespace(async |namespace| {
        apply(&namespace, &example("quickstart/modeldeployment.yaml")?).await?;
        apply(&namespace, &example("canary/tiny-v2.yaml")?).await?;
        for name in ["tiny-v1", "tiny-v2"] {
            await_ready(&namespace, "modeldeployment", name, SERVED).await?;
        }
        let model = format!("canary-{namespace}");
        let mut route = example("canary/modelroute.yaml")?;
        route["spec"]["model"] = json!(model);
        for step in route["spec"]["canary"]["steps"].as_array_mut().context("steps")? {
            step["hold"] = json!("3s");
        }
        apply(&namespace, &route).await?;
        await_phase(&namespace, "support-chat", "Promoted").await?;
        let live = get(&namespace, "modelroute", "support-chat").await?;
        let rollout = &live["status"]["rollout"];
        let steps: Vec<(&str, u64)> = rollout["history"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|entry| Some((entry["phase"].as_str()?, entry["weight"].as_u64()?)))
            .collect();
        ensure!(steps == [("Progressing", 10), ("Progressing", 50), ("Promoted", 100)], "{rollout}");
        ensure!(live["status"]["split"] == "v2=100", "{}", live["status"]);
        ensure!(live["spec"] == route["spec"], "the spec was changed: {}", live["spec"]);
        let gateway = Gateway::open().await?;
        answered_by(&gateway, &model, "v2").await?;
        let events = kubectl(&["-n", &namespace, "get", "events.events.k8s.io", "-o", "json"]).await?;
        ensure!(events.contains("CanaryStep") && events.contains("CanaryPromoted"), "{events}");

        // Git takes the promotion over, and nothing moves.
        route["spec"]["backends"] = json!([{"name": "v2", "modelDeployment": "tiny-v2", "weight": 100}]);
        route["spec"].as_object_mut().context("a spec")?.remove("canary");
        apply(&namespace, &route).await?;
        await_phase(&namespace, "support-chat", "Idle").await?;
        answered_by(&gateway, &model, "v2").await
    })
    .await
}

#[tokio::test]
async fn a_person_pauses_aborts_and_retries_by_requests_in_the_status() -> Result<()> {
    in_namespace(async |namespace| {
        for name in ["one", "two"] {
            apply(&namespace, &model_deployment(name, &model_image())).await?;
            await_ready(&namespace, "modeldeployment", name, SERVED).await?;
        }
        let model = format!("asked-{namespace}");
        let mut route = model_route("support-chat", &model, &[("one", 1), ("two", 0)]);
        route["spec"]["canary"] = json!({"backend": "two", "steps": [{"weight": 40, "hold": "1h"}]});
        apply(&namespace, &route).await?;
        await_phase(&namespace, "support-chat", "Progressing").await?;
        let gateway = Gateway::open().await?;
        for backend in ["one", "two"] {
            answered_by(&gateway, &model, backend).await?;
        }
        // What a person sees first.
        let table = kubectl(&["-n", &namespace, "get", "modelroutes"]).await?;
        let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
        let [head, row] = rows.as_slice() else { bail!("{table}") };
        ensure!(
            head.join(" ") == "NAME STABLE CANARY WEIGHT PHASE STEP READY REASON AGE"
                && row.join(" ").starts_with("support-chat one two 40 Progressing 1/1 True Routed "),
            "{table}"
        );
        for (action, phase) in
            [("Pause", "Paused"), ("Abort", "RolledBack"), ("Retry", "Progressing"), ("Promote", "Promoted")]
        {
            ask(&namespace, action, "two").await?;
            await_phase(&namespace, "support-chat", phase).await?;
        }
        answered_by(&gateway, &model, "two").await?;
        ask(&namespace, "Promote", "another").await?;
        eventually(SERVED, async || {
            let rollout = get(&namespace, "modelroute", "support-chat").await?["status"]["rollout"].clone();
            let message = rollout["message"].as_str().unwrap_or_default();
            ensure!(message.contains("refused") && message.contains("it was for another"), "{rollout}");
            Ok(())
        })
        .await
    })
    .await
}

/// As docs/spec/modelroute.md says: a patch of the status subresource.
async fn ask(namespace: &str, action: &str, canary: &str) -> Result<()> {
    let request = json!({"status": {"request": {"id": format!("{action} {canary}"), "action": action, "canary": canary}}});
    let patch = ["patch", "modelroute", "support-chat", "--subresource=status", "--type=merge", "-p"];
    let text = request.to_string();
    kubectl(&[&["-n", namespace][..], &patch, &[&text]].concat()).await.map(drop)
}

async fn answered_by(gateway: &Gateway, model: &str, backend: &str) -> Result<()> {
    eventually(SERVED, async || {
        let (_, headers, body): (_, _, Value) = gateway.post("/v1/chat/completions", &chat(model, 4)).await?;
        let by = headers.get("x-fairlead-backend").and_then(|value| value.to_str().ok()).unwrap_or_default();
        ensure!(by == backend, "{by:?} answers, not {backend}: {body}");
        Ok(())
    })
    .await
}
