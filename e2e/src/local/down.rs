//! Stopping the cluster and removing it.
//!
//! Owns: the order. Must not: leave anything but logs and caches behind, or touch what the cluster did not make. Works on
//! whatever is there, so that it also clears up after a killed `up` or `down`.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::layout::Layout;
use super::process::{self, Process};
use super::{cgroups, leftovers, namespace, owner, sysctl};

/// How long a program may take to end by itself. Short: what it would tidy up is thrown away, and an API server waits
/// for its watches to end.
const GRACE: Duration = Duration::from_secs(1);
/// How long killed containers may take to leave their cgroups.
const CGROUPS: Duration = Duration::from_secs(10);

/// Removes the cluster; logs stay.
pub fn down(layout: &Layout) -> Result<()> {
    owner::check(layout)?;
    let saved = sysctl::load(layout);
    // First those that would restart pods or write rules while the rest goes away.
    stop(layout, &["kube-proxy", "kubelet", "kube-scheduler", "kube-controller-manager"])?;
    process::kill_pids(&cgroups::processes());
    cgroups::remove(CGROUPS)?;
    stop(layout, &["kube-apiserver", "containerd", "etcd", "forward"])?;
    leftovers::remove_shim_sockets(layout);
    process::stop(&process::all(layout), Duration::from_secs(2))?;
    leftovers::unmount(layout)?;
    leftovers::remove_pod_namespaces()?;
    namespace::remove()?;
    leftovers::remove_traces(layout);
    if let Some(saved) = &saved {
        sysctl::restore(saved)?;
        if !saved.namespaces_mounted {
            namespace::remove_folder();
        }
    }
    if layout.state.exists() {
        fs::remove_dir_all(&layout.state).with_context(|| format!("removing {}", layout.state.display()))?;
    }
    owner::forget();
    let left = leftovers::describe(layout);
    if !left.is_empty() {
        bail!("the cluster is stopped but this is left of it: {}", left.join(", "));
    }
    Ok(())
}

/// Stops the processes whose executable or first argument is one of `names`.
fn stop(layout: &Layout, names: &[&str]) -> Result<()> {
    let called = |process: &Process| {
        let executable = process.argv[0].rsplit('/').next().unwrap_or_default();
        names.contains(&executable)
            || process.argv.get(1).is_some_and(|first| names.contains(&first.as_str()))
    };
    let processes: Vec<Process> = process::all(layout).into_iter().filter(called).collect();
    process::stop(&processes, GRACE)
}
