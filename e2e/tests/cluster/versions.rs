//! The versions of the example model behind one name: v2 takes over as a canary that live requests judge; the one that was trained too
//! briefly gets everything by weight, and a person takes it back. (`evaluation_gate.rs`: it is taken back by its answers.)

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use fairlead_e2e::quickstart::{ANSWER, QUESTION};
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::support::trickle::Trickle;
use crate::support::{
    Gateway, SERVED, apply, await_phase, await_ready, chat, eventually, example, in_namespace, kubectl,
};

const VERSIONS: [&str; 3] = ["v1", "v2", "undertrained"];

#[tokio::test]
async fn a_version_that_passes_its_gates_takes_over_and_a_bad_one_is_taken_back() -> Result<()> {
    in_namespace(async |namespace| {
        apply(&namespace, &example("quickstart/modeldeployment.yaml")?).await?;
        for version in &VERSIONS[1..] {
            apply(&namespace, &example(&format!("canary/tiny-{version}.yaml"))?).await?;
        }
        let model = format!("versions-{namespace}");
        let mut route = example("quickstart/modelroute.yaml")?;
        route["spec"] = json!({
            "model": model,
            "backends": backends("v1"),
        });
        apply(&namespace, &route).await?;
        for version in VERSIONS {
            await_ready(&namespace, "modeldeployment", &format!("tiny-{version}"), SERVED).await?;
        }
        let gateway = Arc::new(Gateway::open().await?);
        let stays = Asking { gateway: &gateway, model: &model };
        stays.until_answered_by("v1").await?;
        ensure!(stays.ask().await? == ("v1".to_owned(), ANSWER.to_owned()));

        // Every gate has to pass, of requests that are really answered: nothing is promoted that is undecided.
        let canary = json!({"spec": {"canary": {
            "backend": "v2", "steps": [{"weight": 50, "hold": "3s"}],
            "analysis": {"interval": "2s", "minRequests": 30, "gates": [
                {"metric": "ErrorRate", "max": "20%"},
                {"metric": "EndToEndLatency", "quantile": "0.5", "max": "20s"},
                {"metric": "TokensPerAnswer", "quantile": "0.5", "max": "20"},
            ]},
        }}});
        patch(&namespace, &canary).await?;
        let requests = Trickle::start(&gateway, &model);
        let live = await_phase(&namespace, "support-chat", "Promoted").await?;
        let requests = requests.stop().await?;
        ensure!(requests.iter().all(|asked| asked.failure.is_none()), "{requests:?}");
        let rollout = &live["status"]["rollout"];
        let gates = rollout["analysis"].as_array().context("no analysis")?;
        ensure!(gates.len() == 3 && gates.iter().all(|gate| gate["verdict"] == "Pass"), "{rollout}");
        println!("promoted after {} requests at most", requests.len());
        stays.until_answered_by("v2").await?;
        ensure!(
            stays.ask().await? == ("v2".to_owned(), ANSWER.to_owned()),
            "the second version answers as well"
        );

        // Folded into Git: no traffic moves, and weights decide again.
        patch(&namespace, &json!({"spec": {"backends": backends("v2"), "canary": null}})).await?;
        await_phase(&namespace, "support-chat", "Idle").await?;
        ensure!(stays.ask().await?.0 == "v2");

        patch(&namespace, &json!({"spec": {"backends": backends("undertrained")}})).await?;
        stays.until_answered_by("undertrained").await?;
        let (_, answer) = stays.ask().await?;
        ensure!(answer != ANSWER, "the version that was trained too briefly is right: {answer}");

        patch(&namespace, &json!({"spec": {"backends": backends("v2")}})).await?;
        stays.until_answered_by("v2").await
    })
    .await
}

/// All versions, of which one has everything.
fn backends(all: &str) -> Vec<Value> {
    let of = |version: &str| json!({"name": version, "modelDeployment": format!("tiny-{version}"), "weight": u8::from(version == all)});
    VERSIONS.map(of).into()
}

async fn patch(namespace: &str, change: &Value) -> Result<()> {
    let change = change.to_string();
    let patch = ["patch", "modelroute", "support-chat", "--type=merge", "-p", &change];
    kubectl(&[&["-n", namespace][..], &patch].concat()).await.map(drop)
}

struct Asking<'a> {
    gateway: &'a Gateway,
    model: &'a str,
}

impl Asking<'_> {
    /// Which backend answered the quickstart's question, and how.
    async fn ask(&self) -> Result<(String, String)> {
        let mut body = chat(self.model, 64);
        body["messages"][0]["content"] = json!(QUESTION);
        let (status, headers, answer) = self.gateway.post("/v1/chat/completions", &body).await?;
        ensure!(status == StatusCode::OK, "{status}: {answer}");
        let backend =
            headers.get("x-fairlead-backend").and_then(|value| value.to_str().ok()).unwrap_or_default();
        let text = answer["choices"][0]["message"]["content"].as_str().unwrap_or_default();
        Ok((backend.to_owned(), text.to_owned()))
    }

    async fn until_answered_by(&self, backend: &str) -> Result<()> {
        eventually(SERVED, async || {
            let (answered, _) = self.ask().await?;
            ensure!(answered == backend, "{answered} answers, not {backend}");
            Ok(())
        })
        .await
    }
}
