//! Routes that point nowhere, weigh nothing or claim a name twice; and the split that a good one gives.

use anyhow::{Result, ensure};
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::support::kubectl::run;
use crate::support::{
    DECIDED, Gateway, SERVED, apply, await_ready, await_reason, chat, eventually, in_namespace, kubectl,
    model_deployment, model_image, model_route,
};

#[tokio::test]
async fn a_missing_backend_is_named_and_heals_when_it_appears() -> Result<()> {
    in_namespace(async |namespace| {
        let model = format!("missing-{namespace}");
        apply(&namespace, &model_route("route", &model, &[("later", 100)])).await?;
        let message = await_reason(&namespace, "modelroute", "route", "BackendNotFound", DECIDED).await?;
        ensure!(message.contains("later"), "the message does not name the backend: {message}");
        let gateway = Gateway::open().await?;
        let (status, headers, body) = gateway.post("/v1/chat/completions", &chat(&model, 4)).await?;
        ensure!(status == StatusCode::SERVICE_UNAVAILABLE, "{status}: {body}");
        ensure!(headers.contains_key("retry-after"), "503 without Retry-After");

        apply(&namespace, &model_deployment("later", &model_image())).await?;
        await_ready(&namespace, "modelroute", "route", SERVED).await?;
        gateway.await_answer(&model, SERVED).await?;

        // The backend vanishes: the route says so again, and the gateway stops sending.
        kubectl(&["-n", &namespace, "delete", "modeldeployment", "later"]).await?;
        await_reason(&namespace, "modelroute", "route", "BackendNotFound", DECIDED).await.map(|_| ())
    })
    .await
}

#[tokio::test]
async fn weights_that_sum_to_zero_are_refused_with_the_remedy() -> Result<()> {
    let object = model_route("zero", "zero", &[("a", 0), ("b", 0)]);
    let ran = run(&["-n", "default", "apply", "--dry-run=server", "-f", "-"], &object.to_string()).await?;
    ensure!(ran.code != 0, "weights of zero were accepted");
    ensure!(ran.err.contains("weights sum to zero") && ran.err.contains("above 0"), "{}", ran.err);
    Ok(())
}

#[tokio::test]
async fn of_two_routes_with_one_name_the_older_wins_until_it_goes() -> Result<()> {
    in_namespace(async |namespace| {
        let model = format!("twice-{namespace}");
        apply(&namespace, &model_route("older", &model, &[("nobody", 1)])).await?;
        await_reason(&namespace, "modelroute", "older", "BackendNotFound", DECIDED).await?;
        // Creation times have whole seconds; the names decide a tie, and "older" sorts after "newer".
        let created = eventually(DECIDED, async || {
            let route = crate::support::get(&namespace, "modelroute", "older").await?;
            let second = route["metadata"]["creationTimestamp"].as_str().unwrap_or_default().to_owned();
            let now = kubectl(&["create", "namespace", "unused", "--dry-run=server", "-o", "json"]).await?;
            let now: Value = serde_json::from_str(&now)?;
            ensure!(
                now["metadata"]["creationTimestamp"].as_str() > Some(second.as_str()),
                "still the same second"
            );
            Ok(second)
        })
        .await?;
        apply(&namespace, &model_route("newer", &model, &[("nobody", 1)])).await?;
        let message = await_reason(&namespace, "modelroute", "newer", "ModelNameTaken", DECIDED).await?;
        ensure!(
            message.contains("older"),
            "the message does not name the other route ({created}): {message}"
        );
        kubectl(&["-n", &namespace, "delete", "modelroute", "older"]).await?;
        await_reason(&namespace, "modelroute", "newer", "BackendNotFound", DECIDED).await.map(|_| ())
    })
    .await
}

#[tokio::test]
async fn a_weight_change_is_in_force_without_a_restart() -> Result<()> {
    in_namespace(async |namespace| {
        let model = format!("split-{namespace}");
        for name in ["one", "two"] {
            apply(&namespace, &model_deployment(name, &model_image())).await?;
        }
        apply(&namespace, &model_route("split", &model, &[("one", 100), ("two", 0)])).await?;
        for name in ["one", "two"] {
            await_ready(&namespace, "modeldeployment", name, SERVED).await?;
        }
        await_ready(&namespace, "modelroute", "split", SERVED).await?;
        let gateway = Gateway::open().await?;
        gateway.await_answer(&model, SERVED).await?;
        ensure!(backends(&gateway, &model, 20).await? == json!({"one": 20}));

        apply(&namespace, &model_route("split", &model, &[("one", 0), ("two", 1)])).await?;
        eventually(DECIDED, async || {
            let seen = backends(&gateway, &model, 5).await?;
            ensure!(seen == json!({"two": 5}), "{seen}");
            Ok(())
        })
        .await?;
        let live = crate::support::get(&namespace, "modelroute", "split").await?;
        ensure!(live["status"]["effectiveSplit"] == json!([{"backend": "two", "percent": "100"}]), "{live}");
        Ok(())
    })
    .await
}

/// Which backends answered `requests` requests.
async fn backends(gateway: &Gateway, model: &str, requests: u32) -> Result<Value> {
    let mut seen = json!({});
    for _ in 0..requests {
        let (status, headers, body) = gateway.post("/v1/chat/completions", &chat(model, 1)).await?;
        ensure!(status == StatusCode::OK, "{status}: {body}");
        let backend =
            headers.get("x-fairlead-backend").and_then(|value| value.to_str().ok()).unwrap_or("(none)");
        seen[backend] = json!(seen[backend].as_u64().unwrap_or(0) + 1);
    }
    Ok(seen)
}

#[tokio::test]
async fn endpoints_are_refused_in_a_cluster() -> Result<()> {
    in_namespace(async |namespace| {
        let mut route = model_route("elsewhere", &format!("elsewhere-{namespace}"), &[("x", 1)]);
        route["spec"]["backends"] = json!([{"name": "x", "endpoints": ["http://127.0.0.1:1"]}]);
        apply(&namespace, &route).await?;
        let message = await_reason(&namespace, "modelroute", "elsewhere", "InvalidSpec", DECIDED).await?;
        ensure!(message.contains("endpoints"), "{message}");
        Ok(())
    })
    .await
}
