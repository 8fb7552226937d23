//! Bad requests at the gateway: each a 4xx in OpenAI's shape that names the field.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::support::{
    Gateway, SERVED, apply, await_ready, chat, in_namespace, model_deployment, model_image, model_route,
};

#[tokio::test]
async fn bad_requests_get_errors_that_name_the_field() -> Result<()> {
    in_namespace(async |namespace| {
        let model = format!("errors-{namespace}");
        apply(&namespace, &model_deployment("served", &model_image())).await?;
        apply(&namespace, &model_route("route", &model, &[("served", 1)])).await?;
        await_ready(&namespace, "modelroute", "route", SERVED).await?;
        let gateway = Gateway::open().await?;
        gateway.await_answer(&model, SERVED).await?;

        let path = "/v1/chat/completions";
        refuses(&gateway, path, "{\"model\": ".into(), 400, None, "JSON").await?;
        refuses(&gateway, path, json!([]).to_string(), 400, None, "object").await?;
        refuses(&gateway, path, json!({"messages": []}).to_string(), 400, Some("model"), "model").await?;
        refuses(&gateway, path, with(&model, "messages", json!([])), 400, Some("messages"), "message")
            .await?;
        refuses(&gateway, path, with(&model, "max_tokens", json!(-1)), 400, Some("max_tokens"), "max_tokens")
            .await?;
        refuses(
            &gateway,
            path,
            with(&model, "temperature", json!("hot")),
            400,
            Some("temperature"),
            "number",
        )
        .await?;
        refuses(&gateway, path, with(&model, "model", json!("no-such")), 404, Some("model"), "no-such")
            .await?;
        let long = json!({"model": model, "prompt": [vec![5; 200_000]], "max_tokens": 1}).to_string();
        refuses(&gateway, "/v1/completions", long, 400, Some("prompt"), "tokens").await?;
        refuses(&gateway, "/v1/nothing", "{}".into(), 404, None, "/v1/nothing").await?;

        // After all of it the model still answers.
        gateway.await_answer(&model, SERVED).await.map(|_| ())
    })
    .await
}

/// A good chat request with one field replaced.
fn with(model: &str, field: &str, value: Value) -> String {
    let mut body = chat(model, 4);
    body[field] = value;
    body.to_string()
}

async fn refuses(
    gateway: &Gateway,
    path: &str,
    body: String,
    status: u16,
    param: Option<&str>,
    says: &str,
) -> Result<()> {
    let shown: String = body.chars().take(200).collect();
    let (got, _, answer) = gateway.post_text(path, body).await?;
    ensure!(got.as_u16() == status, "{shown}: {got} in place of {status}: {answer}");
    let error = &answer["error"];
    ensure!(error["param"].as_str() == param, "{shown}: param is {} in place of {param:?}", error["param"]);
    ensure!(error["type"].is_string() && error.get("code").is_some(), "not OpenAI's shape: {answer}");
    let message = error["message"].as_str().unwrap_or_default();
    ensure!(message.contains(says), "{shown}: the message does not say {says:?}: {message}");
    Ok(())
}
