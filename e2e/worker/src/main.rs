//! `fairlead-test-worker`: see the library.

use clap::{Parser, Subcommand};
use fairlead_test_worker::load::{self, LoadOptions};
use fairlead_test_worker::serve::{self, ServeOptions};

/// An inference server without a model, and the load to put on it. For tests: do not expose it.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Answers OpenAI requests with as many tokens, as fast and as faultily as it is told.
    Serve(ServeOptions),
    /// Sends requests at a fixed rate, whatever the answers do, and accounts for each; prints JSON.
    Load(LoadOptions),
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Command::Serve(options) => serve::run(options).await,
        Command::Load(options) => load::run(options).await,
    }
}
