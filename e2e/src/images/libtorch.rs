//! The image below the inference image: libtorch.
//!
//! Owns: which libraries are needed, and an image of them that is made once a version. Must not: hold anything of ours, so
//! that a rebuilt program moves a few megabytes and not four hundred. Called by `images`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::LIBTORCH_EXPECTED;
use super::buildah::Buildah;
use super::oci::sha256;
use crate::progress::Task;
use crate::shell;

/// The environment variable that names the folder of Python packages with torch and nvidia in it.
pub const VARIABLE: &str = "FAIRLEAD_TORCH_SITE";
/// The version that our programs are built for.
pub const VERSION: &str = "2.11.0";
/// The library that needs all others.
const ROOT: &str = "torch/lib/libtorch_cpu.so";

/// The name of the libtorch image on this base; it is made if it is not there.
pub fn ensure(buildah: &Buildah, images: &Path, containerfiles: &Path, base: &str) -> Result<String> {
    let site = site(images)?;
    let containerfile = containerfiles.join("Containerfile.libtorch");
    let text =
        fs::read_to_string(&containerfile).with_context(|| format!("reading {}", containerfile.display()))?;
    let libraries = libraries(&site)?;
    let key = &sha256(format!("{base} {text} {libraries:?}").as_bytes())[..12];
    let image = format!("localhost/fairlead-libtorch:{VERSION}-cpu-{key}");
    if buildah.has(&image) {
        return Ok(image);
    }
    let task = Task::start("making the libtorch image", LIBTORCH_EXPECTED);
    let context = images.join("context/fairlead-libtorch");
    stage(&site, &libraries, &context.join("site"))?;
    buildah.build(&containerfile, &context, &image, Some(base))?;
    fs::remove_dir_all(&context).with_context(|| format!("removing {}", context.display()))?;
    task.finish();
    Ok(image)
}

fn site(images: &Path) -> Result<PathBuf> {
    let site = match std::env::var_os(VARIABLE) {
        Some(folder) if !folder.is_empty() => PathBuf::from(folder),
        _ => images.with_file_name(format!("libtorch-{VERSION}")),
    };
    let version = fs::read_to_string(site.join("torch/version.py")).unwrap_or_default();
    if !version.contains(VERSION) {
        bail!(
            "{} does not hold torch {VERSION}: run `make build`, which downloads it, or set {VARIABLE} to the folder \
             that holds it",
            site.display()
        );
    }
    fs::canonicalize(&site).with_context(|| format!("reading {}", site.display()))
}

/// The libraries below `site` that libtorch_cpu.so needs, as the loader finds them, relative to `site`.
fn libraries(site: &Path) -> Result<Vec<PathBuf>> {
    let root = site.join(ROOT);
    let mut command = shell::command("ldd", &[]);
    command.arg(&root).env_remove("LD_LIBRARY_PATH");
    let listed = shell::output(&mut command)?;
    let mut found = parse_ldd(&listed, site)?;
    found.push(PathBuf::from(ROOT));
    found.sort();
    found.dedup();
    Ok(found)
}

fn parse_ldd(listed: &str, site: &Path) -> Result<Vec<PathBuf>> {
    if let Some(line) = listed.lines().find(|line| line.contains("not found")) {
        bail!("a library that libtorch needs is missing: {}", line.trim());
    }
    let paths = listed
        .lines()
        .filter_map(|line| line.split_once("=> "))
        .filter_map(|(_, rest)| rest.split(' ').next());
    Ok(paths
        .map(|path| without_dots(Path::new(path)))
        .filter_map(|path| path.strip_prefix(site).map(Path::to_path_buf).ok())
        .collect())
}

/// `a/lib/../../b` as `b`: the loader prints the paths as it was told them.
fn without_dots(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        if part == Component::ParentDir {
            plain.pop();
        } else {
            plain.push(part);
        }
    }
    plain
}

fn stage(site: &Path, libraries: &[PathBuf], to: &Path) -> Result<()> {
    for library in libraries {
        let target = to.join(library);
        let folder = target.parent().context("a library lies in a folder")?;
        fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
        fs::copy(site.join(library), &target).with_context(|| format!("copying {}", library.display()))?;
        fs::set_permissions(&target, fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_libraries_of_the_site_are_taken() {
        let listed = "\tlinux-vdso.so.1 (0x1)\n\tlibc10.so => /s/torch/lib/libc10.so (0x2)\n\tlibm.so.6 => /lib/libm.so.6 (0x3)\n\tlibcudart.so.13 => /s/torch/lib/../../nvidia/cu13/lib/libcudart.so.13 (0x4)\n";
        let found = parse_ldd(listed, Path::new("/s")).unwrap();
        assert_eq!(found, ["torch/lib/libc10.so", "nvidia/cu13/lib/libcudart.so.13"].map(PathBuf::from));
    }

    #[test]
    fn a_missing_library_is_named() {
        let error = parse_ldd("\tlibgomp.so.1 => not found\n", Path::new("/s")).unwrap_err().to_string();
        assert!(error.contains("libgomp.so.1"), "{error}");
    }
}
