//! `kubectl fairlead`: reads the command line, runs the command, ends with its exit code.

use std::process::ExitCode;

use clap::Parser;
use kubectl_fairlead::cli::Arguments;
use kubectl_fairlead::run;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: the runtime could not be started: {error}");
            return ExitCode::FAILURE;
        }
    };
    let outcome = runtime.block_on(async {
        tokio::select! {
            outcome = run(arguments) => outcome,
            // As a shell reports a program that SIGINT ended.
            _ = tokio::signal::ctrl_c() => Ok(130),
        }
    });
    // A forwarded connection that hangs must not keep the program.
    runtime.shutdown_background();
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(fault) => {
            eprintln!("error: {fault}");
            ExitCode::FAILURE
        }
    }
}
