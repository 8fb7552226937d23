//! Building with buildah, which needs no daemon.
//!
//! Owns: its command lines and its storage in our cache. Must not: decide what is built. Called by `images`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::local::layout::text;
use crate::shell;

/// buildah with a storage of our own.
pub struct Buildah {
    storage: PathBuf,
    driver: &'static str,
}

impl Buildah {
    /// The storage below `images`: by overlayfs where that works, by copying otherwise.
    pub fn open(images: &Path) -> Result<Self> {
        for driver in ["overlay", "vfs"] {
            let candidate = Self { storage: images.join(format!("storage-{driver}")), driver };
            if shell::succeeds(&mut candidate.command(&["info"])) {
                return Ok(candidate);
            }
        }
        let vfs = Self { storage: images.join("storage-vfs"), driver: "vfs" };
        shell::output(&mut vfs.command(&["info"])).context("buildah does not work on this machine")?;
        Ok(vfs)
    }

    /// A buildah command.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("buildah");
        // Its own files go beside its storage: the machine's /var/lib/containers and /run are left alone.
        command
            .args(["--root", &text(&self.storage), "--runroot", &text(&self.storage.join("run"))])
            .args(["--storage-driver", self.driver])
            .args(arguments)
            .env("BUILDAH_ISOLATION", "chroot")
            .env("TMPDIR", self.storage.parent().unwrap_or(&self.storage));
        command
    }

    /// Whether an image of this name is in the storage.
    pub fn has(&self, image: &str) -> bool {
        shell::succeeds(&mut self.command(&["inspect", "--type", "image", image]))
    }

    /// Builds an image. The same inputs give the same digest: no time gets into it.
    pub fn build(&self, containerfile: &Path, context: &Path, image: &str, base: Option<&str>) -> Result<()> {
        let mut command = self.command(&["build", "--timestamp", "0", "--tag", image]);
        if let Some(base) = base {
            command.args(["--build-arg", &format!("BASE={base}")]);
        }
        command.args(["--file", &text(containerfile), &text(context)]);
        shell::output(&mut command).map(drop).with_context(|| format!("building {image}"))
    }

    /// Copies an image to an OCI layout on the disk: layers that are there already are neither compressed nor copied again.
    pub fn export(&self, image: &str, folder: &Path) -> Result<()> {
        let target = format!("oci:{}:{image}", folder.display());
        shell::output(&mut self.command(&["push", image, &target])).map(drop)
    }

    /// Removes images that no name refers to any more: those of earlier builds.
    pub fn prune(&self) -> Result<()> {
        shell::output(&mut self.command(&["rmi", "--prune"])).map(drop)
    }

    /// Pushes an image to a registry.
    pub fn push(&self, image: &str, name: &str) -> Result<()> {
        shell::output(&mut self.command(&["push", image, &format!("docker://{name}")])).map(drop)
    }

    /// Makes an image of the files in a tar.
    pub fn import(&self, archive: &Path, image: &str) -> Result<()> {
        let container = shell::output(&mut self.command(&["from", "scratch"]))?.trim().to_owned();
        let made =
            shell::output(&mut self.command(&["add", &container, &text(archive), "/"])).and_then(|_| {
                shell::output(&mut self.command(&["commit", "--timestamp", "0", &container, image]))
            });
        // The container is only a means; the image stays.
        let _ = shell::succeeds(&mut self.command(&["rm", &container]));
        made.map(drop).with_context(|| format!("making {image} of {}", archive.display()))
    }
}
