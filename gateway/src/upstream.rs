//! One attempt at one pod: send the request, wait for the answer as far as it can still be asked for elsewhere.
//!
//! Says how long a pod may take; connections are `pool`'s, which watches the time until the head is here. An answer that is not
//! streamed is held until it is whole; a stream until its first byte. Everything that fails before that is the caller's to repeat.
//! Called by `forward`.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use fairlead_crds::model_route::resilience::RetryOn;
use fairlead_openai::ApiError;
use http::header::CONTENT_TYPE;
use http::response::Parts;
use http::{HeaderMap, Method, Request, StatusCode, Uri};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::connect::HttpConnector;
use tokio::time::timeout_at;

use crate::config::ServeConfig;
use crate::held::HeldBudget;
use crate::pool::{BodyError, CallError, PodBody, Pool};
use crate::provider::errors;
use crate::provider::target::Target;
use crate::within::within;

/// Connections to pods.
#[derive(Debug)]
pub struct Upstream {
    pool: Pool,
    first_byte_timeout: Duration,
    idle_timeout: Duration,
    max_held: usize,
    held: HeldBudget,
}

/// Status and headers of an answer. In a box, as all that is large of it: answers are handed on from function to function.
pub type Head = Box<Parts>;

/// What a pod answered.
#[derive(Debug)]
pub enum Answer {
    /// All of it.
    Whole(Head, Bytes),
    /// The beginning, with more to come.
    Begun {
        /// Status and headers.
        head: Head,
        /// What is here already.
        first: Bytes,
        /// What is to come.
        rest: AnswerBody,
        /// Whether it is a stream of server-sent events.
        events: bool,
    },
}

/// An answer's body as it comes.
#[derive(Debug)]
pub enum AnswerBody {
    /// From a pod.
    Pod(PodBody),
    /// From a provider.
    Provider(Incoming),
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Pod(body) => Pin::new(body).poll_frame(cx),
            Self::Provider(body) => Pin::new(body).poll_frame(cx).map_err(BodyError::from),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Pod(body) => body.is_end_stream(),
            Self::Provider(body) => body.is_end_stream(),
        }
    }
}

/// What to ask, and whom.
pub struct Call<'a> {
    /// Where.
    pub uri: Uri,
    /// The request's headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
    /// Whether a stream of events is asked for.
    pub stream: bool,
    /// When it is asked.
    pub begun: Instant,
    /// Until when the first byte must be there.
    pub first_byte: Instant,
    /// How long it may be silent in the middle of an answer, where that is not as the flag says.
    pub idle: Option<Duration>,
    /// The provider, where it is one: by https, with certificates that are checked.
    pub provider: Option<&'a Target>,
}

/// Why an attempt failed. In all cases the client has seen nothing of it.
#[derive(Debug, thiserror::Error)]
pub enum AttemptError {
    /// No connection: the pod has not seen the request.
    #[error("{0}")]
    Connect(String),
    /// No connection, because the other side's certificate is not accepted: why, in words for clients.
    #[error("{detail}")]
    Untrusted {
        /// For clients.
        why: &'static str,
        /// For logs.
        detail: String,
    },
    /// The connection broke before the answer was whole, or before a stream's first byte.
    #[error("{0}")]
    Reset(String),
    /// The pod answered 503 or 429: it is starting, draining or full.
    #[error("{}", .0.status)]
    Busy(Head, Bytes),
    /// The pod answered another 5xx, and the route wants others to be asked then.
    #[error("{}", .0.status)]
    Server(Head, Bytes),
    /// No byte in time.
    #[error("{0}")]
    Timeout(String),
    /// A provider could not answer.
    #[error("{0}")]
    Provider(Box<ApiError>),
    /// The request itself is wrong, for whom it would have gone to.
    #[error("{0}")]
    Refused(Box<ApiError>),
}

impl AttemptError {
    /// As what it may be tried elsewhere; `None` when it would fail there as well.
    pub fn retry_on(&self) -> Option<RetryOn> {
        match self {
            Self::Connect(_) | Self::Untrusted { .. } => Some(RetryOn::Connect),
            Self::Reset(_) => Some(RetryOn::Reset),
            Self::Busy(..) => Some(RetryOn::Busy),
            Self::Server(head, _) if head.status == StatusCode::NOT_IMPLEMENTED => None,
            Self::Server(..) => Some(RetryOn::ServerError),
            Self::Timeout(_) => Some(RetryOn::Timeout),
            Self::Provider(error) => match (error.status, error.code.as_deref()) {
                (429 | 503, _) => Some(RetryOn::Busy),
                (_, Some("provider_failed")) => Some(RetryOn::ServerError),
                _ => None,
            },
            Self::Refused(_) => None,
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
        Self {
            pool: Pool::new(connector),
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

    /// How long a pod may take to begin, where nothing else is said.
    pub fn first_byte_timeout(&self) -> Duration {
        self.first_byte_timeout
    }

    /// Sends a request to a pod or a provider.
    ///
    /// # Errors
    /// When nothing of an answer may be passed on; see [`AttemptError`].
    pub fn ask<'a>(
        &'a self,
        call: Call<'a>,
    ) -> impl Future<Output = Result<Answer, AttemptError>> + Send + 'a {
        let Call { uri, headers, body, stream, begun, first_byte, idle, provider } = call;
        let times = Times { begun, first_byte, idle: idle.unwrap_or(self.idle_timeout) };
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = uri;
        *request.headers_mut() = headers;
        let mut request = Some(request);
        async move {
            let deadline = first_byte.into();
            let answered = match provider {
                // In a box, as all that is seldom needed: what waits for a pod is kept small.
                Some(target) => Box::pin(timeout_at(deadline, of_provider(target, &mut request))).await,
                None => Ok(self.of_pod(&mut request, times).await),
            };
            let (head, body) = match answered {
                Ok(answered) => answered?,
                Err(_) => return Err(times.late()),
            };
            // A provider's words are read before they are passed on.
            if provider.is_none()
                && matches!(head.status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS)
            {
                let body = Box::pin(short(body, deadline)).await;
                return Err(AttemptError::Busy(head, body));
            }
            let events = stream && is_event_stream(&head);
            if events { begin_stream(head, body, times).await } else { self.hold(head, body, times).await }
        }
    }

    async fn of_pod(
        &self,
        request: &mut Option<Request<Full<Bytes>>>,
        times: Times,
    ) -> Result<(Head, AnswerBody), AttemptError> {
        match self.pool.call(request, (times.begun, times.first_byte)).await {
            Err(CallError::Late) => Err(times.late()),
            Ok(response) => {
                let (head, body) = response.into_parts();
                Ok((Box::new(head), AnswerBody::Pod(body)))
            }
            Err(error @ CallError::Connect(_)) => Err(AttemptError::Connect(chain(&error))),
            Err(error) => Err(AttemptError::Reset(chain(&error))),
        }
    }

    async fn hold(&self, head: Head, mut body: AnswerBody, times: Times) -> Result<Answer, AttemptError> {
        let mut deadline = tokio::time::Instant::from(times.first_byte);
        let mut held = self.held.body(1);
        loop {
            match within(deadline, body.frame()).await {
                Err(_) if held.is_empty() => return Err(times.late()),
                Err(_) => {
                    return Err(AttemptError::Reset(
                        "the pod fell silent in the middle of its answer".to_owned(),
                    ));
                }
                Ok(None) => return Ok(Answer::Whole(head, held.freeze())),
                Ok(Some(Err(error))) => return Err(AttemptError::Reset(chain(&error))),
                Ok(Some(Ok(frame))) => {
                    let data = frame.into_data().unwrap_or_default();
                    let fits = held.len() + data.len() <= self.max_held && held.push(&data);
                    if !fits {
                        // Passed through from here on; what is here goes first.
                        let first = Bytes::from([held.freeze(), data].concat());
                        return Ok(Answer::Begun { head, first, rest: body, events: false });
                    }
                    if body.is_end_stream() {
                        return Ok(Answer::Whole(head, held.freeze()));
                    }
                    deadline = tokio::time::Instant::now() + times.idle;
                }
            }
        }
    }
}

/// How long an attempt may take.
#[derive(Clone, Copy)]
struct Times {
    begun: Instant,
    first_byte: Instant,
    idle: Duration,
}

impl Times {
    fn late(self) -> AttemptError {
        let tenths = (self.first_byte.saturating_duration_since(self.begun).as_millis() + 50) / 100;
        let seconds = format!("{}.{}", tenths / 10, tenths % 10);
        AttemptError::Timeout(format!("the inference pod sent nothing for {seconds} seconds"))
    }
}

async fn of_provider(
    target: &Target,
    request: &mut Option<Request<Full<Bytes>>>,
) -> Result<(Head, AnswerBody), AttemptError> {
    let Some(request) = request.take() else {
        return Err(AttemptError::Reset("the request was sent already".to_owned()));
    };
    match target.request(request).await {
        Ok(response) => {
            let (head, body) = response.into_parts();
            Ok((Box::new(head), AnswerBody::Provider(body)))
        }
        Err(error) if error.is_connect() => Err(not_connected(&error)),
        Err(error) => Err(AttemptError::Reset(chain(&error))),
    }
}

async fn begin_stream(head: Head, mut rest: AnswerBody, times: Times) -> Result<Answer, AttemptError> {
    loop {
        match within(times.first_byte.into(), rest.frame()).await {
            Err(_) => return Err(times.late()),
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

fn is_event_stream(head: &Parts) -> bool {
    let content_type = head.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    content_type.is_some_and(|value| value.trim_start().to_ascii_lowercase().starts_with("text/event-stream"))
}

/// The body of an error answer, as far as it is short and quick; it is passed on when no other pod can be asked.
async fn short(mut body: AnswerBody, deadline: tokio::time::Instant) -> Bytes {
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

/// Why there is no connection.
fn not_connected(error: &(dyn std::error::Error + 'static)) -> AttemptError {
    match errors::untrusted(error) {
        Some(why) => AttemptError::Untrusted { why, detail: chain(error) },
        None => AttemptError::Connect(chain(error)),
    }
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
