//! The load: requests at a fixed rate, whatever becomes of those before (an open loop), each accounted for.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Args;
use futures::StreamExt;
use jiff::Timestamp;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::behaviour::duration;
use crate::schedule::Arrivals;
use crate::tally::{Outcome, Report};

/// What load to make.
#[derive(Args, Clone, Debug)]
pub struct LoadOptions {
    /// Base URL of a gateway or a server, without /v1.
    #[arg(long)]
    url: String,
    /// The model to ask.
    #[arg(long)]
    model: String,
    /// Requests a second.
    #[arg(long, default_value_t = 100.0)]
    rate: f64,
    /// How long to send requests, such as 30s.
    #[arg(long, default_value = "10s", value_parser = duration)]
    lasting: Duration,
    /// Part of the requests that are streamed.
    #[arg(long, default_value_t = 0.5)]
    streamed: f64,
    /// Users that the requests come from; each sends its name as `user` and in the header of --user-header.
    #[arg(long, default_value_t = 100)]
    users: u32,
    /// Header that carries the user's name.
    #[arg(long)]
    user_header: Option<String>,
    /// Most tokens of an answer.
    #[arg(long, default_value_t = 16)]
    max_tokens: u32,
    /// Length of the prompt in bytes; about four are a token.
    #[arg(long, default_value_t = 100)]
    prompt_bytes: usize,
    /// Longest that a request may take before it has failed.
    #[arg(long, default_value = "60s", value_parser = duration)]
    timeout: Duration,
    /// Most requests at once. Those beyond are not sent, and counted.
    #[arg(long, default_value_t = 20_000)]
    most: usize,
    /// Checks that streams hold the tokens of a test worker, each once and in order.
    #[arg(long)]
    check_tokens: bool,
    /// Seed of the arrivals and of what is sent.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

/// What every request needs.
struct Client {
    http: reqwest::Client,
    options: LoadOptions,
    prompt: String,
}

/// Makes the load, waits for its last answer and prints the report as JSON.
///
/// # Errors
/// When the options make no sense.
pub async fn run(options: LoadOptions) -> anyhow::Result<()> {
    let report = load(options).await?;
    println!("{}", serde_json::to_string(&report).context("writing the report")?);
    Ok(())
}

/// Makes the load and waits for its last answer.
///
/// # Errors
/// When the options make no sense.
pub async fn load(options: LoadOptions) -> anyhow::Result<Report> {
    ensure!(options.rate > 0.0 && options.rate.is_finite(), "--rate {} is not above 0", options.rate);
    ensure!((0.0..=1.0).contains(&options.streamed), "--streamed {} is not from 0 to 1", options.streamed);
    ensure!(options.users > 0, "--users 0: somebody has to ask");
    let http = reqwest::Client::builder()
        .timeout(options.timeout)
        .no_proxy()
        .pool_max_idle_per_host(1024)
        .build()
        .context("making an HTTP client")?;
    let prompt = "word ".repeat(options.prompt_bytes.div_ceil(5));
    let places = Arc::new(Semaphore::new(options.most));
    let mut dice = StdRng::seed_from_u64(options.seed);
    let arrivals = Arrivals::new(options.rate, options.lasting, StdRng::seed_from_u64(dice.random()));
    let client = Arc::new(Client { http, options, prompt });
    let begun = Instant::now();
    let (mut running, mut late, mut unsent) = (JoinSet::new(), Vec::new(), 0);
    for (number, at) in arrivals.enumerate() {
        sleep_until(begun + at).await;
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            unsent += 1;
            continue;
        };
        late.push(begun.elapsed().saturating_sub(at));
        let (client, user) = (Arc::clone(&client), dice.random_range(0..client.options.users));
        let streamed = dice.random_bool(client.options.streamed);
        running.spawn(async move {
            let outcome = client.ask(user, streamed).await;
            drop(place);
            (number, outcome)
        });
    }
    let mut outcomes = Vec::with_capacity(running.len());
    while let Some(joined) = running.join_next().await {
        outcomes.push(joined.context("a request's task panicked")?);
    }
    outcomes.sort_by_key(|(number, _)| *number);
    let outcomes: Vec<Outcome> = outcomes.into_iter().map(|(_, outcome)| outcome).collect();
    Ok(Report::new(&outcomes, unsent, late))
}

impl Client {
    async fn ask(&self, user: u32, streamed: bool) -> Outcome {
        let at = Timestamp::now().as_second();
        let begun = Instant::now();
        let mut outcome = Outcome {
            at,
            user,
            backend: None,
            revision: None,
            first_token: Duration::ZERO,
            total: Duration::ZERO,
            failure: None,
        };
        let failure = self.exchange(user, streamed, begun, &mut outcome).await.err();
        outcome.total = begun.elapsed();
        outcome.failure = failure;
        outcome
    }

    /// # Errors
    /// Why the request failed, from a small set of words.
    async fn exchange(
        &self,
        user: u32,
        streamed: bool,
        begun: Instant,
        outcome: &mut Outcome,
    ) -> Result<(), String> {
        let LoadOptions { url, model, max_tokens, user_header, check_tokens, .. } = &self.options;
        let name = format!("user-{user}");
        let mut body = json!({
            "model": model, "max_tokens": max_tokens, "user": name, "stream": streamed,
            "messages": [{"role": "user", "content": self.prompt}],
        });
        if streamed {
            body["stream_options"] = json!({"include_usage": true});
        }
        let mut request = self
            .http
            .post(format!("{url}/v1/chat/completions"))
            .header("content-type", "application/json")
            .body(body.to_string());
        if let Some(header) = user_header {
            request = request.header(header, &name);
        }
        let answer = request.send().await.map_err(|error| words(&error))?;
        let header =
            |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        outcome.backend = header("x-fairlead-backend");
        outcome.revision = header("x-fairlead-revision");
        let status = answer.status();
        if !status.is_success() {
            return Err(format!("status {}", status.as_u16()));
        }
        if !streamed {
            let text = answer.bytes().await.map_err(|error| words(&error))?;
            outcome.first_token = begun.elapsed();
            let whole: Value = serde_json::from_slice(&text).map_err(|_| "not JSON".to_owned())?;
            let content = whole["choices"][0]["message"]["content"].as_str();
            return content.map(drop).ok_or_else(|| "no content".to_owned());
        }
        let mut stream = answer.bytes_stream();
        let mut read = Vec::new();
        while let Some(data) = stream.next().await {
            read.extend_from_slice(&data.map_err(|error| words(&error))?);
            if outcome.first_token.is_zero() && !read.is_empty() {
                outcome.first_token = begun.elapsed();
            }
        }
        check(&String::from_utf8_lossy(&read), outcome.revision.as_deref(), *check_tokens)
    }
}

/// Whether a stream is whole: events, no error among them, `[DONE]` at the end; all of the revision that the answer's head names; and
/// the tokens in order.
fn check(events: &str, revision: Option<&str>, tokens: bool) -> Result<(), String> {
    let mut text = String::new();
    let mut done = false;
    for event in events.split("\n\n").filter_map(|event| event.strip_prefix("data: ")) {
        if event == "[DONE]" {
            done = true;
            continue;
        }
        let chunk: Value = serde_json::from_str(event).map_err(|_| "not JSON".to_owned())?;
        if !chunk["error"].is_null() {
            return Err("error event".to_owned());
        }
        if let (Some(head), Some(here)) = (revision, chunk["system_fingerprint"].as_str())
            && head != here
        {
            return Err("two revisions".to_owned());
        }
        text += chunk["choices"][0]["delta"]["content"].as_str().unwrap_or_default();
    }
    if !done {
        return Err("no end".to_owned());
    }
    let in_order = text.split_whitespace().enumerate().all(|(index, word)| word == format!("w{index}"));
    if tokens && (text.is_empty() || !in_order) { Err("tokens lost or doubled".to_owned()) } else { Ok(()) }
}

fn words(error: &reqwest::Error) -> String {
    let word = if error.is_timeout() {
        "timeout"
    } else if error.is_connect() {
        "connect"
    } else {
        "broken"
    };
    word.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answer::{Answer, Form};

    #[test]
    fn a_stream_is_checked_to_its_end() {
        let revision = Some("r1".to_owned());
        let answer = Answer {
            form: Form::Chat,
            id: "a".into(),
            created: 1,
            model: "m".into(),
            token_ids: false,
            revision,
        };
        let events = [0, 1, 2].map(|index| answer.event(index, None));
        let [first, second, third] = &events;
        let elsewhere = Answer { revision: Some("r2".to_owned()), ..answer.clone() }.event(2, None);
        let usage = answer.usage_event(1, 3);
        let done = "data: [DONE]\n\n";
        let check = |parts: &[&str]| check(&parts.concat(), Some("r1"), true);
        assert_eq!(check(&[first, second, third, &usage, done]), Ok(()));
        assert_eq!(check(&[first, second, third]), Err("no end".to_owned()));
        assert_eq!(check(&[first, second, &elsewhere, done]), Err("two revisions".to_owned()));
        assert_eq!(check(&[first, third, done]), Err("tokens lost or doubled".to_owned()));
        assert_eq!(check(&[first, second, second, done]), Err("tokens lost or doubled".to_owned()));
        assert_eq!(check(&[first, "data: {\"error\":{}}\n\n", done]), Err("error event".to_owned()));
        assert_eq!(check(&[first, "data: {\n\n", done]), Err("not JSON".to_owned()));
    }
}
