//! The local cluster's life: repeated, killed at the worst moments, and gone without a trace.
//!
//! Run by `fairlead-e2e test` before the tests that use the cluster; it ends with no cluster.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use fairlead_e2e::local::layout::Layout;
use fairlead_e2e::local::{leftovers, process, sysctl};
use fairlead_e2e::paths::Paths;

/// The program under test; `fairlead-e2e test` names itself.
const PROGRAM: &str = "FAIRLEAD_E2E_PROGRAM";
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn a_cluster_survives_repeats_and_kills_and_leaves_nothing() -> Result<()> {
    let layout = Layout::new(&Paths::find()?);
    run("down")?;
    let machine = settings();

    run("up")?;
    kubectl(&["create", "configmap", "kept", "--from-literal=a=b"])?;
    let first = pids(&layout);
    ensure!(first.len() >= 8, "too few programs run: {first:?}");
    run("up")?;
    ensure!(pids(&layout) == first, "a second up restarted something: {first:?} became {:?}", pids(&layout));

    // Everything dies at once, as when a machine's session ends.
    let all: Vec<i32> = process::all(&layout).iter().map(|process| process.pid).collect();
    process::kill_pids(&all);
    run("up")?;
    kubectl(&["get", "configmap", "kept"]).context("state was lost when the programs were killed")?;

    // One of them dies.
    let scheduler = *pids(&layout).get("kube-scheduler").context("no scheduler runs")?;
    process::kill_pids(&[scheduler]);
    run("up")?;
    ensure!(pids(&layout).get("kube-scheduler").is_some_and(|pid| *pid != scheduler), "no new scheduler");

    // `down` is killed when it has begun, and `up` when it has begun.
    kill_once(start("down")?, || !pids(&layout).contains_key("kubelet"))?;
    run("up")?;
    run("down")?;
    kill_once(start("up")?, || pids(&layout).contains_key("etcd"))?;
    run("up")?;
    kubectl(&["wait", "--for=condition=Ready", "node", "--all", "--timeout=60s"])?;

    run("down")?;
    run("down")?;
    let left = leftovers::describe(&layout);
    ensure!(left.is_empty(), "down leaves {left:?}");
    ensure!(process::all(&layout).is_empty(), "down leaves {:?}", process::all(&layout));
    ensure!(!layout.state.exists(), "down leaves {}", layout.state.display());
    ensure!(settings() == machine, "down leaves other sysctls: {machine:?} became {:?}", settings());
    Ok(())
}

/// Runs a command of the program to its end.
fn run(command: &str) -> Result<()> {
    let output = start(command)?.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    println!("--- fairlead-e2e {command}\n{said}");
    ensure!(output.status.success(), "fairlead-e2e {command} failed: {said}");
    Ok(())
}

fn start(command: &str) -> Result<Child> {
    let program = std::env::var_os(PROGRAM).with_context(|| format!("{PROGRAM} must name fairlead-e2e"))?;
    Command::new(&program)
        .arg(command)
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {}", program.display()))
}

/// Kills the child as soon as `begun` holds. That it ends before is a failure: nothing would have been tested.
fn kill_once(mut child: Child, begun: impl Fn() -> bool) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !begun() {
        if let Some(status) = child.try_wait()? {
            bail!("it ended ({status}) before it could be killed");
        }
        ensure!(Instant::now() < deadline, "it had not begun after {} s", PATIENCE.as_secs());
    }
    child.kill()?;
    child.wait()?;
    Ok(())
}

/// The cluster's own programs by name; containers' shims are not among them.
fn pids(layout: &Layout) -> BTreeMap<String, i32> {
    let name = |argv: &[String]| {
        let executable = argv[0].rsplit('/').next().unwrap_or_default();
        if executable == "cluster" || executable.starts_with("fairlead-e2e") {
            return argv.get(1).cloned().unwrap_or_default();
        }
        executable.to_owned()
    };
    let all = process::all(layout);
    let own = all.iter().map(|process| (name(&process.argv), process.pid));
    own.filter(|(name, _)| !name.starts_with("containerd-shim")).collect()
}

/// The machine's values of what a kubelet changes.
fn settings() -> BTreeMap<&'static str, String> {
    let read = |name| fs::read_to_string(format!("/proc/sys/{name}")).unwrap_or_default();
    sysctl::CHANGED.iter().map(|name| (*name, read(name))).collect()
}

fn kubectl(arguments: &[&str]) -> Result<()> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("kubectl");
    let output = Command::new(script).args(arguments).output().context("starting e2e/kubectl")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "kubectl {} failed: {said}", arguments.join(" "));
    Ok(())
}
