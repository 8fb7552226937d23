//! A pod is killed in the middle of a stream that it writes: another one goes on, and the client sees the answer of a pod that lived.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};
use futures::StreamExt;
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::support::gateways::log_lines;
use crate::support::pair::{PAIR, both_answer, pod_at, two_replicas};
use crate::support::{DECIDED, Gateway, SERVED, chat, eventually, in_namespace, kubectl};

/// Kills that fell into a stream.
const KILLS: u32 = 3;
/// Kills that came too late, at most.
const LATE: u32 = 3;
/// Tokens of an answer: nearly all that the model's context holds.
const TOKENS: u32 = 1900;
/// Events that the client has when the pod is killed.
const BEFORE: u32 = 20;

#[tokio::test]
async fn a_stream_whose_pod_is_killed_is_the_answer_of_one_that_lived() -> Result<()> {
    in_namespace(async |namespace| {
        let (model, gateway) = two_replicas(&namespace).await?;
        let unbroken = Stream::begin(&gateway, &model, "unbroken").await?.end().await?;
        ensure!(unbroken.usage["completion_tokens"] == TOKENS, "{}", unbroken.usage);
        let (mut kills, mut asked) = (0, 0);
        while kills < KILLS {
            ensure!(asked < KILLS + LATE, "only {kills} of {asked} kills fell into a stream");
            let id = format!("{namespace}-{asked}");
            asked += 1;
            let stream = Stream::begin(&gateway, &model, &id).await?;
            stream.await_events(BEFORE).await?;
            let victim = pod_at(&namespace, &stream.endpoint).await?;
            kubectl(&["-n", &namespace, "delete", "pod", &victim, "--grace-period=0", "--force"]).await?;
            let at_kill = stream.seen.load(Ordering::Relaxed);
            let broken = stream.end().await?;
            ensure!(broken.text == unbroken.text, "kill {asked}: not the unbroken answer:\n{}", broken.text);
            ensure!(broken.usage == unbroken.usage, "{} is not {}", broken.usage, unbroken.usage);
            let went_on = went_on(&id).await?;
            println!(
                "{victim} was killed after {at_kill} of {TOKENS} events; other pods went on {went_on} times"
            );
            kills += u32::from(went_on > 0);
            if kills < KILLS {
                both_answer(&namespace, &model, &gateway).await?;
            }
        }
        Ok(())
    })
    .await
}

/// How often another pod went on with a request's stream, by the gateways' logs. When one did, the request is one request all the same:
/// it has one last line, which says so.
async fn went_on(id: &str) -> Result<usize> {
    let said = async |message: &str| -> Result<Vec<Value>> {
        let lines = log_lines(id).await?;
        let lines: Vec<Value> = lines.iter().filter_map(|line| serde_json::from_str(line).ok()).collect();
        Ok(lines.into_iter().filter(|line| line["message"] == message).collect())
    };
    let times = said("another pod goes on with the stream").await?.len();
    if times > 0 {
        eventually(DECIDED, async || {
            let ends = said("request").await?;
            let [end] = &ends[..] else { anyhow::bail!("{} last lines: {ends:?}", ends.len()) };
            ensure!(end["outcome"] == "Ok" && end["failovers"] == times && end["backend"] == PAIR, "{end}");
            Ok(())
        })
        .await?;
    }
    Ok(times)
}

/// A stream that is read as it comes.
struct Stream {
    endpoint: String,
    seen: Arc<AtomicU32>,
    reader: tokio::task::JoinHandle<Result<String>>,
}

/// What a stream said.
struct Said {
    text: String,
    usage: Value,
}

impl Stream {
    async fn begin(gateway: &Gateway, model: &str, id: &str) -> Result<Self> {
        let mut body = chat(model, TOKENS);
        body["ignore_eos"] = json!(true);
        body["stream"] = json!(true);
        body["stream_options"] = json!({"include_usage": true});
        let url = format!("{}/v1/chat/completions", gateway.url);
        let answer = gateway.http.post(url).header("x-request-id", id).json(&body).send().await?;
        ensure!(answer.status() == StatusCode::OK, "{}", answer.status());
        let endpoint =
            answer.headers().get("x-fairlead-endpoint").context("no endpoint")?.to_str()?.to_owned();
        let seen = Arc::new(AtomicU32::new(0));
        let reader = tokio::spawn(read(answer, Arc::clone(&seen)));
        Ok(Self { endpoint, seen, reader })
    }

    async fn await_events(&self, wanted: u32) -> Result<()> {
        eventually(SERVED, async || {
            let seen = self.seen.load(Ordering::Relaxed);
            ensure!(seen >= wanted, "{seen} of {wanted} events have come");
            Ok(())
        })
        .await
    }

    /// What it said, to its end: one answer by its id, one usage, one `[DONE]`.
    async fn end(self) -> Result<Said> {
        let text = self.reader.await??;
        let mut events: Vec<&str> =
            text.split("\n\n").filter_map(|event| event.trim().strip_prefix("data: ")).collect();
        ensure!(events.pop() == Some("[DONE]"), "the stream was cut: {:?}", events.last());
        let events: Vec<Value> = events.into_iter().map(serde_json::from_str).collect::<Result<_, _>>()?;
        let first = events.first().context("no event")?;
        ensure!(events.iter().all(|event| event["id"] == first["id"]), "not one answer");
        let usages: Vec<&Value> =
            events.iter().map(|event| &event["usage"]).filter(|usage| !usage.is_null()).collect();
        let [usage] = usages[..] else { anyhow::bail!("{} usages", usages.len()) };
        let mut usage = usage.clone();
        // What was in the pod's cache is another matter.
        usage["prompt_tokens_details"] = Value::Null;
        let said =
            events.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str()).collect();
        Ok(Said { text: said, usage })
    }
}

/// Reads a stream to its end, counting its events as they come.
async fn read(answer: reqwest::Response, seen: Arc<AtomicU32>) -> Result<String> {
    let (mut stream, mut text) = (answer.bytes_stream(), Vec::new());
    while let Some(piece) = stream.next().await {
        let piece = piece?;
        let events = piece.windows(6).filter(|window| *window == b"data: ").count();
        seen.fetch_add(u32::try_from(events)?, Ordering::Relaxed);
        text.extend_from_slice(&piece);
    }
    String::from_utf8(text).context("the stream is not text")
}
