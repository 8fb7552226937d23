//! Entry point of `fairlead-e2e`: reads the command line and calls the library.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use fairlead_e2e::images;
use fairlead_e2e::install;
use fairlead_e2e::local::layout::Layout;
use fairlead_e2e::local::{down, forwarder, lock, preflight, status, up};
use fairlead_e2e::paths::{Paths, foreign_kubeconfig};
use fairlead_e2e::progress::{human, say};
use fairlead_e2e::{quickstart, tests, tools};

/// The local cluster, the images and the installation of Fairlead.
#[derive(Parser)]
#[command(name = "fairlead-e2e", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install and build the programs that the cluster needs.
    Tools,
    /// Start the local cluster, or what is missing of it.
    Up,
    /// Stop the local cluster and remove it; logs and caches stay.
    Down,
    /// Show the cluster's programs and pods; fails when a program is not running.
    Status,
    /// Collect the cluster's logs and objects.
    Logs {
        /// Where to; by default a folder in the cache.
        #[arg(long)]
        dir: Option<PathBuf>,
    },
    /// Say whether this machine, or KUBECONFIG's cluster, can be used; changes nothing.
    Preflight,
    /// Build the images and load them into the cluster, or push them to IMAGE_REGISTRY where KUBECONFIG is set.
    Images(Programs),
    /// Install or upgrade the charts and wait until everything is available.
    Install {
        /// More values for the chart, as Helm's --set.
        #[arg(long = "set")]
        values: Vec<String>,
    },
    /// Remove what `install` installed.
    Uninstall,
    /// From a built checkout to an answered question; safe to repeat.
    Quickstart(Programs),
    /// Run the end-to-end tests on the cluster, with the images built and the charts installed.
    Test {
        #[command(flatten)]
        programs: Programs,
        /// Only tests whose name contains one of these.
        filter: Vec<String>,
    },
    /// The forwarder that `up` starts.
    #[command(hide = true)]
    Forward(forwarder::Arguments),
}

/// Where the built programs are.
#[derive(clap::Args)]
struct Programs {
    /// The folder of the built programs; by default target/release of the checkout.
    #[arg(long)]
    bin_dir: Option<PathBuf>,
}

impl Programs {
    fn folder(self, paths: &Paths) -> PathBuf {
        self.bin_dir.unwrap_or_else(|| paths.root.join("target/release"))
    }
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    // Before any thread is started: the forwarder moves its only thread into the cluster's namespace.
    if let Command::Forward(arguments) = command {
        return forwarder::run(&arguments);
    }
    let paths = Paths::find()?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("starting the runtime")?;
    match command {
        Command::Tools => tools::ensure(&paths).map(|tools| tools::report(&paths, &tools)),
        Command::Up => runtime.block_on(start(&paths)),
        Command::Down => stop(&paths),
        Command::Status => status::print(&paths),
        Command::Logs { dir } => status::collect(&paths, dir),
        Command::Preflight => preflight(),
        Command::Images(programs) => images::build_and_load(&paths, &programs.folder(&paths)),
        Command::Install { values } => {
            let tools = client_tools(&paths)?;
            runtime.block_on(install::install(&paths, &tools, &values))
        }
        Command::Uninstall => install::uninstall(&paths, &client_tools(&paths)?.helm),
        Command::Quickstart(programs) => runtime.block_on(quickstart::run(&paths, programs.folder(&paths))),
        Command::Test { programs, filter } => {
            let programs = programs.folder(&paths);
            if foreign_kubeconfig().is_none() && filter.is_empty() {
                preflight::platform()?;
                tools::ensure(&paths)?;
                tests::lifecycle(&paths)?;
            }
            runtime.block_on(async {
                let tools = quickstart::prepare(&paths, &programs).await?;
                tests::prepare(&paths, &tools, &programs).await
            })?;
            tests::run(&paths, &filter)
        }
        Command::Forward(_) => Ok(()),
    }
}

async fn start(paths: &Paths) -> Result<()> {
    if leave_alone() {
        return Ok(());
    }
    preflight::platform()?;
    let tools = tools::ensure(paths)?;
    let _lock = lock::acquire(&paths.cache.join("cluster.lock"))?;
    let started = up::up(paths, &tools).await?;
    say("waiting for resource metrics (about 20 s)");
    up::await_metrics(&started.client).await?;
    let kubeconfig = paths.local_kubeconfig();
    say(&format!(
        "the cluster is up (node Ready after {}): export KUBECONFIG={}, or use e2e/kubectl",
        human(started.node_ready),
        kubeconfig.display()
    ));
    Ok(())
}

fn stop(paths: &Paths) -> Result<()> {
    if leave_alone() {
        return Ok(());
    }
    preflight::platform()?;
    let _lock = lock::acquire(&paths.cache.join("cluster.lock"))?;
    down::down(&Layout::new(paths))?;
    say("the cluster is down; nothing of it is left but its logs");
    Ok(())
}

fn preflight() -> Result<()> {
    if foreign_kubeconfig().is_some() {
        images::Target::find()?;
    } else {
        preflight::platform()?;
    }
    say("this machine can run what follows");
    Ok(())
}

fn client_tools(paths: &Paths) -> Result<tools::Tools> {
    if foreign_kubeconfig().is_some() { tools::ensure_clients(paths) } else { tools::ensure(paths) }
}

/// With KUBECONFIG set the cluster is the person's own.
fn leave_alone() -> bool {
    let foreign = foreign_kubeconfig();
    if let Some(path) = &foreign {
        say(&format!("KUBECONFIG is {}: that cluster is used as it is, and left alone", path.display()));
    }
    foreign.is_some()
}
