//! An answer on its way from a pod to a client, passed on as it comes.
//!
//! Owns the upstream body: dropping the relay (the client went away) closes the pod's connection, which aborts the
//! generation there. Nothing is read from the pod before the client has taken what was read before. A stream of events whose
//! pod dies is gone on with at another pod where that is possible (`failover`).

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use fairlead_openai::ApiError;
use futures::future::BoxFuture;
use http_body::Body;
use tokio::time::Sleep;

use crate::body::BrokenAnswer;
use crate::ejection::Failure;
use crate::endpoint::InFlight;
use crate::exchange::Exchange;
use crate::failover::kept::{Kept, NotResumed, Resumed};
use crate::failover::tap::Tap;
use crate::metrics::{FailoverResult, Outcome};
use crate::provider::rename;
use crate::sse::EventFramer;
use crate::upstream::AnswerBody;

/// An answer that is passed on as it comes.
pub struct Relay {
    /// What was read before the answer began to be passed on.
    first: Option<Bytes>,
    upstream: AnswerBody,
    events: Option<EventFramer>,
    failover: Option<Failover>,
    idle_timeout: Duration,
    idle: Pin<Box<Sleep>>,
    in_flight: InFlight,
    exchange: Box<Exchange>,
    /// The model's name for the client, where the upstream has another one.
    renames: Option<String>,
    /// Until when the whole answer must be there.
    deadline: Option<Pin<Box<Sleep>>>,
    done: bool,
}

/// What a stream is continued by.
struct Failover {
    tap: Tap,
    kept: Option<Box<Kept>>,
    asking: Option<Asking>,
    /// Whether the client has anything of the answer.
    begun: bool,
    /// The pod's own news that it cannot go on, for when nobody else can.
    told: Option<Bytes>,
}

/// Another pod is being asked.
struct Asking {
    answer: BoxFuture<'static, Result<Resumed, NotResumed>>,
    /// Why the last one does not go on.
    detail: String,
}

impl Relay {
    /// Relays `first` and then `upstream`; `events` says that it is a stream of server-sent events.
    pub fn new(
        first: Bytes,
        upstream: AnswerBody,
        events: bool,
        idle_timeout: Duration,
        in_flight: InFlight,
        exchange: Box<Exchange>,
    ) -> Self {
        Self {
            first: Some(first),
            upstream,
            events: events.then(EventFramer::default),
            failover: None,
            idle_timeout,
            idle: Box::pin(tokio::time::sleep(idle_timeout)),
            in_flight,
            exchange,
            renames: None,
            deadline: None,
            done: false,
        }
    }

    /// The same answer, in which the model has this name.
    #[must_use]
    pub fn renamed(mut self, model: &str) -> Self {
        self.renames = self.events.is_some().then(|| model.to_owned());
        self
    }

    /// The same answer, which must be whole by then.
    #[must_use]
    pub fn until(mut self, deadline: Instant) -> Self {
        self.deadline = Some(Box::pin(tokio::time::sleep_until(deadline.into())));
        self
    }

    /// The same stream, whose pod writes notes. With what is kept of the request it goes on at another pod.
    #[must_use]
    pub fn with_notes(mut self, kept: Option<Box<Kept>>) -> Self {
        let mut tap = Tap::default();
        if kept.is_none() {
            tap.forget();
        }
        self.failover = Some(Failover { tap, kept, asking: None, begun: false, told: None });
        self
    }

    /// The next bytes for the client.
    pub fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BrokenAnswer>>> {
        loop {
            if self.done {
                return Poll::Ready(None);
            }
            if self.deadline.as_mut().is_some_and(|deadline| deadline.as_mut().poll(cx).is_ready()) {
                return Poll::Ready(self.too_late());
            }
            if let Some(asking) = self.failover.as_mut().and_then(|failover| failover.asking.as_mut()) {
                let answer = ready!(asking.answer.as_mut().poll(cx));
                let detail = std::mem::take(&mut asking.detail);
                match answer {
                    Ok(resumed) => self.go_on(resumed, &detail),
                    Err(not) => return Poll::Ready(self.nobody_goes_on(&not, detail)),
                }
                continue;
            }
            let data = match self.first.take() {
                Some(first) => first,
                None => match ready!(self.poll_upstream(cx)) {
                    Ok(Some(data)) => data,
                    Ok(None) => match self.end() {
                        Ended::Asks => continue,
                        Ended::Says(last) => return Poll::Ready(last),
                    },
                    Err(detail) => match self.broken(None, detail) {
                        Ended::Asks => continue,
                        Ended::Says(last) => return Poll::Ready(last),
                    },
                },
            };
            let data = match &mut self.events {
                Some(events) => events.push(data),
                None => data,
            };
            let data = self.tapped(data);
            if self.events.is_some() {
                self.exchange.passed_events(&data);
            }
            let data = match &self.renames {
                Some(model) => rename::events(&data, model),
                None => data,
            };
            if !data.is_empty() {
                if let Some(watch) = &mut self.exchange.watch {
                    watch.passed(&data, self.events.is_some());
                }
                return Poll::Ready(Some(Ok(data)));
            }
        }
    }

    /// Takes the pod's notes out of its events.
    fn tapped(&mut self, events: Bytes) -> Bytes {
        let Some(Failover { tap, kept, begun, told, .. }) = &mut self.failover else { return events };
        let tapped = tap.take(&events);
        *begun |= !tapped.pass.is_empty();
        if let Some(kept) = kept.take_if(|kept| !kept.pay_for(tap.tokens().len())) {
            drop(kept);
            tap.forget();
        }
        if let Some(failure) = tapped.failure {
            // Read as if the pod had died here.
            *told = Some(failure.event);
            if let Ended::Says(Some(Ok(last))) = self.broken(None, failure.message) {
                return Bytes::from([tapped.pass, last].concat());
            }
        }
        tapped.pass
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

    fn end(&mut self) -> Ended {
        let Some(events) = &mut self.events else {
            self.done = true;
            self.exchange.ended(Outcome::Ok, None);
            return Ended::Says(None);
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
        let rest = self.renames.as_ref().map_or_else(|| rest.clone(), |model| rename::events(&rest, model));
        Ended::Says((!rest.is_empty()).then_some(Ok(rest)))
    }

    /// The pod does not go on. Another one is asked, or the answer ends.
    fn broken(&mut self, held: Option<Bytes>, detail: String) -> Ended {
        if self.in_flight.record_failure(Failure::Broken, Instant::now()) {
            self.exchange.metrics().ejected();
        }
        let told = self.failover.as_ref().is_some_and(|failover| failover.told.is_some());
        let finished = !told && self.events.as_ref().is_some_and(EventFramer::is_finished);
        if finished && held.is_none() {
            self.done = true;
            // The last word was said; how the connection ended after it is nobody's concern.
            self.exchange.ended(Outcome::Ok, None);
            return Ended::Says(None);
        }
        match self.fail_over(&detail) {
            Ok(ended) => ended,
            Err(result) => {
                if self.events.is_some() {
                    self.exchange.metrics().failed_over(result);
                }
                Ended::Says(self.incomplete(detail))
            }
        }
    }

    /// Asks another pod to go on, or says the last words where nothing else is missing.
    fn fail_over(&mut self, detail: &str) -> Result<Ended, FailoverResult> {
        // An event that was passed on in pieces may be cut anywhere.
        let whole = self.events.as_ref().is_some_and(|events| events.separator().is_empty());
        let failover = self.failover.as_mut().filter(|_| whole).ok_or(FailoverResult::Impossible)?;
        let Failover { tap, kept, asking, begun, .. } = failover;
        let answer = match tap.begun() {
            Some(answer) => Some(answer.clone()),
            None if *begun => return Err(FailoverResult::Impossible),
            // It broke within its first event.
            None => None,
        };
        let Some(kept) = kept.take() else {
            let noted = self.exchange.resumable;
            return Err(if noted { FailoverResult::NoRoom } else { FailoverResult::Impossible });
        };
        if let Some((answer, prompt_tokens)) = answer.as_ref().filter(|_| tap.has_ended()) {
            let completion = u64::try_from(tap.tokens().len()).unwrap_or(u64::MAX);
            let words = kept.last_words(answer, *prompt_tokens, completion, tap.usage_sent());
            self.done = true;
            self.exchange.metrics().failed_over(FailoverResult::Completed);
            self.exchange.ended(Outcome::Ok, Some(detail.to_owned()));
            return Ok(Ended::Says(Some(Ok(words))));
        }
        if !kept.may_resume() {
            return Err(FailoverResult::TooOften);
        }
        // The variant's fault, though its user will not feel it.
        self.exchange.attempt_failed();
        tracing::info!(
            request_id = self.exchange.id.as_str(),
            endpoint = self.exchange.address(),
            tokens = tap.tokens().len(),
            detail,
            "a stream broke off; another pod is asked to go on"
        );
        let named = answer.as_ref().map(|(answer, _)| answer);
        *asking = Some(Asking { answer: kept.resume(named, tap.tokens()), detail: detail.to_owned() });
        Ok(Ended::Asks)
    }

    /// Another pod goes on.
    fn go_on(&mut self, resumed: Resumed, detail: &str) {
        let Resumed { kept, first, rest, in_flight, attempts } = resumed;
        self.exchange.metrics().failed_over(FailoverResult::Continued);
        self.exchange.attempts += attempts;
        self.exchange.failovers += 1;
        self.exchange.endpoint = Some(Arc::clone(in_flight.endpoint()));
        tracing::info!(
            request_id = self.exchange.id.as_str(),
            endpoint = self.exchange.address(),
            detail,
            "another pod goes on with the stream"
        );
        self.first = Some(first);
        self.upstream = rest;
        self.in_flight = in_flight;
        self.events = Some(EventFramer::default());
        self.idle.as_mut().reset(tokio::time::Instant::now() + self.idle_timeout);
        if let Some(failover) = &mut self.failover {
            failover.asking = None;
            failover.told = None;
            failover.kept = Some(kept);
        }
    }

    fn nobody_goes_on(&mut self, not: &NotResumed, detail: String) -> Option<Result<Bytes, BrokenAnswer>> {
        let NotResumed { result, why, attempts } = not;
        self.exchange.metrics().failed_over(*result);
        self.exchange.attempts += attempts;
        if let Some(failover) = &mut self.failover {
            failover.asking = None;
        }
        self.incomplete(format!("{detail}, and nobody could go on: {why}"))
    }

    /// Ends the answer because its route gives it no more time. Nobody's fault, and nobody else is asked.
    fn too_late(&mut self) -> Option<Result<Bytes, BrokenAnswer>> {
        self.done = true;
        let detail = "the time that the route gives a request (spec.timeouts.request) has passed";
        self.exchange.ended(Outcome::UpstreamTimeout, Some(detail.to_owned()));
        let Some(events) = &self.events else { return Some(Err(BrokenAnswer(detail.to_owned()))) };
        let message = format!("{detail}; the answer is incomplete, ask for fewer tokens");
        let error = ApiError::new(504, "upstream_error", message).with_code("upstream_timeout");
        Some(Ok(Bytes::from(format!("{}data: {}\n\n", events.separator(), error.to_json()))))
    }

    /// Ends the answer with the news that it is incomplete: an error event where the client reads events (and no
    /// `[DONE]`), otherwise a cut connection.
    fn incomplete(&mut self, detail: String) -> Option<Result<Bytes, BrokenAnswer>> {
        self.done = true;
        self.exchange.ended(Outcome::Broken, Some(detail.clone()));
        let Some(events) = &self.events else { return Some(Err(BrokenAnswer(detail))) };
        if let Some(told) = self.failover.as_mut().and_then(|failover| failover.told.take()) {
            // The pod's own words, with all that it said after them.
            return Some(Ok(told));
        }
        let message = format!("{detail}; the answer is incomplete, send the request again");
        let error = ApiError::new(502, "upstream_error", message).with_code("upstream_broken");
        Some(Ok(Bytes::from(format!("{}data: {}\n\n", events.separator(), error.to_json()))))
    }
}

/// How a pod's part in an answer ended.
enum Ended {
    /// Another pod is being asked to go on.
    Asks,
    /// With these last words, if any.
    Says(Option<Result<Bytes, BrokenAnswer>>),
}

impl fmt::Debug for Relay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relay")
            .field("exchange", &self.exchange)
            .field("done", &self.done)
            .finish_non_exhaustive()
    }
}
