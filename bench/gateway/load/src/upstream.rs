//! A mock inference server: canned answers, as fast as one thread gives them, streams at the pace that the request asks for.
//!
//! It shares a core with the clients, so it must take much less than a gateway does: it reads of HTTP no more than a request's
//! length, and answers with bytes that were made at the start. `mock:TOKENS:INTERVAL_MS` anywhere near the beginning or the end of
//! a body says how many tokens are streamed and how long the server waits before each; without it there are 16 at once.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

const ANSWER: &str = r#"{"id":"chatcmpl-1","object":"chat.completion","created":1760000000,"model":"mock","choices":[{"index":0,"message":{"role":"assistant","content":"The quick brown fox jumps over the lazy dog, and the dog does not mind."},"logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":9,"completion_tokens":16,"total_tokens":25}}"#;
const TOKEN: &str = "data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1760000000,\"model\":\"mock\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" word\"},\"logprobs\":null,\"finish_reason\":null}]}\n\n";
const LAST: &str = "data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1760000000,\"model\":\"mock\",\"choices\":[{\"index\":0,\"delta\":{},\"logprobs\":null,\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n";
/// What gateways ask before they send anything: health, lists of models, facts about the server.
const FACTS: &str = r#"{"status":"ok","object":"list","data":[{"id":"mock","object":"model","created":0,"owned_by":"mock"}],"model_path":"mock","served_model_name":"mock","is_generation":true}"#;
/// As much of a body's beginning and end is looked at.
const LOOKED_AT: usize = 1024;

/// What is sent, as bytes.
struct Canned {
    answer: Vec<u8>,
    facts: Vec<u8>,
    stream_head: Vec<u8>,
    token: Vec<u8>,
    last: Vec<u8>,
}

impl Canned {
    fn new() -> Self {
        let whole = |text: &str| {
            format!(
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{text}",
                text.len()
            )
        };
        let chunk = |text: &str| format!("{:x}\r\n{text}\r\n", text.len());
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n";
        Self {
            answer: whole(ANSWER).into(),
            facts: whole(FACTS).into(),
            stream_head: head.into(),
            token: chunk(TOKEN).into(),
            last: (chunk(LAST) + "0\r\n\r\n").into(),
        }
    }
}

/// Serves until killed.
pub fn serve(listen: &[SocketAddr]) -> anyhow::Result<()> {
    let canned = Arc::new(Canned::new());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut listeners = JoinSet::new();
        for address in listen {
            let listener = TcpListener::bind(address)
                .await
                .with_context(|| format!("{address} cannot be listened on"))?;
            listeners.spawn(accept(listener, Arc::clone(&canned)));
        }
        println!("listening");
        while let Some(ended) = listeners.join_next().await {
            ended??;
        }
        Ok(())
    })
}

async fn accept(listener: TcpListener, canned: Arc<Canned>) -> anyhow::Result<()> {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let canned = Arc::clone(&canned);
        // How a connection ends is its client's business.
        connections.spawn(async move { drop(connection(stream, &canned).await) });
        while connections.try_join_next().is_some() {}
    }
}

async fn connection(mut stream: TcpStream, canned: &Canned) -> anyhow::Result<()> {
    let mut held: Vec<u8> = Vec::with_capacity(16 * 1024);
    loop {
        let end = loop {
            if let Some(end) = held.windows(4).position(|window| window == b"\r\n\r\n") {
                break end + 4;
            }
            if stream.read_buf(&mut held).await? == 0 {
                return Ok(());
            }
        };
        let head = String::from_utf8_lossy(&held[..end]).to_ascii_lowercase();
        held.drain(..end);
        let mut left = length(&head)?;
        let (mut first, mut last) = (Vec::new(), Vec::new());
        while left > 0 {
            if held.is_empty() && stream.read_buf(&mut held).await? == 0 {
                return Ok(());
            }
            let piece = &held[..held.len().min(left)];
            first.extend(piece.iter().take(LOOKED_AT.saturating_sub(first.len())));
            last.extend_from_slice(&piece[piece.len().saturating_sub(LOOKED_AT)..]);
            last.drain(..last.len().saturating_sub(LOOKED_AT));
            let taken = piece.len();
            left -= taken;
            held.drain(..taken);
        }
        let completion = head.lines().next().is_some_and(|line| line.contains("/completions"));
        let text = [String::from_utf8_lossy(&first), String::from_utf8_lossy(&last)].join(" ");
        if !completion {
            stream.write_all(&canned.facts).await?;
        } else if wants_stream(&text) {
            answer_stream(&mut stream, canned, &text).await?;
        } else {
            stream.write_all(&canned.answer).await?;
        }
    }
}

fn length(head: &str) -> anyhow::Result<usize> {
    let mut length = 0;
    for (name, value) in head.lines().filter_map(|line| line.split_once(':')) {
        match name {
            "content-length" => length = value.trim().parse()?,
            "transfer-encoding" => bail!("bodies must come with their length"),
            _ => {}
        }
    }
    Ok(length)
}

fn wants_stream(text: &str) -> bool {
    text.split("\"stream\"").skip(1).any(|rest| {
        rest.trim_start().strip_prefix(':').is_some_and(|value| value.trim_start().starts_with("true"))
    })
}

async fn answer_stream(stream: &mut TcpStream, canned: &Canned, request: &str) -> anyhow::Result<()> {
    let asked = request.split("mock:").nth(1).unwrap_or_default();
    let mut numbers = asked.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse::<u32>().ok());
    let tokens = numbers.next().flatten().unwrap_or(16);
    let interval = Duration::from_millis(numbers.next().flatten().unwrap_or(0).into());
    let start = Instant::now();
    stream.write_all(&canned.stream_head).await?;
    for token in 0..tokens {
        if !interval.is_zero() && token > 0 {
            // By the clock and not by the sleep before, so that lateness does not add up. A client that goes away is noticed.
            tokio::select! {
                () = sleep_until(start + interval * token) => {}
                gone = stream.read_u8() => bail!("the client is gone, or speaks before its turn: {gone:?}"),
            }
        }
        stream.write_all(&canned.token).await?;
    }
    stream.write_all(&canned.last).await?;
    Ok(())
}
