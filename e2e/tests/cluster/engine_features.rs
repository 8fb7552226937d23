//! What an engine can be asked for in a ModelDeployment, all at once on one pod: quantised weights, a draft model, a LoRA adapter, tiers of
//! the KV cache, tools.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::support::kubectl::list;
use crate::support::{
    Gateway, SERVED, apply, await_ready, chat, eventually, get, in_namespace, kubectl, model_deployment,
};

#[tokio::test]
async fn one_pod_quantises_guesses_adapts_remembers_and_calls_tools() -> Result<()> {
    in_namespace(async |namespace| {
        let (base, adapted) = (format!("base-{namespace}"), format!("adapted-{namespace}"));
        let mut deployment = model_deployment("all", "hf://fairlead/tools");
        let spec = &mut deployment["spec"];
        spec["engine"] = json!({
            "quantization": "int8",
            "speculation": {"tokens": 3, "draftModel": {"uri": "hf://fairlead/tiny@main"}},
        });
        spec["adapters"] = json!([{"name": "changed", "uri": "hf://fairlead/adapter"}]);
        spec["kvCache"] = json!({"tiers": [
            {"name": "host", "memory": "32Mi"},
            {"name": "disk", "size": "64Mi", "volume": {"emptyDir": {}}},
        ]});
        apply(&namespace, &deployment).await?;
        for (name, model, adapter) in [("base", &base, Value::Null), ("adapted", &adapted, json!("changed"))]
        {
            let mut backend = json!({"name": "all", "modelDeployment": "all", "weight": 1});
            if !adapter.is_null() {
                backend["adapter"] = adapter;
            }
            apply(
                &namespace,
                &json!({
                    "apiVersion": "fairlead.dev/v1alpha1", "kind": "ModelRoute", "metadata": {"name": name},
                    "spec": {"model": model, "backends": [backend]},
                }),
            )
            .await?;
        }
        let object = await_ready(&namespace, "modeldeployment", "all", SERVED).await?;
        what_is_served_is_pinned(&namespace, &object).await?;

        let gateway = Gateway::open().await?;
        let text = |answer: &Value| {
            answer["choices"][0]["message"]["content"].as_str().unwrap_or_default().to_owned()
        };
        let plain = text(&gateway.await_answer(&base, SERVED).await?);
        let changed = text(&gateway.await_answer(&adapted, SERVED).await?);
        ensure!(!plain.is_empty() && plain != changed, "the adapter changes nothing: {plain:?}");
        tools_are_called(&gateway, &base).await?;

        // Long enough for full blocks; the same again finds them.
        let mut long = chat(&base, 64);
        long["messages"][0]["content"] = json!("What is a fairlead, and what is it for? ".repeat(12));
        for _ in 0..2 {
            let (status, _, answer) = gateway.post("/v1/chat/completions", &long).await?;
            ensure!(status == StatusCode::OK, "{status}: {answer}");
        }
        eventually(SERVED, async || {
            let metrics = metrics(&namespace).await?;
            for wanted in [
                "vllm:spec_decode_num_accepted_tokens_total",
                "vllm:prefix_cache_hits_total",
                "fairlead_kv_tier_stores_total{tier=\"host\"}",
                "fairlead_kv_tier_stores_total{tier=\"disk\"}",
            ] {
                let value = metrics.get(wanted).copied().unwrap_or_default();
                ensure!(value > 0.0, "{wanted} is {value}: {metrics:?}");
            }
            Ok(())
        })
        .await
    })
    .await
}

/// Branches became commits, and the pod was given those; the plan counts both models.
async fn what_is_served_is_pinned(namespace: &str, object: &Value) -> Result<()> {
    let plan = &object["status"]["plan"];
    let config = get(namespace, "configmap", "all-config").await?;
    let config = config["data"]["config.json"].as_str().context("the pod has no settings")?;
    for uri in ["hf://fairlead/adapter@main", "hf://fairlead/tiny@main"] {
        let commit = plan["resolved"][uri].as_str().unwrap_or_default();
        ensure!(commit.len() == 40 && config.contains(commit), "{uri} is not pinned: {plan}\n{config}");
    }
    // The draft model is the model in full: 4 bytes a parameter, beside one byte a parameter for most of the model.
    let (weights, parameters) = (plan["weightBytes"].as_u64(), plan["parameters"].as_u64());
    ensure!(weights > parameters.map(|it| it * 5) && weights < parameters.map(|it| it * 8), "{plan}");
    Ok(())
}

async fn tools_are_called(gateway: &Gateway, model: &str) -> Result<()> {
    let mut body = chat(model, 400);
    body["tools"] = json!([{"type": "function", "function": {"name": "sail", "parameters": {
        "type": "object", "properties": {"port": {"enum": ["Oslo", "Rome"]}}, "required": ["port"],
        "additionalProperties": false,
    }}}]);
    body["tool_choice"] = json!("required");
    // A model that was never taught to call would call until it has no room left.
    body["parallel_tool_calls"] = json!(false);
    let (status, _, answer) = gateway.post("/v1/chat/completions", &body).await?;
    ensure!(status == StatusCode::OK, "{status}: {answer}");
    let choice = &answer["choices"][0];
    let call = &choice["message"]["tool_calls"][0]["function"];
    ensure!(choice["finish_reason"] == "tool_calls" && call["name"] == "sail", "{answer}");
    let arguments: Value = serde_json::from_str(call["arguments"].as_str().unwrap_or_default())?;
    ensure!(["Oslo", "Rome"].iter().any(|port| arguments["port"] == *port), "{answer}");
    Ok(())
}

/// The pod's metrics, summed over the label `model_name`.
async fn metrics(namespace: &str) -> Result<BTreeMap<String, f64>> {
    let pods = list(namespace, "pods", "app.kubernetes.io/name=fairlead-inference").await?;
    let pod = pods.first().and_then(|pod| pod["metadata"]["name"].as_str()).context("there is no pod")?;
    let path = format!("/api/v1/namespaces/{namespace}/pods/{pod}:8000/proxy/metrics");
    let text = kubectl(&["get", "--raw", &path]).await?;
    let mut sums = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let Some((name, value)) = line.rsplit_once(' ') else { continue };
        let labels = |text: &str| {
            let kept = text.split(',').filter(|label| !label.starts_with("model_name="));
            kept.collect::<Vec<_>>().join(",")
        };
        let name = match name.trim_end_matches('}').split_once('{') {
            Some((name, all)) if !labels(all).is_empty() => format!("{name}{{{}}}", labels(all)),
            Some((name, _)) => name.to_owned(),
            None => name.to_owned(),
        };
        *sums.entry(name).or_insert(0.0) += value.parse::<f64>().unwrap_or_default();
    }
    Ok(sums)
}
