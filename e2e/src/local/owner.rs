//! Whose cluster is on this machine.
//!
//! Owns: a note of the state folder that the machine's one cluster belongs to. The namespace and the cgroup have fixed
//! names, so a run with another cache must not take or remove them. Called by `up` and `down`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::layout::{Layout, text};
use super::namespace;

/// Below /run, so that it goes away with the namespace when the machine restarts.
const NOTE: &str = "/run/fairlead-cluster";

/// Refuses when the cluster on this machine belongs to another cache.
pub fn check(layout: &Layout) -> Result<()> {
    if let Some(other) = read().filter(|owner| *owner != layout.state)
        && namespace::exists()
    {
        let cache = other.parent().unwrap_or(Path::new("/")).display();
        bail!("this machine's cluster belongs to another cache: run this with FAIRLEAD_CACHE={cache}");
    }
    Ok(())
}

/// Notes that the cluster is ours.
pub fn note(layout: &Layout) -> Result<()> {
    fs::write(NOTE, text(&layout.state)).with_context(|| format!("writing {NOTE}"))
}

/// Forgets the cluster.
pub fn forget() {
    // Not there when no cluster was.
    let _ = fs::remove_file(NOTE);
}

fn read() -> Option<PathBuf> {
    fs::read_to_string(NOTE).ok().map(PathBuf::from)
}
