//! Whether the local cluster can run on this machine.
//!
//! Owns: the checks and their one-line answers. Must not: change the machine (the probe's namespace is gone when it
//! returns). Called by `up` before anything is made.

use std::fs;

use anyhow::{Result, bail};
use nix::unistd::Uid;

use super::namespace;
use crate::shell;

/// What every refusal ends with.
pub const OTHERWISE: &str = "set KUBECONFIG to use a cluster you have";

/// The programs that the cluster needs on the machine, and Debian's package for each.
pub const PROGRAMS: [(&str, &str); 10] = [
    ("etcd", "etcd-server"),
    ("containerd", "containerd"),
    ("ctr", "containerd"),
    ("runc", "runc"),
    ("ip", "iproute2"),
    ("iptables", "iptables"),
    ("conntrack", "conntrack"),
    ("nsenter", "util-linux"),
    ("setsid", "util-linux"),
    ("mount", "mount"),
];

/// Refuses on another system than Linux and without root, before anything is built or installed.
pub fn platform() -> Result<()> {
    if !cfg!(target_os = "linux") {
        bail!("the local cluster runs on Linux only: {OTHERWISE}");
    }
    if !Uid::effective().is_root() {
        bail!(
            "the local cluster needs root (network namespaces, mounts, cgroups): run as root, or {OTHERWISE}"
        );
    }
    Ok(())
}

/// Refuses, in one line, where the cluster cannot run.
pub fn check() -> Result<()> {
    platform()?;
    // Built in or already loaded is as good; the probe below says what is really missing.
    for module in ["overlay", "bridge", "br_netfilter", "ip_tables", "nf_conntrack"] {
        let _ = shell::succeeds(&mut shell::command("modprobe", &["--quiet", module]));
    }
    if !fs::read_to_string("/proc/filesystems")
        .unwrap_or_default()
        .lines()
        .any(|line| line.ends_with("\toverlay"))
    {
        bail!("the local cluster needs overlayfs, which this kernel lacks: {OTHERWISE}");
    }
    if !fs::read_to_string("/proc/self/mounts")
        .unwrap_or_default()
        .lines()
        .any(|line| line.contains(" cgroup"))
    {
        bail!("the local cluster needs cgroups, and none are mounted: {OTHERWISE}");
    }
    probe()
}

/// Tries, in a namespace that is then removed, what the cluster will do in its own.
fn probe() -> Result<()> {
    let mounted = namespace::folder_is_mounted();
    let name = format!("fairlead-probe-{}", std::process::id());
    if let Err(error) = shell::output(&mut shell::command("ip", &["netns", "add", &name])) {
        bail!("the local cluster needs network namespaces: {OTHERWISE} ({error:#})");
    }
    let tried = [
        ("bridge devices", "ip link add probe0 type bridge"),
        ("veth devices", "ip link add probe1 type veth peer name probe2"),
        ("br_netfilter", "test -e /proc/sys/net/bridge/bridge-nf-call-iptables"),
        ("iptables NAT", "iptables -t nat -S"),
    ]
    .into_iter()
    .find_map(|(feature, command)| {
        let place = format!("--net=/run/netns/{name}");
        let tried = shell::output(&mut shell::command("nsenter", &[&place, "--", "sh", "-ec", command]));
        tried.err().map(|error| (feature, error))
    });
    // Its removal fails only if the namespace is gone already.
    let _ = shell::succeeds(&mut shell::command("ip", &["netns", "delete", &name]));
    if !mounted {
        namespace::remove_folder();
    }
    match tried {
        None => Ok(()),
        Some((feature, error)) => {
            let error = format!("{error:#}").replace('\n', " ");
            bail!("the local cluster needs {feature}, which this kernel lacks: {OTHERWISE} ({error})")
        }
    }
}
