//! The command line: every argument with its help, and nothing else.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};

/// Canaries, routing decisions and live traffic of Fairlead.
#[derive(Debug, Parser)]
#[command(name = "kubectl-fairlead", bin_name = "kubectl fairlead", version, max_term_width = 110)]
pub struct Arguments {
    /// Which cluster, as whom.
    #[command(flatten)]
    pub connection: Connection,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The options that kubectl has, too.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Cluster")]
pub struct Connection {
    /// The kubeconfig file; by default KUBECONFIG's, then ~/.kube/config, then the pod's own account
    #[arg(long, global = true, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// A context of the kubeconfig; by default its current one
    #[arg(long, global = true, value_name = "NAME")]
    pub context: Option<String>,
    /// The route's namespace; by default the context's
    #[arg(short, long, global = true, value_name = "NAME")]
    pub namespace: Option<String>,
    /// The user to impersonate
    #[arg(long = "as", global = true, value_name = "USER")]
    pub impersonate: Option<String>,
    /// A group to impersonate; may be repeated
    #[arg(long = "as-group", global = true, value_name = "GROUP", requires = "impersonate")]
    pub impersonate_groups: Vec<String>,
    /// The namespace that the gateways run in
    #[arg(
        long,
        global = true,
        value_name = "NAME",
        env = "FAIRLEAD_SYSTEM_NAMESPACE",
        default_value = "fairlead-system"
    )]
    pub system_namespace: String,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// See and steer a route's canary
    Rollout {
        /// What to do with it.
        #[command(subcommand)]
        command: Rollout,
    },
    /// Say where a request would go and why, without sending it
    Explain(Explain),
    /// Show what each backend is doing now
    Top(Top),
    /// Print a completion script for a shell
    Completion {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// What can be done with a canary.
#[derive(Debug, Subcommand)]
pub enum Rollout {
    /// Show where the canary is; with -w, follow it to its end
    Status(Status),
    /// Show what happened to the route's canaries
    History(History),
    /// Give the canary all requests now
    Promote(Ask),
    /// Take the canary's requests away now
    Abort(Ask),
    /// Keep the canary where it is
    Pause(Ask),
    /// Go on after a pause
    Resume(Ask),
    /// Begin again with the first step after a rollback
    Retry(Ask),
}

/// Forms of output for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// JSON.
    Json,
    /// YAML.
    Yaml,
}

/// `rollout status`.
#[derive(Debug, Args)]
pub struct Status {
    /// The ModelRoute: NAME, or modelroute/NAME
    pub route: String,
    /// Follow the rollout until it is promoted (exit code 0), rolled back (1) or removed (0)
    #[arg(short, long)]
    pub watch: bool,
    /// How long to follow it: 90s, 10m, 1h30m; by default for ever. Exit code 1 when it is over
    #[arg(long, value_parser = duration, requires = "watch", value_name = "DURATION")]
    pub timeout: Option<Duration>,
    /// Print for programs; with -w, once for every change
    #[arg(short, long, value_enum)]
    pub output: Option<Format>,
}

/// `rollout history`.
#[derive(Debug, Args)]
pub struct History {
    /// The ModelRoute: NAME, or modelroute/NAME
    pub route: String,
    /// Print for programs
    #[arg(short, long, value_enum)]
    pub output: Option<Format>,
}

/// The commands that ask the operator for something.
#[derive(Debug, Args)]
pub struct Ask {
    /// The ModelRoute: NAME, or modelroute/NAME
    pub route: String,
    /// Return when the request is written, without waiting for the operator to follow or refuse it
    #[arg(long)]
    pub no_wait: bool,
    /// How long to wait for the operator
    #[arg(long, value_parser = duration, default_value = "30s", value_name = "DURATION")]
    pub timeout: Duration,
    /// Print for programs
    #[arg(short, long, value_enum)]
    pub output: Option<Format>,
}

/// `explain`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("target").args(["route", "model", "file"]).multiple(true).required(true))]
pub struct Explain {
    /// The ModelRoute: NAME, or modelroute/NAME
    pub route: Option<String>,
    /// The model name that the client would send
    #[arg(long, conflicts_with = "route")]
    pub model: Option<String>,
    /// The user that the request would come from
    #[arg(long)]
    pub user: Option<String>,
    /// The tenant that it would come from
    #[arg(long)]
    pub tenant: Option<String>,
    /// The tenant's tier
    #[arg(long)]
    pub tier: Option<String>,
    /// A header of the request; may be repeated
    #[arg(long = "header", value_parser = header, value_name = "NAME=VALUE")]
    pub headers: Vec<(String, String)>,
    /// What the user says in it
    #[arg(long, conflicts_with = "file", value_name = "TEXT")]
    pub prompt: Option<String>,
    /// The whole body of an OpenAI request, as JSON; - reads it from the standard input
    #[arg(short = 'f', long = "filename", id = "file", value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Ask this gateway's admin port, such as http://127.0.0.1:9000, instead of one in the cluster
    #[arg(long, value_name = "URL")]
    pub gateway: Option<String>,
    /// The file with the gateway's admin token; by default the Secret fairlead-gateway-admin is read
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Print the gateway's answer for programs
    #[arg(short, long, value_enum)]
    pub output: Option<Format>,
}

/// `top`.
#[derive(Debug, Args)]
pub struct Top {
    /// The ModelRoute: NAME, or modelroute/NAME; by default all of the namespace
    pub route: Option<String>,
    /// All namespaces
    #[arg(short = 'A', long, conflicts_with = "route")]
    pub all_namespaces: bool,
    /// Refresh until interrupted
    #[arg(short, long)]
    pub watch: bool,
    /// Time that rates are measured over, and between two refreshes
    #[arg(long, value_parser = duration, default_value = "2s", value_name = "DURATION")]
    pub interval: Duration,
    /// Ask these gateways' admin ports, such as http://127.0.0.1:9000, instead of those in the cluster; may be repeated
    #[arg(long, value_name = "URL")]
    pub gateway: Vec<String>,
    /// Print for programs; with -w, once for every refresh
    #[arg(short, long, value_enum)]
    pub output: Option<Format>,
}

fn duration(text: &str) -> Result<Duration, String> {
    let parsed: Option<Duration> =
        text.parse::<jiff::SignedDuration>().ok().and_then(|duration| duration.try_into().ok());
    match parsed {
        Some(duration) if !duration.is_zero() => Ok(duration),
        _ => Err("write hours, minutes and seconds, such as 30s, 10m or 1h30m".to_owned()),
    }
}

fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').or_else(|| text.split_once(": ")).ok_or("write NAME=VALUE")?;
    let valid = http::HeaderName::try_from(name).is_ok() && http::HeaderValue::try_from(value).is_ok();
    if valid {
        Ok((name.to_ascii_lowercase(), value.to_owned()))
    } else {
        Err("no header looks like that".to_owned())
    }
}

/// The name of a route as people write it: `NAME`, `modelroute/NAME`, `mr/NAME`.
pub fn route_name(text: &str) -> &str {
    match text.split_once('/') {
        Some(("modelroute" | "modelroutes" | "mr" | "modelroutes.fairlead.dev", name)) => name,
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from(std::iter::once("kubectl-fairlead").chain(line.split(' ')))
    }

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn kubectls_options_may_stand_anywhere() {
        for line in [
            "-n shop --context prod rollout status chat -w --timeout 10m",
            "rollout status chat -w --timeout 10m --context=prod --namespace shop",
        ] {
            let parsed = parse(line).unwrap();
            assert_eq!(parsed.connection.namespace.as_deref(), Some("shop"));
            assert_eq!(parsed.connection.context.as_deref(), Some("prod"));
            let Command::Rollout { command: Rollout::Status(status) } = parsed.command else {
                panic!("{line}")
            };
            assert_eq!(status.timeout, Some(Duration::from_secs(600)));
        }
    }

    #[test]
    fn bad_input_is_refused() {
        for (line, part) in [
            ("rollout status chat -w --timeout soon", "such as 30s, 10m or 1h30m"),
            ("rollout status chat --timeout 10m", "--watch"),
            ("explain", "required"),
            ("explain chat --header x", "NAME=VALUE"),
            ("explain chat --header a\u{7f}=b", "no header looks like that"),
            ("explain chat --prompt hi -f body.json", "cannot be used with"),
            ("top --interval 0s", "such as 30s"),
        ] {
            let error = parse(line).expect_err(line).to_string();
            assert!(error.contains(part), "{line}: {error}");
        }
    }

    #[test]
    fn a_route_may_be_named_as_kubectl_names_things() {
        for text in ["chat", "mr/chat", "modelroute/chat", "modelroutes.fairlead.dev/chat"] {
            assert_eq!(route_name(text), "chat");
        }
    }
}
