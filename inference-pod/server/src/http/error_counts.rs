//! Counts the answers that are errors: whoever was refused before the engine saw him shows in no other metric.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;

use crate::http::health::is_probe;
use crate::state::App;

/// Counts an answer by its status, where that is an error and nobody's probe.
pub async fn count(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let is_probe = is_probe(request.uri().path());
    let response = next.run(request).await;
    let status = response.status();
    if !is_probe && (status.is_client_error() || status.is_server_error()) {
        app.metrics.error(status.as_u16());
    }
    response
}
