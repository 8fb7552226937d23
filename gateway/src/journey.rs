//! One request's way from attempt to attempt, until an answer has begun or nobody is left to ask.
//!
//! Each attempt looks at the newest snapshot: a pod that is gone by then is not tried again. Owns retries, their budgets,
//! circuits and hedging; which backend and endpoint is `select`'s choice. Called by `forward`.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fairlead_crds::model_route::resilience::RetryOn;
use futures::future::{Either, select};
use http::StatusCode;
use k8s_openapi::jiff::Timestamp;

use crate::decide::Decision;
use crate::ejection::Failure as EndpointFailure;
use crate::endpoint::{Endpoint, InFlight};
use crate::exchange::Exchange;
use crate::headers::ForPods;
use crate::metrics::{HedgeResult, Metrics, RetryReason};
use crate::name::Name;
use crate::provider::target::Target;
use crate::provider::{body, errors};
use crate::proxy::Gateway;
use crate::request::InferenceRequest;
use crate::resilience::circuit::{Closed, Pass};
use crate::resilience::rules::{Hedge, Rules};
use crate::retry;
use crate::select::{Selection, Unavailable};
use crate::snapshot::RouteBackend;
use crate::upstream::{Answer, AttemptError, Call};

/// One request's way.
pub struct Journey<'a> {
    gateway: &'a Arc<Gateway>,
    request: &'a InferenceRequest,
    told: &'a ForPods<'a>,
    selection: Selection,
    deadline: Option<Instant>,
}

/// An answer that has begun.
pub struct Arrived {
    /// The answer.
    pub answer: Answer,
    /// Who gives it.
    pub in_flight: InFlight,
    /// Whether that is a provider.
    pub provider: bool,
    /// How long it may be silent.
    pub between_tokens: Duration,
}

/// Why there is no answer.
#[derive(Debug)]
pub enum Failure {
    /// The route has gone meanwhile.
    Gone,
    /// Nobody could be asked.
    Unavailable(Unavailable),
    /// This backend has as many requests as it may have.
    Full(Name),
    /// The last attempt failed.
    Attempt(AttemptError),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gone => f.write_str("the route is gone"),
            Self::Unavailable(reason) => write!(f, "{reason:?}"),
            Self::Full(backend) => write!(f, "backend {backend} is full"),
            Self::Attempt(error) => write!(f, "{error}"),
        }
    }
}

type Outcome = Result<(Answer, InFlight), (AttemptError, Option<InFlight>)>;

impl<'a> Journey<'a> {
    /// A request that is about to set out.
    pub fn new(
        gateway: &'a Arc<Gateway>,
        request: &'a InferenceRequest,
        told: &'a ForPods<'a>,
        decision: Decision,
        deadline: Option<Instant>,
    ) -> Self {
        Self { gateway, request, told, selection: Selection::new(decision), deadline }
    }

    /// The backend that the weights chose.
    pub fn intended(&self) -> Option<Name> {
        self.selection.intended().cloned()
    }

    /// To the backends that the weights choose.
    ///
    /// # Errors
    /// Why there is no answer.
    pub async fn by_weights(&mut self, exchange: &mut Exchange) -> Result<Arrived, Failure> {
        self.travel(exchange).await
    }

    /// To this backend, whatever its weight. `None` when there is no such backend, or it was asked already.
    pub async fn to_fallback(
        &mut self,
        backend: &str,
        exchange: &mut Exchange,
    ) -> Option<Result<Arrived, Failure>> {
        let snapshot = self.gateway.routing.snapshot();
        let route = snapshot.route(&self.request.model)?;
        let known = route.backends.iter().find(|known| known.name == backend)?;
        if known.endpoints.is_empty()
            || known.endpoints.iter().all(|endpoint| self.selection.has_tried(endpoint))
        {
            return None;
        }
        self.selection.pin(&known.name, None);
        Some(self.travel(exchange).await)
    }

    async fn travel(&mut self, exchange: &mut Exchange) -> Result<Arrived, Failure> {
        let gateway = self.gateway;
        let mut last: Option<AttemptError> = None;
        let mut full: Option<Name> = None;
        let mut attempt = 0;
        loop {
            let snapshot = gateway.routing.snapshot();
            let Some(route) = snapshot.route(&self.request.model) else {
                return Err(last.map_or(Failure::Gone, Failure::Attempt));
            };
            let rules = &route.resilience;
            let most = rules.attempts.unwrap_or(gateway.max_attempts);
            let ask = self.request.ask(self.told.client, &gateway.trusted);
            let now = Instant::now();
            let choice = self.selection.next(route, &gateway.policies, &ask, now, &mut rand::rng());
            let choice = match choice {
                Ok(choice) => choice,
                Err(reason) => {
                    return Err(match (last, full) {
                        (Some(error), _) => Failure::Attempt(error),
                        (None, Some(backend)) => Failure::Full(backend),
                        (None, None) => Failure::Unavailable(reason),
                    });
                }
            };
            let backend = choice.backend;
            let pass = match backend.circuit.enter(now, self.patience(rules, now)).await {
                Ok(pass) => pass,
                Err(Closed::Full) if !backend.circuit.breaker().diverts => {
                    note_place(exchange, &self.selection, backend, &choice.endpoint);
                    return Err(Failure::Full(backend.name.clone()));
                }
                Err(closed) => {
                    if closed == Closed::Full {
                        full = Some(backend.name.clone());
                    }
                    self.selection.leave_out(&backend.name);
                    continue;
                }
            };
            if !choice.fresh {
                Box::pin(tokio::time::sleep(retry::pause(attempt))).await;
            }
            attempt += 1;
            exchange.attempts += 1;
            note_place(exchange, &self.selection, backend, &choice.endpoint);
            exchange.endpoint_choice = Some(choice.verdict.why.word());
            let begun = Instant::now();
            exchange.attempt(route, &backend.name, self.request.stream, begun);
            let endpoint = choice.endpoint;
            let outcome = match &rules.hedge {
                Some(hedge) if attempt == 1 => {
                    let (outcome, second) =
                        Box::pin(self.hedged((backend, &endpoint), pass, rules, hedge, exchange)).await;
                    if let Some(second) = second {
                        self.selection.note_tried(&second);
                    }
                    outcome
                }
                _ => self.ask(backend, &endpoint, pass, rules, begun).await,
            };
            let error = match outcome {
                Ok((answer, in_flight)) => {
                    exchange.endpoint = Some(Arc::clone(in_flight.endpoint()));
                    let between_tokens = rules.between_tokens.unwrap_or(gateway.upstream.idle_timeout());
                    let provider = backend.provider.is_some();
                    return Ok(Arrived { answer, in_flight, provider, between_tokens });
                }
                Err((error, in_flight)) => {
                    if let Some(in_flight) = in_flight {
                        note_attempt(&error, &in_flight, exchange);
                    }
                    error
                }
            };
            let retry = error.retry_on().filter(|on| rules.retries(*on));
            let Some(on) = retry else { return Err(Failure::Attempt(error)) };
            // A pod that says it is busy is not asked again: its own answer says it best.
            let elsewhere = on != RetryOn::Busy || self.selection.has_fresh(route);
            let in_time = self.deadline.is_none_or(|deadline| Instant::now() < deadline);
            if attempt >= most || !elsewhere || !in_time {
                return Err(Failure::Attempt(error));
            }
            if !rules.budget.as_deref().unwrap_or(&gateway.budget).spend(Instant::now()) {
                exchange.metrics().retry_denied();
                return Err(Failure::Attempt(error));
            }
            exchange.metrics().retried(RetryReason::of(on));
            last = Some(error);
        }
    }

    /// Until when a request that sets out now waits for its backend.
    fn patience(&self, rules: &Rules, now: Instant) -> Instant {
        let first_byte = now + rules.first_byte.unwrap_or(self.gateway.upstream.first_byte_timeout());
        self.deadline.map_or(first_byte, |deadline| deadline.min(first_byte))
    }

    /// Asks one endpoint.
    async fn ask(
        &self,
        backend: &RouteBackend,
        endpoint: &Arc<Endpoint>,
        pass: Pass,
        rules: &Rules,
        begun: Instant,
    ) -> Outcome {
        let in_flight = endpoint.begin().with_pass(pass);
        let path = self.request.api.path();
        let uri = match endpoint.uri(path) {
            Ok(uri) => uri,
            Err(error) => return Err((AttemptError::Connect(error.to_string()), Some(in_flight))),
        };
        let (headers, body) = match &backend.provider {
            None => (self.told.headers(), self.request.body_for(backend.served_model.as_deref())),
            Some(target) => match body::body(self.request.api, self.request.body(), target.model()) {
                Ok(body) => (target.headers(self.told.client), body.into()),
                Err(error) => return Err((AttemptError::Refused(error.into()), None)),
            },
        };
        let call = Call {
            uri,
            headers,
            body,
            stream: self.request.stream,
            begun,
            first_byte: self.patience(rules, begun),
            idle: rules.between_tokens,
            provider: backend.provider.as_deref(),
        };
        let answer = self.gateway.upstream.ask(call).await;
        let answer = match (answer, &backend.provider) {
            (Ok(answer), None) => server_error(answer, rules),
            (Err(error), None) => Err(error),
            (answer, Some(target)) => of_provider(answer, (&backend.name, target), endpoint),
        };
        match answer {
            Ok(answer) => {
                in_flight.record_success();
                Ok((answer, in_flight))
            }
            Err(error) => Err((error, Some(in_flight))),
        }
    }

    /// Asks one endpoint, and after a while a second one of the same backend; whoever begins first answers. Also says which
    /// second one was asked.
    async fn hedged(
        &self,
        (backend, endpoint): (&RouteBackend, &Arc<Endpoint>),
        pass: Pass,
        rules: &Rules,
        hedge: &Hedge,
        exchange: &mut Exchange,
    ) -> (Outcome, Option<Arc<Endpoint>>) {
        let second = self.selection.another(backend, Instant::now(), &mut rand::rng());
        let begun = Instant::now();
        let mut first = Box::pin(self.ask(backend, endpoint, pass, rules, begun));
        let Some(second) = second else { return (first.await, None) };
        if let Ok(outcome) = tokio::time::timeout(hedge.after, first.as_mut()).await {
            return (outcome, None);
        }
        if !hedge.budget.spend(Instant::now()) {
            exchange.metrics().hedged(HedgeResult::Denied);
            return (first.await, None);
        }
        let now = Instant::now();
        let Ok(pass) = backend.circuit.enter(now, now).await else {
            return (first.await, None);
        };
        exchange.attempts += 1;
        let other = Box::pin(self.ask(backend, &second, pass, rules, now));
        let (outcome, won) = match select(first, other).await {
            Either::Left((Ok(answer), _)) => (Ok(answer), false),
            Either::Right((Ok(answer), _)) => (Ok(answer), true),
            // One has failed; the other one may still answer.
            Either::Left((Err((error, in_flight)), other)) => {
                note(&error, in_flight.as_ref(), &exchange.id, exchange.metrics());
                (other.await, true)
            }
            Either::Right((Err((error, in_flight)), first)) => {
                note(&error, in_flight.as_ref(), &exchange.id, exchange.metrics());
                (first.await, false)
            }
        };
        exchange.metrics().hedged(if won { HedgeResult::Won } else { HedgeResult::Lost });
        (outcome, Some(second))
    }
}

/// A pod's 5xx is its answer, unless the route wants others to be asked.
fn server_error(answer: Answer, rules: &Rules) -> Result<Answer, AttemptError> {
    let wanted = rules.retries(RetryOn::ServerError) || !rules.fallbacks.is_empty();
    match answer {
        Answer::Whole(head, bytes)
            if head.status.is_server_error() && (wanted || rules.breaker.consecutive_failures.is_some()) =>
        {
            Err(AttemptError::Server(head, bytes))
        }
        answer => Ok(answer),
    }
}

/// What a provider's answer comes to.
fn of_provider(
    answer: Result<Answer, AttemptError>,
    (backend, target): (&str, &Target),
    endpoint: &Endpoint,
) -> Result<Answer, AttemptError> {
    let (head, bytes) = match answer? {
        Answer::Whole(head, bytes) if head.status.as_u16() >= 400 => (head, bytes),
        answer => return Ok(answer),
    };
    if head.status == StatusCode::NOT_FOUND {
        target.health().not_found(target.model(), &bytes, Timestamp::now());
    }
    let error = errors::told(backend, head.status, &head.headers, &bytes);
    if matches!(head.status.as_u16(), 429 | 503)
        && let Some(seconds) = errors::retry_after(&head.headers)
    {
        endpoint.leave_alone_until(Instant::now() + Duration::from_secs(seconds.into()));
    }
    // What is wrong with the request is wrong everywhere.
    Err(if matches!(error.status, 400 | 413 | 422) {
        AttemptError::Refused(error.into())
    } else {
        AttemptError::Provider(error.into())
    })
}

fn note_place(
    exchange: &mut Exchange,
    selection: &Selection,
    backend: &RouteBackend,
    endpoint: &Arc<Endpoint>,
) {
    exchange.backend = Some(backend.name.clone());
    exchange.cost.clone_from(&backend.cost);
    exchange.diverted_from = selection.intended().filter(|name| **name != backend.name).cloned();
    exchange.endpoint = Some(Arc::clone(endpoint));
}

/// Keeps the record of a failed attempt.
fn note_attempt(error: &AttemptError, in_flight: &InFlight, exchange: &mut Exchange) {
    match error {
        AttemptError::Busy(..) => exchange.attempt_refused(),
        AttemptError::Provider(error) if matches!(error.status, 429 | 503) => exchange.attempt_refused(),
        AttemptError::Refused(_) => {}
        AttemptError::Connect(_)
        | AttemptError::Untrusted { .. }
        | AttemptError::Reset(_)
        | AttemptError::Timeout(_)
        | AttemptError::Server(..)
        | AttemptError::Provider(_) => exchange.attempt_failed(),
    }
    note(error, Some(in_flight), &exchange.id, exchange.metrics());
}

/// Keeps the endpoint's and its backend's record.
pub fn note(error: &AttemptError, in_flight: Option<&InFlight>, request_id: &str, metrics: &Metrics) {
    let Some(in_flight) = in_flight else { return };
    let failure = match error {
        AttemptError::Connect(_) | AttemptError::Untrusted { .. } => EndpointFailure::Connect,
        AttemptError::Reset(_) | AttemptError::Timeout(_) | AttemptError::Server(..) => {
            EndpointFailure::Broken
        }
        // 503: starting or draining. A full queue (429) is a sign of health.
        AttemptError::Busy(head, _) if head.status.as_u16() == 503 => EndpointFailure::Broken,
        AttemptError::Provider(error) if error.status != 429 => EndpointFailure::Broken,
        AttemptError::Busy(..) | AttemptError::Provider(_) => return,
        // Its fault is the client's; the endpoint is well.
        AttemptError::Refused(_) => return in_flight.record_success(),
    };
    let endpoint = in_flight.endpoint();
    tracing::info!(request_id, endpoint = endpoint.address(), detail = %error, "an attempt failed");
    if in_flight.record_failure(failure, Instant::now()) {
        metrics.ejected();
        tracing::warn!(endpoint = endpoint.address(), detail = %error, "the endpoint is left alone for a while");
    }
}
