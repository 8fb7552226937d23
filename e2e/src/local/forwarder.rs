//! The way from the host to the API server.
//!
//! Owns: a loopback port on the host whose connections end inside the cluster's namespace, as raw TCP, so that exec,
//! logs and port-forward work as on any cluster. Must not: look into what it carries. It is a process of its own,
//! started by `up`.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;

use anyhow::{Context, Result};
use tokio::io::copy_bidirectional;
use tokio::net::TcpStream;

use super::namespace;

/// What the forwarder is told.
#[derive(Clone, Debug, clap::Args)]
pub struct Arguments {
    /// The host's address to listen on.
    #[arg(long)]
    pub listen: SocketAddr,
    /// The address inside the namespace to dial.
    #[arg(long)]
    pub to: SocketAddr,
    /// The network namespace.
    #[arg(long)]
    pub namespace: PathBuf,
    /// The state folder that this forwarder belongs to; only there to recognise the process by.
    #[arg(long)]
    pub state: PathBuf,
}

/// Forwards until it is stopped. The listening socket is opened first and so stays on the host, with the connections it
/// accepts; then the process moves into the namespace, where all that it dials from then on lies.
pub fn run(arguments: &Arguments) -> Result<()> {
    let Arguments { listen, to, namespace, state: _ } = arguments;
    let listener = TcpListener::bind(listen).with_context(|| format!("listening on {listen}"))?;
    listener.set_nonblocking(true).context("making the socket non-blocking")?;
    namespace::enter(namespace)?;
    // Only now: the runtime's threads inherit the namespace of the thread that starts them.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(serve(listener, *to))
}

async fn serve(listener: TcpListener, to: SocketAddr) -> Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener).context("listening")?;
    loop {
        let (client, _) = listener.accept().await.context("accepting a connection")?;
        tokio::spawn(forward(client, to));
    }
}

/// One connection. A client learns that the API server is away by the closed connection, as it would on any network.
async fn forward(mut client: TcpStream, to: SocketAddr) {
    match TcpStream::connect(to).await {
        Ok(mut server) => {
            // Small writes (a typed key, one event of a watch) must not wait for more.
            let _ = (client.set_nodelay(true), server.set_nodelay(true));
            // Either side may go away at any time; the other one then sees its connection close.
            let _ = copy_bidirectional(&mut client, &mut server).await;
        }
        Err(error) => eprintln!("cannot reach {to}: {error}"),
    }
}
