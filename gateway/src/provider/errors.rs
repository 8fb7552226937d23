//! A provider's refusals in our words. Pure.
//!
//! What is wrong with the request is told as the provider told it; what is wrong between gateway and provider (the key, the
//! model's name) is the operator's matter, and the client learns only that it is. A provider's own words about accounts,
//! organisations and keys do not pass.

use std::error::Error;

use fairlead_openai::ApiError;
use fairlead_openai::error::ErrorBody;
use http::header::RETRY_AFTER;
use http::{HeaderMap, StatusCode};
use rustls::CertificateError;

use super::failure::causes;

/// The longest time that a provider is left alone for because it says so.
const LONGEST_RETRY_AFTER: u32 = 300;

/// The error that a client gets for a provider's answer of this status, 400 and above.
pub fn told(backend: &str, status: StatusCode, headers: &HeaderMap, body: &[u8]) -> ApiError {
    let detail = serde_json::from_slice::<ErrorBody>(body).ok().map(|body| body.error);
    match status.as_u16() {
        400 | 413 | 422 => {
            let mut error = ApiError::bad_request(
                detail
                    .as_ref()
                    .map_or_else(|| "the provider refused this request".to_owned(), |it| it.message.clone()),
            );
            error.status = status.as_u16();
            error.param = detail.as_ref().and_then(|detail| detail.param.clone());
            error.code = detail.and_then(|detail| detail.code);
            error
        }
        401 | 403 => upstream(
            "provider_refused",
            format!("backend {backend}: the provider refused the gateway's key; tell who runs this service"),
        ),
        404 => upstream(
            "provider_model_not_found",
            format!("backend {backend}: the provider knows no such model; tell who runs this service"),
        ),
        429 => {
            let seconds = retry_after(headers).unwrap_or(1);
            let mut error = ApiError::new(
                429,
                "rate_limit_error",
                format!(
                    "backend {backend}: the provider takes no more requests now; try again in {seconds} s"
                ),
            )
            .with_code("provider_rate_limited");
            error.retry_after = Some(seconds);
            error
        }
        503 => {
            let seconds = retry_after(headers).unwrap_or(1);
            let message =
                format!("backend {backend}: the provider cannot answer now; try again in {seconds} s");
            ApiError::unavailable("provider_unavailable", message, seconds)
        }
        code => upstream(
            "provider_failed",
            format!("backend {backend}: the provider answered {code}; send the request again"),
        ),
    }
}

/// The error that a client gets when a provider's certificate is not accepted.
pub fn not_trusted(backend: &str, why: &str) -> ApiError {
    let message = format!(
        "backend {backend}: the provider's certificate is not accepted: {why}; tell who runs this service"
    );
    upstream("provider_untrusted", message)
}

/// The error that a client gets when a provider cannot be reached.
pub fn unreachable(backend: &str, attempts: u32) -> ApiError {
    let message = format!(
        "backend {backend}: the provider could not be reached in {attempts} attempts; try again soon"
    );
    ApiError::unavailable("provider_unreachable", message, 1)
}

/// Why a certificate was not accepted, when that is what went wrong, or is among its causes.
pub fn untrusted(error: &(dyn Error + 'static)) -> Option<&'static str> {
    causes(error).find_map(|cause| match cause.downcast_ref() {
        Some(rustls::Error::InvalidCertificate(problem)) => Some(match problem {
            // A bad signature: an authority of that name is known, but with another key, as after it was made anew.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                "no authority has signed it that provider.caSecretRef or caConfigMapRef has, or without those the system"
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => "it has expired",
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "it is not valid yet"
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "it is for another host than that of provider.url"
            }
            _ => "it cannot be verified",
        }),
        _ => None,
    })
}

fn upstream(code: &str, message: String) -> ApiError {
    ApiError::new(502, "upstream_error", message).with_code(code)
}

/// For how many seconds it wants to be left alone, where it says so in seconds.
pub fn retry_after(headers: &HeaderMap) -> Option<u32> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse::<u32>().ok()?;
    Some(seconds.clamp(1, LONGEST_RETRY_AFTER))
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use http::HeaderValue;

    fn error(status: u16, body: &str) -> ApiError {
        let headers = HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from_static("7"))]);
        told("cloud", StatusCode::from_u16(status).expect("a status"), &headers, body.as_bytes())
    }

    #[test]
    fn a_wrong_request_is_told_as_the_provider_told_it() {
        let body = r#"{"error":{"message":"temperature is too high","type":"x","param":"temperature","code":"bad"}}"#;
        let told = error(400, body);
        assert_eq!((told.status, told.message.as_str()), (400, "temperature is too high"));
        assert_eq!((told.param.as_deref(), told.code.as_deref()), (Some("temperature"), Some("bad")));
        assert_eq!(error(400, "<html>").status, 400);
    }

    #[test]
    fn a_certificate_that_is_not_accepted_is_found_among_the_causes() {
        let wrong = |problem| io::Error::other(io::Error::other(rustls::Error::InvalidCertificate(problem)));
        let why = untrusted(&wrong(CertificateError::UnknownIssuer)).expect("found");
        assert!(why.contains("caSecretRef"));
        assert_eq!(untrusted(&wrong(CertificateError::BadSignature)), Some(why));
        assert!(
            untrusted(&wrong(CertificateError::NotValidForName)).expect("found").contains("provider.url")
        );
        assert_eq!(untrusted(&io::Error::other(rustls::Error::DecryptError)), None);
        assert_eq!(untrusted(&io::Error::from(io::ErrorKind::ConnectionRefused)), None);
        let told = not_trusted("cloud", why);
        assert_eq!((told.status, told.code.as_deref()), (502, Some("provider_untrusted")));
    }

    #[test]
    fn accounts_and_keys_are_not_told_of() {
        let body = r#"{"error":{"message":"key sk-abc of org-1","type":"x","param":null,"code":null}}"#;
        for (status, expected, code) in [
            (401, 502, "provider_refused"),
            (403, 502, "provider_refused"),
            (404, 502, "provider_model_not_found"),
            (429, 429, "provider_rate_limited"),
            (500, 502, "provider_failed"),
            (503, 503, "provider_unavailable"),
        ] {
            let told = error(status, body);
            assert_eq!((told.status, told.code.as_deref()), (expected, Some(code)));
            assert!(!told.message.contains("sk-") && !told.message.contains("org-"));
        }
        assert_eq!((error(429, body).retry_after, error(503, body).retry_after), (Some(7), Some(7)));
    }
}
