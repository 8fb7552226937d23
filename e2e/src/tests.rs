//! Running the end-to-end tests.
//!
//! Owns: calling cargo and keeping what is needed to understand a failure. Must not: contain a test; they are in e2e/tests.
//! Called by the binary's `test`.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::local::status;
use crate::paths::Paths;
use crate::progress::say;

/// Runs the tests that need a cluster (behind the feature of that name); collects logs and objects when one fails.
pub fn run(paths: &Paths, filter: Option<&str>) -> Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(&paths.root).args([
        "test",
        "--package",
        "fairlead-e2e",
        "--test",
        "*",
        "--no-fail-fast",
        "--",
    ]);
    // Two at a time: each brings its own namespace, and a small machine runs no more pods at once.
    command.args(["--test-threads=2"]).args(filter);
    let status = command.status().context("cargo cannot be started: is Rust installed?")?;
    if !status.success() {
        status::collect(paths, None)?;
        bail!("end-to-end tests failed ({status})");
    }
    say("end-to-end tests passed");
    Ok(())
}
