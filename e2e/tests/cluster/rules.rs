//! Rules on a real cluster: who a request comes from, by a header that the chart's values name; what it may cost; and a canary of the
//! rest, which what a rule decides is not part of.

use anyhow::{Context, Result, ensure};
use fairlead_e2e::tests::TIER_HEADER;
use fairlead_test_worker::binomial::range;
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::support::kubectl::run;
use crate::support::{
    DECIDED, Gateway, SERVED, apply, await_phase, await_ready, await_reason, chat, eventually, example,
    in_namespace, kubectl, worker,
};

const CAP: &str = "x-fairlead-max-cost-per-million-tokens";
/// Users who are nobody in particular.
const USERS: u64 = 400;
/// A split of right shares fails the test once in ten million runs.
const ASSERTED: f64 = 1.0 - 1e-7;

#[tokio::test]
async fn premium_and_urgent_requests_pass_a_canary_of_the_rest_by() -> Result<()> {
    in_namespace(async |namespace| {
        let route = route(&namespace)?;
        let deployments = ["standard-v1-0", "standard-v1-1", "premium-v2-1"];
        for name in deployments {
            apply(&namespace, &worker(name, &[])).await?;
        }
        for name in deployments {
            await_ready(&namespace, "modeldeployment", name, SERVED).await?;
        }
        apply(&namespace, &route).await?;
        await_phase(&namespace, "assistant", "Progressing").await?;
        let gateway = Gateway::open().await?;
        let asked = Asking { gateway: &gateway, model: format!("assistant-{namespace}") };
        eventually(DECIDED, async || {
            let split = asked.ask("ada", &[]).await?.split;
            ensure!(split == "standard=80 standard-next=20", "the split is {split}");
            Ok(())
        })
        .await?;

        // Who it comes from, what the client likes, and what it may cost: 0.001 and 0.005 a token.
        for (headers, backend, rule) in [
            (&[(TIER_HEADER, "premium")][..], "premium", "premium"),
            (&[("x-priority", "urgent")], "premium", "urgent"),
            (&[(CAP, "1000")], "standard", "within-cap"),
            (&[(CAP, "5000")], "premium", "within-cap"),
            (&[(TIER_HEADER, "premium"), (CAP, "1000")], "premium", "premium"),
        ] {
            for user in 0..10 {
                let answer = asked.ask(&format!("user-{user}"), headers).await?;
                ensure!(
                    (answer.backend.as_str(), answer.rule.as_str()) == (backend, rule),
                    "{headers:?}: {answer:?}"
                );
            }
        }
        for headers in [&[(TIER_HEADER, "basic")][..], &[(CAP, "100")]] {
            let answer = asked.ask("ada", headers).await?;
            ensure!(answer.rule.is_empty() && answer.backend != "premium", "{headers:?}: {answer:?}");
        }
        // A proxy that adds its word to the client's lets the client choose.
        let twice = [(TIER_HEADER, "basic"), (TIER_HEADER, "premium")];
        let (status, _, body) = asked.send("ada", &twice).await?;
        ensure!(status == StatusCode::BAD_REQUEST, "{status}: {body}");
        ensure!(body["error"]["message"].as_str().is_some_and(|text| text.contains(TIER_HEADER)), "{body}");

        // The rest is the canary's, one user in five, and each stays where it is.
        let mut next = 0;
        for user in 0..USERS {
            let user = format!("user-{user}");
            let answer = asked.ask(&user, &[]).await?;
            ensure!(answer.rule.is_empty() && answer.backend.starts_with("standard"), "{answer:?}");
            ensure!(asked.ask(&user, &[]).await?.backend == answer.backend, "{user} moved");
            next += u64::from(answer.backend == "standard-next");
        }
        let possible = range(USERS, 0.2, ASSERTED);
        ensure!(possible.contains(&next), "{next} of {USERS} went to the canary, not {possible:?}");

        // A target that vanishes is told, and takes nobody else's requests with it.
        kubectl(&["-n", &namespace, "delete", "modeldeployment", "premium-v2-1"]).await?;
        let message = await_reason(&namespace, "modelroute", "assistant", "BackendNotFound", DECIDED).await?;
        ensure!(message.contains("premium-v2-1"), "{message}");
        eventually(DECIDED, async || {
            let (status, headers, body) = asked.send("ada", &[(TIER_HEADER, "premium")]).await?;
            ensure!(
                status == StatusCode::SERVICE_UNAVAILABLE && headers.contains_key("retry-after"),
                "{status}: {body}"
            );
            Ok(())
        })
        .await?;
        asked.ask("ada", &[]).await.map(drop)
    })
    .await
}

#[tokio::test]
async fn rules_with_targets_that_are_not_there_are_refused_by_the_api_server() -> Result<()> {
    for (rule, field) in [
        (
            json!({"name": "r", "match": {"tenantTiers": ["premium"]}, "split": [{"backend": "nobody"}]}),
            "spec.rules[].split[].backend",
        ),
        (
            json!({"name": "r", "match": {"tenantTiers": ["premium"]}, "choose": {"prefer": "Cheapest", "among": ["nobody"]}}),
            "spec.rules[].choose.among",
        ),
        (json!({"name": "r", "match": {}, "split": [{"backend": "premium"}]}), "spec.rules[].match"),
        (
            json!({"name": "r", "match": {"headers": [{"name": "x-a", "regex": "("}]}, "split": [{"backend": "premium"}]}),
            "spec.rules[].match.headers[].regex",
        ),
    ] {
        let mut route = route("default")?;
        route["spec"]["rules"] = json!([rule]);
        let ran = run(&["-n", "default", "apply", "--dry-run=server", "-f", "-"], &route.to_string()).await?;
        ensure!(ran.code != 0 && ran.err.contains(field), "{rule}: {}", ran.err);
    }
    Ok(())
}

/// The example, with a canary where it has a second weight.
fn route(namespace: &str) -> Result<Value> {
    let mut route = example("routing/premium-urgent-default.yaml")?;
    route["spec"]["model"] = json!(format!("assistant-{namespace}"));
    let next = route["spec"]["backends"].get_mut(1).context("a second backend")?;
    ensure!(next["name"] == "standard-next", "{next}");
    next.as_object_mut().context("a backend")?.remove("weight");
    route["spec"]["canary"] = json!({"backend": "standard-next", "steps": [{"weight": 20, "hold": "1h"}]});
    Ok(route)
}

struct Asking<'a> {
    gateway: &'a Gateway,
    model: String,
}

/// What an answer says of the way that it took.
#[derive(Debug)]
struct Answer {
    backend: String,
    rule: String,
    split: String,
}

impl Asking<'_> {
    async fn send(
        &self,
        user: &str,
        headers: &[(&str, &str)],
    ) -> Result<(StatusCode, reqwest::header::HeaderMap, Value)> {
        let mut body = chat(&self.model, 1);
        body["user"] = json!(user);
        self.gateway.post_with("/v1/chat/completions", headers, body.to_string()).await
    }

    /// Asks what is answered.
    async fn ask(&self, user: &str, headers: &[(&str, &str)]) -> Result<Answer> {
        let (status, said, body) = self.send(user, headers).await?;
        ensure!(status == StatusCode::OK, "{headers:?}: {status}: {body}");
        let of =
            |name: &str| said.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
        Ok(Answer {
            backend: of("x-fairlead-backend"),
            rule: of("x-fairlead-rule"),
            split: of("x-fairlead-split"),
        })
    }
}
