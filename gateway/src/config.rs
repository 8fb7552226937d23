//! The gateway's whole configuration: one struct, from flags and `FAIRLEAD_*` environment variables.
//!
//! Owns names, defaults and the parsing of values; `main` parses it once and everybody else is handed values.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use http::HeaderName;

use crate::identity::{TrustedHeaders, parse_trusted};
use crate::provider::hosts;
use crate::units::{parse_bytes, parse_bytes_or_none, parse_duration};

/// Routes OpenAI requests to inference pods.
#[derive(Debug, Parser)]
#[command(name = "fairlead-gateway", version, about)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What the program can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve the OpenAI API: in a cluster from its ModelRoutes, or by hand from `--manifests DIR`.
    Serve(Box<ServeConfig>),
}

/// How `fairlead-gateway serve` runs.
#[derive(Clone, Debug, Args)]
pub struct ServeConfig {
    /// Read ModelRoutes from the YAML files in this folder instead of from a Kubernetes API; edits are picked up.
    #[arg(long, env = "FAIRLEAD_MANIFESTS", value_name = "DIR", conflicts_with = "namespace")]
    pub manifests: Option<PathBuf>,

    /// Watch one namespace only. Default: all of them.
    #[arg(long, env = "FAIRLEAD_NAMESPACE")]
    pub namespace: Option<String>,

    /// Hosts of providers that routes may name, such as `api.example.com`, or `*.example.com` for all below a domain, separated by commas. Default: none; without Kubernetes any may be named.
    #[arg(
        long,
        env = "FAIRLEAD_PROVIDER_HOSTS",
        value_name = "HOSTS",
        value_delimiter = ',',
        value_parser = hosts::parse,
        conflicts_with = "manifests"
    )]
    pub provider_hosts: Vec<String>,

    /// Address of the OpenAI API.
    #[arg(long, env = "FAIRLEAD_LISTEN", value_name = "ADDR", default_value = "0.0.0.0:8080")]
    pub listen: SocketAddr,

    /// Address of /healthz, /readyz, /metrics, /rollouts, /providers and /debug/explain.
    #[arg(long, env = "FAIRLEAD_ADMIN_LISTEN", value_name = "ADDR", default_value = "0.0.0.0:9000")]
    pub admin_listen: SocketAddr,

    /// File with the token that opens /debug/explain on the admin address (`Authorization: Bearer TOKEN`). It is read for each
    /// request. Without it nobody may ask.
    #[arg(long, env = "FAIRLEAD_ADMIN_TOKEN_FILE", value_name = "FILE")]
    pub admin_token_file: Option<PathBuf>,

    /// Header that names the tenant a request comes from, for rules and stickiness. Name one only when a proxy in front
    /// authenticates clients and sets it, and nobody else reaches the gateway. Without it no tenant is known. Pods never see
    /// it.
    #[arg(long, env = "FAIRLEAD_TRUSTED_TENANT_HEADER", value_name = "NAME", value_parser = parse_trusted)]
    pub trusted_tenant_header: Option<HeaderName>,

    /// Header that names the tenant's tier; as --trusted-tenant-header.
    #[arg(long, env = "FAIRLEAD_TRUSTED_TIER_HEADER", value_name = "NAME", value_parser = parse_trusted)]
    pub trusted_tier_header: Option<HeaderName>,

    /// Header that names the user; as --trusted-tenant-header. With it the `user` in requests' bodies does not count.
    #[arg(long, env = "FAIRLEAD_TRUSTED_USER_HEADER", value_name = "NAME", value_parser = parse_trusted)]
    pub trusted_user_header: Option<HeaderName>,

    /// Largest request body; a larger one is answered with 413.
    #[arg(long, env = "FAIRLEAD_MAX_REQUEST_BYTES", value_name = "BYTES", default_value = "16Mi", value_parser = parse_bytes)]
    pub max_request_bytes: usize,

    /// Largest answer that is held until it is whole, so that it can be asked for again elsewhere when a pod dies;
    /// what is larger is passed through.
    #[arg(long, env = "FAIRLEAD_MAX_HELD_RESPONSE_BYTES", value_name = "BYTES", default_value = "4Mi", value_parser = parse_bytes)]
    pub max_held_response_bytes: usize,

    /// Most bytes of requests and of held answers in memory at a time; more requests are answered with 503 and
    /// Retry-After, and more answers passed through. A request counts twice. Keep it well below the memory limit.
    #[arg(long, env = "FAIRLEAD_MAX_HELD_BYTES", value_name = "BYTES", default_value = "256Mi", value_parser = parse_bytes)]
    pub max_held_bytes: usize,

    /// Memory for what the pods have been sent, to find one that has the beginning of a prompt; taken as it is needed.
    #[arg(long, env = "FAIRLEAD_PREFIX_INDEX_BYTES", value_name = "BYTES", default_value = "32Mi", value_parser = parse_bytes)]
    pub prefix_index_bytes: usize,
    /// Most bytes of memory for running streams' requests and tokens, so that a stream whose pod dies can go on at another
    /// one. A stream that finds no room runs all the same, and ends with an error when its pod dies. 0 turns it off.
    #[arg(long, env = "FAIRLEAD_MAX_FAILOVER_BYTES", value_name = "BYTES", default_value = "64Mi", value_parser = parse_bytes_or_none)]
    pub max_failover_bytes: usize,

    /// Most requests at a time; more are answered with 503 and Retry-After.
    #[arg(long, env = "FAIRLEAD_MAX_IN_FLIGHT", value_name = "N", default_value_t = 8192, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_in_flight: u32,

    /// Most client connections; more wait in the kernel's queue.
    #[arg(long, env = "FAIRLEAD_MAX_CONNECTIONS", value_name = "N", default_value_t = 16384, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_connections: u32,

    /// Most pods that one request is tried on.
    #[arg(long, env = "FAIRLEAD_MAX_ATTEMPTS", value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=10))]
    pub max_attempts: u32,

    /// How long a connection to a pod may take to open.
    #[arg(long, env = "FAIRLEAD_CONNECT_TIMEOUT", value_name = "TIME", default_value = "2s", value_parser = parse_duration)]
    pub connect_timeout: Duration,

    /// How long a pod may take to send the first byte of an answer; for an answer that is not streamed that is all of it.
    #[arg(long, env = "FAIRLEAD_FIRST_BYTE_TIMEOUT", value_name = "TIME", default_value = "10m", value_parser = parse_duration)]
    pub first_byte_timeout: Duration,

    /// How long a pod may be silent in the middle of an answer.
    #[arg(long, env = "FAIRLEAD_IDLE_TIMEOUT", value_name = "TIME", default_value = "2m", value_parser = parse_duration)]
    pub idle_timeout: Duration,

    /// How long a client may take to send a request's headers; also how long an unused connection is kept.
    #[arg(long, env = "FAIRLEAD_HEADER_READ_TIMEOUT", value_name = "TIME", default_value = "75s", value_parser = parse_duration)]
    pub header_read_timeout: Duration,

    /// How long a client may take to send a request's body.
    #[arg(long, env = "FAIRLEAD_BODY_READ_TIMEOUT", value_name = "TIME", default_value = "60s", value_parser = parse_duration)]
    pub body_read_timeout: Duration,

    /// How long a client may refuse to take bytes before its connection is cut.
    #[arg(long, env = "FAIRLEAD_WRITE_STALL_TIMEOUT", value_name = "TIME", default_value = "60s", value_parser = parse_duration)]
    pub write_stall_timeout: Duration,

    /// After SIGTERM: how long requests are still taken while load balancers learn that this gateway is leaving.
    #[arg(long, env = "FAIRLEAD_DRAIN_DELAY", value_name = "TIME", default_value = "5s", value_parser = parse_duration)]
    pub drain_delay: Duration,

    /// After that: how many seconds running requests may take to finish. Give the pod a grace period longer than both.
    #[arg(long, env = "FAIRLEAD_DRAIN_SECONDS", value_name = "SECONDS", default_value_t = 300)]
    pub drain_seconds: u64,

    /// What to log: a level (error, warn, info, debug, trace), or levels by module. Successful requests are at debug.
    #[arg(long, env = "RUST_LOG", value_name = "FILTER", default_value = "info")]
    pub log: String,
}

impl ServeConfig {
    /// The headers that say who a request comes from.
    pub fn trusted(&self) -> TrustedHeaders {
        TrustedHeaders {
            tenant: self.trusted_tenant_header.clone(),
            tier: self.trusted_tier_header.clone(),
            user: self.trusted_user_header.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn serve(args: &[&str]) -> Result<ServeConfig, clap::Error> {
        let line = ["fairlead-gateway", "serve"].iter().chain(args);
        Cli::try_parse_from(line).map(|Cli { command: Command::Serve(config) }| *config)
    }

    #[test]
    fn the_command_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_flag_has_its_environment_variable() {
        let command = Cli::command();
        let serve = command.find_subcommand("serve").expect("serve");
        for arg in serve.get_arguments().filter(|arg| arg.get_id() != "help") {
            let long = arg.get_long().expect("a long flag");
            let wanted = match long {
                "log" => "RUST_LOG".to_owned(),
                _ => format!("FAIRLEAD_{}", long.replace('-', "_").to_uppercase()),
            };
            assert_eq!(arg.get_env().and_then(|name| name.to_str()), Some(wanted.as_str()), "--{long}");
        }
    }

    #[test]
    fn defaults_and_units() {
        let config =
            serve(&["--first-byte-timeout", "1500ms", "--max-request-bytes", "2Mi"]).expect("parses");
        assert_eq!(config.listen.port(), 8080);
        assert_eq!(config.admin_listen.port(), 9000);
        assert_eq!(config.first_byte_timeout, Duration::from_millis(1500));
        assert_eq!(config.max_request_bytes, 2 << 20);
    }

    #[test]
    fn bad_values_name_the_flag_and_the_remedy() {
        let error = serve(&["--drain-delay", "soon"]).expect_err("must fail").to_string();
        assert!(error.contains("--drain-delay") && error.contains("30s"), "{error}");
        let error = serve(&["--manifests", "d", "--namespace", "n"]).expect_err("must fail").to_string();
        assert!(error.contains("cannot be used with"), "{error}");
    }
}
