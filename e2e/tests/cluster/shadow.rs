//! Mirrored requests on a real cluster: the shadow is asked by its own name, its answers are compared, and the live ones are as without
//! it, whether it answers, fails or hangs.

use anyhow::{Result, ensure};
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::support::gateways::metric;
use crate::support::{
    DECIDED, Gateway, SERVED, apply, await_ready, chat, eventually, in_namespace, kubectl, model_deployment,
    model_route, worker,
};

/// Requests to each shadow, half of them streamed.
const REQUESTS: u32 = 40;
/// What the live one writes: eight tokens of a test worker.
const LIVE: &str = "w0 w1 w2 w3 w4 w5 w6 w7 ";
/// How much more a shadow of sixteen tokens writes: 54 characters for 24.
const LONGER: f64 = 54.0 / 24.0;
/// Mirrored requests at a time. A shadow that hangs keeps these for longer than the test takes.
const PLACES: u32 = 4;

#[tokio::test]
async fn a_shadow_is_compared_and_its_faults_are_not_felt() -> Result<()> {
    in_namespace(async |namespace| {
        let all: [(&str, &[(&str, &str)]); 4] = [
            ("live", &[("TOKENS", "8")]),
            ("well", &[("TOKENS", "16")]),
            ("broken", &[("ERROR_RATE", "1")]),
            ("stuck", &[("HANG_RATE", "1")]),
        ];
        for (name, behaviour) in all {
            apply(&namespace, &worker(name, behaviour)).await?;
        }
        let mut embedder = model_deployment("encoder", "hf://fairlead/encoder");
        embedder["spec"]["task"] = json!("Embed");
        apply(&namespace, &embedder).await?;
        let model = format!("mirrored-{namespace}");
        let backends = all.map(|(name, _)| (name, u32::from(name == "live")));
        apply(&namespace, &model_route("chat", &model, &backends)).await?;
        for name in all.iter().map(|(name, _)| *name).chain(["encoder"]) {
            await_ready(&namespace, "modeldeployment", name, SERVED).await?;
        }
        let gateway = Gateway::open().await?;
        gateway.await_answer(&model, SERVED).await?;
        let live = Live { namespace: &namespace, gateway: &gateway, model: &model };

        // It is asked by its own name: a worker refuses any other, and what is refused is not Answered.
        live.mirror("well", &json!({"embedder": {"modelDeployment": "encoder"}, "maxInFlight": REQUESTS}))
            .await?;
        let before = Seen::of(&namespace, "well").await?;
        live.ask(REQUESTS).await?;
        eventually(DECIDED, async || {
            let now = Seen::of(&namespace, "well").await?.since(&before);
            let all = f64::from(REQUESTS);
            // Those of the wait before may come late, and count too.
            ensure!(now.answered >= all && now.failed + now.dropped == 0.0, "{now:?}");
            ensure!(now.latencies >= all && now.similarities >= all && now.lengths >= all, "{now:?}");
            ensure!((now.length / now.lengths - LONGER).abs() < 0.01, "{now:?}");
            Ok(())
        })
        .await?;

        live.mirror("broken", &json!({})).await?;
        let before = Seen::of(&namespace, "broken").await?;
        live.ask(REQUESTS).await?;
        eventually(DECIDED, async || {
            let now = Seen::of(&namespace, "broken").await?.since(&before);
            ensure!(now.failed >= f64::from(REQUESTS) && now.answered == 0.0, "{now:?}");
            Ok(())
        })
        .await?;

        // One that hangs keeps its places; live requests are answered while their mirrored legs are not.
        live.mirror("stuck", &json!({"maxInFlight": PLACES, "timeout": "10m"})).await?;
        let before = Seen::of(&namespace, "stuck").await?;
        live.ask(REQUESTS).await?;
        let now = Seen::of(&namespace, "stuck").await?.since(&before);
        ensure!(now.answered + now.failed == 0.0, "{now:?}");
        ensure!(now.dropped >= f64::from(REQUESTS - PLACES), "{now:?}");

        // None of this is a request of the route's.
        let route = format!("route=\"{namespace}/chat\"");
        for name in ["well", "broken", "stuck"] {
            let backend = format!("backend=\"{name}\"");
            let counted = metric("fairlead_gateway_variant_requests_total", &[&route, &backend]).await?;
            ensure!(counted == 0.0, "{counted} requests of {name} are counted");
        }
        let failed =
            metric("fairlead_gateway_variant_requests_total", &[&route, "result=\"Failed\""]).await?;
        ensure!(failed == 0.0, "{failed} live requests failed");
        Ok(())
    })
    .await
}

/// The live backend of a route whose requests are mirrored.
struct Live<'a> {
    namespace: &'a str,
    gateway: &'a Gateway,
    model: &'a str,
}

impl Live<'_> {
    /// Mirrors all requests to this backend, and waits until the gateway does.
    async fn mirror(&self, backend: &str, more: &Value) -> Result<()> {
        // A merge patch keeps what it does not name.
        let mut shadow = json!({"backend": backend, "percent": 100, "embedder": null, "maxInFlight": null, "timeout": null});
        for (field, value) in more.as_object().into_iter().flatten() {
            shadow[field] = value.clone();
        }
        let patch = json!({"spec": {"shadow": shadow}}).to_string();
        kubectl(&["-n", self.namespace, "patch", "modelroute", "chat", "--type=merge", "-p", &patch]).await?;
        eventually(DECIDED, async || {
            self.ask(2 * PLACES).await?;
            let seen = Seen::of(self.namespace, backend).await?;
            ensure!(seen.answered + seen.failed + seen.dropped > 0.0, "nothing is mirrored to {backend}");
            Ok(())
        })
        .await
    }

    /// So many requests, each of which must be answered by the live one, as without a shadow.
    async fn ask(&self, requests: u32) -> Result<()> {
        for number in 0..requests {
            let mut body = chat(self.model, 16);
            body["stream"] = json!(number.is_multiple_of(2));
            let url = format!("{}/v1/chat/completions", self.gateway.url);
            let answer = self.gateway.http.post(url).json(&body).send().await?;
            let (status, by) = (answer.status(), answer.headers().get("x-fairlead-backend").cloned());
            let text = answer.text().await?;
            ensure!(status == StatusCode::OK && by.is_some_and(|by| by == "live"), "{status}: {text}");
            let events = text.split("\n\n").filter_map(|event| event.strip_prefix("data: {"));
            let said: String = if number.is_multiple_of(2) {
                let events =
                    events.filter_map(|event| serde_json::from_str::<Value>(&format!("{{{event}")).ok());
                events
                    .filter_map(|it| it["choices"][0]["delta"]["content"].as_str().map(str::to_owned))
                    .collect()
            } else {
                let whole: Value = serde_json::from_str(&text)?;
                whole["choices"][0]["message"]["content"].as_str().unwrap_or_default().to_owned()
            };
            ensure!(said == LIVE, "{said:?}: {text}");
        }
        Ok(())
    }
}

/// What the gateways have counted of one shadow.
#[derive(Debug)]
struct Seen {
    answered: f64,
    failed: f64,
    dropped: f64,
    latencies: f64,
    lengths: f64,
    length: f64,
    similarities: f64,
}

impl Seen {
    async fn of(namespace: &str, backend: &str) -> Result<Self> {
        let labels = [format!("route=\"{namespace}/chat\""), format!("backend=\"{backend}\"")];
        let [route, backend] = labels.each_ref().map(String::as_str);
        let requests = async |result: &str| {
            metric("fairlead_gateway_shadow_requests_total", &[route, backend, result]).await
        };
        let of =
            async |name: &str| metric(&format!("fairlead_gateway_shadow_{name}"), &[route, backend]).await;
        Ok(Self {
            answered: requests("result=\"Answered\"").await?,
            failed: requests("result=\"Failed\"").await?,
            dropped: requests("result=\"Dropped\"").await?,
            latencies: of("latency_ratio_count").await?,
            lengths: of("length_ratio_count").await?,
            length: of("length_ratio_sum").await?,
            similarities: of("similarity_count").await?,
        })
    }

    fn since(self, before: &Self) -> Self {
        Self {
            answered: self.answered - before.answered,
            failed: self.failed - before.failed,
            dropped: self.dropped - before.dropped,
            latencies: self.latencies - before.latencies,
            lengths: self.lengths - before.lengths,
            length: self.length - before.length,
            similarities: self.similarities - before.similarities,
        }
    }
}
