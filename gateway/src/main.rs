//! Entry point of `fairlead-gateway`: reads the command line, sets up logging, runs until told to stop.

use std::process::ExitCode;

use clap::Parser;
use fairlead_gateway::app;
use fairlead_gateway::config::{Cli, Command};
use tracing_subscriber::EnvFilter;

/// A request is made of some hundred small pieces that live for a moment; glibc's allocator took an eighth of the time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main]
async fn main() -> ExitCode {
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
    match app::run(*config).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
