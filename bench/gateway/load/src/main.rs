//! What `make bench-gateway` puts before and behind gateways: a mock inference server, and clients that keep time where wrk
//! does not (requests at a fixed rate, gaps between events, streams that are held open). Each command prints one line of JSON.
//!
//! Clients are plain threads with blocking sockets: a timer of an async runtime ticks by the millisecond, and what is measured
//! here are tenths of one.

mod client;
mod idle;
mod rate;
mod streams;
mod upstream;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve the OpenAI API with canned answers on these addresses, on one thread.
    Upstream {
        /// Addresses to listen on.
        #[arg(required = true)]
        listen: Vec<SocketAddr>,
    },
    /// Send requests at a fixed rate, whether or not the ones before are answered, and report latencies in seconds.
    Rate {
        #[command(flatten)]
        target: Target,
        /// Requests per second.
        #[arg(long)]
        rate: f64,
        /// Seconds.
        #[arg(long)]
        seconds: f64,
        /// Connections, the most requests at a time.
        #[arg(long, default_value_t = 64)]
        connections: usize,
    },
    /// Read streams side by side and report how far the gaps between events are from what the server intended, in seconds.
    Streams {
        #[command(flatten)]
        target: Target,
        /// Streams at a time.
        #[arg(long)]
        streams: usize,
        /// Gap between events that the body asks for, in milliseconds.
        #[arg(long)]
        interval_ms: u64,
    },
    /// Open streams, wait for the first event of each, print a line, and hold them until standard input ends.
    Idle {
        #[command(flatten)]
        target: Target,
        /// Streams to hold.
        #[arg(long)]
        streams: usize,
        /// Streams that are being opened at a time.
        #[arg(long, default_value_t = 16)]
        opening: usize,
    },
}

/// Whom to ask, and what.
#[derive(Args, Clone)]
struct Target {
    /// Address of the gateway.
    #[arg(long)]
    address: SocketAddr,
    /// File with the request's body.
    #[arg(long)]
    body: PathBuf,
    /// Longest wait for anything, in seconds.
    #[arg(long, default_value_t = 60.0)]
    timeout: f64,
}

impl Target {
    fn request(&self) -> anyhow::Result<client::Request> {
        client::Request::post(self.address, &self.body, Duration::from_secs_f64(self.timeout))
    }
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Upstream { listen } => upstream::serve(&listen),
        Command::Rate { target, rate, seconds, connections } => {
            println!("{}", rate::run(&target.request()?, rate, seconds, connections)?);
            Ok(())
        }
        Command::Streams { target, streams, interval_ms } => {
            let report = streams::run(&target.request()?, streams, Duration::from_millis(interval_ms))?;
            println!("{report}");
            Ok(())
        }
        Command::Idle { target, streams, opening } => idle::run(&target.request()?, streams, opening),
    }
}

/// The value below which a part of the sorted values lies.
fn quantile(sorted: &[Duration], part: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    let index = ((last as f64) * part).round() as usize;
    sorted.get(index).map_or(f64::NAN, Duration::as_secs_f64)
}
