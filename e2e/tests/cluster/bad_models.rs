//! Models that cannot be served: each says so on the object, makes no engine pod, and heals when the object is corrected.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::support::kubectl::{get, run};
use crate::support::{
    DECIDED, SERVED, apply, await_ready, await_reason, in_namespace, kubectl, model_deployment, model_image,
};

/// Applies the object, awaits the reason, and checks that no engine pod was made for it.
async fn is_refused(namespace: &str, object: &Value, reason: &str, says: &[&str]) -> Result<()> {
    apply(namespace, object).await?;
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    let message = await_reason(namespace, "modeldeployment", name, reason, DECIDED).await?;
    for words in says {
        ensure!(message.contains(words), "the message of {reason} does not say {words:?}: {message}");
    }
    let deployment = get(namespace, "deployment", name).await?;
    ensure!(deployment.is_null(), "a Deployment was made although {reason}: {deployment}");
    Ok(())
}

/// Points the object at a good model and awaits that it is served, with no restart of anything.
async fn heals(namespace: &str, name: &str, spec: Value) -> Result<()> {
    let patch = json!({"spec": spec}).to_string();
    kubectl(&["-n", namespace, "patch", "modeldeployment", name, "--type=merge", "-p", &patch]).await?;
    await_ready(namespace, "modeldeployment", name, SERVED).await.map(|_| ())
}

#[tokio::test]
async fn missing_weights_are_named_and_heal() -> Result<()> {
    in_namespace(async |namespace| {
        let object = model_deployment("missing", "hf://fairlead/no-weights");
        is_refused(&namespace, &object, "ModelNotFound", &["safetensors"]).await?;
        heals(&namespace, "missing", json!({"model": {"uri": "hf://fairlead/tiny"}})).await
    })
    .await
}

#[tokio::test]
async fn a_repository_that_does_not_exist_is_named() -> Result<()> {
    in_namespace(async |namespace| {
        let object = model_deployment("absent", "hf://fairlead/absent");
        is_refused(&namespace, &object, "ModelNotFound", &["fairlead/absent", "model.uri"]).await
    })
    .await
}

#[tokio::test]
async fn truncated_weights_are_seen_before_a_pod_is_made() -> Result<()> {
    in_namespace(async |namespace| {
        let object = model_deployment("truncated", "hf://fairlead/truncated");
        is_refused(&namespace, &object, "ModelInvalid", &["model.safetensors"]).await
    })
    .await
}

#[tokio::test]
async fn an_unknown_architecture_is_named() -> Result<()> {
    in_namespace(async |namespace| {
        let object = model_deployment("unknown", "hf://fairlead/unknown-architecture");
        is_refused(
            &namespace,
            &object,
            "UnsupportedArchitecture",
            &["GPTNeoXForCausalLM", "LlamaForCausalLM"],
        )
        .await
    })
    .await
}

#[tokio::test]
async fn a_model_too_big_for_its_gpu_says_so_with_the_numbers() -> Result<()> {
    in_namespace(async |namespace| {
        let mut object = model_deployment("too-big", "hf://fairlead/tiny");
        object["spec"]["resources"] =
            json!({"gpus": 1, "gpuMemory": "4Mi", "cpu": "100m", "memory": "768Mi"});
        is_refused(&namespace, &object, "DoesNotFit", &["needs", "a replica has", "GPU with more memory"])
            .await?;
        let live = get(&namespace, "modeldeployment", "too-big").await?;
        ensure!(live["status"]["plan"]["fits"] == false, "{}", live["status"]["plan"]);
        heals(&namespace, "too-big", json!({"resources": {"gpus": 0, "gpuMemory": null}})).await
    })
    .await
}

#[tokio::test]
async fn a_node_label_tells_what_a_gpu_holds() -> Result<()> {
    in_namespace(async |namespace| {
        let node = kubectl(&["get", "nodes", "-o", "jsonpath={.items[0].metadata.name}"]).await?;
        let pool = format!("fairlead.dev/e2e={namespace}");
        kubectl(&["label", "node", &node, "--overwrite", &pool, "nvidia.com/gpu.memory=16"]).await?;
        let mut object = model_deployment("labelled", "hf://fairlead/tiny");
        object["spec"]["resources"] = json!({"gpus": 1, "cpu": "100m", "memory": "768Mi"});
        object["spec"]["placement"] = json!({"nodeSelector": {"fairlead.dev/e2e": namespace}});
        // 16 MiB, of which an engine may take nine tenths.
        let refused = is_refused(&namespace, &object, "DoesNotFit", &["a replica has 14.4 MiB"]).await;
        kubectl(&["label", "node", &node, "fairlead.dev/e2e-", "nvidia.com/gpu.memory-"]).await?;
        refused
    })
    .await
}

#[tokio::test]
async fn an_image_without_a_model_is_read_by_a_job_and_refused() -> Result<()> {
    in_namespace(async |namespace| {
        let object = model_deployment("empty-image", &format!("{}#/nothing-here", model_image()));
        is_refused(&namespace, &object, "ModelNotFound", &["nothing-here"]).await
    })
    .await
}

#[tokio::test]
async fn the_api_server_refuses_what_the_schema_can_see() -> Result<()> {
    let cases = [
        (json!({"model": {"uri": "ftp://x"}}), "spec.model.uri"),
        (json!({"model": {"uri": "hf://a/b", "digest": "md5:1"}}), "sha256"),
        (json!({"model": {"uri": "hf://a/b"}, "kvCache": {"blockTokens": 17}}), "blockTokens"),
        (json!({"model": {"uri": "hf://a/b"}, "replicas": -1}), "replicas"),
        (
            json!({"model": {"uri": "hf://a/b"}, "engine": {"gpuMemoryUtilization": "1.5"}}),
            "gpuMemoryUtilization",
        ),
        (json!({"model": {"uri": "hf://a/b"}, "update": {"maxSurge": 0, "maxUnavailable": 0}}), "maxSurge"),
        (json!({"model": {"uri": "hf://a/b"}, "enginee": {}}), "enginee"),
    ];
    for (spec, says) in cases {
        let mut object = model_deployment("refused", "hf://a/b");
        object["spec"] = spec;
        let arguments = ["-n", "default", "apply", "--dry-run=server", "--validate=strict", "-f", "-"];
        let ran = run(&arguments, &object.to_string()).await?;
        ensure!(ran.code != 0, "{object} was accepted");
        ensure!(ran.err.contains(says), "the refusal of {object} does not name {says}: {}", ran.err);
    }
    Ok(())
}
