//! What state the cluster is in, and its logs.
//!
//! Owns: what `status` and `logs` print. Must not: change anything in the cluster. Called by the binary.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::address_plan::host_address;
use super::layout::{Layout, text};
use super::process;
use super::programs::{Executables, programs};
use crate::paths::Paths;
use crate::progress::say;
use crate::shell;

/// What `logs` writes about the cluster's objects: a file name and what kubectl is asked.
const DUMPS: [(&str, &[&str]); 5] = [
    ("objects.txt", &["get", "all", "--all-namespaces", "--output=wide"]),
    ("events.txt", &["get", "events", "--all-namespaces", "--sort-by=.lastTimestamp"]),
    ("nodes.txt", &["describe", "nodes"]),
    ("pods.txt", &["describe", "pods", "--all-namespaces"]),
    ("fairlead.yaml", &["get", "fairlead", "--all-namespaces", "--output=yaml"]),
];

/// Prints each program and the objects of the cluster; fails when a program is not running.
pub fn print(paths: &Paths) -> Result<()> {
    let layout = Layout::new(paths);
    let all = process::all(&layout);
    // Only names are looked at here, so where the executables are does not matter.
    let executables = Executables {
        kubernetes: "cluster".into(),
        etcd: "etcd".into(),
        containerd: "containerd".into(),
        ourselves: "fairlead-e2e".into(),
    };
    let mut missing = Vec::new();
    for program in programs(&layout, &executables, host_address()?) {
        match process::of_program(&all, &program).first() {
            Some(process) => println!("{:<24} running  pid {}", program.name, process.pid),
            None => {
                println!("{:<24} stopped", program.name);
                missing.push(program.name);
            }
        }
    }
    if !missing.is_empty() {
        bail!("not running: {}; `make cluster-up` starts what is missing", missing.join(", "));
    }
    println!("kubeconfig               {}", layout.kubeconfig().display());
    for arguments in [["get", "nodes"], ["get", "pods"]] {
        let mut command = kubectl(paths, &arguments);
        command.arg("--all-namespaces");
        println!("\n{}", shell::output(&mut command)?.trim_end());
    }
    Ok(())
}

/// Copies the logs and a description of the cluster's objects to a folder.
pub fn collect(paths: &Paths, folder: Option<PathBuf>) -> Result<()> {
    let folder = folder.unwrap_or_else(|| paths.logs().join("collected"));
    fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    copy(&Layout::new(paths).logs, &folder.join("cluster"))?;
    for (file, arguments) in DUMPS {
        // A cluster that is down or has no such kind is described by saying so.
        let said =
            shell::output(&mut kubectl(paths, arguments)).unwrap_or_else(|error| format!("{error:#}\n"));
        let path = folder.join(file);
        fs::write(&path, said).with_context(|| format!("writing {}", path.display()))?;
    }
    say(&format!("logs and objects are in {}", folder.display()));
    Ok(())
}

/// A kubectl for the cluster in use.
pub fn kubectl(paths: &Paths, arguments: &[&str]) -> std::process::Command {
    let mut command =
        shell::command(paths.bin().join("kubectl"), &["--kubeconfig", &text(&paths.kubeconfig())]);
    command.args(arguments);
    command
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let Ok(entries) = fs::read_dir(from) else { return Ok(()) };
    fs::create_dir_all(to).with_context(|| format!("creating {}", to.display()))?;
    for entry in entries.flatten() {
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if source.is_dir() {
            copy(&source, &target)?;
        } else if source.is_file() {
            fs::copy(&source, &target).with_context(|| format!("copying {}", source.display()))?;
        }
    }
    Ok(())
}
