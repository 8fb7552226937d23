//! Evaluations: a good and a bad version of the example model answer the example's questions, and are told apart.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::support::{
    SERVED, apply, await_ready, await_reason, eventually, example, get, in_namespace, kubectl,
};

#[tokio::test]
async fn a_bad_canary_scores_worse_than_the_stable_version() -> Result<()> {
    in_namespace(async |namespace| {
        for file in ["quickstart/modeldeployment.yaml", "canary/tiny-undertrained.yaml"] {
            apply(&namespace, &example(file)?).await?;
        }
        let mut route = example("canary/modelroute.yaml")?;
        route["spec"]["model"] = json!(format!("evaluated-{namespace}"));
        route["spec"]["backends"][1]["modelDeployment"] = json!("tiny-undertrained");
        // So that the canary stays where it is.
        route["spec"]["canary"]["paused"] = json!(true);
        apply(&namespace, &route).await?;
        apply(&namespace, &example("evaluation/questions.yaml")?).await?;
        let evaluation = example("evaluation/evaluation.yaml")?;
        apply(&namespace, &evaluation).await?;

        let ready = await_ready(&namespace, "evaluation", "support-quality", SERVED * 2).await?;
        ensure!(ready["spec"] == evaluation["spec"], "the spec was changed: {}", ready["spec"]);
        let status = &ready["status"];
        ensure!(status["questions"]["count"] == 29, "{status}");
        let (stable, canary) = (result(status, "v1")?, result(status, "v2")?);
        let (good, bad) = (hits(stable, "contains")?, hits(canary, "contains")?);
        // 21 questions have an answer; the good version finds most of them.
        ensure!(good >= 14 && bad + 5 <= good, "stable {good}, canary {bad}: {status}");
        ensure!(hits(stable, "errors")? == 0 && hits(canary, "errors")? == 0, "{status}");
        for result in [stable, canary] {
            ensure!(result["asked"] == 29 && result["latency"]["p50"].is_string(), "{result}");
            // The revision that answered is the one that serves.
            let deployment =
                get(&namespace, "modeldeployment", result["modelDeployment"].as_str().unwrap_or_default());
            ensure!(deployment.await?["status"]["revision"] == result["revision"], "{result}");
            let name = result["items"]["configMap"].as_str().context("no items")?;
            let items = get(&namespace, "configmap", name).await?["data"]["items.jsonl"].clone();
            let items: Vec<Value> = items
                .as_str()
                .context("no items")?
                .lines()
                .map(serde_json::from_str)
                .collect::<Result<_, _>>()?;
            ensure!(items.len() == 29 && items[0]["id"] == "help-desk-hours", "{items:?}");
            ensure!(items.iter().all(|item| item["answer"].is_string()), "{items:?}");
        }
        let events = kubectl(&["-n", &namespace, "get", "events.events.k8s.io", "-o", "json"]).await?;
        ensure!(events.contains("\"Scored\"") && events.contains("\"Evaluated\""), "{events}");
        // People read this.
        eprintln!("{}", kubectl(&["-n", &namespace, "get", "evaluations"]).await?);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn other_questions_are_asked_anew_and_broken_ones_are_told() -> Result<()> {
    in_namespace(async |namespace| {
        apply(&namespace, &example("quickstart/modeldeployment.yaml")?).await?;
        let questions = |text: &str| {
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "asked"}, "data": {"all.jsonl": text}})
        };
        let line = |color: &str| {
            json!({"question": "Which color does the door have?", "contexts": [format!("The door is {color}.")],
                "expected": color})
            .to_string()
        };
        apply(&namespace, &questions(&line("green"))).await?;
        let evaluation = json!({
            "apiVersion": "fairlead.dev/v1alpha1", "kind": "Evaluation", "metadata": {"name": "one"},
            "spec": {
                "questions": {"configMapRef": {"name": "asked", "key": "all.jsonl"}},
                "target": {"modelDeployment": "tiny-v1"}, "sampling": {"maxTokens": 32},
            },
        });
        apply(&namespace, &evaluation).await?;
        let first = await_ready(&namespace, "evaluation", "one", SERVED).await?["status"].clone();
        let first = result(&first, "tiny-v1")?.clone();

        apply(&namespace, &questions("{\"question\": \"Why?\"}")).await?;
        let message = await_reason(&namespace, "evaluation", "one", "InvalidQuestions", SERVED).await?;
        ensure!(message.contains("line 1: has neither expected nor refusal: true"), "{message}");

        apply(&namespace, &questions(&[line("red"), line("blue")].join("\n"))).await?;
        eventually(SERVED, async || {
            let status = get(&namespace, "evaluation", "one").await?["status"].clone();
            let newest = &status["results"][0];
            ensure!(newest["asked"] == 2 && newest["inputs"] == status["inputs"], "{status}");
            Ok(())
        })
        .await?;
        let status = await_ready(&namespace, "evaluation", "one", SERVED).await?["status"].clone();
        ensure!(status["results"][1]["inputs"] == first["inputs"], "the first result is history: {status}");

        // A person asks for another run, as docs/spec/evaluation.md says.
        let request = json!({"status": {"request": {"id": "again", "action": "Run"}}}).to_string();
        kubectl(&[
            "-n", &namespace, "patch", "evaluation", "one", "--subresource=status", "--type=merge", "-p", &request,
        ])
        .await?;
        eventually(SERVED, async || {
            let status = get(&namespace, "evaluation", "one").await?["status"].clone();
            ensure!(status["results"][0]["request"] == "again", "{status}");
            Ok(())
        })
        .await?;
        // All that it made goes with it.
        kubectl(&["-n", &namespace, "delete", "evaluation", "one"]).await?;
        eventually(SERVED, async || {
            let left = ["-n", &namespace, "get", "jobs,roles,rolebindings,serviceaccounts,configmaps", "-o", "name",
                "-l", "fairlead.dev/evaluation=one"];
            let left = kubectl(&left).await?;
            ensure!(left.trim().is_empty(), "left: {left}");
            Ok(())
        })
        .await
    })
    .await
}

fn result<'a>(status: &'a Value, backend: &str) -> Result<&'a Value> {
    let results = status["results"].as_array().context("no results")?;
    results
        .iter()
        .find(|result| result["backend"] == backend && result["inputs"] == status["inputs"])
        .with_context(|| format!("no result of {backend}: {status}"))
}

fn hits(result: &Value, score: &str) -> Result<u64> {
    let scores = result["scores"].as_array().context("no scores")?;
    let found =
        scores.iter().find(|it| it["name"] == score).with_context(|| format!("no {score}: {result}"))?;
    found["hits"].as_u64().with_context(|| format!("no hits: {found}"))
}
