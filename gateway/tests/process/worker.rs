//! A stand-in for an inference pod: every request is handed to the test, which decides what happens to it.

use std::convert::Infallible;
use std::net::SocketAddr;

use bytes::Bytes;
use http::request::Parts;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, JoinSet};

use crate::harness::within;

type Body = BoxBody<Bytes, std::io::Error>;

/// A stand-in for an inference pod.
pub struct Worker {
    pub address: SocketAddr,
    calls: mpsc::Receiver<Call>,
    task: JoinHandle<()>,
}

/// A request that a worker has received.
pub struct Call {
    pub head: Parts,
    pub body: Value,
    reply: oneshot::Sender<Response<Body>>,
}

/// The body of an answer, as the test sends it.
pub struct Sending(mpsc::Sender<Result<Bytes, std::io::Error>>);

impl Worker {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (sender, calls) = mpsc::channel(1024);
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.expect("accepted");
                let sender = sender.clone();
                connections.spawn(async move {
                    let service = service_fn(move |request| answer(request, sender.clone()));
                    let io = TokioIo::new(stream);
                    let _ = hyper::server::conn::http1::Builder::new().serve_connection(io, service).await;
                });
            }
        });
        Self { address, calls, task }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The next request.
    pub async fn call(&mut self) -> Call {
        within("a request at the worker", self.calls.recv()).await.expect("a request")
    }

    /// Answers everything from now on with its name, and counts.
    pub fn answer_all(mut self, name: &'static str) -> Answering {
        let address = self.address;
        let (count_sender, count) = tokio::sync::watch::channel(0);
        let task = tokio::spawn(async move {
            while let Some(call) = self.calls.recv().await {
                count_sender.send_modify(|count| *count += 1);
                call.json(200, json!({"from": name}));
            }
        });
        Answering { address, count, task }
    }

    /// Dies as a killed pod does: its connections break and nobody listens any more.
    pub async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

/// A worker that answers everything.
pub struct Answering {
    pub address: SocketAddr,
    pub count: tokio::sync::watch::Receiver<u32>,
    task: JoinHandle<()>,
}

impl Answering {
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn count(&self) -> u32 {
        *self.count.borrow()
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(
    request: Request<Incoming>,
    sender: mpsc::Sender<Call>,
) -> Result<Response<Body>, Infallible> {
    let (head, body) = request.into_parts();
    let bytes = body.collect().await.expect("a body").to_bytes();
    let body = serde_json::from_slice(&bytes).expect("JSON");
    let (reply, answer) = oneshot::channel();
    sender.send(Call { head, body, reply }).await.expect("the test goes on");
    // The test has dropped the call: no answer ever.
    Ok(match answer.await {
        Ok(response) => response,
        Err(_) => std::future::pending().await,
    })
}

impl Call {
    /// A whole answer.
    pub fn json(self, status: u16, body: Value) {
        let body =
            http_body_util::Full::new(Bytes::from(body.to_string())).map_err(|never| match never {}).boxed();
        let response = Response::builder()
            .status(status)
            .header("content-type", "application/json")
            .body(body)
            .expect("valid");
        let _ = self.reply.send(response);
    }

    /// The head of an answer whose body follows.
    pub fn begin(self, content_type: &str) -> Sending {
        let (sender, receiver) = mpsc::channel::<Result<Bytes, std::io::Error>>(1);
        let frames = futures::stream::unfold(receiver, |mut receiver| async move {
            let frame = receiver.recv().await?;
            Some((frame.map(Frame::data), receiver))
        });
        let body = BodyExt::boxed(StreamBody::new(frames));
        let response = Response::builder().header("content-type", content_type).body(body).expect("valid");
        let _ = self.reply.send(response);
        Sending(sender)
    }

    /// The head of a stream of events.
    pub fn stream(self) -> Sending {
        self.begin("text/event-stream; charset=utf-8")
    }

    /// Waits until nobody waits for the answer any more.
    pub async fn abandoned(mut self) {
        within("the gateway abandons the request", self.reply.closed()).await;
    }
}

impl Sending {
    pub async fn send(&self, data: impl Into<Bytes>) {
        within("the gateway takes bytes", self.0.send(Ok(data.into())))
            .await
            .expect("the gateway still listens");
    }

    /// Breaks the connection in the middle of the answer.
    pub async fn die(self) {
        let _ = self.0.send(Err(std::io::Error::other("killed"))).await;
    }

    /// Waits until the gateway has closed the connection.
    pub async fn abandoned(self) {
        within("the gateway abandons the stream", self.0.closed()).await;
    }
}

/// An address where nobody listens.
pub async fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    format!("http://{}", listener.local_addr().expect("an address"))
}
