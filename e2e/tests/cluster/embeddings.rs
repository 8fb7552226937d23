//! An encoder on the cluster: planned, served and asked like any other model, and stalled where its task is wrong.

use anyhow::{Result, bail, ensure};
use reqwest::StatusCode;
use serde_json::json;

use crate::support::{
    Gateway, SERVED, apply, await_ready, eventually, get, in_namespace, model_deployment, model_route,
};

#[tokio::test]
async fn an_encoder_embeds_once_its_task_is_right() -> Result<()> {
    in_namespace(async |namespace| {
        let model = format!("encoder-{namespace}");
        let mut object = model_deployment("encoder", "hf://fairlead/encoder");
        apply(&namespace, &object).await?;
        eventually(SERVED, async || {
            let status = get(&namespace, "modeldeployment", "encoder").await?["status"].clone();
            let stalled = status["conditions"].as_array().is_some_and(|all| {
                all.iter().any(|it| it["type"] == "Stalled" && it["reason"] == "InvalidSpec")
            });
            ensure!(stalled, "an encoder that should generate is not stalled: {status}");
            Ok(())
        })
        .await?;

        object["spec"]["task"] = json!("Embed");
        apply(&namespace, &object).await?;
        apply(&namespace, &model_route("encoder", &model, &[("encoder", 1)])).await?;
        let served = await_ready(&namespace, "modeldeployment", "encoder", SERVED).await?;
        ensure!(served["status"]["plan"]["architecture"] == "BertModel", "{}", served["status"]["plan"]);
        let gateway = Gateway::open().await?;
        eventually(SERVED, async || {
            let body = json!({"model": model, "input": ["hello", "two words"]});
            let (status, _, answer) = gateway.post("/v1/embeddings", &body).await?;
            if status != StatusCode::OK {
                bail!("{model} answered {status}: {answer}");
            }
            ensure!(answer["data"][1]["embedding"].as_array().is_some_and(|it| it.len() == 32), "{answer}");
            Ok(())
        })
        .await
    })
    .await
}
