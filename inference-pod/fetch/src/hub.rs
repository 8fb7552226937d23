//! A client of a Hugging Face hub: revisions, file lists, reads of ranges.
//!
//! Redirects are followed here and not by the HTTP library: the first answer's headers tell a large file's SHA-256, and the
//! token must go to the hub only, never to the content host it redirects to.

use std::time::Duration;

use reqwest::header::{ACCEPT_ENCODING, ETAG, HeaderMap, IF_RANGE, LOCATION, RANGE};
use reqwest::{Client, Method, Response, StatusCode, Url, redirect};

use crate::error::FetchError;
use crate::hub_answer::{self, Asked, content_range};
use crate::remote_model::{Listing, RemoteFile, RemoteModel, is_commit, is_plain_name};
use crate::retry::RetryPolicy;
use crate::source_uri::Repository;

/// Hub that is used when HF_ENDPOINT names none.
pub const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const READ_TIMEOUT: Duration = Duration::from_secs(60);
const MAX_REDIRECTS: usize = 5;
const MAX_LISTING_BYTES: u64 = 32 << 20;

/// A client of one hub. Clones share connections.
#[derive(Clone)]
pub struct Hub {
    client: Client,
    endpoint: Url,
    token: Option<String>,
    pub(crate) retry: RetryPolicy,
}

/// Some bytes of a file.
#[derive(Clone, Debug)]
pub(crate) struct RangeRead {
    pub bytes: Vec<u8>,
    /// Bytes of the whole file.
    pub file_bytes: u64,
}

/// An answer to a file request, after redirects.
pub(crate) struct FileAnswer {
    pub response: Response,
    /// Entity tag of the file itself without quotes, from the hub.
    pub etag: Option<String>,
    /// Bytes of the whole file.
    pub size: Option<u64>,
}

impl Hub {
    /// A client of the hub at `endpoint`.
    ///
    /// # Errors
    /// [`FetchError::InvalidSetting`] for an endpoint that is no http(s) URL, or an https one on a system with no
    /// certificates.
    pub fn new(endpoint: &str, token: Option<String>) -> Result<Self, FetchError> {
        let invalid = |problem: String| FetchError::InvalidSetting(format!("HF_ENDPOINT: {problem}"));
        let url = Url::parse(endpoint.trim_end_matches('/'))
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https") && url.host_str().is_some())
            .ok_or_else(|| invalid(format!("\"{endpoint}\" must be an http:// or https:// URL")))?;
        let builder = || {
            Client::builder()
                .user_agent(concat!("fairlead/", env!("CARGO_PKG_VERSION")))
                .connect_timeout(CONNECT_TIMEOUT)
                .read_timeout(READ_TIMEOUT)
                .redirect(redirect::Policy::none())
        };
        // Building fails where the system has no CA certificates; a hub on plain http needs none.
        let client = match builder().build() {
            Err(_) if url.scheme() == "http" => builder().tls_certs_only([]).build(),
            built => built,
        }
        .map_err(|error| {
            let cause = with_causes(&error);
            invalid(format!(
                "no TLS client: {cause}; install CA certificates or set SSL_CERT_FILE to a bundle"
            ))
        })?;
        let token = token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty());
        Ok(Self { client, endpoint: url, token, retry: RetryPolicy::default() })
    }

    /// A client of the hub that HF_ENDPOINT names, with the token in HF_TOKEN.
    ///
    /// # Errors
    /// As [`Hub::new`].
    pub fn from_env() -> Result<Self, FetchError> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        Self::new(variable("HF_ENDPOINT").as_deref().unwrap_or(DEFAULT_ENDPOINT), variable("HF_TOKEN"))
    }

    /// The same client with another patience.
    #[must_use]
    pub fn with_retry(mut self, retry: RetryPolicy) -> Self {
        self.retry = retry;
        self
    }

    /// Fixes a revision to a commit and lists its files.
    ///
    /// # Errors
    /// [`FetchError::NotFound`], [`FetchError::Unauthorized`] or [`FetchError::Transient`].
    pub async fn resolve(&self, repository: &Repository, revision: &str) -> Result<RemoteModel, FetchError> {
        self.retry.run(|| self.resolve_once(repository, revision)).await
    }

    pub(crate) async fn resolve_once(
        &self,
        repository: &Repository,
        revision: &str,
    ) -> Result<RemoteModel, FetchError> {
        let mut url =
            self.url(&["api", "models", &repository.org, &repository.name, "revision", revision])?;
        url.set_query(Some("blobs=true"));
        let name = repository.to_string();
        let hub = self.name();
        let asked = self.asked(&name, revision, None, &hub);
        let answer = self.send(Method::GET, url, &HeaderMap::new(), asked).await?;
        let body = read_body(answer.response, MAX_LISTING_BYTES, "the file list").await?;
        let listing: Listing = serde_json::from_slice(&body).map_err(|error| {
            FetchError::transient(format!(
                "{hub} gives no file list for {name}: {error}; is HF_ENDPOINT a hub?"
            ))
        })?;
        if !is_commit(&listing.sha) {
            return Err(FetchError::transient(format!("{hub} names no commit for {name}@{revision}")));
        }
        let files =
            listing.siblings.into_iter().filter(|file| is_plain_name(&file.rfilename)).map(RemoteFile::from);
        Ok(RemoteModel { repository: repository.clone(), commit: listing.sha, files: files.collect() })
    }

    /// Reads at most `length` bytes of a file from `start` on; fewer only where the file ends.
    pub(crate) async fn read_range(
        &self,
        model: &RemoteModel,
        file: &str,
        start: u64,
        length: u64,
    ) -> Result<RangeRead, FetchError> {
        self.retry
            .run(|| async move {
                let range = format!("bytes={start}-{}", start.saturating_add(length).saturating_sub(1));
                let answer = self.open(model, file, Some(&range), None).await?;
                let headers = answer.response.headers();
                if answer.response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
                    return Ok(RangeRead { bytes: Vec::new(), file_bytes: start });
                }
                let file_bytes = match content_range(headers) {
                    Some((first, total)) if first == start => total,
                    None if start == 0 && answer.response.status() == StatusCode::OK => {
                        answer.size.ok_or_else(|| no_ranges(&self.name()))?
                    }
                    _ => return Err(no_ranges(&self.name())),
                };
                let bytes =
                    read_prefix(answer.response, length.min(file_bytes.saturating_sub(start)), file).await?;
                Ok(RangeRead { bytes, file_bytes })
            })
            .await
    }

    /// Reads a whole small file.
    pub(crate) async fn read_small(
        &self,
        model: &RemoteModel,
        file: &str,
        most: u64,
    ) -> Result<Vec<u8>, FetchError> {
        self.retry
            .run(|| async move {
                let answer = self.open(model, file, None, None).await?;
                read_body(answer.response, most, file).await
            })
            .await
    }

    /// Asks for a file's size and entity tag.
    pub(crate) async fn head(&self, model: &RemoteModel, file: &str) -> Result<FileAnswer, FetchError> {
        self.retry.run(|| self.request(Method::HEAD, model, file, HeaderMap::new())).await
    }

    /// Starts to read a file, or a range of it. The answer is 200, 206 or, for a range behind the end, 416.
    pub(crate) async fn open(
        &self,
        model: &RemoteModel,
        file: &str,
        range: Option<&str>,
        if_range: Option<&str>,
    ) -> Result<FileAnswer, FetchError> {
        let mut headers = HeaderMap::new();
        for (name, value) in [(RANGE, range), (IF_RANGE, if_range)] {
            if let Some(value) = value.and_then(|value| value.parse().ok()) {
                headers.insert(name, value);
            }
        }
        self.request(Method::GET, model, file, headers).await
    }

    async fn request(
        &self,
        method: Method,
        model: &RemoteModel,
        file: &str,
        mut headers: HeaderMap,
    ) -> Result<FileAnswer, FetchError> {
        let RemoteModel { repository, commit, .. } = model;
        let mut segments = vec![repository.org.as_str(), &repository.name, "resolve", commit];
        segments.extend(file.split('/'));
        let url = self.url(&segments)?;
        // A compressed answer would have other lengths and offsets than the file.
        headers.insert(ACCEPT_ENCODING, reqwest::header::HeaderValue::from_static("identity"));
        let (name, hub) = (repository.to_string(), self.name());
        self.send(method, url, &headers, self.asked(&name, commit, Some(file), &hub)).await
    }

    async fn send(
        &self,
        method: Method,
        mut url: Url,
        headers: &HeaderMap,
        asked: Asked<'_>,
    ) -> Result<FileAnswer, FetchError> {
        let mut linked = (None, None);
        for _ in 0..=MAX_REDIRECTS {
            let mut request = self.client.request(method.clone(), url.clone()).headers(headers.clone());
            if url.origin() == self.endpoint.origin()
                && let Some(token) = &self.token
            {
                request = request.bearer_auth(token);
            }
            let response = request.send().await.map_err(|error| unreachable(&url, &error))?;
            let status = response.status();
            let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
            linked = (
                linked.0.or_else(|| header("x-linked-etag").map(plain_etag)),
                linked.1.or_else(|| header("x-linked-size").and_then(|size| size.parse().ok())),
            );
            if status.is_redirection() {
                // Without the path and query: a content host's are signed.
                let from = url.origin().ascii_serialization();
                let refused = |what: &str| FetchError::transient(format!("{from} redirects {what}"));
                let location = header(LOCATION.as_str()).ok_or_else(|| refused("without saying where"))?;
                let next = url.join(location).map_err(|_| refused("to what is no URL"))?;
                if url.scheme() == "https" && next.scheme() != "https" {
                    return Err(refused("from https to plain http, which is not followed"));
                }
                if method == Method::HEAD && linked.0.is_some() && linked.1.is_some() {
                    return Ok(FileAnswer { response, etag: linked.0, size: linked.1 });
                }
                url = next;
                continue;
            }
            if !status.is_success() && status != StatusCode::RANGE_NOT_SATISFIABLE {
                return Err(hub_answer::error(asked, status, response.headers()));
            }
            let length = header("content-length").and_then(|length| length.parse().ok());
            let whole = if status == StatusCode::OK {
                length
            } else {
                content_range(response.headers()).map(|r| r.1)
            };
            let on_hub = url.origin() == self.endpoint.origin();
            let etag = linked.0.or_else(|| header(ETAG.as_str()).filter(|_| on_hub).map(plain_etag));
            return Ok(FileAnswer { etag, size: linked.1.or(whole), response });
        }
        Err(FetchError::transient(format!("{} redirects more than {MAX_REDIRECTS} times", asked.hub)))
    }

    fn asked<'a>(
        &self,
        repository: &'a str,
        revision: &'a str,
        file: Option<&'a str>,
        hub: &'a str,
    ) -> Asked<'a> {
        Asked { repository, revision, file, hub, with_token: self.token.is_some() }
    }

    /// Scheme, host and port.
    pub(crate) fn name(&self) -> String {
        self.endpoint.origin().ascii_serialization()
    }

    fn url(&self, segments: &[&str]) -> Result<Url, FetchError> {
        let mut url = self.endpoint.clone();
        url.path_segments_mut()
            .map_err(|()| {
                FetchError::InvalidSetting("HF_ENDPOINT: must be an http:// or https:// URL".to_owned())
            })?
            .pop_if_empty()
            .extend(segments);
        Ok(url)
    }
}

fn plain_etag(etag: &str) -> String {
    etag.trim_start_matches("W/").trim_matches('"').to_owned()
}

fn no_ranges(hub: &str) -> FetchError {
    FetchError::transient(format!(
        "{hub} does not answer range requests, so the model cannot be inspected there"
    ))
}

fn unreachable(url: &Url, error: &reqwest::Error) -> FetchError {
    let origin = url.origin().ascii_serialization();
    FetchError::transient(format!(
        "cannot reach {origin}: {}; check HF_ENDPOINT and the network",
        with_causes(error)
    ))
}

/// An error with the causes below it, the URL left out: signed ones hold secrets.
pub(crate) fn with_causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut causes = Vec::new();
    let mut next = error.source().or(Some(error));
    while let Some(cause) = next {
        causes.push(cause.to_string());
        next = cause.source();
    }
    causes.dedup();
    causes.join(": ")
}

/// Reads a whole body of at most `most` bytes.
async fn read_body(response: Response, most: u64, what: &str) -> Result<Vec<u8>, FetchError> {
    let bytes = read_prefix(response, most.saturating_add(1), what).await?;
    if bytes.len() as u64 > most {
        return Err(fairlead_model::ModelError::invalid(what, format!("is longer than {most} bytes")).into());
    }
    Ok(bytes)
}

/// Reads a body up to `most` bytes and drops the rest unread.
async fn read_prefix(mut response: Response, most: u64, what: &str) -> Result<Vec<u8>, FetchError> {
    let mut bytes = Vec::new();
    while (bytes.len() as u64) < most {
        let chunk = response.chunk().await.map_err(|error| {
            FetchError::transient(format!("reading {what} was cut off: {}", with_causes(&error)))
        })?;
        let Some(chunk) = chunk else { break };
        let room = usize::try_from(most - bytes.len() as u64).unwrap_or(usize::MAX);
        bytes.extend_from_slice(chunk.get(..room.min(chunk.len())).unwrap_or_default());
    }
    Ok(bytes)
}
