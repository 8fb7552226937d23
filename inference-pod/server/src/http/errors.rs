//! Errors as HTTP answers, always in OpenAI's shape.

use std::sync::Arc;

use axum::extract::State;
use axum::http::header::{ALLOW, CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderValue, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use fairlead_inference_config::Task;
use fairlead_openai::ApiError;

use crate::state::App;

/// An [`ApiError`] that axum can answer with.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct HttpError(#[from] ApiError);

impl IntoResponse for HttpError {
    fn into_response(self) -> Response {
        let Self(error) = self;
        let status = StatusCode::from_u16(error.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let json = [(CONTENT_TYPE, HeaderValue::from_static("application/json"))];
        let mut response = (status, json, error.to_json()).into_response();
        if let Some(seconds) = error.retry_after {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// What a pod for text has.
const FOR_TEXT: &[&str] = &["/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"];
/// What a pod for embeddings has.
const FOR_EMBEDDINGS: &[&str] = &["/v1/embeddings", "/tokenize", "/detokenize"];
/// What a pod for reranking has.
const FOR_SCORES: &[&str] = &["/v1/rerank", "/rerank", "/tokenize", "/detokenize"];
/// What every pod has.
const OF_ALL: &[&str] = &["/v1/models", "/healthz", "/health", "/readyz", "/startup", "/metrics", "/version"];

/// No such path on a pod.
pub async fn not_found(State(app): State<Arc<App>>, uri: Uri) -> HttpError {
    let own = match app.task {
        Task::Generate => FOR_TEXT,
        Task::Embed => FOR_EMBEDDINGS,
        Task::Rerank => FOR_SCORES,
    };
    ApiError::path_not_found_among(uri.path(), &[own, OF_ALL].concat()).into()
}

/// No such path on the admin port.
pub async fn not_found_for_admins(uri: Uri) -> HttpError {
    let paths = ["/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/v1/lora_adapters"];
    ApiError::path_not_found_among(uri.path(), &paths).into()
}

/// No such method on this path.
pub async fn method_not_allowed(method: Method, uri: Uri) -> Response {
    let takes_posts = ["completions", "embeddings", "rerank", "tokenize", "_lora_adapter"]
        .iter()
        .any(|end| uri.path().ends_with(end));
    let allowed = if takes_posts { "POST" } else { "GET" };
    let error = ApiError::method_not_allowed(method.as_str(), uri.path(), allowed);
    let mut response = HttpError(error).into_response();
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    response
}
