//! One attempt at one pod: send the request, wait for the answer as far as it can still be asked for elsewhere.
//!
//! Owns the connection pool and the timeouts towards pods. An answer that is not streamed is held until it is whole; a
//! stream until its first byte. Everything that fails before that is the caller's to repeat. Called by `forward`.

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::header::CONTENT_TYPE;
use http::response::Parts;
use http::{HeaderMap, Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::time::timeout_at;

use crate::config::ServeConfig;
use crate::held::HeldBudget;
use crate::metrics::RetryReason;

/// Connections to pods.
#[derive(Debug)]
pub struct Upstream {
    client: Client<HttpConnector, Full<Bytes>>,
    first_byte_timeout: Duration,
    idle_timeout: Duration,
    max_held: usize,
    held: HeldBudget,
}

/// What a pod answered.
#[derive(Debug)]
pub enum Answer {
    /// All of it.
    Whole(Parts, Bytes),
    /// The beginning, with more to come.
    Begun {
        /// Status and headers.
        head: Parts,
        /// What is here already.
        first: Bytes,
        /// What is to come.
        rest: Incoming,
        /// Whether it is a stream of server-sent events.
        events: bool,
    },
}

/// Why an attempt failed. In all cases the client has seen nothing of it.
#[derive(Debug)]
pub enum AttemptError {
    /// No connection: the pod has not seen the request.
    Connect(String),
    /// The connection broke before the answer was whole, or before a stream's first byte.
    Reset(String),
    /// The pod answered 503 or 429: it is starting, draining or full.
    Busy(Parts, Bytes),
    /// No byte in time.
    Timeout(String),
}

impl AttemptError {
    /// Why to try elsewhere; `None` when that would only add to the load.
    pub fn retry_reason(&self) -> Option<RetryReason> {
        match self {
            Self::Connect(_) => Some(RetryReason::Connect),
            Self::Reset(_) => Some(RetryReason::Reset),
            Self::Busy(..) => Some(RetryReason::Busy),
            Self::Timeout(_) => None,
        }
    }
}

impl Upstream {
    /// A pool with the configured timeouts; answers that are held count against `held`.
    pub fn new(config: &ServeConfig, held: HeldBudget) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(config.connect_timeout));
        // A node that vanishes sends no reset; probes find out within about 30 s.
        connector.set_keepalive(Some(Duration::from_secs(15)));
        connector.set_keepalive_interval(Some(Duration::from_secs(5)));
        connector.set_keepalive_retries(Some(3));
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(60))
            .build(connector);
        Self {
            client,
            first_byte_timeout: config.first_byte_timeout,
            idle_timeout: config.idle_timeout,
            max_held: config.max_held_response_bytes,
            held,
        }
    }

    /// How long a pod may be silent in the middle of an answer.
    pub fn idle_timeout(&self) -> Duration {
        self.idle_timeout
    }

    /// Sends a request to a pod.
    ///
    /// # Errors
    /// When nothing of an answer may be passed on; see [`AttemptError`].
    pub async fn ask(
        &self,
        uri: Uri,
        headers: HeaderMap,
        body: Bytes,
        stream: bool,
    ) -> Result<Answer, AttemptError> {
        let deadline = tokio::time::Instant::now() + self.first_byte_timeout;
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = uri;
        *request.headers_mut() = headers;
        let response = match timeout_at(deadline, self.client.request(request)).await {
            Err(_) => return Err(self.first_byte_late()),
            Ok(Err(error)) if error.is_connect() => return Err(AttemptError::Connect(chain(&error))),
            Ok(Err(error)) => return Err(AttemptError::Reset(chain(&error))),
            Ok(Ok(response)) => response,
        };
        let (head, body) = response.into_parts();
        if matches!(head.status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS) {
            let body = short(body, deadline).await;
            return Err(AttemptError::Busy(head, body));
        }
        let events = stream && is_event_stream(&head);
        if events {
            self.begin_stream(head, body, deadline).await
        } else {
            self.hold(head, body, deadline).await
        }
    }

    async fn begin_stream(
        &self,
        head: Parts,
        mut rest: Incoming,
        deadline: tokio::time::Instant,
    ) -> Result<Answer, AttemptError> {
        loop {
            match timeout_at(deadline, rest.frame()).await {
                Err(_) => return Err(self.first_byte_late()),
                Ok(None) => return Err(AttemptError::Reset("the stream ended before it began".to_owned())),
                Ok(Some(Err(error))) => return Err(AttemptError::Reset(chain(&error))),
                Ok(Some(Ok(frame))) => match frame.into_data() {
                    Ok(first) if !first.is_empty() => {
                        return Ok(Answer::Begun { head, first, rest, events: true });
                    }
                    _ => {}
                },
            }
        }
    }

    async fn hold(
        &self,
        head: Parts,
        mut body: Incoming,
        mut deadline: tokio::time::Instant,
    ) -> Result<Answer, AttemptError> {
        let mut held = self.held.body(1);
        loop {
            match timeout_at(deadline, body.frame()).await {
                Err(_) if held.is_empty() => return Err(self.first_byte_late()),
                Err(_) => {
                    return Err(AttemptError::Reset(
                        "the pod fell silent in the middle of its answer".to_owned(),
                    ));
                }
                Ok(None) => return Ok(Answer::Whole(head, held.freeze())),
                Ok(Some(Err(error))) => return Err(AttemptError::Reset(chain(&error))),
                Ok(Some(Ok(frame))) => {
                    deadline = tokio::time::Instant::now() + self.idle_timeout;
                    let Ok(data) = frame.into_data() else { continue };
                    let fits = held.len() + data.len() <= self.max_held && held.push(&data);
                    if !fits {
                        // Passed through from here on; what is here goes first.
                        let first = Bytes::from([held.freeze(), data].concat());
                        return Ok(Answer::Begun { head, first, rest: body, events: false });
                    }
                }
            }
        }
    }

    fn first_byte_late(&self) -> AttemptError {
        let seconds = self.first_byte_timeout.as_secs_f32();
        AttemptError::Timeout(format!("the inference pod sent nothing for {seconds} seconds"))
    }
}

fn is_event_stream(head: &Parts) -> bool {
    let content_type = head.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    content_type.is_some_and(|value| value.trim_start().to_ascii_lowercase().starts_with("text/event-stream"))
}

/// The body of an error answer, as far as it is short and quick; it is passed on when no other pod can be asked.
async fn short(mut body: Incoming, deadline: tokio::time::Instant) -> Bytes {
    const LONGEST: usize = 64 * 1024;
    let deadline = deadline.min(tokio::time::Instant::from_std(Instant::now() + Duration::from_secs(1)));
    let mut read = BytesMut::new();
    while let Ok(Some(Ok(frame))) = timeout_at(deadline, body.frame()).await {
        if let Ok(data) = frame.into_data() {
            read.extend_from_slice(&data);
        }
        if read.len() > LONGEST {
            return Bytes::new();
        }
    }
    read.freeze()
}

/// An error and its causes in one line: hyper's own words alone say little.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
