//! The name of a request, `x-request-id`: the client's own or a new one, on the answer and in the line about one that failed.

use std::time::Instant;

use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use fairlead_openai::ApiError;

use crate::http::health::is_probe;

/// Names a request, in logs and to the client.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Longest name that a client may give.
const LONGEST: usize = 128;

/// What is known of a request whose answer is a stream, for the case that it breaks off: its status has been sent by then.
pub struct StreamedRequest {
    id: HeaderValue,
    path: &'static str,
    begun: Instant,
}

impl StreamedRequest {
    /// With the headers that [`name`] passed on.
    pub fn new(headers: &HeaderMap, path: &'static str, begun: Instant) -> Self {
        Self { id: request_id(headers), path, begun }
    }

    /// Tells of the error that ends the stream.
    pub fn broke_off(&self, error: &ApiError) {
        let (request_id, status) = (self.id.to_str().unwrap_or_default(), error.status);
        let milliseconds = self.begun.elapsed().as_millis() as u64;
        tracing::warn!(request_id, path = self.path, status, milliseconds, "a stream broke off");
    }
}

/// Puts the request's name on its answer, and a line into the log where it failed. Handlers find the name among the headers.
pub async fn name(mut request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let id = request_id(request.headers());
    request.headers_mut().insert(REQUEST_ID, id.clone());
    let path = request.uri().path().to_owned();
    let mut response = next.run(request).await;
    let (status, milliseconds) = (response.status(), begun.elapsed().as_millis() as u64);
    let request_id = id.to_str().unwrap_or_default();
    // A probe that fails is told of by who asks, again and again.
    if status.is_server_error() && !is_probe(&path) {
        tracing::warn!(request_id, path, status = status.as_u16(), milliseconds, "a request failed");
    } else if status.is_client_error() {
        tracing::debug!(request_id, path, status = status.as_u16(), milliseconds, "a request was refused");
    }
    response.headers_mut().insert(REQUEST_ID, id);
    response
}

/// The client's name for the request where it is fit for logs, otherwise a new one.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    let is_fit = |value: &&HeaderValue| {
        (1..=LONGEST).contains(&value.len()) && value.as_bytes().iter().all(u8::is_ascii_graphic)
    };
    headers.get(REQUEST_ID).filter(is_fit).cloned().unwrap_or_else(|| {
        // Letters, digits and hyphens are always a header's value.
        HeaderValue::from_str(&uuid::Uuid::new_v4().to_string())
            .unwrap_or_else(|_| HeaderValue::from_static("unnamed"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_fit_for_logs_is_taken_over() {
        let with = |value: &[u8]| {
            let value = HeaderValue::from_bytes(value).unwrap();
            request_id(&HeaderMap::from_iter([(REQUEST_ID, value)]))
        };
        assert_eq!(with(b"abc-1"), "abc-1");
        assert_eq!(with(&[b'x'; 128]), "x".repeat(128));
        for unfit in [&b""[..], b"a b", b"\xc3\xa9", &[b'x'; 129]] {
            assert_eq!(with(unfit).len(), 36, "{unfit:?}");
        }
        assert_ne!(request_id(&HeaderMap::new()), request_id(&HeaderMap::new()));
    }
}
