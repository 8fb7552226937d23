//! An operator that comes back to a settled cluster writes nothing.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::support::{
    SERVED, apply, await_ready, eventually, get, in_namespace, kubectl, model_deployment, model_image,
    model_route,
};

const KINDS: [(&str, &str); 7] = [
    ("modeldeployment", "calm"),
    ("modelroute", "calm"),
    ("deployment", "calm"),
    ("service", "calm"),
    ("configmap", "calm-config"),
    ("serviceaccount", "calm"),
    ("poddisruptionbudget", "calm"),
];

#[tokio::test]
async fn an_operator_restart_changes_nothing() -> Result<()> {
    in_namespace(async |namespace| {
        apply(&namespace, &model_deployment("calm", &model_image())).await?;
        apply(&namespace, &model_route("calm", &format!("calm-{namespace}"), &[("calm", 1)])).await?;
        await_ready(&namespace, "modeldeployment", "calm", SERVED).await?;
        await_ready(&namespace, "modelroute", "calm", SERVED).await?;
        let before = versions(&namespace).await?;

        let holder = leader().await?;
        kubectl(&[
            "-n",
            "fairlead-system",
            "delete",
            "pod",
            "-l",
            "app.kubernetes.io/name=fairlead-operator",
        ])
        .await?;
        eventually(SERVED, async || {
            let now = leader().await?;
            ensure!(!now.is_empty() && now != holder, "the Lease is still {now}'s");
            Ok(())
        })
        .await?;
        // A new object is reconciled after those that were there: once it has a status, they have been looked at.
        apply(&namespace, &model_route("probe", &format!("probe-{namespace}"), &[("nobody", 1)])).await?;
        crate::support::await_reason(&namespace, "modelroute", "probe", "BackendNotFound", SERVED).await?;
        let mut broken = model_deployment("probe", "file:///nowhere");
        broken["spec"]["replicas"] = serde_json::json!(0);
        apply(&namespace, &broken).await?;
        crate::support::await_reason(&namespace, "modeldeployment", "probe", "InvalidSpec", SERVED).await?;

        let after = versions(&namespace).await?;
        ensure!(before == after, "the restart wrote:\nbefore {before:?}\nafter  {after:?}");
        Ok(())
    })
    .await
}

/// Each object's resourceVersion and generation: any write moves the first.
async fn versions(namespace: &str) -> Result<BTreeMap<String, (String, i64)>> {
    let mut versions = BTreeMap::new();
    for (kind, name) in KINDS {
        let object = get(namespace, kind, name).await?;
        let version =
            object["metadata"]["resourceVersion"].as_str().context("no resourceVersion")?.to_owned();
        let generation = object["metadata"]["generation"].as_i64().unwrap_or(0);
        versions.insert(format!("{kind}/{name}"), (version, generation));
    }
    Ok(versions)
}

async fn leader() -> Result<String> {
    let lease: Value = get("fairlead-system", "lease", "fairlead-operator").await?;
    Ok(lease["spec"]["holderIdentity"].as_str().unwrap_or_default().to_owned())
}
