//! Runs the project's kubectl.

use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// The checkout's folder.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// What a command that ran to its end printed.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

/// Runs kubectl with `arguments` and `input`, whatever its exit code.
pub async fn run(arguments: &[&str], input: &str) -> Result<Ran> {
    let mut child = Command::new(root().join("e2e/kubectl"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("starting e2e/kubectl")?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes()).await?;
    }
    let output = child.wait_with_output().await?;
    Ok(Ran {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// Runs kubectl and returns what it printed; an error when it fails.
pub async fn kubectl(arguments: &[&str]) -> Result<String> {
    let ran = run(arguments, "").await?;
    if ran.code != 0 {
        bail!("kubectl {} exited {}: {}", arguments.join(" "), ran.code, ran.err);
    }
    Ok(ran.out)
}

/// Applies one object in `namespace`.
pub async fn apply(namespace: &str, object: &Value) -> Result<()> {
    let ran = run(&["-n", namespace, "apply", "-f", "-"], &object.to_string()).await?;
    if ran.code != 0 {
        bail!("applying {object} was refused: {}", ran.err);
    }
    Ok(())
}

/// Reads one object, or `Value::Null` when there is none.
pub async fn get(namespace: &str, kind: &str, name: &str) -> Result<Value> {
    let out = kubectl(&["-n", namespace, "get", kind, name, "--ignore-not-found", "-o", "json"]).await?;
    if out.trim().is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_str(&out).context("reading kubectl's JSON")
}

/// Reads the objects of a kind that carry `selector`.
pub async fn list(namespace: &str, kind: &str, selector: &str) -> Result<Vec<Value>> {
    let out = kubectl(&["-n", namespace, "get", kind, "-l", selector, "-o", "json"]).await?;
    let list: Value = serde_json::from_str(&out).context("reading kubectl's JSON")?;
    Ok(list["items"].as_array().cloned().unwrap_or_default())
}
