//! One model on two pods, for tests in which one of them is lost.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use serde_json::json;

use super::gateway::{Gateway, chat};
use super::kubectl::{apply, list};
use super::manifests::{model_deployment, model_route};
use super::wait::{await_ready, eventually};
use super::{SERVED, model_image};

/// The ModelDeployment and the ModelRoute of two pods with the example model, and its one backend.
pub const PAIR: &str = "pair";

/// Two pods that answer to a model name, and a gateway that sends requests to both.
pub async fn two_replicas(namespace: &str) -> Result<(String, Gateway)> {
    let model = format!("{PAIR}-{namespace}");
    let mut deployment = model_deployment(PAIR, &model_image());
    deployment["spec"]["replicas"] = json!(2);
    apply(namespace, &deployment).await?;
    apply(namespace, &model_route(PAIR, &model, &[(PAIR, 1)])).await?;
    let gateway = Gateway::open().await?;
    both_answer(namespace, &model, &gateway).await?;
    Ok((model, gateway))
}

/// Waits until the deployment has two pods and the gateway sends requests to both of them.
pub async fn both_answer(namespace: &str, model: &str, gateway: &Gateway) -> Result<()> {
    await_ready(namespace, "modeldeployment", PAIR, SERVED).await?;
    gateway.await_answer(model, SERVED).await?;
    eventually(SERVED, async || {
        let mut seen = BTreeSet::new();
        for _ in 0..20 {
            let (_, headers, _) = gateway.post("/v1/chat/completions", &chat(model, 1)).await?;
            seen.extend(
                headers.get("x-fairlead-endpoint").and_then(|value| value.to_str().ok()).map(str::to_owned),
            );
        }
        let pods = pods(namespace).await?;
        let there = pods.iter().filter(|(_, address)| seen.iter().any(|it| is_at(it, address))).count();
        ensure!(pods.len() == 2 && there == 2, "the pods are {pods:?}; {seen:?} answer");
        Ok(())
    })
    .await
}

/// The name of the pod at an endpoint's address.
pub async fn pod_at(namespace: &str, endpoint: &str) -> Result<String> {
    let pods = pods(namespace).await?;
    let found = pods.iter().find(|(_, address)| is_at(endpoint, address));
    found.map(|(name, _)| name.clone()).ok_or_else(|| anyhow::anyhow!("no pod is at {endpoint}: {pods:?}"))
}

fn is_at(endpoint: &str, address: &str) -> bool {
    endpoint.rsplit_once(':').is_some_and(|(host, _)| host == address)
}

/// Names and addresses of the pods that are not told to stop.
async fn pods(namespace: &str) -> Result<Vec<(String, String)>> {
    let all = list(namespace, "pods", &format!("fairlead.dev/model-deployment={PAIR}")).await?;
    let of = |pod: &serde_json::Value| {
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        (text(&pod["metadata"]["name"]), text(&pod["status"]["podIP"]))
    };
    Ok(all.iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null()).map(of).collect())
}
