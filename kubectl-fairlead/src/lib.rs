//! The kubectl plugin.
//!
//! Owns: what a person asks of routes from the command line, and how answers are shown. Must not: decide anything about a rollout; it
//! reads what the operator wrote and writes requests. `report`, `render` and the `render` files of each command are pure: data in,
//! text out. Called by people, as `kubectl fairlead …` or `kubectl-fairlead …`, and by their scripts.

pub mod cli;
mod connect;
#[cfg(test)]
mod documented;
mod explain;
mod fault;
mod gateway;
mod output;
mod render;
pub mod rollout;
pub mod route;
mod screen;
mod top;

pub use connect::Session;
pub use fault::Fault;

use std::io::Write;

use clap::CommandFactory;
use cli::{Arguments, Command, Connection, Rollout};
use fairlead_rollout::machine::Action;

/// Runs a command and returns the exit code.
///
/// # Errors
/// [`Fault`]: what is wrong, and what to do about it.
pub async fn run(arguments: Arguments) -> Result<u8, Fault> {
    let Arguments { connection, command } = arguments;
    match command {
        Command::Completion { shell } => {
            let mut command = Arguments::command();
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut command, "kubectl-fairlead", &mut script);
            std::io::stdout().write_all(&script).map_err(|error| Fault::new(format!("writing: {error}")))?;
            Ok(0)
        }
        Command::Explain(arguments) => explain::run(&connection, arguments).await,
        Command::Top(arguments) => top::run(&connection, arguments).await,
        Command::Rollout { command } => run_rollout(&connection, command).await,
    }
}

async fn run_rollout(connection: &Connection, command: Rollout) -> Result<u8, Fault> {
    let session = Session::open(connection).await?;
    match command {
        Rollout::Status(arguments) => rollout::status::run(&session, arguments).await,
        Rollout::History(arguments) => rollout::history::run(&session, &arguments).await,
        Rollout::Promote(arguments) => rollout::ask::run(&session, Action::Promote, &arguments).await,
        Rollout::Abort(arguments) => rollout::ask::run(&session, Action::Abort, &arguments).await,
        Rollout::Pause(arguments) => rollout::ask::run(&session, Action::Pause, &arguments).await,
        Rollout::Resume(arguments) => rollout::ask::run(&session, Action::Resume, &arguments).await,
        Rollout::Retry(arguments) => rollout::ask::run(&session, Action::Retry, &arguments).await,
    }
}
