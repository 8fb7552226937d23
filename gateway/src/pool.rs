//! Connections to pods, kept open from one request to the next.
//!
//! A connection has no task of its own: who waits for an answer drives it, and it rests when the answer is whole. So the pieces of
//! an answer are handed from task to task by nobody, which took more time than all that the gateway itself does with them. Dropping
//! an answer before its end closes the connection, by which the pod learns that nobody listens.
//!
//! Owns the connections that rest. Says no word about retries: a request that a resting connection could not even begin to send goes
//! out on another one, and everything else is the caller's to judge. Called by `upstream`.

use std::collections::HashMap;
use std::fmt;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use foldhash::fast::RandomState;
use http::header::HOST;
use http::uri::{Authority, PathAndQuery};
use http::{HeaderValue, Request, Response, Uri};
use http_body::{Body, Frame};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, Connection, SendRequest};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::unconstrained;
use tokio::time::MissedTickBehavior;
use tower::ServiceExt;

use crate::small_writes::SmallWrites;

/// How long a connection rests before it is closed.
const LONGEST_REST: Duration = Duration::from_secs(60);
/// How often it is looked for those that have rested for long, or that their pods have closed.
const SWEEP: Duration = Duration::from_secs(10);

/// Connections to pods.
#[derive(Clone, Debug)]
pub struct Pool {
    connector: HttpConnector,
    resting: Arc<Resting>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// No connection: nobody has seen the request.
    #[error(transparent)]
    Connect(Box<dyn std::error::Error + Send + Sync>),
    /// The connection broke.
    #[error(transparent)]
    Broken(#[from] hyper::Error),
    /// It ended with no word of why.
    #[error("the connection ended before the answer")]
    Ended,
}

/// Why an answer breaks off.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The connection broke, or what comes is no HTTP.
    #[error(transparent)]
    Broken(#[from] hyper::Error),
    /// It ended with no word of why.
    #[error("the connection ended in the middle of the answer")]
    Ended,
}

impl Pool {
    /// No connections yet; new ones are made by `connector`.
    pub fn new(connector: HttpConnector) -> Self {
        Self { connector, resting: Arc::default() }
    }

    /// Sends a request to where its URI says and waits for the head of the answer.
    ///
    /// # Errors
    /// When there is none.
    pub async fn call(
        &self,
        mut request: Request<Full<Bytes>>,
        now: Instant,
    ) -> Result<Response<PodBody>, CallError> {
        let uri = std::mem::take(request.uri_mut());
        let authority =
            uri.authority().cloned().ok_or_else(|| CallError::Connect("the URI has no host".into()))?;
        let path = uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        *request.uri_mut() = Uri::from(path);
        loop {
            let (mut line, rested) = match self.resting.take(authority.as_str(), now) {
                Some(line) => (line, true),
                None => (self.connect(&uri, &authority).await?, false),
            };
            if let Some(host) = &line.host {
                request.headers_mut().insert(HOST, host.clone());
            }
            match line.ask(request).await {
                Ok(response) => {
                    let resting = Arc::clone(&self.resting);
                    return Ok(response.map(|incoming| PodBody {
                        incoming,
                        line: Some(line),
                        passing: false,
                        authority,
                        resting,
                    }));
                }
                Err(Unanswered { unsent: Some(again), .. }) if rested => request = again,
                Err(Unanswered { error, .. }) => return Err(error),
            }
        }
    }

    async fn connect(&self, uri: &Uri, authority: &Authority) -> Result<Box<Line>, CallError> {
        let connected = self.connector.clone().oneshot(uri.clone()).await;
        let stream = connected.map_err(|error| CallError::Connect(error.into()))?;
        let stream = TokioIo::new(SmallWrites(stream.into_inner()));
        let (sender, connection) = http1::handshake(stream).await?;
        let host = HeaderValue::from_str(host_of(authority)).ok();
        Ok(Box::new(Line { sender, connection: Some(connection), ended: false, host }))
    }
}

/// As a Host header has it: without the port that http has anyway.
fn host_of(authority: &Authority) -> &str {
    if authority.port_u16() == Some(80) { authority.host() } else { authority.as_str() }
}

/// One connection.
struct Line {
    sender: SendRequest<Full<Bytes>>,
    /// `None` once a request was taken back from it.
    connection: Option<Connection<TokioIo<SmallWrites<TcpStream>>, Full<Bytes>>>,
    ended: bool,
    /// Whom it leads to, as requests name it.
    host: Option<HeaderValue>,
}

/// A request without an answer.
struct Unanswered {
    error: CallError,
    /// The request, when nothing of it was sent.
    unsent: Option<Request<Full<Bytes>>>,
}

impl Line {
    /// Lets the connection read and write what it can; ready when it has ended.
    fn drive(&mut self, cx: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        let Some(connection) = self.connection.as_mut().filter(|_| !self.ended) else {
            return Poll::Ready(Ok(()));
        };
        let ended = ready!(Pin::new(connection).poll(cx));
        self.ended = true;
        Poll::Ready(ended)
    }

    /// Whether it can take a request, as far as is known here. Nobody is woken for it from now on.
    fn is_free(&mut self) -> bool {
        // Not as work of the task: one that has done enough for now would see a connection that is not ready.
        let driven = pin!(unconstrained(poll_fn(|cx| self.drive(cx))));
        driven.poll(&mut Context::from_waker(Waker::noop())).is_pending() && self.sender.is_ready()
    }

    /// Sends a request and waits for the head of the answer.
    async fn ask(&mut self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, Unanswered> {
        // The answer comes from the connection and from nowhere else, and it is looked for each time the connection was driven.
        // So nobody need be woken for it, and its channel must not count as work of the task, which would wake it again.
        let mut answer = pin!(unconstrained(self.sender.try_send_request(request)));
        let nobody = Waker::noop();
        let mut is_sent = false;
        poll_fn(|cx| {
            // To take a piece of the body wakes whom the connection was driven for. So what has come is fetched for nobody, and for
            // the task only when it is about to wait.
            let drivers: &[&Waker] = if is_sent { &[nobody, cx.waker()] } else { &[cx.waker()] };
            is_sent = true;
            for driver in drivers {
                let driven = self.drive(&mut Context::from_waker(driver));
                match answer.as_mut().poll(&mut Context::from_waker(nobody)) {
                    Poll::Ready(Ok(response)) => return Poll::Ready(Ok(response)),
                    Poll::Ready(Err(mut failed)) => {
                        let unsent = failed.take_message();
                        return Poll::Ready(Err(Unanswered { error: failed.into_error().into(), unsent }));
                    }
                    Poll::Pending => {}
                }
                let Poll::Ready(ended) = driven else { continue };
                let error = ended.err().map_or(CallError::Ended, CallError::from);
                // One that ended before it looked for requests gives this one back when it goes.
                self.connection = None;
                let unsent = match answer.as_mut().poll(&mut Context::from_waker(nobody)) {
                    Poll::Ready(Err(mut failed)) => failed.take_message(),
                    _ => None,
                };
                return Poll::Ready(Err(Unanswered { error, unsent }));
            }
            Poll::Pending
        })
        .await
    }
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Line").field("ended", &self.ended).finish_non_exhaustive()
    }
}

/// The body of a pod's answer, which drives the connection that it comes on.
#[derive(Debug)]
pub struct PodBody {
    incoming: Incoming,
    /// `None` after the end.
    line: Option<Box<Line>>,
    /// A frame was passed on since nothing more was there.
    passing: bool,
    authority: Authority,
    resting: Arc<Resting>,
}

impl PodBody {
    fn drive(&mut self, cx: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        self.line.as_mut().map_or(Poll::Ready(Ok(())), |line| line.drive(cx))
    }

    /// The connection rests after the last frame. Whether it can take another request shows when there is one.
    fn passed(
        &mut self,
        frame: Option<hyper::Result<Frame<Bytes>>>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.passing = true;
        let is_last = match &frame {
            None => true,
            Some(Ok(_)) => self.incoming.is_end_stream(),
            Some(Err(_)) => false,
        };
        if is_last
            && let Some(line) = self.line.take()
            // One that still sends its request, to a pod that has answered early, holds the request's body.
            && !line.ended
            && line.sender.is_ready()
        {
            self.resting.put(self.authority.as_str(), line, Instant::now());
        }
        Poll::Ready(frame.map(|frame| frame.map_err(BodyError::from)))
    }
}

impl Body for PodBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        // As in `Line::ask`: frames come when the connection is driven.
        let nobody = &mut Context::from_waker(Waker::noop());
        if let Poll::Ready(frame) = Pin::new(&mut this.incoming).poll_frame(nobody) {
            return this.passed(frame);
        }
        // To take a frame wakes whom the connection was driven for. So what has come is fetched for nobody, and for the task only
        // when it is about to wait.
        if !this.passing {
            let _ = this.drive(nobody);
            if let Poll::Ready(frame) = Pin::new(&mut this.incoming).poll_frame(nobody) {
                return this.passed(frame);
            }
        }
        let driven = this.drive(cx);
        if let Poll::Ready(frame) = Pin::new(&mut this.incoming).poll_frame(nobody) {
            return this.passed(frame);
        }
        this.passing = false;
        let error = ready!(driven).err().map_or(BodyError::Ended, BodyError::from);
        this.line = None;
        Poll::Ready(Some(Err(error)))
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }
}

/// A connection that rests, and since when.
type Rested = (Instant, Box<Line>);

type Lines = HashMap<Box<str>, Vec<Rested>, RandomState>;

/// Connections that wait for their next request.
#[derive(Debug, Default)]
struct Resting {
    /// By where they lead, as text; those that came last are last.
    lines: Mutex<Lines>,
    is_swept: AtomicBool,
}

impl Resting {
    /// The one that has rested the shortest and can take a request.
    fn take(&self, authority: &str, now: Instant) -> Option<Box<Line>> {
        loop {
            let (since, mut line) = self.lock().get_mut(authority)?.pop()?;
            if now.saturating_duration_since(since) < LONGEST_REST && line.is_free() {
                return Some(line);
            }
        }
    }

    fn put(self: &Arc<Self>, authority: &str, line: Box<Line>, now: Instant) {
        let mut lines = self.lock();
        match lines.get_mut(authority) {
            Some(known) => known.push((now, line)),
            None => drop(lines.insert(authority.into(), vec![(now, line)])),
        }
        drop(lines);
        if !self.is_swept.swap(true, Ordering::Relaxed) {
            tokio::spawn(sweep(Arc::downgrade(self)));
        }
    }

    /// Closes those that have rested for long or cannot take a request any more; how many.
    ///
    /// To look at one is a system call, and to close one another. So the lock, for which requests wait, is held for neither: the
    /// connections to a host are taken out meanwhile, and requests that come then make new ones.
    fn close_outworn(&self, now: Instant) -> usize {
        let hosts: Vec<Box<str>> = self.lock().keys().cloned().collect();
        let mut closed = 0;
        for host in hosts {
            let Some(rested) = self.lock().get_mut(&host).map(std::mem::take) else { continue };
            let looked_at = rested.len();
            let fit = rested.into_iter().filter_map(|(since, mut line)| {
                (now.saturating_duration_since(since) < LONGEST_REST && line.is_free())
                    .then_some((since, line))
            });
            let fit: Vec<Rested> = fit.collect();
            closed += looked_at - fit.len();
            let mut lines = self.lock();
            let known = lines.entry(host).or_default();
            // Those that came meanwhile are the younger ones.
            drop(known.splice(..0, fit));
            if known.is_empty() {
                lines.retain(|_, known| !known.is_empty());
            }
        }
        closed
    }

    fn lock(&self) -> MutexGuard<'_, Lines> {
        // Nothing panics while it holds the lock.
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Closes connections that nobody needs, until the pool is gone.
async fn sweep(resting: Weak<Resting>) {
    let mut ticks = tokio::time::interval(SWEEP);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(resting) = resting.upgrade() else { return };
        resting.close_outworn(Instant::now());
    }
}

#[cfg(test)]
mod tests;
