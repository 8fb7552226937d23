//! A provider outside of the cluster as the fallback of our own pods: by https with a private certificate authority from a Secret or a
//! ConfigMap and a key from a Secret; and what is said, to clients and in the route's status, when one of them is wrong or missing.

use anyhow::{Context as _, Result, ensure};
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::support::cloud::{Cloud, make_other_ca};
use crate::support::{
    DECIDED, Gateway, SERVED, apply, await_ready, chat, eventually, get, in_namespace, kubectl, model_route,
    worker,
};

#[tokio::test]
async fn a_provider_answers_when_no_pod_can_and_its_faults_are_named() -> Result<()> {
    in_namespace(async |namespace| {
        apply(&namespace, &worker("own", &[])).await?;
        let cloud = Cloud::start(&namespace, &["key", "ca", "other-ca", "missing"], &["bundle"]).await?;
        cloud.make_key("key").await?;
        cloud.make_ca("ca").await?;
        make_other_ca(&namespace, "other-ca").await?;
        let model = |name: &str| format!("{name}-{namespace}");
        let mut route = model_route("chat", &model("chat"), &[("own", 1)]);
        if let Some(backends) = route["spec"]["backends"].as_array_mut() {
            backends.push(cloud.backend("key", "ca"));
        }
        route["spec"]["fallbacks"] = json!([{"backend": "cloud"}]);
        apply(&namespace, &route).await?;
        for (name, mut backend) in [
            ("untrusted", cloud.backend("key", "other-ca")),
            ("keyless", cloud.backend("missing", "ca")),
            ("bundled", cloud.backend_of_bundle("key", "bundle")),
        ] {
            backend["weight"] = json!(1);
            let mut route = model_route(name, &model(name), &[]);
            route["spec"]["backends"] = json!([backend]);
            apply(&namespace, &route).await?;
        }
        await_ready(&namespace, "modelroute", "chat", SERVED).await?;
        let gateway = Gateway::open().await?;
        let asking = Asking { gateway: &gateway };
        eventually(DECIDED, async || asking.answered_by(&model("chat"), "own").await).await?;

        // A certificate of somebody else: the gateways find out before anybody asks, and the route says so.
        eventually(REACHED, async || {
            let (status, reason, message) = reachable(&namespace, "untrusted").await?;
            ensure!(status == "False" && reason == "ProviderNotTrusted", "{status} {reason}: {message}");
            ensure!(message.starts_with("backend cloud: the certificate of cloud."), "{message}");
            ensure!(message.contains("give Secret other-ca under ca.crt"), "{message}");
            let events =
                kubectl(&["-n", &namespace, "get", "events", "-o", "jsonpath={.items[*].reason}"]).await?;
            ensure!(events.contains("ProviderNotTrusted"), "{events}");
            let (status, _, message) = reachable(&namespace, "chat").await?;
            ensure!(status == "True", "{message}");
            Ok(())
        })
        .await?;

        // It is not called, and the answer says why.
        eventually(DECIDED, async || {
            let (status, body) = asking.refused(&model("untrusted")).await?;
            ensure!(status == StatusCode::BAD_GATEWAY, "{status}: {body}");
            ensure!(body["error"]["code"] == "provider_untrusted", "{body}");
            ensure!(body["error"]["message"].as_str().is_some_and(|it| it.contains("caSecretRef")), "{body}");
            Ok(())
        })
        .await?;

        // A Secret that is not there: the route waits and names it, and is well again when it comes.
        eventually(DECIDED, async || {
            let live = get(&namespace, "modelroute", "keyless").await?;
            let conditions = live["status"]["conditions"].to_string();
            ensure!(
                conditions.contains("\"Waiting\"") && conditions.contains("there is no Secret missing"),
                "{conditions}"
            );
            ensure!(conditions.contains("spec.backends[cloud].provider.apiKeySecretRef"), "{conditions}");
            Ok(())
        })
        .await?;
        let (status, body) = asking.refused(&model("keyless")).await?;
        ensure!(
            status == StatusCode::SERVICE_UNAVAILABLE && body["error"]["code"] == "no_endpoint",
            "{status}: {body}"
        );
        // Neither does a ConfigMap that is not there.
        let (status, _) = asking.refused(&model("bundled")).await?;
        ensure!(status == StatusCode::SERVICE_UNAVAILABLE, "{status}");
        let live = get(&namespace, "modelroute", "bundled").await?.to_string();
        ensure!(
            live.contains("caConfigMapRef: there is no ConfigMap bundle; create it with the key ca.crt"),
            "{live}"
        );
        cloud.make_bundle("bundle").await?;
        cloud.make_ca("other-ca").await?;
        eventually(DECIDED, async || asking.answered_by(&model("bundled"), "cloud").await).await?;
        // A certificate authority that was replaced is in force with no restart, and the route says that all is well.
        eventually(DECIDED, async || asking.answered_by(&model("untrusted"), "cloud").await).await?;
        for route in ["untrusted", "bundled"] {
            eventually(REACHED, async || {
                let (status, reason, message) = reachable(&namespace, route).await?;
                ensure!(status == "True" && reason == "ProvidersReached", "{route}: {reason}: {message}");
                Ok(())
            })
            .await?;
        }
        cloud.make_key("missing").await?;
        eventually(DECIDED, async || asking.answered_by(&model("keyless"), "cloud").await).await?;

        // No pod of our own is left: the provider answers, under the route's name, whole and as a stream.
        let scale = json!({"spec": {"replicas": 0}}).to_string();
        kubectl(&["-n", &namespace, "patch", "modeldeployment", "own", "--type=merge", "-p", &scale]).await?;
        eventually(SERVED, async || asking.answered_by(&model("chat"), "cloud").await).await?;
        let (status, headers, body) = gateway.post("/v1/chat/completions", &chat(&model("chat"), 4)).await?;
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        ensure!(status == StatusCode::OK && body["model"] == model("chat"), "{status}: {body}");
        ensure!(header("x-fairlead-fallback-from") == "own", "{headers:?}");
        ensure!(header("x-fairlead-fallback-reason") == "NoEndpoint", "{headers:?}");
        let mut body = chat(&model("chat"), 4);
        body["stream"] = json!(true);
        let url = format!("{}/v1/chat/completions", gateway.url);
        let text = gateway.http.post(url).json(&body).send().await?.text().await?;
        ensure!(text.trim_end().ends_with("data: [DONE]") && text.contains(&model("chat")), "{text}");
        ensure!(!text.contains(crate::support::cloud::MODEL), "the provider's name for the model: {text}");
        Ok(())
    })
    .await
}

/// How long it takes at most until the status has what every gateway knows of a provider.
const REACHED: std::time::Duration = std::time::Duration::from_secs(90);

/// Status, reason and message of a route's condition `ProvidersReachable`.
async fn reachable(namespace: &str, route: &str) -> Result<(String, String, String)> {
    let live = get(namespace, "modelroute", route).await?;
    let conditions = live["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let found = conditions.iter().find(|it| it["type"] == "ProvidersReachable");
    let found = found.with_context(|| format!("{route} has no such condition: {conditions:?}"))?;
    let text = |key: &str| found[key].as_str().unwrap_or_default().to_owned();
    Ok((text("status"), text("reason"), text("message")))
}

struct Asking<'a> {
    gateway: &'a Gateway,
}

impl Asking<'_> {
    async fn answered_by(&self, model: &str, backend: &str) -> Result<()> {
        let (status, headers, body) = self.gateway.post("/v1/chat/completions", &chat(model, 4)).await?;
        ensure!(status == StatusCode::OK, "{status}: {body}");
        let by = headers.get("x-fairlead-backend").and_then(|value| value.to_str().ok());
        ensure!(by == Some(backend), "{by:?} answers, not {backend}");
        Ok(())
    }

    async fn refused(&self, model: &str) -> Result<(StatusCode, Value)> {
        let (status, _, body) = self.gateway.post("/v1/chat/completions", &chat(model, 4)).await?;
        ensure!(!status.is_success(), "{model} answers: {body}");
        Ok((status, body))
    }
}
