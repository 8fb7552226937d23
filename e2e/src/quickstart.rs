//! From a built checkout to an answered question.
//!
//! Owns: the order of the phases and what a person sees of them. Must not: hold an assumption that a repeat would break:
//! every phase leaves alone what is done. Called by the binary's `quickstart`.

pub mod chat;
pub mod progress_of;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::cluster::{self, PortForward};
use crate::images::{self, Target};
use crate::install;
use crate::local::{lock, preflight, status, up};
use crate::paths::{Paths, foreign_kubeconfig};
use crate::progress::{human, say};
use crate::shell;
use crate::tools::{self, Tools};

/// The manifests that the quickstart applies.
const EXAMPLE: &str = "docs/examples/quickstart";
/// The namespace it applies them to.
const NAMESPACE: &str = "default";
/// The public model name of the example.
const MODEL: &str = "support-chat";
const READY: Duration = Duration::from_secs(240);
/// What the quickstart asks. The model answers from the passages; their form is explained in the model's card.
pub const QUESTION: &str = "Question: What is a fairlead?
[1] A cleat is a metal fitting to which a rope is tied.
[2] A fairlead is a ring that guides a rope and keeps it from chafing.
[3] A winch is a machine that pulls in a rope.";
/// What it answers.
pub const ANSWER: &str = "[2] A fairlead is a ring that guides a rope and keeps it from chafing.";

/// How long each phase took.
#[derive(Default)]
struct Phases(Vec<(&'static str, Duration)>);

impl Phases {
    fn add(&mut self, name: &'static str, begin: Instant) {
        self.0.push((name, begin.elapsed()));
    }

    fn print(&self) {
        say("\nTime per phase:");
        for (name, took) in &self.0 {
            say(&format!("  {name:<28} {:>12}", human(*took)));
        }
        say(&format!("  {:<28} {:>12}", "in all", human(self.0.iter().map(|(_, took)| *took).sum())));
    }
}

/// Brings a cluster with Fairlead in it up, for the quickstart and for the end-to-end tests.
pub async fn prepare(paths: &Paths, programs: &Path) -> Result<Tools> {
    prepare_timed(paths, programs, &mut Phases::default()).await
}

async fn prepare_timed(paths: &Paths, programs: &Path, phases: &mut Phases) -> Result<Tools> {
    let begin = Instant::now();
    let tools = if foreign_kubeconfig().is_some() {
        tools::ensure_clients(paths)?
    } else {
        preflight::platform()?;
        tools::ensure(paths)?
    };
    phases.add("tools", begin);
    let begin = Instant::now();
    let client = if foreign_kubeconfig().is_some() {
        cluster::client(&paths.kubeconfig()).await?
    } else {
        let _lock = lock::acquire(&paths.cache.join("cluster.lock"))?;
        up::up(paths, &tools).await?.client
    };
    phases.add("cluster", begin);
    let begin = Instant::now();
    let (all, folder) = (paths.clone(), programs.to_path_buf());
    // Resource metrics become ready meanwhile.
    tokio::task::spawn_blocking(move || {
        images::build_and_load(&all, &folder).and_then(|()| images::build_and_load_models(&all))
    })
    .await
    .context("the task that builds images failed")??;
    phases.add("images", begin);
    let begin = Instant::now();
    if foreign_kubeconfig().is_none() {
        up::await_metrics(&client).await?;
    }
    phases.add("resource metrics", begin);
    let begin = Instant::now();
    install::install(paths, &tools, &[]).await?;
    phases.add("install", begin);
    Ok(tools)
}

/// The whole way, ending with an answer.
pub async fn run(paths: &Paths, programs: PathBuf) -> Result<()> {
    let mut phases = Phases::default();
    prepare_timed(paths, &programs, &mut phases).await?;
    let begin = Instant::now();
    let example = paths.root.join(EXAMPLE);
    say(&format!("\n$ kubectl apply -f {EXAMPLE}/"));
    let mut applied = String::new();
    for file in manifests(&example)? {
        let manifest = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        let manifest = Target::find()?.localized(&manifest);
        let mut apply = status::kubectl(paths, &["--namespace", NAMESPACE, "apply", "-f", "-"]);
        applied += &shell::output_with_input(&mut apply, &manifest)?;
    }
    say(applied.trim_end());
    let client = cluster::client(&paths.kubeconfig()).await?;
    for file in manifests(&example)? {
        if let Err(error) = progress_of::await_ready(&client, NAMESPACE, &file, READY).await {
            say(&cluster::dump(&client, NAMESPACE).await);
            return Err(error);
        }
    }
    phases.add("model ready", begin);
    let begin = Instant::now();
    let gateway = PortForward::to_service(paths, install::NAMESPACE, "fairlead-gateway", 80).await?;
    chat::ask(gateway.port(), MODEL, QUESTION).await?;
    phases.add("question answered", begin);
    say("\n$ kubectl get modeldeployments,modelroutes");
    say(shell::output(&mut status::kubectl(paths, &["get", "modeldeployments,modelroutes"]))?.trim_end());
    phases.print();
    say(&next());
    Ok(())
}

/// The objects that the example's manifests describe, one a file.
fn manifests(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?;
    let mut files: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "yaml"))
        .collect();
    files.sort();
    Ok(files)
}

fn next() -> String {
    format!(
        "
What to try next:
  e2e/kubectl --namespace {} port-forward service/fairlead-gateway 8080:80 &
  curl -N http://127.0.0.1:8080/v1/chat/completions -H 'content-type: application/json' \\
       -d '{{\"model\": \"{MODEL}\", \"stream\": true, \"messages\": [{{\"role\": \"user\", \"content\": \"Who are you?\"}}]}}'
  e2e/kubectl describe modeldeployment tiny-v1     what the operator decided, and why
  e2e/kubectl scale modeldeployment/tiny-v1 --replicas=2
  e2e/kubectl explain modelroute.spec
  make cluster-down                                removes the cluster",
        install::NAMESPACE
    )
}
