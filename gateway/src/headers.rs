//! Which headers pass through the gateway, and the ones it adds. Pure.

use http::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, EXPECT,
    HOST, HeaderMap, HeaderName, HeaderValue, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, RETRY_AFTER, TE,
    TRAILER, TRANSFER_ENCODING, UPGRADE,
};

use crate::identity::TrustedHeaders;
use crate::name::Name;

/// Names this request, in logs and to the client.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// To the pod: the model name that the client sent.
pub const MODEL: HeaderName = HeaderName::from_static("x-fairlead-model");
/// To the client: namespace and name of the route.
pub const ROUTE: HeaderName = HeaderName::from_static("x-fairlead-route");
/// To the client: the backend that answered.
pub const BACKEND: HeaderName = HeaderName::from_static("x-fairlead-backend");
/// From the client: the most that a million tokens may cost.
pub const MAX_COST: HeaderName = HeaderName::from_static("x-fairlead-max-cost-per-million-tokens");
/// To the client: the rule that had the request.
pub const RULE: HeaderName = HeaderName::from_static("x-fairlead-rule");
/// To the client: the split in force for it.
pub const SPLIT: HeaderName = HeaderName::from_static("x-fairlead-split");
/// To the client: what sticks to its backend.
pub const STICKY: HeaderName = HeaderName::from_static("x-fairlead-sticky");
/// To the client: what a million tokens cost at the backend.
pub const COST: HeaderName = HeaderName::from_static("x-fairlead-cost-per-million-tokens");
/// To the client: the backend that the weights had chosen, when it was not the one that answered.
pub const DIVERTED_FROM: HeaderName = HeaderName::from_static("x-fairlead-diverted-from");
/// To the client: the backend that could not answer, when a fallback did.
pub const FALLBACK_FROM: HeaderName = HeaderName::from_static("x-fairlead-fallback-from");
/// To the client: why it could not.
pub const FALLBACK_REASON: HeaderName = HeaderName::from_static("x-fairlead-fallback-reason");
/// To the client: the pod that answered.
pub const ENDPOINT: HeaderName = HeaderName::from_static("x-fairlead-endpoint");
/// To the client: why that pod and no other of the backend.
pub const ENDPOINT_CHOICE: HeaderName = HeaderName::from_static("x-fairlead-endpoint-choice");
/// To the client: the revision of the ModelDeployment that answered, where known.
pub const REVISION: HeaderName = HeaderName::from_static("x-fairlead-revision");

const OWN_PREFIX: &str = "x-fairlead-";
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// Meant for one connection, hence never passed on (RFC 9110, 7.6.1).
const HOP_BY_HOP: [HeaderName; 10] = [
    CONNECTION,
    KEEP_ALIVE,
    PROXY_CONNECTION,
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
    EXPECT,
];

/// Of a client's request, not for pods: what the gateway sets itself, and credentials, which are for the gateway.
/// Without Accept-Encoding pods answer uncompressed, so that the ends of events in a stream can be seen.
const NOT_FOR_PODS: [HeaderName; 6] = [HOST, CONTENT_LENGTH, ACCEPT_ENCODING, AUTHORIZATION, COOKIE, API_KEY];

/// What pods are told with a request. Written for each pod that is asked, which is one for most requests.
#[derive(Debug)]
pub struct ForPods<'a> {
    /// The client's headers.
    pub client: &'a HeaderMap,
    /// Those of them that say who asks, which pods need not know.
    pub trusted: &'a TrustedHeaders,
    /// The model that the client named.
    pub model: Name,
    /// The request's id.
    pub id: Name,
    /// Further ones.
    pub more: Option<(HeaderName, HeaderValue)>,
}

impl ForPods<'_> {
    /// The headers for one pod.
    pub fn headers(&self) -> HeaderMap {
        let Self { client, trusted, model, id, more } = self;
        let mut headers = passed(client, |name| !NOT_FOR_PODS.contains(name) && !trusted.contains(name));
        set_name(&mut headers, MODEL, model);
        set_name(&mut headers, REQUEST_ID, id);
        if let Some((name, value)) = more {
            headers.insert(name, value.clone());
        }
        headers
    }
}

/// The headers of a pod's answer that go to the client. A pod knows its own revision best.
pub fn for_client(pod: &HeaderMap) -> HeaderMap {
    let mut headers = passed(pod, |name| *name != CONTENT_LENGTH);
    if let Some(revision) = pod.get(&REVISION) {
        headers.insert(REVISION, revision.clone());
    }
    headers
}

/// The headers of a provider's answer that go to the client: what the body is, and when to come again. The others are between
/// the provider and the gateway.
pub fn from_provider(provider: &HeaderMap) -> HeaderMap {
    passed(provider, |name| [CONTENT_TYPE, RETRY_AFTER, CACHE_CONTROL].contains(name))
}

fn passed(headers: &HeaderMap, wanted: impl Fn(&HeaderName) -> bool) -> HeaderMap {
    let named: Vec<&str> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .collect();
    let mut passed = HeaderMap::with_capacity(headers.len() + 6);
    for (name, value) in headers {
        let hop_by_hop =
            HOP_BY_HOP.contains(name) || named.iter().any(|n| n.eq_ignore_ascii_case(name.as_str()));
        if !hop_by_hop && !name.as_str().starts_with(OWN_PREFIX) && wanted(name) {
            passed.append(name.clone(), value.clone());
        }
    }
    passed
}

/// The client's request id when it is fit for logs, otherwise a new one.
pub fn request_id(client: &HeaderMap) -> Name {
    const LONGEST: usize = 128;
    let given = client.get(&REQUEST_ID).and_then(|value| value.to_str().ok());
    match given {
        Some(id) if !id.is_empty() && id.len() <= LONGEST => id.into(),
        // From this thread's generator: `Uuid::new_v4` asks the kernel each time.
        _ => {
            let mut text = uuid::Uuid::encode_buffer();
            let id = uuid::Builder::from_random_bytes(rand::random()).into_uuid();
            Name::from(&*id.hyphenated().encode_lower(&mut text))
        }
    }
}

/// Sets a header to a name, unless the name cannot be one.
pub fn set_name(headers: &mut HeaderMap, header: HeaderName, name: &Name) {
    if let Some(value) = name.header() {
        headers.insert(header, value.clone());
    }
}

/// Sets a header to text, unless the text cannot be one.
pub fn set(headers: &mut HeaderMap, name: HeaderName, text: &str) {
    if let Ok(value) = HeaderValue::from_str(text) {
        headers.insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(k, v)| (HeaderName::from_static(k), HeaderValue::from_static(v))).collect()
    }

    fn names(map: &HeaderMap) -> Vec<&str> {
        let mut names: Vec<_> = map.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn pods_get_neither_hop_by_hop_headers_nor_forged_ones_nor_credentials() {
        let client = map(&[
            ("connection", "close, X-Secret-Hop"),
            ("x-secret-hop", "1"),
            ("transfer-encoding", "chunked"),
            ("te", "trailers"),
            ("host", "h"),
            ("content-length", "3"),
            ("authorization", "Bearer k"),
            ("cookie", "c"),
            ("x-api-key", "k"),
            ("x-fairlead-model", "forged"),
            ("x-fairlead-tenant", "forged"),
            ("x-tenant", "acme"),
            ("x-request-id", "forged"),
            ("accept-encoding", "gzip"),
            ("traceparent", "00-a-b-01"),
            ("tracestate", "t"),
            ("content-type", "application/json"),
            ("user-agent", "u"),
        ]);
        let trusted =
            TrustedHeaders { tenant: Some(HeaderName::from_static("x-tenant")), ..TrustedHeaders::default() };
        let more = Some((HeaderName::from_static("x-more"), HeaderValue::from_static("true")));
        let told = ForPods { client: &client, trusted: &trusted, model: "m".into(), id: "1".into(), more };
        let expected = [
            "content-type",
            "traceparent",
            "tracestate",
            "user-agent",
            "x-fairlead-model",
            "x-more",
            "x-request-id",
        ];
        assert_eq!(names(&told.headers()), expected);
        assert_eq!(told.headers()[MODEL], "m", "not what the client says");
    }

    #[test]
    fn clients_get_the_pods_headers_and_of_ours_only_the_revision() {
        let pod = map(&[
            ("content-type", "text/event-stream"),
            ("transfer-encoding", "chunked"),
            ("content-length", "9"),
            ("x-fairlead-route", "forged"),
            ("x-fairlead-revision", "abc"),
            ("retry-after", "2"),
        ]);
        assert_eq!(names(&for_client(&pod)), ["content-type", "retry-after", "x-fairlead-revision"]);
    }

    #[test]
    fn a_request_keeps_its_id_or_gets_one() {
        assert_eq!(request_id(&map(&[("x-request-id", "abc-1")])), "abc-1");
        let made = request_id(&HeaderMap::new());
        assert_eq!(made.len(), 36);
        assert_ne!(made, request_id(&HeaderMap::new()));
        let mut long = HeaderMap::new();
        set(&mut long, REQUEST_ID, &"x".repeat(129));
        assert_eq!(request_id(&long).len(), 36);
    }
}
