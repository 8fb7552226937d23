//! The HTTP edge: routes, and what all answers have in common.

pub mod admin;
mod chat;
mod chat_answer;
mod completion_answer;
mod completions;
mod content_encoding;
mod continuation;
mod embeddings;
mod error_counts;
mod errors;
mod health;
mod models;
pub mod request_body;
mod request_id;
mod rerank;
mod tokenize;
mod version;

use std::future::ready;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::middleware::{from_fn, from_fn_with_state, map_response};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use fairlead_openai::ApiError;
use futures::Stream;
use serde::Serialize;

use crate::generation::Timing;
use crate::http::errors::HttpError;
use crate::state::App;

/// A gateway's name for the model, echoed instead of the one in the body.
const PUBLIC_MODEL: HeaderName = HeaderName::from_static("x-fairlead-model");

/// Which revision of the model answered. During a roll-out the pods alone know.
const REVISION: HeaderName = HeaderName::from_static("x-fairlead-revision");

/// How many milliseconds a client gives a request, from its arrival to its last token.
const REQUEST_TIMEOUT: HeaderName = HeaderName::from_static("x-request-timeout-ms");
/// The most it can give: a day.
const LONGEST_TIMEOUT_MS: u64 = 86_400_000;

/// All routes.
pub fn router(app: Arc<App>) -> Router {
    let revision = app.revision.clone();
    Router::new()
        .route("/v1/chat/completions", post(chat::chat_completions))
        .route("/v1/completions", post(completions::completions))
        .route("/v1/embeddings", post(embeddings::embeddings))
        .route("/v1/rerank", post(rerank::rerank))
        .route("/rerank", post(rerank::rerank))
        .route("/tokenize", post(tokenize::tokenize))
        .route("/detokenize", post(tokenize::detokenize))
        .route("/v1/models", get(models::models))
        .route("/v1/models/{*name}", get(models::model))
        .route("/healthz", get(health::healthz))
        .route("/health", get(health::healthz))
        .route("/readyz", get(health::readyz))
        .route("/startup", get(health::startup))
        .route("/metrics", get(health::metrics))
        .route("/version", get(version::version))
        .fallback(errors::not_found)
        .method_not_allowed_fallback(errors::method_not_allowed)
        .layer(from_fn(content_encoding::refuse))
        .layer(from_fn_with_state(Arc::clone(&app), continuation::check_revision))
        .layer(map_response(move |mut response: Response| {
            if let Some(revision) = &revision {
                response.headers_mut().insert(REVISION, revision.clone());
            }
            ready(response)
        }))
        .layer(from_fn(request_id::name))
        .layer(from_fn_with_state(Arc::clone(&app), error_counts::count))
        .with_state(app)
}

/// When a request came in, which is now, and when it is given up.
fn timing(headers: &HeaderMap) -> Result<Timing, ApiError> {
    let arrived = Instant::now();
    let Some(value) = headers.get(REQUEST_TIMEOUT) else { return Ok(Timing { arrived, deadline: None }) };
    let milliseconds = value.to_str().ok().and_then(|text| text.trim().parse::<u64>().ok());
    match milliseconds.filter(|count| (1..=LONGEST_TIMEOUT_MS).contains(count)) {
        Some(count) => Ok(Timing { arrived, deadline: Some(arrived + Duration::from_millis(count)) }),
        None => Err(ApiError::invalid(
            REQUEST_TIMEOUT.as_str(),
            format!(
                "the header {REQUEST_TIMEOUT} must be a number of milliseconds from 1 to {LONGEST_TIMEOUT_MS}; correct \
                 it, or leave it out"
            ),
        )),
    }
}

/// The model's name in the answer: the gateway's, or what the client wrote.
fn public_model(headers: &HeaderMap, requested: &str) -> String {
    headers.get(PUBLIC_MODEL).and_then(|value| value.to_str().ok()).unwrap_or(requested).to_owned()
}

/// One server-sent event.
fn sse_event(value: &impl Serialize) -> Bytes {
    match serde_json::to_string(value) {
        Ok(json) => Bytes::from(format!("data: {json}\n\n")),
        Err(error) => {
            sse_error(&ApiError::internal(format!("an answer could not be written as JSON: {error}")))
        }
    }
}

/// A stream that has begun can only report an error in an event.
fn sse_error(error: &ApiError) -> Bytes {
    Bytes::from(format!("data: {}\n\n", error.to_json()))
}

/// The event that ends every stream.
fn sse_done() -> Bytes {
    Bytes::from_static(b"data: [DONE]\n\n")
}

/// An answer that streams. Nothing between here and the client should hold it back.
fn sse_response(events: impl Stream<Item = Result<Bytes, HttpError>> + Send + 'static) -> Response {
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8")),
        (CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
    ];
    (headers, Body::from_stream(events)).into_response()
}

/// A name for an answer.
fn answer_id(prefix: &str) -> String {
    format!("{prefix}-{}", uuid::Uuid::new_v4().simple())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_limit_is_read_from_its_header() {
        let with =
            |text: &'static str| HeaderMap::from_iter([(REQUEST_TIMEOUT, HeaderValue::from_static(text))]);
        assert_eq!(timing(&HeaderMap::new()).unwrap().deadline, None);
        let given = timing(&with("1500")).unwrap();
        assert_eq!(given.deadline, Some(given.arrived + Duration::from_millis(1500)));
        for wrong in ["0", "-1", "soon", "86400001"] {
            let error = timing(&with(wrong)).unwrap_err();
            assert_eq!((error.status, error.param.as_deref()), (400, Some("x-request-timeout-ms")));
        }
    }
}
