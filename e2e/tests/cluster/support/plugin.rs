//! `kubectl fairlead`, run as a person runs it.

use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use tokio::process::Command;

use super::kubectl::{Ran, root};

/// Runs the plugin in `namespace`, by the kubeconfig that the other tests use.
pub async fn fairlead(namespace: &str, arguments: &[&str]) -> Result<Ran> {
    let output = command(namespace, arguments).output().await.context("starting kubectl-fairlead")?;
    Ok(Ran {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// The same, not yet started.
pub fn command(namespace: &str, arguments: &[&str]) -> Command {
    // Built beside the program that runs these tests.
    let beside = std::env::var_os("FAIRLEAD_E2E_PROGRAM")
        .map(|program| PathBuf::from(program).with_file_name("kubectl-fairlead"));
    let program = beside.unwrap_or_else(|| root().join("target/release/kubectl-fairlead"));
    let mut command = Command::new(program);
    if std::env::var_os("KUBECONFIG").is_none() {
        let cache = std::env::var_os("FAIRLEAD_CACHE").map_or_else(
            || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache/fairlead"),
            PathBuf::from,
        );
        command.env("KUBECONFIG", cache.join("cluster/kubeconfig"));
    }
    command.args(arguments).args(["-n", namespace]).stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// What it prints; an error when it fails.
pub async fn ok(namespace: &str, arguments: &[&str]) -> Result<String> {
    let ran = fairlead(namespace, arguments).await?;
    ensure!(ran.code == 0, "{arguments:?} exited {}: {}{}", ran.code, ran.out, ran.err);
    Ok(ran.out)
}
