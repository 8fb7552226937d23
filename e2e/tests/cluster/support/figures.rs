//! What tests measure: printed always, and written to docs/benchmarks/cluster.json when `FAIRLEAD_WRITE_BENCHMARKS` is set, as
//! `make bench-cluster` does.

use std::sync::Mutex;

use anyhow::{Context, Result};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::kubectl::{kubectl, root};

const FILE: &str = "docs/benchmarks/cluster.json";
const ASKED: &str = "FAIRLEAD_WRITE_BENCHMARKS";
/// One test writes at a time.
static WRITING: Mutex<()> = Mutex::new(());

/// One row, in the form of all files in docs/benchmarks. Of all that is measured here, less is better.
#[derive(Clone, Debug)]
pub struct Figure {
    metric: String,
    unit: &'static str,
    ours: f64,
    limit: Option<(String, f64)>,
    more: Map<String, Value>,
}

impl Figure {
    /// What was measured.
    pub fn new(metric: impl Into<String>, unit: &'static str, ours: f64) -> Self {
        Self { metric: metric.into(), unit, ours, limit: None, more: Map::new() }
    }

    /// What it should stay below.
    pub fn within(mut self, what: &str, limit: f64) -> Self {
        self.limit = Some((what.to_owned(), limit));
        self
    }

    /// Something else to know about it.
    pub fn with(mut self, name: &str, value: Value) -> Self {
        self.more.insert(name.to_owned(), value);
        self
    }

    fn row(&self) -> Value {
        let mut row =
            json!({"metric": self.metric, "unit": self.unit, "ours": rounded(self.ours), "better": "lower"});
        if let Some((peer, limit)) = &self.limit {
            row["peer"] = json!(peer);
            row["theirs"] = json!(rounded(*limit));
            // Nothing is better than zero, and a ratio to it is none.
            row["ratio"] = json!(rounded(limit / self.ours.max(limit / 1000.0)));
            row["goal"] = json!(1);
        }
        for (name, value) in &self.more {
            row[name] = value.clone();
        }
        row
    }
}

/// Prints figures, and writes them when asked. Rows of the same commit stay, others go.
pub async fn record(figures: &[Figure]) -> Result<()> {
    let rows: Vec<Value> = figures.iter().map(Figure::row).collect();
    for row in &rows {
        println!("measured: {row}");
    }
    if std::env::var_os(ASKED).is_none() {
        return Ok(());
    }
    let conditions = conditions().await?;
    let _writing =
        WRITING.lock().map_err(|_| anyhow::anyhow!("another test panicked while it wrote {FILE}"))?;
    let path = root().join(FILE);
    let before: Value = match std::fs::read_to_string(&path) {
        Ok(text) => serde_json::from_str(&text).with_context(|| format!("reading {FILE}"))?,
        Err(_) => Value::Null,
    };
    let same = before["conditions"]["commit"] == conditions["commit"];
    let kept = before["rows"].as_array().filter(|_| same).into_iter().flatten();
    let is_new = |row: &&Value| rows.iter().all(|new| new["metric"] != row["metric"]);
    let mut all: Vec<Value> = kept.filter(is_new).cloned().collect();
    all.extend(rows.iter().cloned());
    all.sort_by_key(|row| row["metric"].as_str().unwrap_or_default().to_owned());
    let text = serde_json::to_string_pretty(&json!({"conditions": conditions, "rows": all}))?;
    std::fs::write(&path, text + "\n").with_context(|| format!("writing {FILE}"))
}

/// Under which all of this was measured.
async fn conditions() -> Result<Value> {
    let version: Value = serde_json::from_str(&kubectl(&["version", "-o", "json"]).await?)?;
    let nodes: Value = serde_json::from_str(&kubectl(&["get", "nodes", "-o", "json"]).await?)?;
    let gateways = super::gateways::pods().await?.len();
    let read = |file: &str| std::fs::read_to_string(file).with_context(|| format!("reading {file}"));
    let (cpus, memory, release) =
        (read("/proc/cpuinfo")?, read("/proc/meminfo")?, read("/proc/sys/kernel/osrelease")?);
    let value = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let kilobytes = value(&memory, "MemTotal").unwrap_or_default();
    let kilobytes: u64 = kilobytes.split(' ').next().unwrap_or_default().parse().unwrap_or_default();
    let machine = format!(
        "{}, {} cores, {} GiB, Linux {}",
        value(&cpus, "model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
        std::thread::available_parallelism()?,
        kilobytes >> 20,
        release.split('-').next().unwrap_or_default().trim()
    );
    Ok(json!({
        "machine": machine,
        "commit": commit()?,
        "date": Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        "versions": {"fairlead": env!("CARGO_PKG_VERSION"), "kubernetes": version["serverVersion"]["gitVersion"]},
        "nodes": nodes["items"].as_array().map_or(0, Vec::len),
        "gateways": gateways,
        "pods": "workers without a model; the whole cluster, the load and the tests, two at a time, share the machine",
    }))
}

/// The commit in the work tree, with what is changed in it but for the file that is written.
fn commit() -> Result<String> {
    let git = |arguments: &[&str]| -> Result<String> {
        let output = std::process::Command::new("git")
            .current_dir(root())
            .args(arguments)
            .output()
            .context("starting git")?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let changed = git(&["status", "--porcelain", "--untracked-files=no", "--", ".", &format!(":!{FILE}")])?;
    Ok(git(&["rev-parse", "--short", "HEAD"])? + if changed.is_empty() { "" } else { "-dirty" })
}

/// To four places.
fn rounded(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}
