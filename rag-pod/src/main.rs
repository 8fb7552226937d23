//! Entry point of `fairlead-rag`: reads the command line, and tells whoever watches why it failed.

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use fairlead_rag::cli::{Cli, Command, LogFormat};
use fairlead_rag::evaluate;
use fairlead_rag::failure::Failure;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    // Fails only when a provider was installed before, which is as good.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    match run(&cli).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let line = failure.to_string().replace('\n', " ");
            write_termination_log(&cli.termination_log, &line);
            eprintln!("error: {line}");
            ExitCode::from(failure.exit_code())
        }
    }
}

async fn run(cli: &Cli) -> Result<(), Failure> {
    start_log(cli)?;
    let Command::Evaluate(arguments) = &cli.command;
    // As the first process of a container it would otherwise not be stopped by a signal at all.
    let mut terminate = signal(SignalKind::terminate())
        .map_err(|error| Failure::again(format!("signals can't be waited for: {error}")))?;
    let summary = tokio::select! {
        summary = Box::pin(evaluate::evaluate(arguments)) => summary?,
        _ = terminate.recv() => return Err(Failure::again("it was told to stop")),
    };
    if let Some(line) = summary {
        write_termination_log(&cli.termination_log, &line);
    }
    Ok(())
}

fn start_log(cli: &Cli) -> Result<(), Failure> {
    let filter = EnvFilter::try_new(&cli.log)
        .map_err(|error| Failure::wrong(format!("--log {}: {error}", cli.log)))?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match cli.log_format {
        LogFormat::Text => log.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => log.json().init(),
    }
    Ok(())
}

/// Kubernetes puts the file there; by hand there is none, and none is made.
fn write_termination_log(path: &Path, line: &str) {
    if let Ok(mut file) = std::fs::OpenOptions::new().write(true).truncate(true).open(path) {
        // The line is on stdout or stderr too, so a failure here loses nothing by hand; in a Job the operator notices.
        let _ = file.write_all(line.as_bytes());
    }
}
