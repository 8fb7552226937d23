//! The models of the examples and the end-to-end tests.
//!
//! Owns: where they lie. Must not: know what a model is. Called by `images` and the binary's `test`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::paths::Paths;
use crate::shell;

/// The generative models in the checkout: what the quickstart serves, a second version of it, and one that was trained too briefly.
pub const GENERATIVE: [&str; 3] = ["fairlead-tiny-v1", "fairlead-tiny-v2", "fairlead-tiny-undertrained"];
/// The embedding model, which comes from PyPI.
pub const EMBEDDING: &str = "fairlead-all-minilm-l6-v2";

/// The folder of a generative model in the checkout at `root`.
pub fn generative(root: &Path, name: &str) -> PathBuf {
    root.join("inference-pod/models").join(name)
}

/// The embedding model's folder; fetched when it is not there.
pub fn embedding(paths: &Paths) -> Result<PathBuf> {
    let mut setup = shell::command(paths.root.join("scripts/setup.sh"), &["minilm"]);
    let said = shell::output(&mut setup).context("fetching the embedding model")?;
    let folder = said.lines().last().context("scripts/setup.sh names no folder of the embedding model")?;
    Ok(PathBuf::from(folder.trim()))
}
