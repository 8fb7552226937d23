//! Programs built by Go.
//!
//! Owns: building them at pinned versions into folders named after all that their content depends on. Must not: change
//! Go's own settings: proxies and flags are the environment's. Called by `tools`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::GoProgram;
use crate::images::oci::sha256;
use crate::local::preflight::OTHERWISE;
use crate::progress::Task;
use crate::shell;

/// The Kubernetes version that e2e/cluster/go.mod requires.
const KUBERNETES_VERSION: &str = "v1.36.3";
/// What the Kubernetes programs are built from.
const KUBERNETES_SOURCES: [&str; 4] = ["go.mod", "go.sum", "main.go", "pause/main.go"];
const KUBERNETES_EXPECTED: Duration = Duration::from_secs(300);

/// The Kubernetes programs in one, and the sandbox's program: built unless they are there.
pub fn kubernetes(root: &Path, tools: &Path) -> Result<(PathBuf, PathBuf)> {
    let source = root.join("e2e/cluster");
    let mut all = Vec::new();
    for name in KUBERNETES_SOURCES {
        let path = source.join(name);
        all.extend(fs::read(&path).with_context(|| format!("reading {}", path.display()))?);
        all.push(0);
    }
    let key = &sha256(&all)[..12];
    let folder =
        place(tools, &format!("kubernetes-{KUBERNETES_VERSION}-{key}"), &["cluster", "pause"], |draft| {
            let task = Task::start(&format!("building Kubernetes {KUBERNETES_VERSION}"), KUBERNETES_EXPECTED);
            for (package, name) in [(".", "cluster"), ("./pause", "pause")] {
                let mut command = go()?;
                command
                    .current_dir(&source)
                    .args(["build", "-trimpath", "-ldflags", &linker_flags(KUBERNETES_VERSION), "-o"])
                    .arg(draft.join(name))
                    .arg(package);
                shell::output(&mut command)?;
            }
            task.finish();
            Ok(())
        })?;
    Ok((folder.join("cluster"), folder.join("pause")))
}

/// One program by `go install`, unless it is there.
pub fn install(tools: &Path, program: &GoProgram) -> Result<PathBuf> {
    let GoProgram { name, path, version, expected } = program;
    let folder = place(tools, &format!("{name}-{version}"), &[name], |draft| {
        let task = Task::start(&format!("building {name} {version}"), *expected);
        let mut command = go()?;
        command.env("GOBIN", draft).args([
            "install",
            "-trimpath",
            "-ldflags",
            "-s -w",
            &format!("{path}@{version}"),
        ]);
        shell::output(&mut command)?;
        task.finish();
        Ok(())
    })?;
    Ok(folder.join(name))
}

/// The finished folder of `base` for this Go version, or for any when Go is not installed. It is filled beside its place
/// and then renamed: what is there is whole.
fn place(
    tools: &Path,
    base: &str,
    files: &[&str],
    fill: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let Some(version) = go_version() else {
        return finished(tools, base, files).with_context(|| {
            format!("{base} must be built, and Go is missing: install Go 1.26 or later, or {OTHERWISE}")
        });
    };
    let folder = tools.join(format!("{base}-{version}"));
    if files.iter().all(|file| folder.join(file).is_file()) {
        return Ok(folder);
    }
    let draft = tools.join(format!("{base}-{version}.draft"));
    for stale in [&draft, &folder] {
        if stale.exists() {
            fs::remove_dir_all(stale).with_context(|| format!("removing {}", stale.display()))?;
        }
    }
    fs::create_dir_all(&draft).with_context(|| format!("creating {}", draft.display()))?;
    fill(&draft).with_context(|| format!("building {base}"))?;
    if let Some(file) = files.iter().find(|file| !draft.join(file).is_file()) {
        bail!("building {base} did not make {file}");
    }
    fs::rename(&draft, &folder).with_context(|| format!("moving {} to its place", draft.display()))?;
    Ok(folder)
}

/// A folder of `base` for any Go version that has all the files.
fn finished(tools: &Path, base: &str, files: &[&str]) -> Option<PathBuf> {
    let prefix = format!("{base}-go");
    let entries = fs::read_dir(tools).ok()?.flatten().map(|entry| entry.path());
    entries
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix)))
        .find(|path| files.iter().all(|file| path.join(file).is_file()))
}

fn go() -> Result<Command> {
    let go = shell::which("go")
        .with_context(|| format!("Go is missing: install Go 1.26 or later, or {OTHERWISE}"))?;
    let mut command = Command::new(go);
    command.env("CGO_ENABLED", "0");
    Ok(command)
}

/// The installed Go, such as `go1.26.8`; none when there is none.
fn go_version() -> Option<String> {
    let mut command = go().ok()?;
    let text = shell::output(command.args(["env", "GOVERSION"])).ok()?;
    text.split_whitespace().next().map(String::from)
}

/// Without its version, `kubectl version` and the checks for version skew are wrong.
fn linker_flags(version: &str) -> String {
    let numbers = version.trim_start_matches('v');
    let mut parts = numbers.split('.');
    let (major, minor) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let package = "k8s.io/component-base/version";
    format!(
        "-s -w -X {package}.gitVersion={version} -X {package}.gitMajor={major} -X {package}.gitMinor={minor}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_linked_in() {
        let flags = linker_flags("v1.36.3");
        assert!(
            flags.contains("gitVersion=v1.36.3")
                && flags.contains("gitMajor=1")
                && flags.contains("gitMinor=36")
        );
    }

    #[test]
    fn the_version_is_the_one_that_the_module_requires() {
        let module = include_str!("../../cluster/go.mod");
        assert!(module.contains(&format!("k8s.io/kubernetes {KUBERNETES_VERSION}")));
    }

    #[test]
    fn a_half_filled_folder_is_not_taken_for_a_finished_one() {
        let tools = tempfile::tempdir().unwrap();
        fs::create_dir_all(tools.path().join("x-1-go1.26")).unwrap();
        assert_eq!(finished(tools.path(), "x-1", &["x"]), None);
        fs::write(tools.path().join("x-1-go1.26/x"), "").unwrap();
        assert_eq!(finished(tools.path(), "x-1", &["x"]), Some(tools.path().join("x-1-go1.26")));
    }
}
