//! A stand-in for an inference pod: every request is handed to the test, which decides what happens to it.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

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
        Self::serve(None).await
    }

    /// One that is reached by https.
    pub async fn start_tls(tls: Arc<rustls::ServerConfig>) -> Self {
        Self::serve(Some(tokio_rustls::TlsAcceptor::from(tls))).await
    }

    async fn serve(tls: Option<tokio_rustls::TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (sender, calls) = mpsc::channel(1024);
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.expect("accepted");
                let (sender, tls) = (sender.clone(), tls.clone());
                connections.spawn(async move {
                    let service = service_fn(move |request| answer(request, sender.clone()));
                    let http = hyper::server::conn::http1::Builder::new();
                    match tls {
                        None => {
                            let _ = http.serve_connection(TokioIo::new(stream), service).await;
                        }
                        Some(tls) => {
                            // A client that trusts nobody here leaves during the handshake.
                            let Ok(stream) = tls.accept(stream).await else { return };
                            let _ = http.serve_connection(TokioIo::new(stream), service).await;
                        }
                    }
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

    /// Whether a request has come that nobody has looked at.
    pub fn is_idle(&mut self) -> bool {
        self.calls.try_recv().is_err()
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
        self.json_with(status, &[], body);
    }

    /// The same with further headers.
    pub fn json_with(self, status: u16, headers: &[(&str, &str)], body: Value) {
        let body =
            http_body_util::Full::new(Bytes::from(body.to_string())).map_err(|never| match never {}).boxed();
        let head = Response::builder().status(status).header("content-type", "application/json");
        let head = headers.iter().fold(head, |head, (name, value)| head.header(*name, *value));
        let _ = self.reply.send(head.body(body).expect("valid"));
    }

    /// The head of an answer whose body follows.
    pub fn begin(self, content_type: &str) -> Sending {
        self.begin_with(&[("content-type", content_type)])
    }

    /// The same with these headers.
    pub fn begin_with(self, headers: &[(&str, &str)]) -> Sending {
        let (sender, receiver) = mpsc::channel::<Result<Bytes, std::io::Error>>(1);
        let frames = futures::stream::unfold(receiver, |mut receiver| async move {
            let frame = receiver.recv().await?;
            Some((frame.map(Frame::data), receiver))
        });
        let body = BodyExt::boxed(StreamBody::new(frames));
        let response =
            headers.iter().fold(Response::builder(), |head, (name, value)| head.header(*name, *value));
        let _ = self.reply.send(response.body(body).expect("valid"));
        Sending(sender)
    }

    /// The head of a stream of events with a pod's notes, of this revision.
    pub fn noted_stream(self, revision: &str) -> Sending {
        assert_eq!(self.header("x-fairlead-resumable"), "true");
        self.begin_with(&[
            ("content-type", "text/event-stream; charset=utf-8"),
            ("x-fairlead-resumable", "true"),
            ("x-fairlead-revision", revision),
        ])
    }

    /// A header of the request; empty where it is absent.
    pub fn header(&self, name: &str) -> &str {
        self.head.headers.get(name).map_or("", |value| value.to_str().expect("text"))
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
