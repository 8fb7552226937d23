//! The admin listener: /healthz, /readyz, /metrics, /rollouts and /providers, for probes, Prometheus and the operator, and
//! /debug/explain for who knows the admin token; apart from the clients' port.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fairlead_openai::ApiError;
use http::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use k8s_openapi::jiff::Timestamp;
use serde_json::json;

use crate::body::{self, GatewayBody};
use crate::client_body::ClientBody;
use crate::explain::{self, question};
use crate::metrics::Metrics;
use crate::observe::report::{Query, report};
use crate::provider::report as providers;
use crate::proxy::Gateway;
use crate::routing::Routing;
use crate::token::AdminToken;

/// How long the body of a question may take.
const QUESTION_TIME: Duration = Duration::from_secs(10);

/// What the admin listener works with.
pub struct Admin {
    /// What is routed by.
    pub routing: Arc<Routing>,
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// The request path, which is asked and not used.
    pub gateway: Arc<Gateway>,
    /// Who may ask.
    pub token: AdminToken,
    /// This process: whoever adds up counts knows by it that they began anew.
    pub instance: String,
    /// Longest question in bytes.
    pub max_question: usize,
}

/// Answers one request.
pub async fn handle(request: Request<ClientBody>, admin: &Admin) -> Response<GatewayBody> {
    let Admin { routing, metrics, .. } = admin;
    match request.uri().path() {
        "/debug/explain" => explained(request, admin).await,
        "/healthz" => body::json(StatusCode::OK, json!({"status": "ok"}).to_string()),
        "/readyz" => match routing.ready() {
            Ok(()) => body::json(StatusCode::OK, json!({"status": "ready"}).to_string()),
            Err(reason) => {
                let text = json!({"status": "not ready", "reason": reason}).to_string();
                body::json(StatusCode::SERVICE_UNAVAILABLE, text)
            }
        },
        "/metrics" => match metrics.render(routing.age()) {
            Ok(text) => {
                let mut response = Response::new(GatewayBody::whole(text));
                let open_metrics = "application/openmetrics-text; version=1.0.0; charset=utf-8";
                response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(open_metrics));
                response
            }
            Err(error) => body::error(&ApiError::internal(format!("metrics could not be written: {error}"))),
        },
        "/rollouts" => {
            let query = Query::parse(request.uri().query().unwrap_or_default());
            let report = report(routing, &admin.instance, &query, Instant::now(), Timestamp::now());
            match serde_json::to_string(&report) {
                Ok(text) => body::json(StatusCode::OK, text),
                Err(error) => {
                    body::error(&ApiError::internal(format!("the counts could not be written: {error}")))
                }
            }
        }
        "/providers" => {
            let query = Query::parse(request.uri().query().unwrap_or_default());
            match serde_json::to_string(&providers::report(routing, query.uid())) {
                Ok(text) => body::json(StatusCode::OK, text),
                Err(error) => {
                    body::error(&ApiError::internal(format!("the report could not be written: {error}")))
                }
            }
        }
        path => {
            let message = format!(
                "there is nothing at {path:?}; this port has /healthz, /readyz, /metrics, /rollouts, /providers and /debug/explain"
            );
            body::error(&ApiError::new(404, "invalid_request_error", message))
        }
    }
}

/// What would happen to a request.
async fn explained(request: Request<ClientBody>, admin: &Admin) -> Response<GatewayBody> {
    let (head, body) = request.into_parts();
    if head.method != Method::GET && head.method != Method::POST {
        let error = ApiError::method_not_allowed(head.method.as_str(), "/debug/explain", "GET, POST");
        let mut response = body::error(&error);
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, POST"));
        return response;
    }
    // Before the body is read: nobody else's is worth the memory.
    if let Err(error) = admin.token.admit(&head.headers).await {
        return body::error(&error);
    }
    let gateway = &admin.gateway;
    let question = if head.method == Method::GET {
        question::from_query(head.uri.query().unwrap_or_default(), &gateway.trusted)
    } else {
        let read = Limited::new(body, admin.max_question).collect();
        match tokio::time::timeout(QUESTION_TIME, read).await {
            Ok(Ok(body)) => question::from_body(&body.to_bytes()),
            Ok(Err(error)) => Err(ApiError::bad_request(format!(
                "the body cannot be read: {error}; send it again, and smaller"
            ))),
            Err(_) => Err(ApiError::bad_request("the body did not arrive in 10 seconds; send it faster")),
        }
    };
    let explained = question.and_then(|question| {
        let snapshot = admin.routing.snapshot();
        let question::Question { request, headers } = &question;
        explain::explain(&snapshot, &gateway.trusted, &gateway.policies, request, headers, Instant::now())
    });
    match explained.map(|explanation| serde_json::to_string_pretty(&explanation)) {
        Ok(Ok(text)) => body::json(StatusCode::OK, format!("{text}\n")),
        Ok(Err(error)) => {
            body::error(&ApiError::internal(format!("the answer could not be written: {error}")))
        }
        Err(error) => body::error(&error),
    }
}
