//! A provider outside of the cluster as the fallback of our own pods: by https with a private certificate authority and a key from a
//! Secret; and what is said when one of the two is wrong or missing.

use anyhow::{Result, ensure};
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
        let cloud = Cloud::start(&namespace, &["key", "ca", "other-ca", "missing"]).await?;
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
        for (name, key, ca) in [("untrusted", "key", "other-ca"), ("keyless", "missing", "ca")] {
            let mut backend = cloud.backend(key, ca);
            backend["weight"] = json!(1);
            let mut route = model_route(name, &model(name), &[]);
            route["spec"]["backends"] = json!([backend]);
            apply(&namespace, &route).await?;
        }
        await_ready(&namespace, "modelroute", "chat", SERVED).await?;
        let gateway = Gateway::open().await?;
        let asking = Asking { gateway: &gateway };
        eventually(DECIDED, async || asking.answered_by(&model("chat"), "own").await).await?;

        // A certificate of somebody else: it is not called, and the answer says why.
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
