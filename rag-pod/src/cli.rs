//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use fairlead_crds::evaluation::{Ignored, Score};
use url::Url;

/// Asks models questions.
#[derive(Debug, Parser)]
#[command(name = "fairlead-rag", version, about)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// How log lines are written: text or json.
    #[arg(long, global = true, help_heading = "Log", env = "FAIRLEAD_LOG_FORMAT", default_value = "text")]
    pub log_format: LogFormat,
    /// What is logged, such as `info` or `fairlead_rag=debug`.
    #[arg(long, global = true, help_heading = "Log", env = "FAIRLEAD_LOG", default_value = "info")]
    pub log: String,
    /// File that gets the result, or one line with the reason when the program fails; left alone where it does not exist.
    #[arg(
        long,
        global = true,
        help_heading = "Log",
        env = "FAIRLEAD_TERMINATION_LOG",
        default_value = "/dev/termination-log"
    )]
    pub termination_log: PathBuf,
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Ask every question of a set, score the answers and print the scores.
    Evaluate(Box<EvaluateArgs>),
}

/// What `evaluate` is told.
#[derive(Clone, Debug, Args)]
pub struct EvaluateArgs {
    /// File with the questions: one JSON object a line, or a list in JSON or YAML.
    #[arg(long, value_name = "FILE")]
    pub questions: PathBuf,
    /// Base URL of an OpenAI-compatible server, with or without `/v1` at its end.
    #[arg(long, value_name = "URL")]
    pub base_url: Url,
    /// Name of the model at that server.
    #[arg(long, value_name = "NAME")]
    pub model: String,
    /// File with the server's API key, sent as a bearer token.
    #[arg(long, value_name = "FILE", conflicts_with = "api_key")]
    pub api_key_file: Option<PathBuf>,
    /// The key itself; better through the environment or a file, where other users do not see it.
    #[arg(long, env = "OPENAI_API_KEY", hide_env_values = true)]
    pub api_key: Option<String>,

    /// How the result is printed.
    #[arg(short, long, value_enum, default_value = "table", help_heading = "Result")]
    pub output: Output,
    /// File to write each question's answer and scores to, one JSON object a line.
    #[arg(long, value_name = "FILE", help_heading = "Result")]
    pub items: Option<PathBuf>,
    /// Scores to show, in this order [default: all that the questions allow]. `errors` is always shown.
    #[arg(long, value_delimiter = ',', value_parser = score, help_heading = "Result")]
    pub scores: Vec<Score>,

    /// Differences between an answer and the expected one that do not count: Case, Punctuation, Articles, Citations, or None
    /// [default: Case,Punctuation,Articles]
    #[arg(long, value_delimiter = ',', value_parser = ignored, help_heading = "Comparing")]
    pub ignore: Vec<MaybeIgnored>,
    /// A phrase that makes an answer a refusal; may be given several times [default: common English ones]
    #[arg(long = "refusal", value_name = "PHRASE", help_heading = "Comparing")]
    pub refusals: Vec<String>,

    /// A system message before every question that has no messages of its own.
    #[arg(long, value_name = "TEXT", help_heading = "Asking")]
    pub system_prompt: Option<String>,
    /// Temperature, 0 to 2.
    #[arg(long, default_value_t = 0.0, value_parser = temperature, help_heading = "Asking")]
    pub temperature: f64,
    /// Most tokens of an answer.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..), help_heading = "Asking")]
    pub max_tokens: u32,
    /// Seed of the draws.
    #[arg(long, default_value_t = 0, help_heading = "Asking")]
    pub seed: u64,
    /// Priority of the requests, for servers that know one; a larger number waits for a smaller.
    #[arg(long, allow_negative_numbers = true, help_heading = "Asking")]
    pub priority: Option<i32>,
    /// Questions that are asked at the same time.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=256), help_heading = "Asking")]
    pub concurrency: u16,
    /// Seconds that one answer may take.
    #[arg(long, default_value = "60", value_parser = seconds, value_name = "SECONDS", help_heading = "Asking")]
    pub request_timeout: Duration,
    /// How often a question is asked again when the server fails or is busy.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(0..=20), help_heading = "Asking")]
    pub retries: u32,

    /// Refuse questions whose digest is another; the operator's way to be sure that a pod reads what it has read.
    #[arg(long, value_name = "DIGEST", help_heading = "In a cluster")]
    pub expect_digest: Option<String>,
    /// ConfigMap of the pod's namespace that gets each question's answer and scores; it must be there already.
    #[arg(long, value_name = "NAME", help_heading = "In a cluster")]
    pub result_config_map: Option<String>,
}

/// How the result is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Table,
    /// For programs: the scores, and every question with its answer.
    Json,
}

/// A difference that does not count, or the word for none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MaybeIgnored {
    /// One.
    One(Ignored),
    /// Every difference counts.
    None,
}

impl EvaluateArgs {
    /// The differences that do not count; `None` for the usual ones.
    pub fn ignored(&self) -> Option<Vec<Ignored>> {
        let some = self.ignore.iter().filter_map(|it| match it {
            MaybeIgnored::One(one) => Some(*one),
            MaybeIgnored::None => None,
        });
        (!self.ignore.is_empty()).then(|| some.collect())
    }
}

fn score(text: &str) -> Result<Score, String> {
    let known = Score::ALL.into_iter().find(|score| score.name() == text);
    known.ok_or_else(|| format!("choose from {}", Score::ALL.map(Score::name).join(", ")))
}

fn ignored(text: &str) -> Result<MaybeIgnored, String> {
    Ok(match text {
        "Case" => MaybeIgnored::One(Ignored::Case),
        "Punctuation" => MaybeIgnored::One(Ignored::Punctuation),
        "Articles" => MaybeIgnored::One(Ignored::Articles),
        "Citations" => MaybeIgnored::One(Ignored::Citations),
        "None" => MaybeIgnored::None,
        _ => return Err("choose from Case, Punctuation, Articles, Citations and None".to_owned()),
    })
}

fn temperature(text: &str) -> Result<f64, String> {
    let number: Option<f64> = text.parse().ok();
    number.filter(|number| (0.0..=2.0).contains(number)).ok_or_else(|| "must be between 0 and 2".to_owned())
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: Option<f64> = text.parse().ok();
    let seconds = seconds.filter(|seconds| (0.001..=86_400.0).contains(seconds));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| "must be seconds, at most 86400".to_owned())
}
