//! The mirrored leg: asks the shadow, waits for the live answer, compares, counts. A task of its own, bounded by the shadow's
//! places and its timeout.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use http::{HeaderMap, StatusCode};
use http_body_util::BodyExt;
use rand::RngExt;
use serde_json::json;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::compare;
use super::live::{LiveAnswer, MOST_COMPARED, Watch};
use super::metrics::{ShadowLabels, ShadowResult};
use super::rule::{Embedder, ShadowRule};
use crate::endpoint::{Endpoint, least_loaded};
use crate::failover::kept::NOTES;
use crate::headers::{self, ForPods};
use crate::metrics::Api;
use crate::provider::body;
use crate::proxy::Gateway;
use crate::request::InferenceRequest;
use crate::snapshot::Route;
use crate::upstream::{Answer, Call};

/// To pods: nobody reads the answer.
const SHADOW: HeaderName = HeaderName::from_static("x-fairlead-shadow");
/// How long two texts may take to be compared.
const COMPARISON: Duration = Duration::from_secs(30);
/// Longest text whose meaning is compared, in bytes.
const MOST_EMBEDDED: usize = 8 << 10;

/// A mirrored request.
struct Leg {
    gateway: Arc<Gateway>,
    rule: Arc<ShadowRule>,
    labels: ShadowLabels,
    call: Asked,
    live: oneshot::Receiver<LiveAnswer>,
    _place: OwnedSemaphorePermit,
}

/// What the shadow is asked.
struct Asked {
    route: Arc<Route>,
    backend: usize,
    endpoint: Arc<Endpoint>,
    path: &'static str,
    headers: HeaderMap,
    body: Bytes,
    stream: bool,
}

/// What the shadow answered.
struct Answered {
    took: Duration,
    pieces: Vec<Bytes>,
    events: bool,
}

/// Draws whether a request is mirrored, and mirrors it. The live request must be watched by what is returned.
pub fn mirror(
    gateway: &Arc<Gateway>,
    route: &Arc<Route>,
    request: &InferenceRequest,
    told: &ForPods<'_>,
    begun: Instant,
) -> Option<Watch> {
    let rule = route.shadow.as_ref()?;
    let is_inference =
        matches!(request.api, Api::ChatCompletions | Api::Completions | Api::Embeddings | Api::Rerank);
    if !is_inference || rand::rng().random_range(0..100) >= rule.percent {
        return None;
    }
    let labels = ShadowLabels { route: route.id.to_string(), backend: rule.backend.clone() };
    let dropped = |result| gateway.metrics().shadows.counted(&labels, result);
    let Ok(place) = Arc::clone(&rule.places).try_acquire_owned() else {
        dropped(ShadowResult::Dropped);
        return None;
    };
    let index = route.backends.iter().position(|backend| backend.name == rule.backend)?;
    let backend = &route.backends[index];
    let now = Instant::now();
    let well: Vec<&Arc<Endpoint>> =
        backend.endpoints.iter().filter(|endpoint| !endpoint.is_ejected(now)).collect();
    let chosen = least_loaded(&well, &mut rand::rng()).filter(|_| !backend.circuit.is_open(now));
    let Some(endpoint) = chosen.and_then(|index| well.get(index)) else {
        dropped(ShadowResult::Failed);
        return None;
    };
    let (mut headers, body) = match &backend.provider {
        None => (told.headers(), request.body_for(backend.served_model.as_deref())),
        Some(target) => (
            target.headers(told.client),
            body::body(request.api, request.body(), target.model()).ok()?.into(),
        ),
    };
    if backend.provider.is_none() {
        headers.remove(NOTES);
        headers.insert(SHADOW, HeaderValue::from_static("true"));
    }
    let (tell, live) = oneshot::channel();
    let leg = Leg {
        gateway: Arc::clone(gateway),
        rule: Arc::clone(rule),
        labels,
        call: Asked {
            endpoint: Arc::clone(endpoint),
            route: Arc::clone(route),
            backend: index,
            path: request.api.path(),
            headers,
            body,
            stream: request.stream,
        },
        live,
        _place: place,
    };
    tokio::spawn(leg.run());
    Some(Watch::new(tell, begun))
}

impl Leg {
    async fn run(self) {
        let Self { gateway, rule, labels, call, live, _place } = self;
        let metrics = &gateway.metrics().shadows;
        let answered = tokio::time::timeout(rule.timeout, ask(&gateway, call, rule.timeout)).await;
        let Ok(Some(answered)) = answered else {
            metrics.counted(&labels, ShadowResult::Failed);
            return;
        };
        // A live answer that is much slower than its shadow is not waited for without end either.
        let live = match tokio::time::timeout(rule.timeout, live).await {
            Ok(Ok(live)) if live.ok => live,
            _ => {
                metrics.counted(&labels, ShadowResult::Incomparable);
                return;
            }
        };
        metrics.counted(&labels, ShadowResult::Answered);
        if let Some(ratio) = compare::ratio(answered.took.as_secs_f64(), live.took.as_secs_f64()) {
            metrics.latency(&labels, ratio);
        }
        let Some(pieces) = live.pieces else { return };
        let of_live = compare::text(&pieces, live.events);
        let of_shadow = compare::text(&answered.pieces, answered.events);
        drop((pieces, answered.pieces));
        #[allow(clippy::cast_precision_loss)]
        let length = |text: &str| text.chars().count() as f64;
        if let Some(ratio) = compare::ratio(length(&of_shadow), length(&of_live)) {
            metrics.length(&labels, ratio);
        }
        let Some(embedder) = rule.embedder.as_ref().filter(|_| !of_live.is_empty() && !of_shadow.is_empty())
        else {
            return;
        };
        let compared =
            tokio::time::timeout(COMPARISON, similarity(&gateway, embedder, &of_live, &of_shadow)).await;
        if let Ok(Some(similarity)) = compared {
            metrics.similarity(&labels, similarity);
        }
    }
}

async fn ask(gateway: &Gateway, asked: Asked, timeout: Duration) -> Option<Answered> {
    let Asked { route, backend, endpoint, path, headers, body, stream } = asked;
    let backend = route.backends.get(backend)?;
    let begun = Instant::now();
    let _in_flight = endpoint.begin();
    let call = Call {
        uri: endpoint.uri(path).ok()?,
        headers,
        body,
        stream,
        begun,
        first_byte: begun + timeout,
        idle: None,
        provider: backend.provider.as_deref(),
    };
    let (pieces, events) = match gateway.upstream.ask(call).await.ok()? {
        Answer::Whole(head, bytes) => {
            (head.status == StatusCode::OK).then_some(())?;
            (vec![bytes], false)
        }
        Answer::Begun { head, first, mut rest, events } => {
            (head.status == StatusCode::OK).then_some(())?;
            let mut length = first.len();
            let mut pieces = vec![first];
            while let Some(frame) = rest.frame().await {
                let Ok(data) = frame.ok()?.into_data() else { continue };
                length += data.len();
                // Longer than what is compared: only its end is of interest.
                if length <= MOST_COMPARED {
                    pieces.push(data);
                }
            }
            (pieces, events)
        }
    };
    Some(Answered { took: begun.elapsed(), pieces, events })
}

async fn similarity(gateway: &Gateway, embedder: &Embedder, live: &str, shadow: &str) -> Option<f64> {
    let endpoints: Vec<&Arc<Endpoint>> = embedder.endpoints.iter().collect();
    let endpoint = endpoints.get(least_loaded(&endpoints, &mut rand::rng())?)?;
    let input = [clipped(live), clipped(shadow)];
    let body = json!({"model": embedder.model, "input": input});
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers::set(&mut headers, SHADOW, "true");
    let _in_flight = endpoint.begin();
    let begun = Instant::now();
    let call = Call {
        uri: endpoint.uri("/v1/embeddings").ok()?,
        headers,
        body: Bytes::from(body.to_string()),
        stream: false,
        begun,
        first_byte: begun + COMPARISON,
        idle: None,
        provider: None,
    };
    match gateway.upstream.ask(call).await.ok()? {
        Answer::Whole(head, bytes) if head.status == StatusCode::OK => compare::similarity(&bytes),
        _ => None,
    }
}

/// The beginning of a text, whole characters.
fn clipped(text: &str) -> &str {
    let end = (0..=text.len().min(MOST_EMBEDDED)).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    &text[..end]
}
