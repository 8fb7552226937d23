//! Carries one request to a pod and its answer back, trying other pods as long as the client has seen nothing.

use std::time::Instant;

use fairlead_openai::ApiError;
use http::response::Parts;
use http::{HeaderMap, HeaderValue, Response};

use crate::body::{self, GatewayBody};
use crate::decide;
use crate::ejection::Failure;
use crate::endpoint::InFlight;
use crate::exchange::Exchange;
use crate::headers;
use crate::metrics::Outcome;
use crate::proxy::Gateway;
use crate::relay::Relay;
use crate::request::InferenceRequest;
use crate::retry;
use crate::select::{Selection, Unavailable};
use crate::snapshot::Route;
use crate::upstream::{Answer, AttemptError};

/// Forwards a request; the answer is the pod's, or an error of ours.
///
/// Each attempt looks at the newest snapshot: a pod that is gone by then is not tried again.
pub async fn forward(
    gateway: &Gateway,
    request: &InferenceRequest,
    client: &HeaderMap,
    mut exchange: Exchange,
) -> Response<GatewayBody> {
    gateway.budget.earn();
    let mut headers = headers::for_pod(client);
    gateway.trusted.strip(&mut headers);
    headers::set(&mut headers, headers::MODEL, &request.model);
    headers::set(&mut headers, headers::REQUEST_ID, &exchange.id);
    let ask = request.ask(client);
    let mut selection: Option<Selection> = None;
    let mut last: Option<AttemptError> = None;
    for attempt in 1..=gateway.max_attempts {
        let snapshot = gateway.routing.snapshot();
        let Some(route) = snapshot.route(&request.model) else {
            if last.is_none() {
                return unknown_model(&request.model, exchange);
            }
            break;
        };
        exchange.route = Some(route.id.clone());
        let selection = match &mut selection {
            Some(selection) => selection,
            none => match decide::of_request(route, &gateway.trusted, client, &request.facts) {
                Ok(decision) => {
                    exchange.subject = decision.subject;
                    exchange.decision = Some(decision.clone());
                    none.insert(Selection::new(decision))
                }
                Err(error) => return refuse(&error, Outcome::Refused, exchange),
            },
        };
        let choice = selection.next(route, &gateway.policies, &ask, Instant::now(), &mut rand::rng());
        let choice = match choice {
            Ok(choice) => choice,
            Err(reason) if last.is_none() => return unavailable(route, reason, exchange),
            Err(_) => break,
        };
        let backend = choice.backend;
        if !choice.fresh {
            tokio::time::sleep(retry::pause(attempt - 1)).await;
        }
        exchange.attempts = attempt;
        exchange.backend = Some(backend.name.clone());
        exchange.cost.clone_from(&backend.cost);
        exchange.diverted_from = selection.intended().filter(|name| *name != backend.name).map(str::to_owned);
        exchange.endpoint = Some(choice.endpoint.address());
        exchange.endpoint_choice = Some(choice.verdict.why.word());
        exchange.revision = choice.endpoint.revision().map(str::to_owned);
        exchange.attempt(route, &backend.name, request.stream);
        let in_flight = choice.endpoint.begin();
        let uri = match choice.endpoint.uri(request.api.path()) {
            Ok(uri) => uri,
            Err(error) => return failed(AttemptError::Connect(error.to_string()), exchange),
        };
        let body = request.body_for(backend.served_model.as_deref());
        match gateway.upstream.ask(uri, headers.clone(), body, request.stream).await {
            Ok(answer) => return answered(gateway, answer, in_flight, exchange),
            Err(error) => {
                note(&error, &in_flight, &mut exchange);
                let Some(reason) = error.retry_reason() else { return failed(error, exchange) };
                // A pod that says it is busy is not asked again: its own answer says it best.
                let elsewhere = !matches!(error, AttemptError::Busy(..)) || selection.has_fresh(route);
                last = Some(error);
                if attempt == gateway.max_attempts || !elsewhere {
                    break;
                }
                if !gateway.budget.spend(Instant::now()) {
                    exchange.metrics().retry_denied();
                    break;
                }
                exchange.metrics().retried(reason);
            }
        }
    }
    match last {
        Some(error) => failed(error, exchange),
        None => failed(AttemptError::Connect("no attempt was made".to_owned()), exchange),
    }
}

/// Keeps the endpoint's record.
fn note(error: &AttemptError, in_flight: &InFlight, exchange: &mut Exchange) {
    match error {
        AttemptError::Busy(..) => exchange.attempt_refused(),
        AttemptError::Connect(_) | AttemptError::Reset(_) | AttemptError::Timeout(_) => {
            exchange.attempt_failed();
        }
    }
    let (failure, detail) = match error {
        AttemptError::Connect(detail) => (Failure::Connect, detail.as_str()),
        AttemptError::Reset(detail) | AttemptError::Timeout(detail) => (Failure::Broken, detail.as_str()),
        // 503: starting or draining. A full queue (429) is a sign of health.
        AttemptError::Busy(head, _) if head.status.as_u16() == 503 => (Failure::Broken, "503"),
        AttemptError::Busy(..) => return,
    };
    let endpoint = in_flight.endpoint();
    tracing::info!(request_id = exchange.id, endpoint = endpoint.address(), detail, "an attempt failed");
    if endpoint.record_failure(failure, Instant::now()) {
        exchange.metrics().ejected();
        tracing::warn!(endpoint = endpoint.address(), detail, "the endpoint is left alone for a while");
    }
}

fn answered(
    gateway: &Gateway,
    answer: Answer,
    in_flight: InFlight,
    mut exchange: Exchange,
) -> Response<GatewayBody> {
    in_flight.endpoint().record_success();
    if exchange.diverted_from.is_some() {
        exchange.metrics().diverted();
    }
    match answer {
        Answer::Whole(head, bytes) => pass_on(&head, bytes, exchange),
        Answer::Begun { head, first, rest, events } => {
            exchange.answered(head.status.as_u16());
            if events {
                exchange.first_byte();
            }
            let mut response = Response::new(());
            dress(&mut response, &head, &exchange);
            let relay = Relay::new(first, rest, events, gateway.upstream.idle_timeout(), in_flight, exchange);
            response.map(|()| GatewayBody::Relayed(Box::new(relay)))
        }
    }
}

/// A pod's complete answer.
fn pass_on(head: &Parts, bytes: bytes::Bytes, mut exchange: Exchange) -> Response<GatewayBody> {
    exchange.passed_whole(&bytes);
    let mut response = Response::new(GatewayBody::whole(bytes));
    dress(&mut response, head, &exchange);
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

fn dress<B>(response: &mut Response<B>, head: &Parts, exchange: &Exchange) {
    *response.status_mut() = head.status;
    *response.headers_mut() = headers::for_client(&head.headers);
    explain(response.headers_mut(), exchange);
}

/// Says why the answer went where it did.
fn explain(headers: &mut HeaderMap, exchange: &Exchange) {
    headers::set(headers, headers::REQUEST_ID, &exchange.id);
    if let Some(decision) = &exchange.decision {
        decision.tell(headers);
    }
    let facts = [
        (headers::ROUTE, &exchange.route),
        (headers::BACKEND, &exchange.backend),
        (headers::DIVERTED_FROM, &exchange.diverted_from),
        (headers::COST, &exchange.cost),
        (headers::ENDPOINT, &exchange.endpoint),
    ];
    for (name, fact) in facts {
        if let Some(fact) = fact {
            headers::set(headers, name, fact);
        }
    }
    if let Some(word) = exchange.endpoint_choice {
        headers.insert(headers::ENDPOINT_CHOICE, HeaderValue::from_static(word));
    }
    if let (Some(revision), false) = (&exchange.revision, headers.contains_key(&headers::REVISION)) {
        headers::set(headers, headers::REVISION, revision);
    }
}

/// An error of ours as the answer.
pub fn refuse(error: &ApiError, outcome: Outcome, mut exchange: Exchange) -> Response<GatewayBody> {
    let mut response = body::error(error);
    explain(response.headers_mut(), &exchange);
    exchange.answered(error.status);
    exchange.ended(outcome, None);
    response
}

/// 404: no route answers to that name.
fn unknown_model(model: &str, exchange: Exchange) -> Response<GatewayBody> {
    let remedy =
        "GET /v1/models lists those there are; to add it, apply a ModelRoute whose spec.model is that name";
    refuse(&ApiError::model_not_found(model, remedy), Outcome::UnknownModel, exchange)
}

/// 503: the route is there, but nothing behind it.
fn unavailable(route: &Route, reason: Unavailable, exchange: Exchange) -> Response<GatewayBody> {
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
fn failed(error: AttemptError, mut exchange: Exchange) -> Response<GatewayBody> {
    let attempts = exchange.attempts;
    match error {
        AttemptError::Busy(head, bytes) => pass_on(&head, bytes, exchange),
        AttemptError::Connect(detail) => {
            exchange.ended(Outcome::UpstreamError, Some(detail));
            let message = format!(
                "no inference pod of this model could be reached in {attempts} attempts; try again soon"
            );
            refuse(
                &ApiError::unavailable("upstream_unreachable", message, 1),
                Outcome::UpstreamError,
                exchange,
            )
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
