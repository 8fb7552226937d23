//! Changed weights are in force in every gateway, soon, and without a restart.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::support::kubectl::list;
use crate::support::{Gateway, SERVED, apply, await_ready, chat, in_namespace, kubectl, model_route, worker};

/// How often the weights change.
const CHANGES: usize = 100;
/// When a change is given up. How long they take is printed, and kept in docs/benchmarks.
const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::test]
async fn a_hundred_changes_are_in_force_in_every_gateway() -> Result<()> {
    in_namespace(async |namespace| {
        for name in ["v1", "v2"] {
            apply(&namespace, &worker(name, &[])).await?;
            await_ready(&namespace, "modeldeployment", name, SERVED).await?;
        }
        let model = format!("changes-{namespace}");
        apply(&namespace, &model_route("chat", &model, &[("v1", 100), ("v2", 0)])).await?;
        let gateways = Gateway::open_each().await?;
        ensure!(gateways.len() > 1, "one gateway shows little");
        for gateway in &gateways {
            gateway.await_answer(&model, SERVED).await?;
        }
        let restarts = restarts().await?;
        let mut took: Vec<Duration> = Vec::new();
        for change in 0..CHANGES {
            let to = if change.is_multiple_of(2) { "v2" } else { "v1" };
            let weights = json!([
                {"name": "v1", "modelDeployment": "v1", "weight": if to == "v1" { 100 } else { 0 }},
                {"name": "v2", "modelDeployment": "v2", "weight": if to == "v2" { 100 } else { 0 }},
            ]);
            let patch = json!({"spec": {"backends": weights}}).to_string();
            kubectl(&["-n", &namespace, "patch", "modelroute", "chat", "--type=merge", "-p", &patch]).await?;
            let changed = Instant::now();
            let each = gateways.iter().map(|gateway| in_force(gateway, &model, to, changed));
            for outcome in futures::future::join_all(each).await {
                took.push(outcome?);
            }
        }
        took.sort_unstable();
        let at = |hundredths: usize| took[(took.len() - 1) * hundredths / 100].as_millis();
        println!(
            "{CHANGES} changes at {} gateways, from kubectl's return to the first answer by the new weights: p50 {} ms, p99 {} ms, \
             longest {} ms",
            gateways.len(),
            at(50),
            at(99),
            at(100)
        );
        ensure!(self::restarts().await? == restarts, "a gateway was restarted");
        Ok(())
    })
    .await
}

/// How long after the change the gateway goes by it, and whether it goes on to.
async fn in_force(gateway: &Gateway, model: &str, backend: &str, changed: Instant) -> Result<Duration> {
    loop {
        let (status, headers, body) = gateway.post("/v1/chat/completions", &chat(model, 1)).await?;
        ensure!(status.is_success(), "{status}: {body}");
        let by = headers.get("x-fairlead-backend").and_then(|value| value.to_str().ok());
        let waited = changed.elapsed();
        if by == Some(backend) {
            return Ok(waited);
        }
        ensure!(waited < PATIENCE, "the change to {backend} is not in force after {waited:?}");
    }
}

/// The gateways' pods and how often each was restarted.
async fn restarts() -> Result<Vec<(Value, Value)>> {
    let pods = list("fairlead-system", "pod", "app.kubernetes.io/name=fairlead-gateway").await?;
    let of = |pod: &Value| {
        (pod["metadata"]["uid"].clone(), pod["status"]["containerStatuses"][0]["restartCount"].clone())
    };
    Ok(pods.iter().map(of).collect())
}
