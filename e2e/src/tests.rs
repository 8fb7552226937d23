//! Running the end-to-end tests.
//!
//! Owns: the model hub that the tests fetch from, calling cargo, and keeping what is needed to understand a failure. Must
//! not: contain a test; they are in e2e/tests. Called by the binary's `test`.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use k8s_openapi::api::apps::v1::Deployment;
use kube::Api;

use crate::cluster;
use crate::images::{self, Target};
use crate::install;
use crate::local::status;
use crate::paths::Paths;
use crate::progress::say;
use crate::shell;
use crate::tools::Tools;

/// The hub's objects.
const HUB_MANIFEST: &str = "e2e/hub/manifest.yaml";
const HUB_NAMESPACE: &str = "fairlead-e2e";
/// Where the operator and the inference pods find it.
const HUB_URL: &str = "http://hub.fairlead-e2e.svc.cluster.local";
/// Providers that routes of tests may name: those in the namespaces that tests make.
const PROVIDERS: &str = "*.svc.cluster.local";
/// Headers that say who a request comes from, as an authenticating proxy in front would set them.
pub const TIER_HEADER: &str = "x-tier";
/// The same of the tenant.
pub const TENANT_HEADER: &str = "x-tenant";
const HUB_READY: Duration = Duration::from_secs(60);

/// Starts the test hub on the cluster and points the operator at it.
pub async fn prepare(paths: &Paths, tools: &Tools, programs: &Path) -> Result<()> {
    let (all, folder) = (paths.clone(), programs.to_path_buf());
    tokio::task::spawn_blocking(move || images::build_and_load_test_images(&all, &folder))
        .await
        .context("the task that builds the images of the tests failed")??;
    let file = paths.root.join(HUB_MANIFEST);
    let manifest = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
    let manifest = Target::find()?.localized(&manifest);
    shell::output_with_input(&mut status::kubectl(paths, &["apply", "-f", "-"]), &manifest)?;
    let values = [
        format!("operator.hfEndpoint={HUB_URL}"),
        format!("gateway.providers.hosts={{{PROVIDERS}}}"),
        format!("gateway.trustedHeaders.tier={TIER_HEADER}"),
        format!("gateway.trustedHeaders.tenant={TENANT_HEADER}"),
    ];
    install::install(paths, tools, &values).await?;
    let hubs: Api<Deployment> = Api::namespaced(cluster::client(&paths.kubeconfig()).await?, HUB_NAMESPACE);
    cluster::await_condition(&hubs, "hub", cluster::deployment_available, HUB_READY).await
}

/// Tests the local cluster itself: it is stopped, started and killed, and in the end there is none.
pub fn lifecycle(paths: &Paths) -> Result<()> {
    cargo_test(paths, "lifecycle", &["--nocapture"])
}

/// Runs the tests that use the cluster; collects logs and objects when one fails.
pub fn run(paths: &Paths, filter: &[String]) -> Result<()> {
    // Two at a time: each brings its own namespace, and a small machine runs no more pods at once.
    let arguments: Vec<&str> =
        ["--test-threads=2"].into_iter().chain(filter.iter().map(String::as_str)).collect();
    if let Err(error) = cargo_test(paths, "cluster", &arguments) {
        status::collect(paths, None)?;
        return Err(error);
    }
    say("end-to-end tests passed");
    Ok(())
}

/// Builds and runs one test target, with the features of the whole workspace, so that nothing is built twice.
fn cargo_test(paths: &Paths, target: &str, arguments: &[&str]) -> Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .current_dir(&paths.root)
        .args(["test", "--workspace", "--features", "fairlead-e2e/cluster", "--test", target, "--"])
        .args(arguments)
        .env("FAIRLEAD_E2E_REGISTRY", Target::find()?.registry())
        .env("FAIRLEAD_E2E_PROGRAM", std::env::current_exe().context("finding this program")?)
        .status()
        .context("cargo cannot be started: is Rust installed?")?;
    if !status.success() {
        bail!("the end-to-end tests {target:?} failed ({status})");
    }
    Ok(())
}
