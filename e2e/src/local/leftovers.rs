//! What a cluster leaves on the machine besides its processes, and removing it.
//!
//! Owns: mounts, pod namespaces, records of CNI and shims, links to logs, empty folders. Must not: remove anything that
//! does not carry the cluster's name or lie below its folders. Called by `down`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::mount::{MntFlags, umount2};
use serde_json::Value;

use super::cgroups;
use super::configs::POD_NETWORK;
use super::layout::Layout;
use super::namespace;
use super::process;
use crate::shell;

/// Where libcni keeps the results of what it set up; not configurable in containerd 1.6.
const CNI_RECORDS: &str = "/var/lib/cni/results";
/// Folders that the cluster's programs make by themselves; removed when nothing is in them.
const EMPTY_FOLDERS: [&str; 8] = [
    "/var/lib/cni/results",
    "/var/lib/cni",
    "/var/lib/kubelet/device-plugins",
    "/var/lib/kubelet",
    "/var/log/containers",
    "/var/log/pods",
    "/run/containerd/s",
    "/run/containerd",
];
/// Files that a kubelet makes at a fixed place.
const KUBELET_FILES: [&str; 2] =
    ["/var/lib/kubelet/device-plugins/kubelet.sock", "/var/lib/kubelet/device-plugins/DEPRECATION"];
const CONTAINER_LINKS: &str = "/var/log/containers";

/// The mounts below the state folder, innermost first.
pub fn mounts(layout: &Layout) -> Vec<PathBuf> {
    parse_mounts(&fs::read_to_string("/proc/self/mounts").unwrap_or_default(), &layout.state)
}

fn parse_mounts(text: &str, state: &Path) -> Vec<PathBuf> {
    let places = text.lines().filter_map(|line| line.split(' ').nth(1)).map(unescape);
    let mut below: Vec<PathBuf> = places.filter(|place| place.starts_with(state)).collect();
    below.reverse();
    below
}

/// The kernel writes a blank in a mount's path as `\040`, and a few others alike.
fn unescape(text: &str) -> PathBuf {
    let plain = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    PathBuf::from(
        plain.iter().fold(text.to_owned(), |text, (escaped, character)| text.replace(escaped, character)),
    )
}

/// Unmounts everything below the state folder.
pub fn unmount(layout: &Layout) -> Result<()> {
    for place in mounts(layout) {
        if umount2(&place, MntFlags::empty()).is_err() {
            umount2(&place, MntFlags::MNT_DETACH)
                .with_context(|| format!("unmounting {}", place.display()))?;
        }
    }
    Ok(())
}

/// Removes the pods' network namespaces, by CNI's own records of them, and the records.
pub fn remove_pod_namespaces() -> Result<()> {
    for record in cni_records() {
        if let Some(loopback) = loopback_record(&record) {
            // A pod that was only half set up has none.
            let _ = fs::remove_file(loopback);
        }
        for name in pod_namespaces(&fs::read_to_string(&record).unwrap_or_default()) {
            if Path::new(namespace::FOLDER).join(&name).exists() {
                shell::output(&mut shell::command("ip", &["netns", "delete", &name]))?;
            }
        }
        fs::remove_file(&record).with_context(|| format!("removing {}", record.display()))?;
    }
    Ok(())
}

fn cni_records() -> Vec<PathBuf> {
    let prefix = format!("{POD_NETWORK}-");
    files(Path::new(CNI_RECORDS))
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix)))
        .collect()
}

/// The record of the loopback device of the same pod, which carries the pod's number but not our network's name.
fn loopback_record(record: &Path) -> Option<PathBuf> {
    let name = record.file_name()?.to_str()?.strip_prefix(POD_NETWORK)?.strip_prefix('-')?;
    let pod = name.strip_suffix("-eth0")?;
    Some(record.with_file_name(format!("cni-loopback-{pod}-lo")))
}

/// The names of the namespaces in one of CNI's records.
fn pod_namespaces(record: &str) -> Vec<String> {
    let record: Value = serde_json::from_str(record).unwrap_or_default();
    let interfaces = record["result"]["interfaces"].as_array().cloned().unwrap_or_default();
    let mut names: Vec<String> = interfaces
        .iter()
        .filter_map(|interface| interface["sandbox"].as_str())
        .filter_map(|path| Path::new(path).file_name())
        .map(|name| name.to_string_lossy().into_owned())
        .filter(|name| name.starts_with("cni-"))
        .collect();
    names.dedup();
    names
}

/// Removes the sockets of the shims, which lie outside the state folder under names that only their records tell.
pub fn remove_shim_sockets(layout: &Layout) {
    let tasks = layout.run().join("containerd/io.containerd.runtime.v2.task/k8s.io");
    for bundle in files(&tasks) {
        let address = fs::read_to_string(bundle.join("address")).unwrap_or_default();
        if let Some(socket) = address.trim().strip_prefix("unix://") {
            // The shim removes its own socket when it ends well.
            let _ = fs::remove_file(socket);
        }
    }
}

/// Removes links, files and empty folders that the programs left at fixed places.
pub fn remove_traces(layout: &Layout) {
    // Each of these may be gone or still hold what is not ours; either way it is left alone.
    for link in files(Path::new(CONTAINER_LINKS)) {
        if fs::read_link(&link).is_ok_and(|target| target.starts_with(&layout.logs)) {
            let _ = fs::remove_file(link);
        }
    }
    for file in KUBELET_FILES {
        let _ = fs::remove_file(file);
    }
    for folder in EMPTY_FOLDERS {
        let _ = fs::remove_dir(folder);
    }
}

/// What is still there of a cluster, in words; empty when nothing is.
pub fn describe(layout: &Layout) -> Vec<String> {
    let mut left: Vec<String> = process::all(layout)
        .iter()
        .map(|process| format!("process {} ({})", process.pid, process.argv[0]))
        .collect();
    left.extend(mounts(layout).iter().map(|place| format!("mount {}", place.display())));
    left.extend(cni_records().iter().map(|record| format!("pod network record {}", record.display())));
    if namespace::path().exists() {
        left.push(format!("network namespace {}", namespace::path().display()));
    }
    if cgroups::exists() {
        left.push("the pods' cgroup".into());
    }
    left
}

fn files(folder: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_mounts_below_the_state_are_taken_innermost_first() {
        let text = "a / ext4 rw 0 0\no /c/cluster/run/x overlay rw 0 0\nt /c/cluster/run/x/with\\040blank tmpfs rw 0 0\nt /c/cluster2/x tmpfs rw 0 0\n";
        assert_eq!(
            parse_mounts(text, Path::new("/c/cluster")),
            [PathBuf::from("/c/cluster/run/x/with blank"), PathBuf::from("/c/cluster/run/x")]
        );
    }

    #[test]
    fn the_loopback_of_a_pod_is_found_by_the_pods_number() {
        let record = Path::new("/r/fairlead-pods-12ab-eth0");
        assert_eq!(loopback_record(record), Some(PathBuf::from("/r/cni-loopback-12ab-lo")));
        assert_eq!(loopback_record(Path::new("/r/other-12ab-eth0")), None);
    }

    #[test]
    fn a_record_names_the_pod_namespace() {
        let record = r#"{"kind":"cniCacheV1","result":{"interfaces":[{"name":"cni0"},{"name":"eth0","sandbox":"/var/run/netns/cni-12ab"}]}}"#;
        assert_eq!(pod_namespaces(record), ["cni-12ab"]);
        assert!(pod_namespaces("half a rec").is_empty());
        assert!(pod_namespaces(r#"{"result":{"interfaces":[{"sandbox":"/run/netns/other"}]}}"#).is_empty());
    }
}
