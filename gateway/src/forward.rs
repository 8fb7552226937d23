//! Carries one request to a backend and its answer back, trying others as long as the client has seen nothing.
//!
//! First those that the weights choose (`journey`), then the route's fallbacks. Owns what clients are told of it.

use std::sync::Arc;
use std::time::Instant;

use fairlead_crds::model_route::resilience::FallbackOn;
use fairlead_openai::ApiError;
use http::response::Parts;
use http::{HeaderMap, HeaderValue, Response};

use crate::body::{self, GatewayBody};
use crate::decide;
use crate::exchange::Exchange;
use crate::failover::kept::{self, Kept};
use crate::headers::{self, ForPods};
use crate::journey::{Arrived, Failure, Journey};
use crate::metrics::Outcome;
use crate::provider::{errors, rename};
use crate::proxy::Gateway;
use crate::relay::Relay;
use crate::request::InferenceRequest;
use crate::select::Unavailable;
use crate::shadow::leg;
use crate::snapshot::Route;
use crate::upstream::{Answer, AttemptError};

/// Forwards a request; the answer is a backend's, or an error of ours.
pub async fn forward(
    gateway: &Arc<Gateway>,
    request: &InferenceRequest,
    client: &HeaderMap,
    mut exchange: Box<Exchange>,
) -> Response<GatewayBody> {
    let snapshot = gateway.routing.snapshot();
    let Some(route) = snapshot.route(&request.model) else {
        return unknown_model(&request.model, exchange);
    };
    gateway.budget.earn();
    route.resilience.earn();
    exchange.route = Some(route.id.clone());
    exchange.resumable = request.resumable;
    let told = ForPods {
        client,
        trusted: &gateway.trusted,
        model: route.model.clone(),
        id: exchange.id.clone(),
        more: request.resumable.then_some((kept::NOTES, HeaderValue::from_static("true"))),
    };
    let decision = match decide::of_request(route, &gateway.trusted, client, &request.facts) {
        Ok(decision) => decision,
        Err(error) => return refuse(&error, Outcome::Refused, exchange),
    };
    exchange.subject = decision.subject;
    exchange.decision = Some(decision.clone());
    exchange.watch = leg::mirror(gateway, route, request, &told, exchange.started());
    let deadline = route.resilience.request.map(|limit| exchange.started() + limit);
    let mut journey = Journey::new(gateway, request, &told, decision, deadline);
    let failure = match Box::pin(journey.by_weights(&mut exchange)).await {
        Ok(arrived) => return answered(gateway, request, &told, arrived, deadline, exchange),
        Err(failure) => failure,
    };
    let Some(why) = failure.falls_back() else { return failed(route, failure, exchange) };
    // Where it failed, which is what the answer says when no fallback can do better.
    let (at, from) = (exchange.place(), exchange.backend.clone().or_else(|| journey.intended()));
    for fallback in route.resilience.fallbacks.iter().filter(|fallback| fallback.is_for(why)) {
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            break;
        }
        let Some(result) = Box::pin(journey.to_fallback(&fallback.backend, &mut exchange)).await else {
            continue;
        };
        match result {
            Ok(arrived) => {
                exchange.metrics().fell_back(why);
                exchange.fallback = Some((from.unwrap_or_default(), why));
                exchange.diverted_from = None;
                return answered(gateway, request, &told, arrived, deadline, exchange);
            }
            Err(failure) => {
                tracing::info!(request_id = exchange.id.as_str(), backend = fallback.backend, %failure, "a fallback failed, too");
            }
        }
    }
    exchange.put_back(at);
    failed(route, failure, exchange)
}

fn answered(
    gateway: &Arc<Gateway>,
    request: &InferenceRequest,
    told: &ForPods<'_>,
    arrived: Arrived,
    deadline: Option<Instant>,
    mut exchange: Box<Exchange>,
) -> Response<GatewayBody> {
    let Arrived { answer, in_flight, provider, between_tokens } = arrived;
    if exchange.diverted_from.is_some() {
        exchange.metrics().diverted();
    }
    match answer {
        Answer::Whole(head, bytes) => {
            let bytes = if provider { rename::whole(&bytes, &request.model) } else { bytes };
            pass_on(&head, bytes, provider, exchange)
        }
        Answer::Begun { head, first, rest, events } => {
            exchange.answered(head.status.as_u16());
            if events {
                exchange.first_byte();
            }
            let mut response = Response::new(());
            dress(&mut response, &head, provider, &exchange);
            let notes = events && !provider && head.headers.contains_key(&kept::NOTES);
            let kept = notes
                .then(|| {
                    Kept::of(gateway, request, told, &head.headers, in_flight.endpoint(), &exchange, deadline)
                })
                .flatten();
            let mut relay = Relay::new(first, rest, events, between_tokens, in_flight, exchange);
            if notes {
                relay = relay.with_notes(kept);
            }
            if provider {
                relay = relay.renamed(&request.model);
            }
            if let Some(deadline) = deadline {
                relay = relay.until(deadline);
            }
            response.map(|()| GatewayBody::Relayed(Box::new(relay)))
        }
    }
}

/// A backend's complete answer.
fn pass_on(
    head: &Parts,
    bytes: bytes::Bytes,
    provider: bool,
    mut exchange: Box<Exchange>,
) -> Response<GatewayBody> {
    exchange.passed_whole(&bytes);
    if let Some(watch) = &mut exchange.watch {
        watch.passed(&bytes, false);
    }
    let mut response = Response::new(GatewayBody::whole(bytes));
    dress(&mut response, head, provider, &exchange);
    exchange.answered(head.status.as_u16());
    exchange.ended(
        match head.status.as_u16() {
            0..400 => Outcome::Ok,
            429 => Outcome::Overloaded,
            400..500 => Outcome::Refused,
            _ => Outcome::UpstreamError,
        },
        None,
    );
    response
}

fn dress<B>(response: &mut Response<B>, head: &Parts, provider: bool, exchange: &Exchange) {
    *response.status_mut() = head.status;
    *response.headers_mut() =
        if provider { headers::from_provider(&head.headers) } else { headers::for_client(&head.headers) };
    explain(response.headers_mut(), exchange);
}

/// Says why the answer went where it did.
fn explain(headers: &mut HeaderMap, exchange: &Exchange) {
    headers::set_name(headers, headers::REQUEST_ID, &exchange.id);
    if let Some(decision) = &exchange.decision {
        decision.tell(headers);
    }
    let facts = [
        (headers::ROUTE, &exchange.route),
        (headers::BACKEND, &exchange.backend),
        (headers::DIVERTED_FROM, &exchange.diverted_from),
        (headers::COST, &exchange.cost),
    ];
    for (name, fact) in facts {
        if let Some(fact) = fact {
            headers::set_name(headers, name, fact);
        }
    }
    if let Some(address) = exchange.endpoint.as_ref().and_then(|endpoint| endpoint.header()) {
        headers.insert(headers::ENDPOINT, address.clone());
    }
    if let Some(word) = exchange.endpoint_choice {
        headers.insert(headers::ENDPOINT_CHOICE, HeaderValue::from_static(word));
    }
    if let Some((from, why)) = &exchange.fallback {
        headers::set_name(headers, headers::FALLBACK_FROM, from);
        headers::set(headers, headers::FALLBACK_REASON, &format!("{why:?}"));
    }
    let revision = exchange.endpoint.as_ref().and_then(|endpoint| endpoint.revision());
    if let (Some(revision), false) = (revision, headers.contains_key(&headers::REVISION)) {
        headers::set_name(headers, headers::REVISION, revision);
    }
}

/// An error of ours as the answer.
pub fn refuse(error: &ApiError, outcome: Outcome, mut exchange: Box<Exchange>) -> Response<GatewayBody> {
    let mut response = body::error(error);
    explain(response.headers_mut(), &exchange);
    exchange.answered(error.status);
    exchange.ended(outcome, None);
    response
}

/// 404: no route answers to that name.
fn unknown_model(model: &str, exchange: Box<Exchange>) -> Response<GatewayBody> {
    let remedy =
        "GET /v1/models lists those there are; to add it, apply a ModelRoute whose spec.model is that name";
    refuse(&ApiError::model_not_found(model, remedy), Outcome::UnknownModel, exchange)
}

/// What went wrong as the answer.
fn failed(route: &Route, failure: Failure, exchange: Box<Exchange>) -> Response<GatewayBody> {
    match failure {
        Failure::Unavailable(reason) => unavailable(route, reason, exchange),
        Failure::Full(backend) => {
            let message = format!(
                "backend {backend} of model {:?} has as many requests as its route lets it have; try again soon",
                route.model
            );
            refuse(&ApiError::unavailable("backend_full", message, 1), Outcome::Overloaded, exchange)
        }
        Failure::Gone => unknown_model(&route.model, exchange),
        Failure::Attempt(error) => failed_attempt(route, error, exchange),
    }
}

/// 503: the route is there, but nothing behind it.
fn unavailable(route: &Route, reason: Unavailable, exchange: Box<Exchange>) -> Response<GatewayBody> {
    let Route { id, model, .. } = route;
    let error = match reason {
        Unavailable::NoWeight => ApiError::unavailable(
            "no_backend",
            format!(
                "model {model:?} takes no traffic: the weights of ModelRoute {id} sum to zero; give a backend a weight above 0"
            ),
            30,
        ),
        Unavailable::NoEndpoint => ApiError::unavailable(
            "no_endpoint",
            format!(
                "model {model:?} has no pod that is ready; try again soon, or see why with kubectl get modelroute,modeldeployment"
            ),
            5,
        ),
    };
    refuse(&error.with_param("model"), Outcome::NoEndpoint, exchange)
}

/// The last attempt's failure as the answer.
fn failed_attempt(route: &Route, error: AttemptError, mut exchange: Box<Exchange>) -> Response<GatewayBody> {
    let attempts = exchange.attempts;
    match error {
        AttemptError::Busy(head, bytes) | AttemptError::Server(head, bytes) => {
            pass_on(&head, bytes, false, exchange)
        }
        AttemptError::Refused(error) => refuse(&error, Outcome::Refused, exchange),
        AttemptError::Provider(error) => {
            let outcome = if error.status == 429 { Outcome::Overloaded } else { Outcome::UpstreamError };
            refuse(&error, outcome, exchange)
        }
        AttemptError::Connect(detail) => {
            exchange.ended(Outcome::UpstreamError, Some(detail));
            let error = match provider(route, &exchange) {
                Some(backend) => errors::unreachable(backend, attempts),
                None => {
                    let message = format!(
                        "no inference pod of this model could be reached in {attempts} attempts; try again soon"
                    );
                    ApiError::unavailable("upstream_unreachable", message, 1)
                }
            };
            refuse(&error, Outcome::UpstreamError, exchange)
        }
        AttemptError::Untrusted { why, detail } => {
            exchange.ended(Outcome::UpstreamError, Some(detail));
            let error = errors::not_trusted(exchange.backend.as_deref().unwrap_or_default(), why);
            refuse(&error, Outcome::UpstreamError, exchange)
        }
        AttemptError::Reset(detail) => {
            exchange.ended(Outcome::UpstreamError, Some(detail));
            let message =
                format!("inference pods broke off this request in {attempts} attempts; send it again");
            let error = ApiError::new(502, "upstream_error", message).with_code("upstream_broken");
            refuse(&error, Outcome::UpstreamError, exchange)
        }
        AttemptError::Timeout(detail) => {
            let message = format!(
                "{detail}; ask for fewer tokens or set stream to true, and see whether the model is overloaded"
            );
            exchange.ended(Outcome::UpstreamTimeout, Some(detail));
            let error = ApiError::new(504, "upstream_error", message).with_code("upstream_timeout");
            refuse(&error, Outcome::UpstreamTimeout, exchange)
        }
    }
}

/// The backend that was asked last, when it is a provider.
fn provider<'a>(route: &'a Route, exchange: &Exchange) -> Option<&'a str> {
    let asked = route.backends.iter().find(|backend| Some(&backend.name) == exchange.backend.as_ref())?;
    asked.provider.as_ref().map(|_| asked.name.as_str())
}

impl Failure {
    /// Why a fallback is tried; `None` for what is wrong with the request itself.
    fn falls_back(&self) -> Option<FallbackOn> {
        match self {
            Self::Unavailable(_) => Some(FallbackOn::NoEndpoint),
            Self::Full(_) => Some(FallbackOn::Overloaded),
            Self::Gone => None,
            Self::Attempt(error) => match error {
                AttemptError::Connect(_)
                | AttemptError::Untrusted { .. }
                | AttemptError::Reset(_)
                | AttemptError::Server(..) => Some(FallbackOn::Error),
                AttemptError::Timeout(_) => Some(FallbackOn::Timeout),
                AttemptError::Busy(..) => Some(FallbackOn::Overloaded),
                AttemptError::Provider(error) if matches!(error.status, 429 | 503) => {
                    Some(FallbackOn::Overloaded)
                }
                AttemptError::Provider(_) => Some(FallbackOn::Error),
                AttemptError::Refused(_) => None,
            },
        }
    }
}
