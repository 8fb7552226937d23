//! Looking at a route's rollout.

use anyhow::{Context, Result, ensure};
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

use super::SERVED;
use super::kubectl::get;
use super::wait::eventually;

/// Waits until the route's rollout is in `phase`, and returns the route.
pub async fn await_phase(namespace: &str, route: &str, phase: &str) -> Result<Value> {
    eventually(SERVED, async || {
        let live = get(namespace, "modelroute", route).await?;
        ensure!(live["status"]["rollout"]["phase"] == phase, "not {phase}: {}", live["status"]);
        Ok(live)
    })
    .await
}

/// When which weight was decided.
pub fn history(route: &Value) -> Result<Vec<(Timestamp, u64)>> {
    let entries = route["status"]["rollout"]["history"].as_array().context("a history")?;
    entries
        .iter()
        .map(|entry| {
            let at = entry["at"].as_str().context("an entry's time")?;
            Ok((at.parse().context("an entry's time")?, entry["weight"].as_u64().context("a weight")?))
        })
        .collect()
}
