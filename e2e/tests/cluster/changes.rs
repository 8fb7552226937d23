//! Changed weights and rules are in force in every gateway, soon, and without a restart.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use fairlead_crds::model_route::ModelRoute;
use fairlead_e2e::cluster;
use fairlead_test_worker::tally::Quantiles;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use crate::support::figures::{Figure, record};
use crate::support::gateways;
use crate::support::{Gateway, SERVED, apply, await_ready, chat, in_namespace, model_route, worker};

/// How often the weights change, and how often a rule does.
const CHANGES: usize = 100;
/// When a change is given up. How long they take is measured and asserted nowhere: it depends on the machine.
const PATIENCE: Duration = Duration::from_secs(30);
/// Who sends this header is the rule's.
const MARK: &str = "x-of-the-rule";

#[tokio::test]
async fn a_hundred_changes_are_in_force_in_every_gateway() -> Result<()> {
    in_namespace(async |namespace| {
        for name in ["v1", "v2"] {
            apply(&namespace, &worker(name, &[])).await?;
            await_ready(&namespace, "modeldeployment", name, SERVED).await?;
        }
        let model = format!("changes-{namespace}");
        let mut route = model_route("chat", &model, &[("v1", 100), ("v2", 0)]);
        route["spec"]["rules"] = rules("v1");
        apply(&namespace, &route).await?;
        let gateways = Gateway::open_each().await?;
        ensure!(gateways.len() > 1, "one gateway shows little");
        for gateway in &gateways {
            gateway.await_answer(&model, SERVED).await?;
        }
        let restarts = restarts().await?;
        let routes: Api<ModelRoute> = Api::namespaced(cluster::default_client().await?, &namespace);
        let mut took: [Vec<Duration>; 2] = [Vec::new(), Vec::new()];
        for change in 0..CHANGES {
            let to = if change.is_multiple_of(2) { "v2" } else { "v1" };
            for (kind, took) in [Kind::Weights, Kind::Rule].into_iter().zip(&mut took) {
                let patch = kind.patch(to);
                // The clock starts before the API server has heard of it.
                let changed = Instant::now();
                routes.patch("chat", &PatchParams::default(), &Patch::Merge(&patch)).await?;
                let each = gateways.iter().map(|gateway| kind.in_force(gateway, &model, to, changed));
                let mut longest = Duration::ZERO;
                for outcome in futures::future::join_all(each).await {
                    longest = longest.max(outcome?);
                }
                took.push(longest);
            }
        }
        ensure!(self::restarts().await? == restarts, "a gateway was restarted");
        let [weights, rule] = &mut took;
        record(&[figure("weights", weights), figure("a rule", rule)]).await
    })
    .await
}

/// What changes.
#[derive(Clone, Copy)]
enum Kind {
    Weights,
    Rule,
}

impl Kind {
    /// The change after which all requests of its kind go to `backend`.
    fn patch(self, backend: &str) -> Value {
        match self {
            Self::Rule => json!({"spec": {"rules": rules(backend)}}),
            Self::Weights => {
                let of = |name: &str| json!({"name": name, "modelDeployment": name, "weight": if name == backend { 100 } else { 0 }});
                json!({"spec": {"backends": [of("v1"), of("v2")]}})
            }
        }
    }

    /// How long after the change the gateway first goes by it.
    async fn in_force(
        self,
        gateway: &Gateway,
        model: &str,
        backend: &str,
        changed: Instant,
    ) -> Result<Duration> {
        let mark: &[(&str, &str)] = match self {
            Self::Weights => &[],
            Self::Rule => &[(MARK, "yes")],
        };
        loop {
            let asked = gateway.post_with("/v1/chat/completions", mark, chat(model, 1).to_string());
            let (status, headers, body) = asked.await?;
            ensure!(status.is_success(), "{status}: {body}");
            let waited = changed.elapsed();
            ensure!(headers.contains_key("x-fairlead-rule") != mark.is_empty(), "another rule: {headers:?}");
            if headers.get("x-fairlead-backend").and_then(|value| value.to_str().ok()) == Some(backend) {
                return Ok(waited);
            }
            ensure!(waited < PATIENCE, "the change to {backend} is not in force after {waited:?}");
        }
    }
}

fn rules(backend: &str) -> Value {
    json!([{"name": "marked", "match": {"headers": [{"name": MARK, "present": true}]}, "split": [{"backend": backend}]}])
}

fn figure(what: &str, took: &mut [Duration]) -> Figure {
    let Quantiles { p50, p99, max, .. } = Quantiles::of(took);
    let metric = format!(
        "a change of {what}, from before it is sent to the API server until every gateway answers by it, p99"
    );
    Figure::new(metric, "ms", p99)
        .within("limit", 1000.0)
        .with("oursSpread", json!({"median": p50, "most": max, "changes": took.len()}))
}

/// The gateways' pods and how often each was restarted.
async fn restarts() -> Result<Vec<(Value, Value)>> {
    let pods = gateways::pods().await?;
    let of = |pod: &Value| {
        (pod["metadata"]["uid"].clone(), pod["status"]["containerStatuses"][0]["restartCount"].clone())
    };
    Ok(pods.iter().map(of).collect())
}
