//! The quickstart's own manifests: applied, served, answered, and clean by GitOps rules.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::support::kubectl::{list, root, run};
use crate::support::{Gateway, SERVED, await_ready, chat, get, in_namespace, kubectl, model_image};

const MANIFESTS: [(&str, &str); 2] = [("modeldeployment", "tiny-v1"), ("modelroute", "support-chat")];

#[tokio::test]
async fn the_quickstart_manifests_give_an_answering_model() -> Result<()> {
    in_namespace(async |namespace| {
        for (kind, _) in MANIFESTS {
            let applied = run(&["-n", &namespace, "apply", "-f", "-"], &example(kind)?).await?;
            ensure!(applied.code == 0, "the example's {kind} was refused: {}", applied.err);
        }
        // Two suites may share a cluster: the public name is made this namespace's own.
        let model = format!("support-chat-{namespace}");
        let patch = json!({"spec": {"model": model}}).to_string();
        kubectl(&["-n", &namespace, "patch", "modelroute", "support-chat", "--type=merge", "-p", &patch])
            .await?;

        let deployment = await_ready(&namespace, "modeldeployment", "tiny-v1", SERVED).await?;
        let route = await_ready(&namespace, "modelroute", "support-chat", SERVED).await?;
        plan_is_whole(&deployment["status"]["plan"])?;
        ensure!(deployment["status"]["readyReplicas"] == 1, "readyReplicas: {}", deployment["status"]);
        ensure!(route["status"]["effectiveSplit"] == json!([{"backend": "v1", "percent": "100"}]), "{route}");

        children_are_owned_and_restricted(&namespace, &deployment).await?;
        columns_are_readable(&namespace).await?;
        diff_is_empty(&namespace).await?;
        events_tell_the_story(&namespace).await?;

        let gateway = Gateway::open().await?;
        let answer = gateway.await_answer(&model, SERVED).await?;
        ensure!(answer["model"] == model.as_str(), "the answer must carry the public name: {answer}");
        let mut asked = chat(&model, 64);
        asked["messages"][0]["content"] = json!(fairlead_e2e::quickstart::QUESTION);
        let (_, _, answer) = gateway.post("/v1/chat/completions", &asked).await?;
        let text = &answer["choices"][0]["message"]["content"];
        ensure!(
            *text == fairlead_e2e::quickstart::ANSWER,
            "the first answer of a newcomer is wrong: {answer}"
        );

        kubectl(&["-n", &namespace, "delete", "modeldeployment/tiny-v1", "modelroute/support-chat"]).await?;
        nothing_is_left(&namespace).await
    })
    .await
}

/// The quickstart's own file, with the images where the cluster in use finds them.
fn example(kind: &str) -> Result<String> {
    let file = root().join("docs/examples/quickstart").join(format!("{kind}.yaml"));
    let text = std::fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
    Ok(text.replace("oci://localhost/fairlead-tiny-v1:dev", &model_image()))
}

fn plan_is_whole(plan: &Value) -> Result<()> {
    for field in
        ["parameters", "weightBytes", "kvBytesPerToken", "kvCacheBytes", "maxCachedTokens", "maxModelLen"]
    {
        ensure!(plan[field].as_u64().unwrap_or(0) > 0, "status.plan.{field} is missing: {plan}");
    }
    ensure!(plan["fits"] == true, "{plan}");
    Ok(())
}

async fn children_are_owned_and_restricted(namespace: &str, owner: &Value) -> Result<()> {
    for (kind, name) in [
        ("deployment", "tiny-v1"),
        ("service", "tiny-v1"),
        ("configmap", "tiny-v1-config"),
        ("serviceaccount", "tiny-v1"),
        ("poddisruptionbudget", "tiny-v1"),
    ] {
        let child = get(namespace, kind, name).await?;
        ensure!(
            child["metadata"]["ownerReferences"][0]["uid"] == owner["metadata"]["uid"],
            "{kind}/{name} is not owned by the ModelDeployment: {child}"
        );
    }
    let template = &get(namespace, "deployment", "tiny-v1").await?["spec"]["template"]["spec"];
    let container = &template["containers"][0];
    ensure!(container["readinessProbe"]["httpGet"]["path"] == "/readyz", "{container}");
    ensure!(container["livenessProbe"]["httpGet"]["path"] == "/healthz", "{container}");
    ensure!(container["securityContext"]["readOnlyRootFilesystem"] == true, "{container}");
    ensure!(container["resources"]["limits"]["memory"] == "1Gi", "{container}");
    ensure!(template["automountServiceAccountToken"] == false, "{template}");
    Ok(())
}

async fn columns_are_readable(namespace: &str) -> Result<()> {
    let table = kubectl(&["-n", namespace, "get", "modeldeployments,modelroutes"]).await?;
    for wanted in ["READY", "REASON", "AGE", "1/1", "Available", "Routed", "support-chat"] {
        ensure!(table.contains(wanted), "kubectl get does not show {wanted}:\n{table}");
    }
    let widest = table.lines().map(|line| line.trim_end().len()).max().unwrap_or(0);
    ensure!(widest <= 120, "kubectl get is {widest} columns wide:\n{table}");
    for category in ["fairlead", "md,mr"] {
        ensure!(!kubectl(&["-n", namespace, "get", category]).await?.is_empty());
    }
    Ok(())
}

/// What a GitOps tool asks: does the cluster hold anything else than what was applied?
async fn diff_is_empty(namespace: &str) -> Result<()> {
    for (kind, name) in MANIFESTS {
        let live = get(namespace, kind, name).await?;
        let last = &live["metadata"]["annotations"]["kubectl.kubernetes.io/last-applied-configuration"];
        let applied: Value = serde_json::from_str(last.as_str().context("not applied by kubectl")?)?;
        let mut expected = applied["spec"].clone();
        if kind == "modelroute" {
            expected["model"] = live["spec"]["model"].clone();
        }
        ensure!(live["spec"] == expected, "{kind}/{name} was changed after it was applied: {}", live["spec"]);
    }
    let diff = run(&["-n", namespace, "diff", "-f", "-"], &example("modeldeployment")?).await?;
    ensure!(diff.code == 0, "kubectl diff is not empty:\n{}{}", diff.out, diff.err);
    Ok(())
}

async fn events_tell_the_story(namespace: &str) -> Result<()> {
    let out = kubectl(&["-n", namespace, "get", "events.events.k8s.io", "-o", "json"]).await?;
    let events: Value = serde_json::from_str(&out)?;
    let ours = events["items"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|event| event["regarding"]["kind"] == "ModelDeployment");
    let reasons: Vec<&str> = ours.filter_map(|event| event["reason"].as_str()).collect();
    ensure!(reasons.contains(&"Available"), "no Available event; there are {reasons:?}");
    Ok(())
}

async fn nothing_is_left(namespace: &str) -> Result<()> {
    crate::support::eventually(SERVED, async || {
        for kind in ["deployments", "services", "poddisruptionbudgets", "pods", "jobs"] {
            let left = list(namespace, kind, "fairlead.dev/model-deployment=tiny-v1").await?;
            ensure!(left.is_empty(), "{} {kind} are left", left.len());
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn every_crd_is_small_enough_for_client_side_apply() -> Result<()> {
    for name in ["modeldeployments.fairlead.dev", "modelroutes.fairlead.dev"] {
        let size = kubectl(&["get", "crd", name, "-o", "json"]).await?.len();
        ensure!(size < 256 * 1024, "{name} takes {size} bytes");
    }
    Ok(())
}
