//! The network namespace that holds the cluster.
//!
//! Owns: making it, entering it, removing it. Must not: know what runs inside. Called by `up`, `down`, the forwarder.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use nix::mount::{MntFlags, umount2};
use nix::sched::{CloneFlags, setns};

use super::address_plan::{NAMESPACE, NODE_ADDRESS, NODE_INTERFACE};
use crate::shell;

/// The folder of named network namespaces.
pub const FOLDER: &str = "/run/netns";

/// The file that is the namespace.
pub fn path() -> PathBuf {
    Path::new(FOLDER).join(NAMESPACE)
}

/// Whether the namespace is there, and not just the file of one that a restart of the machine took away.
pub fn exists() -> bool {
    is_mounted(&fs::read_to_string("/proc/self/mounts").unwrap_or_default(), &path())
}

fn is_mounted(mounts: &str, path: &Path) -> bool {
    let names = [path.display().to_string(), format!("/var{}", path.display())];
    mounts.lines().any(|line| {
        let mut words = line.split(' ');
        let (_, place, kind) = (words.next(), words.next(), words.next());
        kind == Some("nsfs") && place.is_some_and(|place| names.iter().any(|name| name == place))
    })
}

/// Whether the folder of named namespaces is a mount of its own, as it is once anybody has made a namespace.
pub fn folder_is_mounted() -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    mounts.lines().any(|line| line.split(' ').nth(1) == Some(FOLDER))
}

/// Takes the folder of named namespaces away again, when nothing is in it.
pub fn remove_folder() {
    let empty = fs::read_dir(FOLDER).is_ok_and(|mut entries| entries.next().is_none());
    if empty {
        // Mounted once by `ip` and perhaps again by CNI; what cannot be unmounted was not mounted.
        while umount2(FOLDER, MntFlags::empty()).is_ok() {}
        let _ = fs::remove_dir(FOLDER);
    }
}

/// Makes the namespace and its network; what is already there is left as it is.
pub fn ensure() -> Result<()> {
    if !exists() {
        if path().exists() {
            fs::remove_file(path()).with_context(|| format!("removing the stale {}", path().display()))?;
        }
        shell::output(&mut shell::command("ip", &["netns", "add", NAMESPACE]))?;
    }
    shell::output(&mut inside("sh", &["-ec", &network_script()]))
        .context("setting up the cluster's network")
        .map(drop)
}

/// The node's interface is a bridge: a dummy device is not in every kernel. The default route is needed for dialling a
/// Service's address; it leads nowhere.
fn network_script() -> String {
    format!(
        "ip link set lo up
ip link show {NODE_INTERFACE} >/dev/null 2>&1 || ip link add {NODE_INTERFACE} type bridge
ip address replace {NODE_ADDRESS}/24 dev {NODE_INTERFACE}
ip link set {NODE_INTERFACE} up
ip route replace default dev {NODE_INTERFACE}
ip route replace unreachable 169.254.0.0/16
echo 1 > /proc/sys/net/ipv4/ip_forward
echo 1 > /proc/sys/net/bridge/bridge-nf-call-iptables"
    )
}

/// A command that runs inside the namespace.
pub fn inside(program: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", path().display())).arg("--").arg(program).args(arguments);
    command
}

/// Moves the calling thread, and the threads it starts from then on, into the namespace at `path`.
pub fn enter(path: &Path) -> Result<()> {
    let file = File::open(path).with_context(|| format!("opening the namespace {}", path.display()))?;
    setns(file, CloneFlags::CLONE_NEWNET)
        .with_context(|| format!("entering the namespace {}", path.display()))
}

/// Whether something inside the namespace accepts connections at an address.
pub fn accepts(address: SocketAddr) -> Result<bool> {
    // A thread of its own: entering the namespace cannot be undone for this one.
    let attempt = std::thread::spawn(move || -> Result<bool> {
        enter(&path())?;
        Ok(TcpStream::connect_timeout(&address, Duration::from_millis(500)).is_ok())
    });
    attempt.join().map_err(|_| anyhow!("the thread that dials {address} failed"))?
}

/// Removes the namespace and everything in it: interfaces, routes, packet filter rules.
pub fn remove() -> Result<()> {
    if exists() {
        shell::output(&mut shell::command("ip", &["netns", "delete", NAMESPACE])).map(drop)
    } else if path().exists() {
        fs::remove_file(path()).with_context(|| format!("removing {}", path().display()))
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_mounted_namespace_counts() {
        let mounts = "proc /proc proc rw 0 0\nnsfs /run/netns/fairlead nsfs rw 0 0\ntmpfs /run/netns/other tmpfs rw 0 0\n";
        assert!(is_mounted(mounts, Path::new("/run/netns/fairlead")));
        assert!(!is_mounted(mounts, Path::new("/run/netns/other")));
        assert!(!is_mounted(mounts, Path::new("/run/netns/fair")));
    }
}
