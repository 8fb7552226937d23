//! Every place a model can come from, served for real: a hub, a claim, an image.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::support::kubectl::run;
use crate::support::{
    SERVED, apply, await_ready, eventually, get, image, in_namespace, kubectl, model_deployment,
};

#[tokio::test]
async fn a_model_from_a_hub_is_pinned_to_a_commit_and_served() -> Result<()> {
    in_namespace(async |namespace| {
        apply(&namespace, &model_deployment("from-hub", "hf://fairlead/tiny@main")).await?;
        let object = await_ready(&namespace, "modeldeployment", "from-hub", SERVED).await?;
        let commit = object["status"]["plan"]["resolvedRevision"].as_str().unwrap_or_default().to_owned();
        ensure!(commit.len() == 40, "the branch was not resolved to a commit: {}", object["status"]["plan"]);
        let config = get(&namespace, "configmap", "from-hub-config").await?;
        let text = config["data"]["config.json"].as_str().unwrap_or_default();
        ensure!(text.contains(&commit), "pods do not get the commit: {text}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn progress_is_shown_while_a_slow_hub_sends() -> Result<()> {
    in_namespace(async |namespace| {
        // Seven megabytes: long enough to be seen on the way.
        strike(
            json!({"kind": "slow", "bytesPerSecond": 600_000, "count": 20, "pathContains": "fairlead/slow"}),
        )
        .await?;
        apply(&namespace, &model_deployment("slow", "hf://fairlead/slow")).await?;
        eventually(SERVED, async || {
            let object = get(&namespace, "modeldeployment", "slow").await?;
            let startup = &object["status"]["startup"];
            ensure!(startup["phase"] == "Fetching", "not fetching: {}", object["status"]);
            ensure!((1..100).contains(&startup["percent"].as_u64().unwrap_or(0)), "no progress: {startup}");
            ensure!(startup["bytesTotal"].as_u64() > startup["bytesDone"].as_u64(), "{startup}");
            Ok(())
        })
        .await?;
        let served = await_ready(&namespace, "modeldeployment", "slow", SERVED).await?;
        ensure!(
            served["status"].get("startup").is_none(),
            "a served model still starts: {}",
            served["status"]
        );
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_hub_that_breaks_off_costs_time_and_nothing_else() -> Result<()> {
    in_namespace(async |namespace| {
        let fault =
            json!({"kind": "cut", "afterBytes": 1_000_000, "count": 14, "pathContains": "flaky/resolve"});
        strike(fault).await?;
        apply(&namespace, &model_deployment("flaky", "hf://fairlead/flaky")).await?;
        await_ready(&namespace, "modeldeployment", "flaky", SERVED).await?;
        let out = kubectl(&["get", "--raw", &format!("{HUB}/_hub/requests")]).await?;
        let log: Value = serde_json::from_str(&out)?;
        // Inspection asks for closed ranges only; an open one that does not begin at 0 goes on where a cut one ended.
        let resumed = log.as_array().into_iter().flatten().any(|request| {
            let path = request["path"].as_str().unwrap_or_default();
            let range = request["range"].as_str().unwrap_or_default();
            path.contains("flaky/resolve")
                && path.ends_with("model.safetensors")
                && range.ends_with('-')
                && range != "bytes=0-"
                && request["status"] == 206
        });
        ensure!(resumed, "the fetch was not resumed: {out}");
        Ok(())
    })
    .await
}

/// The test hub, through the API server.
const HUB: &str = "/api/v1/namespaces/fairlead-e2e/services/hub:http/proxy";

/// Has the hub misbehave for the next requests.
async fn strike(fault: Value) -> Result<()> {
    let ran = run(&["create", "--raw", &format!("{HUB}/_hub/faults"), "-f", "-"], &fault.to_string()).await?;
    ensure!(ran.code == 0, "the hub takes no fault: {}{}", ran.out, ran.err);
    Ok(())
}

#[tokio::test]
async fn a_model_from_a_claim_is_inspected_by_a_job_and_served() -> Result<()> {
    in_namespace(async |namespace| {
        let volume = format!("models-{namespace}");
        apply(&namespace, &json!({
            "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": volume},
            "spec": {
                "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "storageClassName": "",
                "persistentVolumeReclaimPolicy": "Delete",
                "hostPath": {"path": format!("/tmp/fairlead-e2e/{namespace}"), "type": "DirectoryOrCreate"},
                "claimRef": {"namespace": namespace, "name": "models"},
            },
        })).await?;
        apply(
            &namespace,
            &json!({
                "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "models"},
                "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "", "volumeName": volume,
                         "resources": {"requests": {"storage": "1Gi"}}},
            }),
        )
        .await?;
        let served = async {
            fill_claim(&namespace).await?;
            apply(&namespace, &model_deployment("from-claim", "pvc://models/tiny")).await?;
            await_ready(&namespace, "modeldeployment", "from-claim", SERVED).await?;
            ensure!(
                get(&namespace, "job", "from-claim-inspect").await?.is_null(),
                "the inspection Job is left"
            );
            Ok(())
        };
        let outcome = served.await;
        kubectl(&["delete", "persistentvolume", &volume, "--wait=false"]).await?;
        outcome
    })
    .await
}

/// Copies the model into the claim, as a person's own Job would. It needs root once, to own the host's folder.
async fn fill_claim(namespace: &str) -> Result<()> {
    kubectl(&[
        "label",
        "namespace",
        namespace,
        "--overwrite",
        "pod-security.kubernetes.io/enforce=privileged",
    ])
    .await?;
    apply(namespace, &json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "fill"},
        "spec": {"backoffLimit": 0, "template": {"spec": {
            "restartPolicy": "Never",
            "initContainers": [{
                "name": "tool", "image": image("fairlead-inference"), "imagePullPolicy": "IfNotPresent",
                "command": ["cp", "/usr/local/bin/fairlead-model-copy", "/tool/"],
                "securityContext": {"runAsUser": 0},
                "volumeMounts": [{"name": "tool", "mountPath": "/tool"}],
            }],
            "containers": [{
                "name": "copy", "image": image("fairlead-tiny-v1"), "imagePullPolicy": "IfNotPresent",
                "command": ["/tool/fairlead-model-copy", "/models", "/claim/tiny"],
                "securityContext": {"runAsUser": 0},
                "volumeMounts": [{"name": "tool", "mountPath": "/tool"}, {"name": "claim", "mountPath": "/claim"}],
            }],
            "volumes": [
                {"name": "tool", "emptyDir": {}},
                {"name": "claim", "persistentVolumeClaim": {"claimName": "models"}},
            ],
        }}},
    })).await?;
    eventually(SERVED, async || {
        let job = get(namespace, "job", "fill").await?;
        ensure!(job["status"]["succeeded"] == 1, "the copy has not succeeded: {}", job["status"]);
        Ok(())
    })
    .await?;
    kubectl(&[
        "label",
        "namespace",
        namespace,
        "--overwrite",
        "pod-security.kubernetes.io/enforce=restricted",
    ])
    .await
    .map(|_| ())
}
