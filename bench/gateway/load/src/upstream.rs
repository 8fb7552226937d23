//! A mock inference server: canned answers, as fast as one thread gives them, streams at the pace that the request asks for.
//!
//! `mock:CHUNKS:INTERVAL_MS` anywhere near the beginning or the end of a request's body says how many tokens are streamed and
//! how long the server waits before each; without it there are 16 at once. The answer to a request that is not streamed is the
//! same for all.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Request, Response};
use http_body::Frame;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

type Body = BoxBody<Bytes, Infallible>;

const ANSWER: &str = r#"{"id":"chatcmpl-1","object":"chat.completion","created":1760000000,"model":"mock","choices":[{"index":0,"message":{"role":"assistant","content":"The quick brown fox jumps over the lazy dog, and the dog does not mind."},"logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":9,"completion_tokens":16,"total_tokens":25}}"#;
const TOKEN: &str = "data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1760000000,\"model\":\"mock\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" word\"},\"logprobs\":null,\"finish_reason\":null}]}\n\n";
const LAST: &str = "data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1760000000,\"model\":\"mock\",\"choices\":[{\"index\":0,\"delta\":{},\"logprobs\":null,\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n";
/// What gateways ask before they send anything: health, lists of models, facts about the server.
const FACTS: &str = r#"{"status":"ok","object":"list","data":[{"id":"mock","object":"model","created":0,"owned_by":"mock"}],"model_path":"mock","served_model_name":"mock","is_generation":true}"#;
/// As much of a body's beginning and end is looked at.
const LOOKED_AT: usize = 1024;

/// Serves until killed.
pub fn serve(listen: &[SocketAddr]) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut listeners = JoinSet::new();
        for address in listen {
            let listener = TcpListener::bind(address)
                .await
                .with_context(|| format!("{address} cannot be listened on"))?;
            listeners.spawn(accept(listener));
        }
        println!("listening");
        while let Some(ended) = listeners.join_next().await {
            ended??;
        }
        Ok(())
    })
}

async fn accept(listener: TcpListener) -> anyhow::Result<()> {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        connections.spawn(connection(stream));
        while connections.try_join_next().is_some() {}
    }
}

async fn connection(stream: TcpStream) {
    let served = http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(answer)).await;
    // Clients come and go as they please.
    drop(served);
}

async fn answer(request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    if !request.uri().path().ends_with("/completions") {
        return Ok(whole(FACTS));
    }
    let (_, mut body) = request.into_parts();
    let (mut first, mut last) = (Vec::new(), Vec::new());
    while let Some(Ok(frame)) = body.frame().await {
        let Ok(data) = frame.into_data() else { continue };
        first.extend(data.iter().take(LOOKED_AT.saturating_sub(first.len())));
        last.extend_from_slice(&data[data.len().saturating_sub(LOOKED_AT)..]);
        let surplus = last.len().saturating_sub(LOOKED_AT);
        last.drain(..surplus);
    }
    let text = format!("{} {}", String::from_utf8_lossy(&first), String::from_utf8_lossy(&last));
    let wants_stream = text.split("\"stream\"").skip(1).any(|rest| {
        rest.trim_start().strip_prefix(':').is_some_and(|value| value.trim_start().starts_with("true"))
    });
    Ok(if wants_stream { stream(&text) } else { whole(ANSWER) })
}

fn whole(text: &'static str) -> Response<Body> {
    typed(Full::new(Bytes::from_static(text.as_bytes())).boxed(), "application/json")
}

fn stream(request: &str) -> Response<Body> {
    let asked = request.split("mock:").nth(1).unwrap_or_default();
    let mut numbers = asked.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse::<u64>().ok());
    let tokens = numbers.next().flatten().unwrap_or(16);
    let interval = Duration::from_millis(numbers.next().flatten().unwrap_or(0));
    let start = Instant::now();
    let events = futures::stream::unfold(0, move |sent| async move {
        let text = match sent {
            _ if sent < tokens => TOKEN,
            _ if sent == tokens => LAST,
            _ => return None,
        };
        if !interval.is_zero() && sent > 0 && sent < tokens {
            // By the clock and not by the sleep before, so that lateness does not add up.
            sleep_until(start + interval.saturating_mul(u32::try_from(sent).unwrap_or(u32::MAX))).await;
        }
        Some((Ok(Frame::data(Bytes::from_static(text.as_bytes()))), sent + 1))
    });
    typed(BodyExt::boxed(StreamBody::new(events)), "text/event-stream; charset=utf-8")
}

fn typed(body: Body, content_type: &'static str) -> Response<Body> {
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
