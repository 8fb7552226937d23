//! How much main memory this process may still take.
//!
//! Linux promises memory it does not have, so an allocation that is too large does not fail: the process is killed when it
//! touches the pages. Hence this question before large allocations, asked of the system and of the control group that a
//! container's limit is.

use std::fs;
use std::path::{Path, PathBuf};

/// Bytes that this process can take without being killed or making the system swap: the least of what the system has and
/// what the limits of its control groups leave. `None` where the system does not say.
pub(crate) fn available() -> Option<u64> {
    let system = fs::read_to_string("/proc/meminfo").ok().and_then(|text| mem_available(&text));
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    group_folders(&groups).iter().filter_map(|folder| left_in_group(folder)).chain(system).min()
}

/// `MemAvailable` of /proc/meminfo, in bytes.
fn mem_available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Where the limits of a process may be, from its /proc/self/cgroup: version 2 and version 1, as named there and, since a
/// container sees its own group as the root, at the root.
fn group_folders(groups: &str) -> Vec<PathBuf> {
    groups
        .lines()
        .filter_map(|line| {
            let mut parts = line.splitn(3, ':');
            let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
            let root = match controllers {
                "" => "/sys/fs/cgroup",
                names if names.split(',').any(|name| name == "memory") => "/sys/fs/cgroup/memory",
                _ => return None,
            };
            Some([Path::new(root).join(path.trim_start_matches('/')), PathBuf::from(root)])
        })
        .flatten()
        .collect()
}

/// Bytes between a control group's limit and its use; `None` if it has no limit. Pages of files that the kernel would
/// drop do not count as use: weights are read through them.
fn left_in_group(folder: &Path) -> Option<u64> {
    let read = |name: &str| fs::read_to_string(folder.join(name)).ok();
    let number = |name: &str| read(name)?.trim().parse::<u64>().ok();
    let (limit, used, droppable) = match number("memory.max") {
        Some(limit) => (limit, number("memory.current")?, "inactive_file "),
        None => (number("memory.limit_in_bytes")?, number("memory.usage_in_bytes")?, "total_inactive_file "),
    };
    let droppable = read("memory.stat")
        .and_then(|text| {
            text.lines().find_map(|line| line.strip_prefix(droppable)?.trim().parse::<u64>().ok())
        })
        .unwrap_or(0);
    Some(limit.saturating_sub(used.saturating_sub(droppable)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_meminfo_and_group_names() {
        assert_eq!(mem_available("MemTotal: 9 kB\nMemAvailable:    123 kB\n"), Some(123 * 1024));
        assert_eq!(mem_available("MemTotal: 9 kB\n"), None);
        let folders = group_folders("4:cpu,memory:/a/b\n1:cpu:/c\n0::/d\nbroken\n");
        let expected =
            ["/sys/fs/cgroup/memory/a/b", "/sys/fs/cgroup/memory", "/sys/fs/cgroup/d", "/sys/fs/cgroup"];
        assert_eq!(folders, expected.map(PathBuf::from));
        assert!(available().is_some_and(|bytes| bytes > 0));
    }

    #[test]
    fn a_group_leaves_its_limit_less_what_cannot_be_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        assert_eq!(left_in_group(folder.path()), None);
        write("memory.max", "max\n");
        assert_eq!(left_in_group(folder.path()), None, "no limit");
        write("memory.max", "1000\n");
        write("memory.current", "700\n");
        write("memory.stat", "anon 400\ninactive_file 300\nactive_file 5\n");
        assert_eq!(left_in_group(folder.path()), Some(600));
        write("memory.current", "2000\n");
        assert_eq!(left_in_group(folder.path()), Some(0));
    }
}
