//! What the cluster changes about the whole machine, saved before and restored after.
//!
//! Owns: saved.json. Must not: change anything but the settings it names. Called by `up` before the kubelet starts and by
//! `down` at the end.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::configs::write_private;
use super::layout::Layout;
use super::namespace;

/// The kernel settings that a kubelet changes for the whole machine.
pub const CHANGED: [&str; 6] = [
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
];

/// The machine before the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    /// The boot that the values belong to: after a restart of the machine there is nothing to restore.
    pub boot: String,
    /// Settings by name below /proc/sys.
    pub settings: BTreeMap<String, String>,
    /// Whether the folder of network namespaces was a mount of its own already.
    pub namespaces_mounted: bool,
}

/// Saves the machine's settings, unless this boot's are saved already: a second `up` must not save the kubelet's values.
pub fn save(layout: &Layout) -> Result<()> {
    let boot = boot_id()?;
    if load(layout).is_some_and(|saved| saved.boot == boot) {
        return Ok(());
    }
    let mut settings = BTreeMap::new();
    for name in CHANGED {
        // A kernel built without a feature lacks its setting, and the kubelet then cannot change it either.
        if let Ok(value) = fs::read_to_string(file(name)) {
            settings.insert(name.to_owned(), value.trim().to_owned());
        }
    }
    let namespaces_mounted = namespace::folder_is_mounted();
    let saved = Saved { boot, settings, namespaces_mounted };
    write_private(&layout.saved(), &serde_json::to_string_pretty(&saved)?)
}

/// What was saved; none before the first `up` and for a file that was not written whole.
pub fn load(layout: &Layout) -> Option<Saved> {
    serde_json::from_str(&fs::read_to_string(layout.saved()).ok()?).ok()
}

/// Puts back what differs from what was saved in this boot.
pub fn restore(saved: &Saved) -> Result<()> {
    if saved.boot != boot_id()? {
        return Ok(());
    }
    for (name, value) in &saved.settings {
        let path = file(name);
        if fs::read_to_string(&path).is_ok_and(|now| now.trim() != value) {
            fs::write(&path, value).with_context(|| format!("restoring {path} to {value}"))?;
        }
    }
    Ok(())
}

fn boot_id() -> Result<String> {
    let path = file("kernel/random/boot_id");
    Ok(fs::read_to_string(&path).with_context(|| format!("reading {path}"))?.trim().to_owned())
}

fn file(name: &str) -> String {
    format!("/proc/sys/{name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_values_of_a_boot_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout { state: folder.path().join("state"), logs: folder.path().join("logs") };
        save(&layout).unwrap();
        let mut saved = load(&layout).unwrap();
        saved.settings.insert("vm/panic_on_oom".into(), "first".into());
        write_private(&layout.saved(), &serde_json::to_string(&saved).unwrap()).unwrap();
        save(&layout).unwrap();
        assert_eq!(load(&layout).unwrap(), saved);
        saved.boot = "an earlier boot".into();
        write_private(&layout.saved(), &serde_json::to_string(&saved).unwrap()).unwrap();
        save(&layout).unwrap();
        assert_ne!(load(&layout).unwrap().boot, "an earlier boot");
    }
}
