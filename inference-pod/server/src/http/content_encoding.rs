//! Compressed request bodies are refused by name: read as they are they would be called broken JSON.

use axum::extract::Request;
use axum::http::HeaderMap;
use axum::http::header::CONTENT_ENCODING;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use fairlead_openai::ApiError;

use crate::http::errors::HttpError;

/// Answers 415 to a request whose body is compressed.
pub async fn refuse(request: Request, next: Next) -> Response {
    match check(request.headers()) {
        Ok(()) => next.run(request).await,
        Err(error) => HttpError::from(error).into_response(),
    }
}

fn check(headers: &HeaderMap) -> Result<(), ApiError> {
    let is_plain = |coding: &[u8]| coding.trim_ascii().eq_ignore_ascii_case(b"identity");
    match headers.get_all(CONTENT_ENCODING).iter().find(|coding| !is_plain(coding.as_bytes())) {
        None => Ok(()),
        Some(coding) => {
            let message = format!(
                "the request body is compressed (content-encoding: {coding:?}); send it uncompressed"
            );
            Err(ApiError::new(415, "invalid_request_error", message).with_code("unsupported_encoding"))
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn only_plain_bodies_are_read() {
        let with = |coding: &'static str| {
            HeaderMap::from_iter([(CONTENT_ENCODING, HeaderValue::from_static(coding))])
        };
        assert!(check(&HeaderMap::new()).is_ok());
        assert!(check(&with("Identity")).is_ok());
        for coding in ["gzip", "zstd", "identity, br"] {
            let error = check(&with(coding)).unwrap_err();
            assert_eq!((error.status, error.code.as_deref()), (415, Some("unsupported_encoding")));
            assert!(error.message.contains("content-encoding"), "{}", error.message);
        }
    }
}
