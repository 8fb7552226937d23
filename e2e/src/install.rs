//! Installing the charts and waiting until what they install works.
//!
//! Owns: the Helm calls, replacing pods of an older image, saying what is wrong. Must not: build or load images. Called by
//! the binary's `install`, by the quickstart and before the end-to-end tests.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};

use crate::cluster;
use crate::images::{LOCAL_REGISTRY, TAG, Target, load};
use crate::local::layout::text;
use crate::local::status;
use crate::paths::Paths;
use crate::progress::{human, say};
use crate::shell;
use crate::tools::Tools;

/// The namespace of the operator and the gateway.
pub const NAMESPACE: &str = "fairlead-system";
/// The releases, in order: the types come before what uses them.
const CHARTS: [&str; 2] = ["fairlead-crds", "fairlead"];
const PATIENCE: Duration = Duration::from_secs(180);
const POLL: Duration = Duration::from_millis(250);

/// Installs or upgrades both charts; `values` are more `--set` arguments. Returns when every Deployment is available.
pub async fn install(paths: &Paths, tools: &Tools, values: &[String]) -> Result<()> {
    let begin = Instant::now();
    let target = Target::find()?;
    for chart in CHARTS {
        shell::output(&mut helm(paths, tools, chart, &target, values))
            .with_context(|| format!("installing {chart}"))?;
    }
    let client = cluster::client(&paths.kubeconfig()).await?;
    if target == Target::Local {
        replace_outdated(paths, &client).await?;
    }
    if let Err(error) = await_deployments(&client, PATIENCE).await {
        say(&cluster::dump(&client, NAMESPACE).await);
        return Err(error);
    }
    say(&format!("installed in {NAMESPACE} after {}", human(begin.elapsed())));
    Ok(())
}

fn helm(paths: &Paths, tools: &Tools, chart: &str, target: &Target, values: &[String]) -> Command {
    let mut command = shell::command(&tools.helm, &["--kubeconfig", &text(&paths.kubeconfig())]);
    command
        .args(["--namespace", NAMESPACE, "upgrade", "--install", "--create-namespace", chart])
        // CRDs that were once applied by hand become the release's.
        .arg("--take-ownership")
        .arg(paths.root.join("charts").join(chart));
    if chart == "fairlead-crds" {
        // Types that were applied by hand, as a developer does, become the release's; deleting them first would delete
        // every object of them.
        command.args(["--take-ownership", "--force-conflicts"]);
    } else {
        for value in chart_values(target).iter().chain(values) {
            command.args(["--set", value]);
        }
    }
    command
}

/// What the chart is told about the images.
fn chart_values(target: &Target) -> Vec<String> {
    vec![
        format!("image.registry={}", target.registry()),
        format!("image.tag={TAG}"),
        "image.pullPolicy=IfNotPresent".into(),
    ]
}

/// Restarts Deployments whose pods run another image than the one of the same name that was loaded last: the name alone
/// does not tell Kubernetes that anything changed.
async fn replace_outdated(paths: &Paths, client: &Client) -> Result<()> {
    let images = paths.images();
    let current: BTreeMap<String, String> =
        ["fairlead-operator", "fairlead-gateway", "fairlead-inference", "fairlead-test-hub"]
            .into_iter()
            .map(|name| format!("{LOCAL_REGISTRY}/{name}:{TAG}"))
            .filter_map(|image| load::config_digest(&images, &image).ok().map(|digest| (image, digest)))
            .collect();
    let pods: Api<Pod> = Api::all(client.clone());
    let pods = pods.list(&ListParams::default()).await.context("listing pods")?.items;
    for (namespace, deployment) in outdated(&pods, &current) {
        say(&format!("restarting {namespace}/{deployment}: its image is new"));
        let arguments =
            ["--namespace", &namespace, "rollout", "restart", &format!("deployment/{deployment}")];
        shell::output(&mut status::kubectl(paths, &arguments))?;
    }
    Ok(())
}

/// The Deployments, by namespace and name, with a pod whose image is not the current one of that name.
fn outdated(pods: &[Pod], current: &BTreeMap<String, String>) -> BTreeSet<(String, String)> {
    let runs_old_image = |pod: &Pod| {
        let statuses = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
        statuses.into_iter().any(|container| {
            let wanted = pod
                .spec
                .iter()
                .flat_map(|spec| &spec.containers)
                .find(|spec| spec.name == container.name)
                .and_then(|spec| current.get(spec.image.as_deref().unwrap_or_default()));
            !container.image_id.is_empty()
                && wanted.is_some_and(|digest| !container.image_id.ends_with(digest))
        })
    };
    pods.iter()
        .filter(|pod| pod.metadata.deletion_timestamp.is_none() && runs_old_image(pod))
        .filter_map(|pod| {
            let set = pod.owner_references().iter().find(|owner| owner.kind == "ReplicaSet")?;
            let hash = pod.labels().get("pod-template-hash")?;
            let deployment = set.name.strip_suffix(hash)?.strip_suffix('-')?;
            Some((pod.namespace()?, deployment.to_owned()))
        })
        .collect()
}

/// Waits until every Deployment of the namespace is available in its newest revision.
async fn await_deployments(client: &Client, within: Duration) -> Result<()> {
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), NAMESPACE);
    let deadline = Instant::now() + within;
    loop {
        let all = deployments.list(&ListParams::default()).await.context("listing Deployments")?.items;
        let waiting: Vec<String> = all
            .iter()
            .filter(|deployment| !cluster::deployment_available(deployment))
            .map(ResourceExt::name_any)
            .collect();
        if !all.is_empty() && waiting.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            bail!("not available in {NAMESPACE} after {}: {}", human(within), waiting.join(", "));
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Removes what `install` installed, and with the types every object of them.
pub fn uninstall(paths: &Paths, helm: &Path) -> Result<()> {
    for chart in CHARTS.into_iter().rev() {
        let mut command = shell::command(helm, &["--kubeconfig", &text(&paths.kubeconfig())]);
        command.args(["--namespace", NAMESPACE, "uninstall", "--ignore-not-found", "--wait", chart]);
        shell::output(&mut command).with_context(|| format!("removing {chart}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(image_id: &str) -> Pod {
        serde_json::from_value(json!({
            "metadata": {
                "name": "g-1a-x", "namespace": "n", "labels": {"pod-template-hash": "1a"},
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "g-1a", "uid": "u"}],
            },
            "spec": {"containers": [{"name": "gateway", "image": "localhost/fairlead-gateway:dev"}]},
            "status": {"containerStatuses": [{
                "name": "gateway", "image": "sha256:old", "imageID": image_id, "ready": true, "restartCount": 0,
            }]},
        }))
        .unwrap()
    }

    #[test]
    fn a_pod_of_an_older_image_means_a_restart() {
        let current =
            BTreeMap::from([("localhost/fairlead-gateway:dev".to_owned(), "sha256:new".to_owned())]);
        assert_eq!(
            outdated(&[pod("sha256:old")], &current),
            BTreeSet::from([("n".to_owned(), "g".to_owned())])
        );
        assert!(outdated(&[pod("sha256:new")], &current).is_empty());
        assert!(outdated(&[pod("")], &current).is_empty());
    }

    #[test]
    fn the_chart_is_told_the_registry_in_use() {
        let values = chart_values(&Target::Registry("registry.example.com/team".into()));
        assert!(values.contains(&"image.registry=registry.example.com/team".to_owned()), "{values:?}");
    }
}
