//! The demo model: made by a script, kept in the cache.
//!
//! Owns: making it once for each version of the script. Must not: know what a model is. Called by the quickstart.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use super::oci::{sha256, sha256_of};
use crate::local::layout::text;
use crate::paths::Paths;
use crate::progress::Task;
use crate::shell;

/// The folder of the scripts.
const SCRIPTS: &str = "inference-pod/models";
const EXPECTED: Duration = Duration::from_secs(30);

/// The model's folder, always called `models`; made when the scripts are new.
pub fn ensure(paths: &Paths) -> Result<PathBuf> {
    let scripts = paths.root.join(SCRIPTS);
    let folder = paths.cache.join(format!("demo-model-{}", key(&scripts)?)).join("models");
    if folder.join("config.json").is_file() {
        return Ok(folder);
    }
    let task = Task::start("making the demo model", EXPECTED);
    let requirements = scripts.join("requirements.txt");
    let mut setup = shell::command(paths.root.join("scripts/setup.sh"), &["python"]);
    let said = shell::output(setup.arg(requirements).arg("models"))
        .context("setting up Python for the demo model")?;
    let environment = said.lines().last().context("scripts/setup.sh names no Python environment")?.trim();
    let parent = folder.parent().context("the model has a folder")?;
    let draft = parent.with_extension("draft");
    for stale in [draft.as_path(), parent] {
        if stale.exists() {
            fs::remove_dir_all(stale).with_context(|| format!("removing {}", stale.display()))?;
        }
    }
    let python = Path::new(environment).join("bin/python");
    let mut make = shell::command(&python, &[&text(&scripts.join("make_tiny.py")), "--out"]);
    make.arg(draft.join("models")).env("PYTHONDONTWRITEBYTECODE", "1");
    shell::output(&mut make).context("making the demo model")?;
    fs::rename(&draft, parent).with_context(|| format!("moving {} to its place", draft.display()))?;
    task.finish();
    Ok(folder)
}

/// Changes with any of the scripts.
fn key(scripts: &Path) -> Result<String> {
    let mut files: Vec<PathBuf> = fs::read_dir(scripts)
        .with_context(|| format!("reading {}", scripts.display()))?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "py" || ending == "txt"))
        .collect();
    files.sort();
    let digests = files.iter().map(|file| sha256_of(file)).collect::<Result<Vec<_>>>()?;
    Ok(sha256(digests.join(" ").as_bytes())[..12].to_owned())
}
