//! `/healthz`, `/readyz`, `/startup` and `/metrics`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::metrics::CONTENT_TYPE as METRICS_CONTENT_TYPE;
use crate::startup::{Phase, StartupReport};
use crate::state::App;

/// 200 while the process can do its work or may get there; 503 once its engine has stopped, so that it is restarted.
pub async fn healthz(State(app): State<Arc<App>>) -> Response {
    match app.dead() {
        None => (StatusCode::OK, Json(json!({"status": "ok"}))).into_response(),
        Some(reason) => {
            let body = json!({"status": "dead", "reason": format!("the engine has stopped: {reason}")});
            (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response()
        }
    }
}

/// 200 only while new requests are taken.
pub async fn readyz(State(app): State<Arc<App>>) -> Response {
    let report = app.startup.report();
    let reason = if app.drain.is_leaving() {
        "draining".to_owned()
    } else if let Some(reason) = app.dead() {
        format!("the engine has stopped: {reason}")
    } else if report.phase == Phase::Ready {
        return (StatusCode::OK, Json(json!({"status": "ready"}))).into_response();
    } else {
        report.message.unwrap_or_else(|| format!("starting: {}", report.phase.as_str()))
    };
    let body = json!({"status": "unready", "phase": report.phase, "reason": reason});
    (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response()
}

/// Where the pod is on its way to being ready.
pub async fn startup(State(app): State<Arc<App>>) -> Json<StartupReport> {
    Json(app.startup.report())
}

/// All metrics.
pub async fn metrics(State(app): State<Arc<App>>) -> Response {
    match app.metrics.encode() {
        Ok(text) => ([(CONTENT_TYPE, METRICS_CONTENT_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
