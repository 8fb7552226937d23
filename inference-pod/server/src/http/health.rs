//! `/healthz` (also `/health`), `/readyz`, `/startup` and `/metrics`.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::metrics::CONTENT_TYPE as METRICS_CONTENT_TYPE;
use crate::startup::{Phase, StartupReport};
use crate::state::App;

/// A step that takes longer than this takes no more company: a large one of a large model on a CPU takes minutes.
const STALLED_AFTER: Duration = Duration::from_secs(300);
/// One that takes longer than this never ends.
const HUNG_AFTER: Duration = Duration::from_secs(900);

/// 200 while the process can do its work or may get there; 503 once its engine has stopped or hangs, so that it is restarted.
pub async fn healthz(State(app): State<Arc<App>>) -> Response {
    match app.dead().map(stopped).or_else(|| app.step_longer_than(HUNG_AFTER).map(long_step)) {
        None => (StatusCode::OK, Json(json!({"status": "ok"}))).into_response(),
        Some(reason) => {
            let body = json!({"status": "dead", "reason": reason});
            (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response()
        }
    }
}

fn stopped(reason: &str) -> String {
    format!("the engine has stopped: {reason}")
}

fn long_step(age: Duration) -> String {
    format!("a step has been running for {} seconds", age.as_secs())
}

/// 200 only while new requests are taken.
pub async fn readyz(State(app): State<Arc<App>>) -> Response {
    let report = app.startup.report();
    let reason = if app.drain.is_leaving() {
        "draining".to_owned()
    } else if let Some(reason) = app.dead() {
        stopped(reason)
    } else if let Some(age) = app.step_longer_than(STALLED_AFTER) {
        long_step(age)
    } else if report.phase == Phase::Ready {
        return (StatusCode::OK, Json(json!({"status": "ready"}))).into_response();
    } else {
        report.message.unwrap_or_else(|| format!("starting: {}", report.phase.as_str()))
    };
    let body = json!({"status": "unready", "phase": report.phase, "reason": reason});
    (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response()
}

/// Whether a path is asked again and again by who watches the pod.
pub fn is_probe(path: &str) -> bool {
    matches!(path, "/healthz" | "/health" | "/readyz")
}

/// Where the pod is on its way to being ready.
pub async fn startup(State(app): State<Arc<App>>) -> Json<StartupReport> {
    Json(app.startup.report())
}

/// All metrics.
pub async fn metrics(State(app): State<Arc<App>>) -> Response {
    app.metrics.waiting_at_least(app.queued());
    match app.metrics.encode() {
        Ok(text) => ([(CONTENT_TYPE, METRICS_CONTENT_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
