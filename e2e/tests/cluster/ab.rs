//! Two versions of equal standing: users stay with theirs, and what the gateways say of each is what its clients saw.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::support::gateways::metric;
use crate::support::plugin::{fairlead, ok};
use crate::support::{
    DECIDED, Load, SERVED, apply, await_ready, eventually, in_namespace, model_route, worker,
};

const RATE: u32 = 100;
const USERS: &str = "200";
const TOKENS: u32 = 8;

#[tokio::test]
async fn what_is_told_of_two_variants_is_what_their_clients_saw() -> Result<()> {
    in_namespace(async |namespace| {
        let tokens = TOKENS.to_string();
        let usual = [("TOKENS", tokens.as_str()), ("PER_TOKEN", "4ms"), ("SPREAD", "0.3")];
        for (name, own) in [
            ("a", [("FIRST_TOKEN", "30ms"), ("ERROR_RATE", "0.01")]),
            ("b", [("FIRST_TOKEN", "120ms"), ("ERROR_RATE", "0.05")]),
        ] {
            apply(&namespace, &worker(name, &[&usual[..], &own].concat())).await?;
        }
        for name in ["a", "b"] {
            await_ready(&namespace, "modeldeployment", name, SERVED).await?;
        }
        let model = format!("ab-{namespace}");
        let mut route = model_route("chat", &model, &[("a", 1), ("b", 1)]);
        route["spec"]["stickiness"] = json!({"by": "User"});
        apply(&namespace, &route).await?;
        await_ready(&namespace, "modelroute", "chat", SERVED).await?;
        let seconds = 20;
        let load =
            Load::start(&namespace, "load", &model, RATE, seconds, &["--users", USERS, "--streamed", "1"])
                .await?;
        load.await_running().await?;
        // As a person looks at it meanwhile.
        let top = eventually(DECIDED, async || {
            let ran = fairlead(&namespace, &["top", "chat", "--interval", "5s", "-o", "json"]).await?;
            let top: Value = serde_json::from_str(&ran.out).with_context(|| format!("{ran:?}"))?;
            let busy =
                |backend: &Value| backend["requestsPerSecond"].as_f64().is_some_and(|rate| rate > 10.0);
            ensure!(
                top["backends"].as_array().is_some_and(|all| all.len() == 2 && all.iter().all(busy)),
                "{top}"
            );
            Ok(top)
        })
        .await?;
        println!("{}", ok(&namespace, &["top", "chat", "--interval", "5s"]).await?);
        for backend in top["backends"].as_array().into_iter().flatten() {
            ensure!(backend["percent"] == 50.0, "{top}");
        }
        let first_token = |at: usize| top["backends"][at]["timeToFirstToken"]["p50"].as_f64();
        ensure!(first_token(1) > first_token(0), "the slower one is not told: {top}");

        let report = load.report(seconds).await?;
        ensure!(report.switches.is_empty(), "users changed sides: {:?}", report.switches);
        ensure!(report.backends.keys().eq(["a", "b"]), "{:?}", report.backends);
        let seen: BTreeMap<&str, [u64; 5]> = report
            .backends
            .iter()
            .map(|(name, it)| {
                let answered = it.requests - it.failed;
                (name.as_str(), [answered, it.failed, answered, answered, answered * u64::from(TOKENS)])
            })
            .collect();
        let failed = |name: &str| seen.get(name).map_or(0, |it| it[1]);
        ensure!(failed("b") > failed("a"), "{seen:?}");
        // A request is counted when its end has been passed on: the last ones a moment after their clients have it.
        eventually(DECIDED, async || {
            let mut told = BTreeMap::new();
            for name in ["a", "b"] {
                told.insert(name, told_of(&namespace, name).await?);
            }
            ensure!(
                told == seen,
                "answered, failed, first tokens, answers, tokens: told {told:?}, seen {seen:?}"
            );
            Ok(())
        })
        .await?;
        println!("told and seen: {seen:?} (answered, failed, first tokens, answers, tokens)");
        Ok(())
    })
    .await
}

/// Of a backend: requests answered and failed, first tokens and whole answers that were timed, and tokens.
async fn told_of(namespace: &str, backend: &str) -> Result<[u64; 5]> {
    let (route, backend) = (format!("route=\"{namespace}/chat\""), format!("backend=\"{backend}\""));
    let of = async |name: &str, more: &str| -> Result<u64> {
        let value = metric(&format!("fairlead_gateway_variant_{name}"), &[&route, &backend, more]).await?;
        // Counts of a few seconds.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        Ok(value as u64)
    };
    Ok([
        of("requests_total", "result=\"Answered\"").await?,
        of("requests_total", "result=\"Failed\"").await?,
        of("time_to_first_token_seconds_count", "").await?,
        of("request_duration_seconds_count", "").await?,
        of("answer_tokens_sum", "").await?,
    ])
}
