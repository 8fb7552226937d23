//! Entry point of `fairlead-gateway`: reads the command line, sets up logging, runs until told to stop.

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use fairlead_gateway::config::{Cli, Command};
use fairlead_gateway::{app, small_writes};
use tokio::runtime::Builder;
use tracing_subscriber::EnvFilter;

/// A request is made of some hundred small pieces that live for a moment; glibc's allocator took an eighth of the time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let Cli { command } = Cli::parse();
    let Command::Serve(config) = command;
    let filter = match EnvFilter::try_new(&config.log) {
        Ok(filter) => filter,
        Err(error) => {
            eprintln!("error: --log (RUST_LOG) {:?}: {error}; use for example \"info\"", config.log);
            return ExitCode::from(2);
        }
    };
    tracing_subscriber::fmt().json().flatten_event(true).with_env_filter(filter).init();
    let runtime = Builder::new_multi_thread().enable_all().on_thread_park(small_writes::worker_waits).build();
    match runtime
        .context("no threads could be started")
        .and_then(|runtime| runtime.block_on(app::run(*config)))
    {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
