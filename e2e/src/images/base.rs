//! The base of our images, of the distribution's own packages.
//!
//! Owns: which packages, and making the image once. Must not: be needed where a public base image can be pulled: then
//! `FAIRLEAD_BASE_IMAGE` names it. Called by `images`.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::BASE_EXPECTED;
use super::buildah::Buildah;
use super::oci::sha256;
use crate::local::layout::text;
use crate::progress::Task;
use crate::shell;

/// The environment variable that names a base image to use instead.
pub const VARIABLE: &str = "FAIRLEAD_BASE_IMAGE";
const SUITE: &str = "bookworm";
/// Beyond Debian's essential packages: public certificates, and what libtorch is linked with.
const PACKAGES: &str = "ca-certificates,libgomp1,libstdc++6";
/// Nobody reads manuals in a container.
const LEFT_OUT: [&str; 4] =
    ["/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*"];

/// The name of the base image; it is made if it is not there.
pub fn ensure(buildah: &Buildah, images: &Path) -> Result<String> {
    if let Ok(image) = std::env::var(VARIABLE)
        && !image.is_empty()
    {
        return Ok(image);
    }
    let key = &sha256(format!("{SUITE} {PACKAGES} {LEFT_OUT:?}").as_bytes())[..12];
    let image = format!("localhost/fairlead-base:{SUITE}-{key}");
    if buildah.has(&image) {
        return Ok(image);
    }
    let archive = images.join(format!("base-{SUITE}-{key}.tar"));
    let task = Task::start("making the base image of Debian's packages", BASE_EXPECTED);
    if !archive.is_file() {
        make_root(&archive)?;
    }
    buildah.import(&archive, &image)?;
    task.finish();
    Ok(image)
}

/// Makes the root file system, whole or not at all.
fn make_root(archive: &Path) -> Result<()> {
    let draft = archive.with_extension("draft.tar");
    let mut command =
        shell::command("mmdebstrap", &["--variant=essential", &format!("--include={PACKAGES}")]);
    for path in LEFT_OUT {
        command.arg(format!("--dpkgopt=path-exclude={path}"));
    }
    command.args([SUITE, &text(&draft)]);
    shell::output(&mut command).with_context(|| {
        format!(
            "making a base image of Debian's packages (set {VARIABLE} to use one from a registry instead)"
        )
    })?;
    fs::rename(&draft, archive).with_context(|| format!("writing {}", archive.display()))
}
