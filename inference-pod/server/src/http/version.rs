//! `GET /version`.

use axum::Json;
use serde_json::{Value, json};

/// The version of this server, in vLLM's shape.
pub async fn version() -> Json<Value> {
    Json(json!({"version": env!("CARGO_PKG_VERSION")}))
}
