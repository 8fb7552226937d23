//! The unmodified OpenAI Python SDK through the gateway.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::support::kubectl::root;
use crate::support::{
    Gateway, SERVED, apply, await_ready, in_namespace, model_deployment, model_image, model_route,
};

#[tokio::test]
async fn the_openai_sdk_chats_streams_and_understands_errors() -> Result<()> {
    in_namespace(async |namespace| {
        let model = format!("sdk-{namespace}");
        apply(&namespace, &model_deployment("sdk", &model_image())).await?;
        apply(&namespace, &model_route("sdk", &model, &[("sdk", 1)])).await?;
        await_ready(&namespace, "modelroute", "sdk", SERVED).await?;
        let gateway = Gateway::open().await?;
        gateway.await_answer(&model, SERVED).await?;

        let seen = converse(&format!("{}/v1", gateway.url), &model).await?;
        let listed = seen["models"].as_array().is_some_and(|models| models.contains(&json!(model)));
        ensure!(listed, "the model is not listed: {seen}");
        ensure!(seen["model"] == model.as_str(), "{seen}");
        ensure!(seen["text"].as_str().is_some_and(|text| !text.is_empty()), "{seen}");
        ensure!(seen["text"] == seen["streamed_text"], "streamed and whole differ: {seen}");
        ensure!(seen["completion_tokens"] == seen["streamed_completion_tokens"], "{seen}");
        ensure!(seen["finish_reason"] == seen["streamed_finish_reason"], "{seen}");
        ensure!(seen["streamed_pieces"].as_u64() > Some(1), "the stream came in one piece: {seen}");
        ensure!(seen["completion_logprobs"] == 4, "{seen}");
        ensure!(
            seen["choices"] == json!([0, 1, 2]) && seen["choices_logprobs"] == json!([2, 2, 2]),
            "{seen}"
        );
        ensure!(["Oslo", "Rome"].iter().any(|port| seen["formed"]["port"] == *port), "{seen}");
        ensure!(seen["tools"]["status"] == 400 && seen["tools"]["param"] == "tools", "{seen}");
        ensure!(
            seen["unknown_model"] == json!({"status": 404, "code": "model_not_found", "param": "model"}),
            "{seen}"
        );
        ensure!(seen["negative_max_tokens"]["status"] == 400, "{seen}");
        ensure!(seen["negative_max_tokens"]["param"] == "max_tokens", "{seen}");
        ensure!(seen["too_long"]["code"] == "context_length_exceeded", "{seen}");
        Ok(())
    })
    .await
}

/// Runs the conversation in the SDK's own environment and reads what it saw.
async fn converse(base_url: &str, model: &str) -> Result<Value> {
    let python = root().join("e2e/tests/python");
    let requirements = python.join("requirements.txt");
    let made = Command::new(root().join("scripts/setup.sh"))
        .arg("python")
        .arg(&requirements)
        .arg("e2e")
        .output()
        .await?;
    ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let environment = String::from_utf8(made.stdout)?.trim().to_owned();
    let ran = Command::new(format!("{environment}/bin/python"))
        .arg(python.join("sdk_chat.py"))
        .args([base_url, model])
        .output()
        .await?;
    ensure!(ran.status.success(), "the SDK failed:\n{}", String::from_utf8_lossy(&ran.stderr));
    serde_json::from_slice(&ran.stdout).context("reading what the SDK saw")
}
