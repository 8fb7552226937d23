//! The cgroup that all pods live below.
//!
//! Owns: making it in every hierarchy, finding the processes in it, removing it. Must not: touch another cgroup. Called
//! by `up` before the kubelet, which refuses a root that is not there, and by `down`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::configs::CGROUP;

/// The mounted hierarchies: several of version 1, or the one of version 2.
fn hierarchies() -> Vec<PathBuf> {
    parse_hierarchies(&fs::read_to_string("/proc/self/mounts").unwrap_or_default())
}

fn parse_hierarchies(mounts: &str) -> Vec<PathBuf> {
    let fields = |line: &str| {
        let mut words = line.split(' ').skip(1);
        Some((PathBuf::from(words.next()?), words.next()?.to_owned()))
    };
    mounts
        .lines()
        .filter_map(fields)
        .filter(|(_, kind)| kind == "cgroup" || kind == "cgroup2")
        .map(|(place, _)| place)
        .collect()
}

/// Makes the cgroup in every hierarchy.
pub fn ensure() -> Result<()> {
    for hierarchy in hierarchies() {
        let folder = hierarchy.join(CGROUP);
        fs::create_dir_all(&folder).with_context(|| format!("creating the cgroup {}", folder.display()))?;
        // Version 1's cpuset starts empty, and nothing can run in an empty one.
        for setting in ["cpuset.cpus", "cpuset.mems"] {
            let inherited = fs::read_to_string(hierarchy.join(setting)).unwrap_or_default();
            let path = folder.join(setting);
            if !inherited.trim().is_empty()
                && fs::read_to_string(&path).is_ok_and(|now| now.trim().is_empty())
            {
                fs::write(&path, inherited.trim()).with_context(|| format!("writing {}", path.display()))?;
            }
        }
    }
    Ok(())
}

/// Every process in the cgroup, at any depth.
pub fn processes() -> Vec<i32> {
    let mut found = Vec::new();
    for hierarchy in hierarchies() {
        visit(&hierarchy.join(CGROUP), &mut |folder| {
            let text = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
            found.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|pid| *pid > 0));
        });
    }
    found.sort_unstable();
    found.dedup();
    found
}

/// Removes the cgroup from every hierarchy, waiting until `deadline` for the last processes to leave it.
pub fn remove(within: Duration) -> Result<()> {
    let deadline = Instant::now() + within;
    loop {
        for hierarchy in hierarchies() {
            visit(&hierarchy.join(CGROUP), &mut |folder| {
                // Busy while a process is still ending; the next round sees to it.
                let _ = fs::remove_dir(folder);
            });
        }
        let left: Vec<PathBuf> = hierarchies()
            .into_iter()
            .map(|hierarchy| hierarchy.join(CGROUP))
            .filter(|folder| folder.exists())
            .collect();
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            bail!(
                "the cgroup {} cannot be removed: processes {:?} are still in it",
                left[0].display(),
                processes()
            );
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Whether a hierarchy still has the cgroup.
pub fn exists() -> bool {
    hierarchies().iter().any(|hierarchy| hierarchy.join(CGROUP).exists())
}

/// Visits a folder and all below it, children first.
fn visit(folder: &Path, action: &mut impl FnMut(&Path)) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            visit(&entry.path(), action);
        }
    }
    action(folder);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_are_found() {
        let mounts = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(
            parse_hierarchies(mounts),
            [PathBuf::from("/sys/fs/cgroup/cpu"), PathBuf::from("/sys/fs/cgroup/unified")]
        );
    }

    #[test]
    fn children_are_visited_first() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("a/b")).unwrap();
        let mut seen = Vec::new();
        visit(folder.path(), &mut |path| seen.push(path.strip_prefix(folder.path()).unwrap().to_path_buf()));
        assert_eq!(seen, ["a/b", "a", ""].map(PathBuf::from));
    }
}
