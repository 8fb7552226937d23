//! Packages of the machine's distribution.
//!
//! Owns: which packages, and installing the missing ones on Debian and Ubuntu. Must not: install anything elsewhere: it
//! then says what is needed. Called by `tools`.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail};
use nix::unistd::Uid;

use crate::local::configs::CNI_PLUGINS;
use crate::local::preflight::{OTHERWISE, PROGRAMS};
use crate::progress::Task;
use crate::shell;

/// What building images and the quickstart need, and Debian's package for each.
const OTHER_PROGRAMS: [(&str, &str); 3] =
    [("buildah", "buildah"), ("mmdebstrap", "mmdebstrap"), ("curl", "curl")];

/// What the programs are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Building images and asking a question.
    Images,
    /// That, and running a cluster here.
    Cluster,
}

/// Installs the packages whose programs are missing.
pub fn ensure(need: Need) -> Result<()> {
    let missing = missing(need);
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if !Uid::effective().is_root() || !Path::new("/usr/bin/apt-get").is_file() {
        bail!("these packages (Debian's names) are missing: {list}. Install them, or {OTHERWISE}");
    }
    let task = Task::start(&format!("installing {list}"), Duration::from_secs(60));
    if apt(&["install", "--yes", "--no-install-recommends"], &missing).is_err() {
        // The lists may be missing or old: fetch them once and try again.
        apt(&["update"], &[])?;
        apt(&["install", "--yes", "--no-install-recommends"], &missing)?;
    }
    task.finish();
    Ok(())
}

/// The packages whose programs are not on this machine.
fn missing(need: Need) -> Vec<&'static str> {
    let cluster = need == Need::Cluster;
    let mut packages: Vec<&str> = PROGRAMS
        .into_iter()
        .filter(|_| cluster)
        .chain(OTHER_PROGRAMS)
        .filter(|(program, _)| shell::which(program).is_none())
        .map(|(_, package)| package)
        .collect();
    if cluster && !Path::new(CNI_PLUGINS).join("bridge").is_file() {
        packages.push("containernetworking-plugins");
    }
    packages.sort_unstable();
    packages.dedup();
    packages
}

fn apt(arguments: &[&str], packages: &[&str]) -> Result<()> {
    // Debian starts a daemon as it installs it; the cluster starts its own, so a policy for the installation forbids it.
    let policy = Path::new("/usr/sbin/policy-rc.d");
    let ours = !policy.exists();
    if ours {
        fs::write(policy, "#!/bin/sh\nexit 101\n")?;
        fs::set_permissions(policy, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    }
    let mut command = Command::new("apt-get");
    command.args(arguments).args(packages).env("DEBIAN_FRONTEND", "noninteractive");
    let result = shell::output(&mut command).map(drop);
    if ours {
        fs::remove_file(policy)?;
    }
    result
}
