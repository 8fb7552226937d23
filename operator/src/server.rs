//! The operator's own HTTP: `/healthz`, `/readyz` and `/metrics`. Serves followers and the leader alike.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

/// What the endpoints read.
#[derive(Clone, Debug)]
pub struct Health {
    /// Set once the process can do its work: as leader when its caches are filled, as follower at once.
    pub ready: Arc<AtomicBool>,
    /// What /metrics shows.
    pub metrics: Metrics,
    /// Brings the object counts up to date before /metrics is shown.
    pub refresh: Arc<dyn Refresh>,
}

/// Called before metrics are shown.
pub trait Refresh: Send + Sync + std::fmt::Debug {
    /// Brings gauges up to date.
    fn refresh(&self);
}

/// Listens. Separate from [`serve`] so that a port in use is an error at start-up.
///
/// # Errors
/// When the address can't be bound.
pub async fn bind(listen: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(listen).await
}

/// Serves until `stop`.
///
/// # Errors
/// When the listener fails.
pub async fn serve(listener: TcpListener, health: Health, stop: CancellationToken) -> std::io::Result<()> {
    let router = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(health);
    axum::serve(listener, router).with_graceful_shutdown(async move { stop.cancelled().await }).await
}

async fn readyz(State(health): State<Health>) -> Response {
    if health.ready.load(Ordering::Relaxed) {
        "ok\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "caches are being filled\n").into_response()
    }
}

async fn metrics(State(health): State<Health>) -> Response {
    health.refresh.refresh();
    match health.metrics.encode() {
        Ok(text) => {
            ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text)
                .into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
