//! What a hub's answer means: a status and a few headers in, a typed error with its remedy out.

use std::time::Duration;

use reqwest::StatusCode;
use reqwest::header::{HeaderMap, RETRY_AFTER};

use crate::error::FetchError;

/// What was asked for, for messages.
#[derive(Clone, Copy)]
pub(crate) struct Asked<'a> {
    /// `org/name`.
    pub repository: &'a str,
    /// Branch, tag or commit.
    pub revision: &'a str,
    /// File, when one was asked for.
    pub file: Option<&'a str>,
    /// Scheme, host and port of the hub.
    pub hub: &'a str,
    /// Whether the request carried a token.
    pub with_token: bool,
}

/// Turns an answer that is no success into an error.
pub(crate) fn error(asked: Asked<'_>, status: StatusCode, headers: &HeaderMap) -> FetchError {
    let Asked { repository, revision, file, hub, with_token } = asked;
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let code = header("x-error-code").unwrap_or_default();
    match status {
        StatusCode::UNAUTHORIZED if with_token => FetchError::Unauthorized(format!(
            "{hub} refuses the token for {repository}: put a valid one with read access into the Secret that \
             model.secretRef names (HF_TOKEN by hand), or correct the repository's name"
        )),
        StatusCode::UNAUTHORIZED => FetchError::Unauthorized(format!(
            "{hub} has no public repository {repository}: correct the name, or, if it is private, set model.secretRef to a \
             Secret with the key token (HF_TOKEN by hand)"
        )),
        StatusCode::FORBIDDEN => FetchError::Unauthorized(format!(
            "{hub} does not let {} read {repository}: accept the model's conditions there with the token's account, or use \
             another token in model.secretRef (HF_TOKEN by hand)",
            if with_token { "this token" } else { "anyone without a token" }
        )),
        StatusCode::NOT_FOUND | StatusCode::GONE => FetchError::NotFound(match (code, file) {
            ("RevisionNotFound", _) => {
                format!(
                    "{repository} on {hub} has no revision {revision}: correct what follows @ in model.uri"
                )
            }
            ("RepoNotFound", _) | (_, None) => {
                format!("{hub} has no repository {repository} with a revision {revision}: correct model.uri")
            }
            (_, Some(file)) => format!("{repository}@{revision} on {hub} has no file {file}: upload it"),
        }),
        StatusCode::TOO_MANY_REQUESTS => FetchError::Transient {
            message: format!(
                "{hub} answers 429: too many requests; a token in model.secretRef raises the limit"
            ),
            retry_after: retry_after(headers),
        },
        status if status.is_server_error() || status == StatusCode::REQUEST_TIMEOUT => {
            FetchError::Transient {
                message: format!("{hub} answers {status} for {}", file.unwrap_or(repository)),
                retry_after: retry_after(headers),
            }
        }
        status => FetchError::NotFound(format!(
            "{hub} refuses {} with {status}{}: correct model.uri or HF_ENDPOINT",
            file.unwrap_or(repository),
            header("x-error-message").map(|message| format!(" ({message})")).unwrap_or_default(),
        )),
    }
}

/// `Retry-After` in seconds; the form with a date is left to our own back-off.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// `Content-Range: bytes 0-7/100` as (first byte, bytes of the whole file).
pub(crate) fn content_range(headers: &HeaderMap) -> Option<(u64, u64)> {
    let value = headers.get(reqwest::header::CONTENT_RANGE)?.to_str().ok()?;
    let (range, total) = value.strip_prefix("bytes ")?.split_once('/')?;
    let (first, _) = range.split_once('-')?;
    Some((first.parse().ok()?, total.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use fairlead_model::Reason;
    use reqwest::header::HeaderValue;

    use super::*;

    fn told(status: u16, code: Option<&'static str>, file: Option<&str>, with_token: bool) -> FetchError {
        let mut headers = HeaderMap::new();
        if let Some(code) = code {
            headers.insert("x-error-code", HeaderValue::from_static(code));
        }
        headers.insert(RETRY_AFTER, HeaderValue::from_static("3"));
        let asked = Asked { repository: "org/name", revision: "v1", file, hub: "http://hub", with_token };
        error(asked, StatusCode::from_u16(status).expect("is a status"), &headers)
    }

    #[test]
    fn every_refusal_says_what_to_change() {
        assert!(told(401, None, None, false).to_string().contains("set model.secretRef"));
        assert!(told(401, None, None, true).to_string().contains("refuses the token"));
        assert!(
            told(403, Some("GatedRepo"), None, true).to_string().contains("accept the model's conditions")
        );
        assert!(told(404, Some("RevisionNotFound"), None, false).to_string().contains("no revision v1"));
        assert!(
            told(404, Some("EntryNotFound"), Some("a.json"), false).to_string().contains("no file a.json")
        );
        assert_eq!(told(404, None, None, false).reason(), Reason::ModelNotFound);
    }

    #[test]
    fn a_busy_or_broken_hub_is_tried_again() {
        for status in [429, 500, 502, 503, 504, 408] {
            let error = told(status, None, None, false);
            assert!(
                matches!(error, FetchError::Transient { retry_after: Some(after), .. } if after.as_secs() == 3),
                "{status}"
            );
        }
        assert!(!told(400, None, None, false).is_transient());
    }
}
