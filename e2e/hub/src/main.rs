//! `fairlead-test-hub`: serves a folder of models as a Hugging Face hub, for tests and the quickstart.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Parser;
use fairlead_test_hub::{HubOptions, TestHub};

/// Serves a folder of models as a Hugging Face hub. For tests: do not expose it.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Folder with `org/name/` folders, each a model; `org/name@tag/` is another revision of it.
    #[arg(long, env = "FAIRLEAD_HUB_ROOT", default_value = "/models")]
    root: PathBuf,
    /// Address to listen on.
    #[arg(long, env = "FAIRLEAD_HUB_LISTEN", default_value = "0.0.0.0:8080")]
    listen: SocketAddr,
    /// Bearer token that every request must carry.
    #[arg(long, env = "FAIRLEAD_HUB_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Redirect weights to a second port, as large hubs do.
    #[arg(long)]
    redirect_weights: bool,
    /// List names only, as some mirrors do.
    #[arg(long)]
    plain_lists: bool,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into()),
        )
        .init();
    let Arguments { root, listen, token, redirect_weights, plain_lists } = Arguments::parse();
    let hub = TestHub::start(HubOptions { root: root.clone(), listen, token, redirect_weights, plain_lists })
        .await?;
    tracing::info!(url = hub.url(), root = %root.display(), "serving models");
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        ended = hub.wait() => ended,
        _ = terminate.recv() => Ok(()),
        _ = tokio::signal::ctrl_c() => Ok(()),
    }
}
