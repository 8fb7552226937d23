//! How much memory the process may use: what its container allows, what the machine has free, or its share of a GPU.

use std::path::Path;

/// Share of a limit that is planned with; the rest is for what no plan counts, such as page tables and requests.
const SHARE_PERCENT: u64 = 90;

/// Bytes that weights, activations and KV cache may take together on this CPU.
///
/// `None` where the system tells nothing.
pub fn cpu_budget_bytes() -> Option<u64> {
    budget(Path::new("/sys/fs/cgroup"), Path::new("/proc/meminfo"))
}

/// What exactly known bytes take out of a budget: those need no margin.
pub fn with_margin(bytes: u64) -> u64 {
    (bytes / 100).saturating_add(1).saturating_mul(SHARE_PERCENT)
}

/// What `bytes` of a budget stand for, with the margin that every budget leaves.
pub fn without_margin(bytes: u64) -> u64 {
    bytes / SHARE_PERCENT * 100
}

/// Bytes that weights, activations and KV cache may take together on a GPU with `free` of `total` bytes: its share of the
/// whole, as the operator plans it, but no more than others have left.
pub fn gpu_budget_bytes(free: u64, total: u64, utilization: f64) -> u64 {
    // Memory sizes are far below 2^53, where f64 stops being exact.
    ((total as f64 * utilization) as u64).min(free)
}

fn budget(cgroup: &Path, meminfo: &Path) -> Option<u64> {
    // Version 2 first, then version 1. Without a limit the first says "max" and the second a huge number.
    let limit = ["memory.max", "memory/memory.limit_in_bytes"]
        .iter()
        .filter_map(|file| std::fs::read_to_string(cgroup.join(file)).ok()?.trim().parse::<u64>().ok())
        .min();
    let free = std::fs::read_to_string(meminfo).ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
    });
    let bytes = limit.into_iter().chain(free).min()?;
    Some(bytes / 100 * SHARE_PERCENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smaller_of_limit_and_free_memory_counts() {
        let dir = tempfile::tempdir().unwrap();
        let meminfo = dir.path().join("meminfo");
        assert_eq!(budget(dir.path(), &meminfo), None);
        std::fs::write(&meminfo, "MemTotal: 9 kB\nMemAvailable:    1000 kB\n").unwrap();
        assert_eq!(budget(dir.path(), &meminfo), Some(1_024_000 / 100 * 90));
        std::fs::write(dir.path().join("memory.max"), "max\n").unwrap();
        assert_eq!(budget(dir.path(), &meminfo), Some(1_024_000 / 100 * 90));
        std::fs::write(dir.path().join("memory.max"), "5000\n").unwrap();
        assert_eq!(budget(dir.path(), &meminfo), Some(4500));
    }
}
