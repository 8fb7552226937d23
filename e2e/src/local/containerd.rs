//! What we ask of the cluster's containerd.
//!
//! Owns: the `ctr` command lines. Must not: decide what is imported. Called by `up`, `images` and `status`.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use anyhow::Result;

use super::layout::{Layout, text};
use crate::shell;

/// The sandbox image of every pod.
pub const PAUSE_IMAGE: &str = "localhost/fairlead-pause:1";
/// The containerd namespace that the kubelet uses.
const KUBERNETES: &str = "k8s.io";

/// A `ctr` command for the cluster's containerd.
pub fn ctr(layout: &Layout, arguments: &[&str]) -> Command {
    let mut command = Command::new("ctr");
    command
        .args(["--address", &text(&layout.containerd_socket()), "--namespace", KUBERNETES])
        .args(arguments);
    command
}

/// Whether containerd answers.
pub fn is_ready(layout: &Layout) -> bool {
    shell::succeeds(&mut ctr(layout, &["version"]))
}

/// The images containerd has, as `name digest`.
pub fn images(layout: &Layout) -> Result<Vec<(String, String)>> {
    Ok(parse_images(&shell::output(&mut ctr(layout, &["images", "list"]))?))
}

fn parse_images(table: &str) -> Vec<(String, String)> {
    table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            Some((words.next()?.to_owned(), words.nth(1)?.to_owned()))
        })
        .collect()
}

/// The digests of the blobs containerd has.
pub fn blobs(layout: &Layout) -> Result<BTreeSet<String>> {
    let list = shell::output(&mut ctr(layout, &["content", "list", "--quiet"]))?;
    Ok(list.lines().map(|line| line.trim().to_owned()).collect())
}

/// Imports an image archive.
pub fn import(layout: &Layout, archive: &Path) -> Result<()> {
    shell::output(&mut ctr(layout, &["images", "import", &text(archive)])).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_table_is_read() {
        let table = "REF                        TYPE                                       DIGEST      SIZE PLATFORMS LABELS \n\
                     localhost/fairlead-pause:1 application/vnd.oci.image.manifest.v1+json sha256:0a1b 1.5 MiB linux/amd64 -\n";
        assert_eq!(
            parse_images(table),
            [("localhost/fairlead-pause:1".to_owned(), "sha256:0a1b".to_owned())]
        );
    }
}
