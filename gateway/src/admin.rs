//! The admin listener: /healthz, /readyz, /metrics and /rollouts, for probes, Prometheus and the operator, apart from the clients'
//! port.

use std::sync::Arc;
use std::time::Instant;

use fairlead_openai::ApiError;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use k8s_openapi::jiff::Timestamp;
use serde_json::json;

use crate::body::{self, GatewayBody};
use crate::metrics::Metrics;
use crate::observe::report::{Query, report};
use crate::routing::Routing;

/// Answers one request.
pub fn handle(
    request: &Request<Incoming>,
    routing: &Routing,
    metrics: &Arc<Metrics>,
    instance: &str,
) -> Response<GatewayBody> {
    match request.uri().path() {
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
            let report = report(routing, instance, &query, Instant::now(), Timestamp::now());
            match serde_json::to_string(&report) {
                Ok(text) => body::json(StatusCode::OK, text),
                Err(error) => {
                    body::error(&ApiError::internal(format!("the counts could not be written: {error}")))
                }
            }
        }
        path => {
            let message = format!(
                "there is nothing at {path:?}; this port has /healthz, /readyz, /metrics and /rollouts"
            );
            body::error(&ApiError::new(404, "invalid_request_error", message))
        }
    }
}
