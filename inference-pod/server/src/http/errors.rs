//! Errors as HTTP answers, always in OpenAI's shape.

use axum::http::header::{ALLOW, CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderValue, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use fairlead_openai::ApiError;

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

/// No such path.
pub async fn not_found(uri: Uri) -> HttpError {
    ApiError::path_not_found(uri.path()).into()
}

/// No such method on this path.
pub async fn method_not_allowed(method: Method, uri: Uri) -> Response {
    let takes_posts =
        ["completions", "embeddings", "rerank", "tokenize"].iter().any(|end| uri.path().ends_with(end));
    let allowed = if takes_posts { "POST" } else { "GET" };
    let error = ApiError::method_not_allowed(method.as_str(), uri.path(), allowed);
    let mut response = HttpError(error).into_response();
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    response
}
