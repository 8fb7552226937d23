//! An answer on its way from a pod to a client, passed on as it comes.
//!
//! Owns the upstream body: dropping the relay (the client went away) closes the pod's connection, which aborts the
//! generation there. Nothing is read from the pod before the client has taken what was read before.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use fairlead_openai::ApiError;
use http_body::Body;
use hyper::body::Incoming;
use tokio::time::Sleep;

use crate::body::BrokenAnswer;
use crate::ejection::Failure;
use crate::endpoint::InFlight;
use crate::exchange::Exchange;
use crate::metrics::Outcome;
use crate::sse::EventFramer;

/// An answer that is passed on as it comes.
pub struct Relay {
    /// What was read before the answer began to be passed on.
    first: Option<Bytes>,
    upstream: Incoming,
    events: Option<EventFramer>,
    idle_timeout: Duration,
    idle: Pin<Box<Sleep>>,
    in_flight: InFlight,
    exchange: Exchange,
    done: bool,
}

impl Relay {
    /// Relays `first` and then `upstream`; `events` says that it is a stream of server-sent events.
    pub fn new(
        first: Bytes,
        upstream: Incoming,
        events: bool,
        idle_timeout: Duration,
        in_flight: InFlight,
        exchange: Exchange,
    ) -> Self {
        Self {
            first: Some(first),
            upstream,
            events: events.then(EventFramer::default),
            idle_timeout,
            idle: Box::pin(tokio::time::sleep(idle_timeout)),
            in_flight,
            exchange,
            done: false,
        }
    }

    /// The next bytes for the client.
    pub fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BrokenAnswer>>> {
        loop {
            if self.done {
                return Poll::Ready(None);
            }
            let data = match self.first.take() {
                Some(first) => first,
                None => match ready!(self.poll_upstream(cx)) {
                    Ok(Some(data)) => data,
                    Ok(None) => return Poll::Ready(self.end()),
                    Err(detail) => return Poll::Ready(self.broken(None, detail)),
                },
            };
            let data = match &mut self.events {
                Some(events) => {
                    let data = events.push(data);
                    self.exchange.passed_events(&data);
                    data
                }
                None => data,
            };
            if !data.is_empty() {
                return Poll::Ready(Some(Ok(data)));
            }
        }
    }

    fn poll_upstream(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, String>> {
        loop {
            match Pin::new(&mut self.upstream).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    let deadline = tokio::time::Instant::now() + self.idle_timeout;
                    self.idle.as_mut().reset(deadline);
                    if let Ok(data) = frame.into_data() {
                        return Poll::Ready(Ok(Some(data)));
                    }
                }
                Poll::Ready(Some(Err(error))) => {
                    return Poll::Ready(Err(format!("the inference pod broke off its answer: {error}")));
                }
                Poll::Ready(None) => return Poll::Ready(Ok(None)),
                Poll::Pending => {
                    ready!(self.idle.as_mut().poll(cx));
                    let seconds = self.idle_timeout.as_secs_f32();
                    return Poll::Ready(Err(format!("the inference pod was silent for {seconds} seconds")));
                }
            }
        }
    }

    fn end(&mut self) -> Option<Result<Bytes, BrokenAnswer>> {
        let Some(events) = &mut self.events else {
            self.done = true;
            self.exchange.ended(Outcome::Ok, None);
            return None;
        };
        let rest = events.rest();
        self.exchange.passed_events(&rest);
        if !events.is_finished() {
            // Cleanly closed, and yet cut short: without this a client would take the half for the whole.
            let held = (!rest.is_empty()).then_some(rest);
            return self.broken(held, "the inference pod ended its answer early".to_owned());
        }
        self.done = true;
        self.exchange.ended(Outcome::Ok, None);
        (!rest.is_empty()).then_some(Ok(rest))
    }

    /// Ends the answer with the news that it is incomplete: an error event where the client reads events (and no
    /// `[DONE]`), otherwise a cut connection.
    fn broken(&mut self, held: Option<Bytes>, detail: String) -> Option<Result<Bytes, BrokenAnswer>> {
        self.done = true;
        if self.in_flight.endpoint().record_failure(Failure::Broken, Instant::now()) {
            self.exchange.metrics().ejected();
        }
        let finished = self.events.as_ref().is_some_and(EventFramer::is_finished);
        if finished && held.is_none() {
            // The last word was said; how the connection ended after it is nobody's concern.
            self.exchange.ended(Outcome::Ok, None);
            return None;
        }
        self.exchange.ended(Outcome::Broken, Some(detail.clone()));
        let Some(events) = &self.events else { return Some(Err(BrokenAnswer(detail))) };
        let message = format!("{detail}; the answer is incomplete, send the request again");
        let error = ApiError::new(502, "upstream_error", message).with_code("upstream_broken");
        Some(Ok(Bytes::from(format!("{}data: {}\n\n", events.separator(), error.to_json()))))
    }
}

impl fmt::Debug for Relay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relay")
            .field("exchange", &self.exchange)
            .field("done", &self.done)
            .finish_non_exhaustive()
    }
}
