//! Entry point of `fairlead-inference`: reads the command line, and tells whoever watches why it failed.

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use fairlead_fetch::{FetchOptions, Hub, Progress, SourceUri, fetch, inspect};
use fairlead_inference::config::{
    Cli, Command, ConfigError, FetchArgs, InspectArgs, LogFormat, ServeArgs, fields,
};
use fairlead_inference::load::FatalError;
use fairlead_inference::openmp;
use fairlead_inference::serve::serve;
use fairlead_model::Reason;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = start_log(&cli).and_then(|()| {
        if matches!(cli.command, Command::Serve(_)) {
            openmp::wait_briefly();
        }
        run(cli.command, &cli.termination_log)
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let line = error.to_string().replace('\n', " ");
            write_termination_log(&cli.termination_log, &line);
            eprintln!("{line}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command, termination_log: &Path) -> Result<(), FatalError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("fairlead-http")
        .build()
        .map_err(|error| FatalError::pod(format!("the threads could not be started: {error}")))?;
    let result = runtime.block_on(async {
        match command {
            Command::Serve(arguments) => run_serve(*arguments).await,
            Command::Fetch(arguments) => run_fetch(arguments).await,
            Command::Inspect(arguments) => run_inspect(arguments, termination_log).await,
        }
    });
    // A download or a load that is still running must not keep the process.
    runtime.shutdown_background();
    result
}

async fn run_serve(arguments: ServeArgs) -> Result<(), FatalError> {
    // Who gave no file set everything by flags; in a cluster the ModelDeployment's fields are what can be changed.
    let by_hand = arguments.config.is_none();
    let served = serve(arguments.into_config().map_err(wrong_setting)?).await;
    served.map_err(|error| if by_hand { with_flags(error) } else { error })
}

fn with_flags(error: FatalError) -> FatalError {
    FatalError { message: fields::with_flags(&error.message), ..error }
}

async fn run_fetch(arguments: FetchArgs) -> Result<(), FatalError> {
    let source = SourceUri::parse_or_folder(&arguments.model).map_err(|error| with_flags(error.into()))?;
    let progress = Arc::new(|Progress { bytes_done, bytes_total }: Progress| {
        tracing::debug!(bytes_done, bytes_total, "fetching");
    });
    let options = FetchOptions {
        digest: arguments.digest,
        tell_digest: true,
        progress: Some(progress),
        ..FetchOptions::default()
    };
    // A folder is used where it is.
    let dir = match (arguments.dir, &source) {
        (Some(dir), _) => dir,
        (None, SourceUri::Folder { path }) => path.clone(),
        (None, _) => {
            let message = "--dir is missing: it names the folder to fetch into".to_owned();
            return Err(FatalError { reason: Reason::InvalidSpec, message });
        }
    };
    let fetched =
        fetch(&source, &Hub::from_env()?, &dir, &options).await.map_err(|error| with_flags(error.into()))?;
    tracing::info!(dir = %fetched.dir.display(), "the model is complete");
    println!("{}", fetched.digest.unwrap_or_default());
    Ok(())
}

/// Prints to stdout for people and, in a Job, to the termination log for the operator.
async fn run_inspect(arguments: InspectArgs, termination_log: &Path) -> Result<(), FatalError> {
    let source = SourceUri::parse_or_folder(&arguments.model_uri().map_err(wrong_setting)?)?;
    let inspection = inspect(&source, &Hub::from_env()?).await?;
    let json = serde_json::to_string(&inspection)
        .map_err(|error| FatalError::pod(format!("the result could not be written as JSON: {error}")))?;
    write_termination_log(termination_log, &json);
    println!("{json}");
    Ok(())
}

fn wrong_setting(error: ConfigError) -> FatalError {
    FatalError { reason: Reason::InvalidSpec, message: error.to_string() }
}

fn start_log(cli: &Cli) -> Result<(), FatalError> {
    let filter = EnvFilter::try_new(&cli.log).map_err(|error| FatalError {
        reason: Reason::InvalidSpec,
        message: format!("--log {}: {error}", cli.log),
    })?;
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
        // The line is on stderr too, so a failure here loses nothing.
        let _ = file.write_all(line.as_bytes());
    }
}
