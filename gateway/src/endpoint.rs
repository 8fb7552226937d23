//! One place that answers requests: its address, how many requests it has now, and whether it is being left alone.
//!
//! An endpoint outlives the snapshots it appears in: a rebuild hands the same `Arc` on, so counts and ejections carry over. It
//! is of one revision: a pod of another revision at the same address is another endpoint, which inherits nothing.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderValue, Uri};
use rand::{Rng, RngExt};
use xxhash_rust::xxh3::xxh3_64;

use crate::ejection::{Ejection, EjectionRules, Failure};
use crate::metrics::Api;
use crate::name::Name;
use crate::resilience::circuit::Pass;

/// So many endpoints, or backends, are few: lists of them that requests make need no allocation.
pub const FEW: usize = 8;

fn next_id() -> u32 {
    static LAST: AtomicU32 = AtomicU32::new(0);
    // After four billion endpoints a number is used again; the first has been forgotten by then.
    match LAST.fetch_add(1, Ordering::Relaxed).wrapping_add(1) {
        0 => LAST.fetch_add(1, Ordering::Relaxed).wrapping_add(1),
        id => id,
    }
}

/// One place that answers requests.
pub struct Endpoint {
    id: u32,
    key: u64,
    /// Host, port and path.
    address: String,
    header: Option<HeaderValue>,
    scheme: Scheme,
    authority: Authority,
    prefix: String,
    /// Those of the API, made once: a request needs one, and they stay the same.
    uris: Vec<(&'static str, Uri)>,
    /// What of an API path is in the prefix already.
    stripped: &'static str,
    revision: Option<Name>,
    in_flight: AtomicUsize,
    /// Whether `ejection` has anything to say. Nearly always not, and each request asks all endpoints.
    has_failed: AtomicBool,
    ejection: Mutex<Ejection>,
}

impl Endpoint {
    /// An endpoint at a base URL, `http://host:port` with an optional path before `/v1`.
    pub fn parse(base: &str) -> Result<Self, String> {
        let remedy = |why: &str| format!("{base:?} {why}; write http://HOST:PORT");
        let uri: Uri = base.parse().map_err(|_| remedy("is not a URL"))?;
        match uri.scheme_str() {
            Some("http") => {}
            Some(_) => {
                return Err(remedy("is not plain http, the only scheme inference servers are reached by"));
            }
            None => return Err(remedy("has no scheme")),
        }
        let authority = uri.authority().cloned().ok_or_else(|| remedy("has no host"))?;
        if authority.host().is_empty() || authority.as_str().contains('@') {
            return Err(remedy("has no plain host"));
        }
        if uri.query().is_some() {
            return Err(remedy("has a query"));
        }
        let prefix = uri.path().trim_end_matches('/');
        // The OpenAI convention is a base URL that ends in /v1, and that is what people paste.
        let prefix = prefix.strip_suffix("/v1").unwrap_or(prefix).to_owned();
        Ok(Self::at(Scheme::HTTP, authority, prefix, ""))
    }

    /// A provider's at its base URL, `https://host` with the path that its API begins at, version included.
    pub fn of_provider(base: &str) -> Result<Self, String> {
        let remedy = |why: &str| format!("{base:?} {why}; write https://HOST/v1 or as the provider has it");
        let uri: Uri = base.parse().map_err(|_| remedy("is not a URL"))?;
        if uri.scheme_str() != Some("https") {
            return Err(remedy("is not https"));
        }
        let authority = uri.authority().cloned().ok_or_else(|| remedy("has no host"))?;
        if authority.host().is_empty() || authority.as_str().contains('@') {
            return Err(remedy("has no plain host"));
        }
        if uri.query().is_some() {
            return Err(remedy("has a query"));
        }
        let prefix = uri.path().trim_end_matches('/').to_owned();
        Ok(Self::at(Scheme::HTTPS, authority, prefix, "/v1"))
    }

    fn at(scheme: Scheme, authority: Authority, prefix: String, stripped: &'static str) -> Self {
        let address = format!("{authority}{prefix}");
        let mut endpoint = Self {
            id: next_id(),
            key: xxh3_64(address.as_bytes()),
            header: HeaderValue::from_str(&address).ok(),
            address,
            scheme,
            authority,
            prefix,
            uris: Vec::new(),
            stripped,
            revision: None,
            in_flight: AtomicUsize::new(0),
            has_failed: AtomicBool::new(false),
            ejection: Mutex::default(),
        };
        let known = Api::PATHS.into_iter();
        endpoint.uris = known.filter_map(|path| Some((path, endpoint.made_uri(path).ok()?))).collect();
        endpoint
    }

    /// The same, known to serve this revision.
    #[must_use]
    pub fn at_revision(self, revision: Option<String>) -> Self {
        Self { revision: revision.map(Name::from), ..self }
    }

    /// The revision that it serves, where known. Caches of what it has seen belong to that revision.
    pub fn revision(&self) -> Option<&Name> {
        self.revision.as_ref()
    }

    /// Tells it from all others of this process, also from an earlier one at the same address. Never 0.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// A hash of its address, the same in every gateway.
    pub fn key(&self) -> u64 {
        self.key
    }

    /// What tells this endpoint from others: host, port and path.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Its address as a header, unless it cannot be one.
    pub fn header(&self) -> Option<&HeaderValue> {
        self.header.as_ref()
    }

    /// The URL of an API path such as `/v1/chat/completions`.
    pub fn uri(&self, path: &str) -> Result<Uri, http::Error> {
        match self.uris.iter().find(|(known, _)| *known == path) {
            Some((_, uri)) => Ok(uri.clone()),
            None => self.made_uri(path),
        }
    }

    fn made_uri(&self, path: &str) -> Result<Uri, http::Error> {
        let path = path.strip_prefix(self.stripped).unwrap_or(path);
        let path = PathAndQuery::try_from(format!("{}{path}", self.prefix))?;
        Uri::builder()
            .scheme(self.scheme.clone())
            .authority(self.authority.clone())
            .path_and_query(path)
            .build()
    }

    /// Requests that it is answering now, as far as this gateway knows.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Counts a request until the guard is dropped.
    pub fn begin(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight { endpoint: Arc::clone(self), pass: None }
    }

    /// Leaves it alone until then, because it says so itself.
    pub fn leave_alone_until(&self, until: Instant) {
        let mut ejection = self.ejection();
        ejection.leave_alone_until(until);
        self.has_failed.store(true, Ordering::Relaxed);
    }

    /// Whether it is being left alone after failures.
    pub fn is_ejected(&self, now: Instant) -> bool {
        self.has_failed.load(Ordering::Relaxed) && self.ejection().is_ejected(now)
    }

    /// Notes that it answered.
    pub fn record_success(&self) {
        if self.has_failed.load(Ordering::Relaxed) {
            let mut ejection = self.ejection();
            ejection.record_success();
            self.has_failed.store(false, Ordering::Relaxed);
        }
    }

    /// Notes that it failed; true when that ejected it just now.
    pub fn record_failure(&self, failure: Failure, now: Instant) -> bool {
        let mut ejection = self.ejection();
        self.has_failed.store(true, Ordering::Relaxed);
        ejection.record_failure(failure, now, &EjectionRules::default())
    }

    fn ejection(&self) -> MutexGuard<'_, Ejection> {
        // Nothing panics while it holds the lock, and a half-written record would only mean a wrong back-off.
        self.ejection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint")
            .field("address", &self.address())
            .field("revision", &self.revision)
            .field("in_flight", &self.in_flight())
            .finish()
    }
}

/// The candidate with the fewest requests, one of the equals by chance: for what is asked beside a request's own way, where no
/// policy has a say. The index; `None` only when there are no candidates.
pub fn least_loaded(candidates: &[&Arc<Endpoint>], rng: &mut dyn Rng) -> Option<usize> {
    let least = candidates.iter().map(|endpoint| endpoint.in_flight()).min()?;
    let equals: Vec<usize> =
        (0..candidates.len()).filter(|index| candidates[*index].in_flight() <= least).collect();
    // Loads move meanwhile: where none is as low as the least was, the first will do.
    match equals.len() {
        0 => Some(0),
        count => equals.get(rng.random_range(0..count)).copied(),
    }
}

/// Counts one request at an endpoint for as long as it lives, and keeps its place at the backend.
#[derive(Debug)]
pub struct InFlight {
    endpoint: Arc<Endpoint>,
    pass: Option<Pass>,
}

impl InFlight {
    /// The same, with a place at the backend.
    #[must_use]
    pub fn with_pass(mut self, pass: Pass) -> Self {
        self.pass = Some(pass);
        self
    }

    /// The endpoint whose request this is.
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    /// Notes that endpoint and backend answered.
    pub fn record_success(&self) {
        self.endpoint.record_success();
        if let Some(pass) = &self.pass {
            pass.circuit().succeeded();
        }
    }

    /// Notes that endpoint and backend failed; true when that ejected the endpoint just now.
    pub fn record_failure(&self, failure: Failure, now: Instant) -> bool {
        if let Some(pass) = &self.pass
            && pass.circuit().failed(now)
        {
            tracing::warn!(
                endpoint = self.endpoint.address(),
                "its backend's circuit is open after failures in a row"
            );
        }
        self.endpoint.record_failure(failure, now)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.endpoint.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_urls() {
        let uri = |base: &str| Endpoint::parse(base).expect(base).uri("/v1/models").expect("uri").to_string();
        assert_eq!(uri("http://127.0.0.1:8001"), "http://127.0.0.1:8001/v1/models");
        assert_eq!(uri("http://127.0.0.1:8001/"), "http://127.0.0.1:8001/v1/models");
        assert_eq!(uri("http://127.0.0.1:8001/v1"), "http://127.0.0.1:8001/v1/models");
        assert_eq!(uri("http://[fd00::1]:8001/llm/v1/"), "http://[fd00::1]:8001/llm/v1/models");
        for bad in [
            "",
            "127.0.0.1:8001",
            "https://h:1",
            "ftp://h",
            "http://",
            "http://u:p@h:1",
            "http://h:1/?q=1",
            "/x",
        ] {
            let error = Endpoint::parse(bad).expect_err(bad);
            assert!(error.contains("http://HOST:PORT"), "{error}");
        }
    }

    #[test]
    fn providers_have_their_version_in_the_url() {
        let uri =
            |base: &str| Endpoint::of_provider(base).expect(base).uri("/v1/models").expect("uri").to_string();
        assert_eq!(uri("https://api.example.com/v1"), "https://api.example.com/v1/models");
        assert_eq!(uri("https://h:8443/openai/v2beta/"), "https://h:8443/openai/v2beta/models");
        assert_eq!(uri("https://h"), "https://h/models");
        for bad in ["", "http://h/v1", "https://u:p@h", "https://h?q=1", "h/v1"] {
            assert!(Endpoint::of_provider(bad).expect_err(bad).contains("https://HOST"));
        }
    }

    #[test]
    fn a_request_counts_until_its_guard_is_dropped() {
        let endpoint = Arc::new(Endpoint::parse("http://a:1").expect("parses"));
        let first = endpoint.begin();
        let second = endpoint.begin();
        assert_eq!(endpoint.in_flight(), 2);
        drop(first);
        assert_eq!(endpoint.in_flight(), 1);
        drop(second);
        assert_eq!(endpoint.in_flight(), 0);
    }
}
