//! Connections to pods, kept open from one request to the next.
//!
//! A connection has no task of its own: who waits for an answer drives it, and it rests when the answer is whole. So the pieces of
//! an answer are handed from task to task by nobody, which took more time than all that the gateway itself does with them. Dropping
//! an answer before its end closes the connection, by which the pod learns that nobody listens.
//!
//! Owns the connections that rest, and each one's timer for the head of its answer. Says no word about retries: a request that a
//! resting connection could not even begin to send goes out on another one, and everything else is the caller's to judge. Called by
//! `upstream`.

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
use http::uri::{Authority, Parts, PathAndQuery, Scheme};
use http::{HeaderValue, Request, Response, Uri};
use http_body::{Body, Frame};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use hyper::client::conn::http1::{self, Connection, SendRequest};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use pin_project_lite::pin_project;
use tokio::task::unconstrained;
use tokio::time::{Instant as TokioInstant, MissedTickBehavior, Sleep, sleep_until, timeout_at};
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
    /// There is no answer yet.
    #[error("there is no answer in time")]
    Late,
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

    /// Sends a request to where its URI says and waits for the head of the answer, until `deadline`.
    ///
    /// The request is taken out of where it is kept when it is sent: it is large, and otherwise each function on its way would have
    /// room for it, and copy it there. It is of no use for another call. Connections are plain, whatever the URI's scheme.
    ///
    /// # Errors
    /// When there is none.
    pub async fn call(
        &self,
        kept: &mut Option<Request<Full<Bytes>>>,
        (now, deadline): (Instant, Instant),
    ) -> Result<Response<PodBody>, CallError> {
        let authority = kept.as_mut().and_then(take_authority);
        let authority = authority.ok_or_else(|| CallError::Connect("the URI has no host".into()))?;
        loop {
            let (mut line, rested) = match self.resting.take(authority.as_str(), now) {
                Some(line) => (line, true),
                // In a box, because it is seldom needed.
                None => {
                    let connected = Box::pin(timeout_at(deadline.into(), self.connect(&authority))).await;
                    (connected.map_err(|_| CallError::Late)??, false)
                }
            };
            // On lines of their own, since what `match` is asked about lives until its end.
            let asking = line.ask(kept.take().ok_or(CallError::Ended)?, deadline);
            let answered = asking.await;
            match answered {
                Ok(response) => {
                    let (head, incoming) = response.into_parts();
                    line.incoming = Some(incoming);
                    let resting = Arc::clone(&self.resting);
                    let body = PodBody { line: Some(line), passing: false, resting };
                    return Ok(Response::from_parts(head, body));
                }
                Err(Unanswered { unsent: unsent @ Some(_), .. }) if rested => *kept = unsent,
                Err(Unanswered { error, .. }) => return Err(error),
            }
        }
    }

    async fn connect(&self, authority: &Authority) -> Result<Box<Line>, CallError> {
        let uri =
            Uri::builder().scheme(Scheme::HTTP).authority(authority.clone()).path_and_query("/").build();
        let uri = uri.map_err(|error| CallError::Connect(error.into()))?;
        let connected = self.connector.clone().oneshot(uri).await;
        let stream = connected.map_err(|error| CallError::Connect(error.into()))?;
        let stream = TokioIo::new(SmallWrites::new(stream.into_inner()));
        let (sender, connection) = http1::handshake(stream).await?;
        let host = HeaderValue::from_str(host_of(authority)).ok();
        let authority = authority.clone();
        Ok(Box::new(Line {
            sender,
            connection: Some(connection),
            ended: false,
            host,
            authority,
            incoming: None,
            timer: None,
        }))
    }
}

/// Leaves of a request's URI what is written to where it leads.
fn take_authority(request: &mut Request<Full<Bytes>>) -> Option<Authority> {
    let Parts { authority, path_and_query, .. } = std::mem::take(request.uri_mut()).into_parts();
    *request.uri_mut() = Uri::from(path_and_query.unwrap_or_else(|| PathAndQuery::from_static("/")));
    authority
}

/// As a Host header has it: without the port that http has anyway.
fn host_of(authority: &Authority) -> &str {
    if authority.port_u16() == Some(80) { authority.host() } else { authority.as_str() }
}

/// One connection.
struct Line {
    sender: SendRequest<Full<Bytes>>,
    /// `None` once a request was taken back from it.
    connection: Option<Connection<TokioIo<SmallWrites>, Full<Bytes>>>,
    ended: bool,
    /// Whom it leads to, as requests name it.
    host: Option<HeaderValue>,
    /// Where it leads.
    authority: Authority,
    /// The body of the answer that comes by it now.
    incoming: Option<Incoming>,
    /// Made once: to move a timer to a later time is next to nothing, to make one is not.
    timer: Option<Pin<Box<Sleep>>>,
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

    /// Ready when it is later than that.
    fn is_late(&mut self, deadline: TokioInstant, cx: &mut Context<'_>) -> Poll<()> {
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if timer.deadline() != deadline {
            timer.as_mut().reset(deadline);
        }
        // Not as work of the task: a pod that keeps the connection busy with anything but an answer would be waited for for ever.
        pin!(unconstrained(timer.as_mut())).poll(cx)
    }

    /// Sends a request and waits for the head of the answer.
    fn ask(
        &mut self,
        mut request: Request<Full<Bytes>>,
        deadline: Instant,
    ) -> impl Future<Output = Result<Response<Incoming>, Unanswered>> {
        if let Some(host) = &self.host {
            request.headers_mut().insert(HOST, host.clone());
        }
        // The answer comes from the connection and from nowhere else, and it is looked for each time the connection was driven.
        // So nobody need be woken for it, and its channel must not count as work of the task, which would wake it again.
        let answer = unconstrained(self.sender.try_send_request(request));
        Asking { line: self, answer, is_sent: false, deadline: deadline.into() }
    }
}

pin_project! {
    /// Waits for the head of an answer. By hand, because an `async` function would have room for `answer` twice.
    struct Asking<'a, F> {
        line: &'a mut Line,
        #[pin]
        answer: F,
        is_sent: bool,
        deadline: TokioInstant,
    }
}

type Sent = Result<Response<Incoming>, TrySendError<Request<Full<Bytes>>>>;

impl<F: Future<Output = Sent>> Future for Asking<'_, F> {
    type Output = Result<Response<Incoming>, Unanswered>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let (line, mut answer) = (this.line, this.answer);
        let nobody = Waker::noop();
        // To take a piece of the body wakes whom the connection was driven for. So what has come is fetched for nobody, and for
        // the task only when it is about to wait.
        let drivers: &[&Waker] = if *this.is_sent { &[nobody, cx.waker()] } else { &[cx.waker()] };
        *this.is_sent = true;
        for driver in drivers {
            let driven = line.drive(&mut Context::from_waker(driver));
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
            line.connection = None;
            let unsent = match answer.as_mut().poll(&mut Context::from_waker(nobody)) {
                Poll::Ready(Err(mut failed)) => failed.take_message(),
                _ => None,
            };
            return Poll::Ready(Err(Unanswered { error, unsent }));
        }
        ready!(line.is_late(*this.deadline, cx));
        Poll::Ready(Err(Unanswered { error: CallError::Late, unsent: None }))
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
    /// `None` after the end.
    line: Option<Box<Line>>,
    /// A frame was passed on since nothing more was there.
    passing: bool,
    resting: Arc<Resting>,
}

impl Line {
    /// What has come of the answer's body. Frames come when the connection is driven, as answers do in [`Line::ask`].
    fn frame(&mut self) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        let nobody = &mut Context::from_waker(Waker::noop());
        self.incoming.as_mut().map_or(Poll::Ready(None), |incoming| Pin::new(incoming).poll_frame(nobody))
    }

    fn is_answered(&self) -> bool {
        self.incoming.as_ref().is_none_or(Incoming::is_end_stream)
    }
}

impl PodBody {
    /// The connection rests after the last frame. Whether it can take another request shows when there is one.
    fn passed(
        &mut self,
        frame: Option<hyper::Result<Frame<Bytes>>>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.passing = true;
        let is_last = match &frame {
            None => true,
            Some(Ok(_)) => self.is_end_stream(),
            Some(Err(_)) => false,
        };
        if is_last
            && let Some(mut line) = self.line.take()
            // One that still sends its request, to a pod that has answered early, holds the request's body.
            && !line.ended
            && line.sender.is_ready()
        {
            line.incoming = None;
            self.resting.put(line, Instant::now());
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
        let Some(line) = &mut this.line else { return Poll::Ready(None) };
        if let Poll::Ready(frame) = line.frame() {
            return this.passed(frame);
        }
        // To take a frame wakes whom the connection was driven for. So what has come is fetched for nobody, and for the task only
        // when it is about to wait.
        if !this.passing {
            let _ = line.drive(&mut Context::from_waker(Waker::noop()));
            if let Poll::Ready(frame) = line.frame() {
                return this.passed(frame);
            }
        }
        let driven = line.drive(cx);
        if let Poll::Ready(frame) = line.frame() {
            return this.passed(frame);
        }
        this.passing = false;
        let error = ready!(driven).err().map_or(BodyError::Ended, BodyError::from);
        this.line = None;
        Poll::Ready(Some(Err(error)))
    }

    fn is_end_stream(&self) -> bool {
        self.line.as_ref().is_none_or(|line| line.is_answered())
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

    fn put(self: &Arc<Self>, line: Box<Line>, now: Instant) {
        let mut lines = self.lock();
        match lines.get_mut(line.authority.as_str()) {
            Some(known) => known.push((now, line)),
            None => drop(lines.insert(line.authority.as_str().into(), vec![(now, line)])),
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
