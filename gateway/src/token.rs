//! The admin token: who may ask what would happen to a request. Answers show where tenants' requests go, so they are not for
//! everybody who can reach the port.

use std::path::PathBuf;

use fairlead_openai::ApiError;
use http::HeaderMap;
use http::header::AUTHORIZATION;

/// Where the token is.
#[derive(Clone, Debug)]
pub struct AdminToken(Option<PathBuf>);

impl AdminToken {
    /// The token in a file; `None` lets nobody in.
    pub fn new(file: Option<PathBuf>) -> Self {
        Self(file)
    }

    /// Whether who sends these headers knows the token. The file is read anew, so that a new token counts at once.
    ///
    /// # Errors
    /// 403 when there is no token, 401 when it is another one.
    pub async fn admit(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        let Some(file) = &self.0 else {
            let message = "this gateway has no admin token, so nobody may ask; start it with --admin-token-file FILE (the chart \
                           does)";
            return Err(ApiError::new(403, "permission_error", message).with_code("admin_token_not_set"));
        };
        let token = match tokio::fs::read_to_string(file).await {
            Ok(text) => text.trim().to_owned(),
            Err(error) => {
                tracing::warn!(file = %file.display(), %error, "the admin token cannot be read");
                String::new()
            }
        };
        if token.is_empty() {
            let message = "the gateway's --admin-token-file cannot be read or is empty; see its log";
            return Err(ApiError::new(403, "permission_error", message).with_code("admin_token_not_set"));
        }
        let given = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let scheme = given.get(..7).is_some_and(|scheme| scheme.eq_ignore_ascii_case("bearer "));
        let given = given.get(7..).filter(|_| scheme).unwrap_or_default().trim();
        // Hashes are compared in a time that says nothing of where they differ.
        if blake3::hash(given.as_bytes()) == blake3::hash(token.as_bytes()) {
            return Ok(());
        }
        let message = "the admin token is missing or another one; send it as Authorization: Bearer TOKEN";
        Err(ApiError::new(401, "authentication_error", message).with_code("invalid_admin_token"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    async fn status(file: Option<PathBuf>, given: Option<&'static str>) -> u16 {
        let mut headers = HeaderMap::new();
        if let Some(given) = given {
            headers.insert(AUTHORIZATION, HeaderValue::from_static(given));
        }
        AdminToken::new(file).admit(&headers).await.map_or_else(|error| error.status, |()| 200)
    }

    #[tokio::test]
    async fn only_the_token_opens() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("token");
        assert_eq!(status(None, Some("Bearer secret")).await, 403);
        assert_eq!(status(Some(file.clone()), Some("Bearer ")).await, 403, "no file");
        std::fs::write(&file, "\n").expect("written");
        assert_eq!(status(Some(file.clone()), Some("Bearer ")).await, 403, "an empty token opens to nobody");
        std::fs::write(&file, "secret\n").expect("written");
        for (given, wanted) in [
            (None, 401),
            (Some("secret"), 401),
            (Some("Bearer secre"), 401),
            (Some("Bearer secret2"), 401),
            (Some("Basic secret"), 401),
            (Some("Bearer secret"), 200),
            (Some("bearer secret"), 200),
        ] {
            assert_eq!(status(Some(file.clone()), given).await, wanted, "{given:?}");
        }
        std::fs::write(&file, "rotated").expect("written");
        assert_eq!(status(Some(file.clone()), Some("Bearer secret")).await, 401);
        assert_eq!(status(Some(file), Some("Bearer rotated")).await, 200);
    }
}
