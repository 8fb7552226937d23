//! The OpenAI API as clients see it: paths, methods, reading of bodies, the list of models. Forwarding is `forward`'s.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fairlead_openai::{ApiError, Model, ModelList};
use http::header::{ALLOW, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, EXPECT, HeaderValue};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::BodyExt;
use tokio::sync::Semaphore;
use tokio::time::{Instant as TokioInstant, timeout_at};

use crate::body::{self, GatewayBody};
use crate::client_body::ClientBody;
use crate::config::ServeConfig;
use crate::exchange::Exchange;
use crate::forward::{forward, refuse};
use crate::headers::{self, request_id};
use crate::held::HeldBudget;
use crate::identity::TrustedHeaders;
use crate::metrics::{Api, Metrics, Outcome};
use crate::policy::Policies;
use crate::request::InferenceRequest;
use crate::retry::RetryBudget;
use crate::routing::Routing;
use crate::snapshot::Route;
use crate::upstream::Upstream;
use crate::within::within;

const MODELS: &str = "/v1/models";
/// Bodies of this size and more are parsed off the stream threads…
const LARGE_BODY: usize = 256 * 1024;
/// … and no more of them at once than this.
const LARGE_PARSES: usize = 2;

/// What the request path works with.
pub struct Gateway {
    /// What to route by.
    pub routing: Arc<Routing>,
    /// How an endpoint is chosen.
    pub policies: Policies,
    /// Connections to pods.
    pub upstream: Upstream,
    /// Who says who a request comes from.
    pub trusted: TrustedHeaders,
    /// How much may be repeated.
    pub budget: RetryBudget,
    /// Most attempts for one request.
    pub max_attempts: u32,
    /// Room for what running streams need to go on elsewhere.
    pub failover_room: HeldBudget,
    /// Room for bodies on their way.
    pub held: HeldBudget,
    metrics: Arc<Metrics>,
    slots: Arc<Semaphore>,
    /// Reading JSON takes many times its size for a moment, so large bodies do it a few at a time.
    large_parses: Arc<Semaphore>,
    max_request_bytes: usize,
    body_read_timeout: Duration,
}

impl Gateway {
    /// The request path of a configuration.
    pub fn new(config: &ServeConfig, routing: Arc<Routing>, metrics: Arc<Metrics>) -> Self {
        let held = HeldBudget::new(config.max_held_bytes);
        Self {
            routing,
            policies: Policies::new(config.prefix_index_bytes, Arc::clone(&metrics)),
            upstream: Upstream::new(config, held.clone()),
            trusted: config.trusted(),
            budget: RetryBudget::new(Instant::now()),
            max_attempts: config.max_attempts,
            failover_room: HeldBudget::new(config.max_failover_bytes),
            metrics,
            slots: Arc::new(Semaphore::new(config.max_in_flight as usize)),
            held,
            large_parses: Arc::new(Semaphore::new(LARGE_PARSES)),
            max_request_bytes: config.max_request_bytes,
            body_read_timeout: config.body_read_timeout,
        }
    }

    /// All metrics.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Answers one request.
    pub fn handle(
        self: Arc<Self>,
        request: Request<ClientBody>,
    ) -> impl Future<Output = Response<GatewayBody>> + Send {
        // What needs no waiting is done at once: what waits is kept small, since it is handed on from function to function.
        let begun = self.begin(request);
        async move {
            let response = match begun {
                Ok(Begun { api, headers, body, exchange }) => self.infer(api, headers, body, exchange).await,
                Err(response) => response,
            };
            self.finish(response)
        }
    }

    /// A request for a model, or the answer to another one.
    #[expect(clippy::result_large_err, reason = "it is the answer")]
    fn begin(&self, request: Request<ClientBody>) -> Result<Begun, Response<GatewayBody>> {
        let (head, body) = request.into_parts();
        let path = head.uri.path();
        let api = match path {
            "/v1/chat/completions" => Api::ChatCompletions,
            "/v1/completions" => Api::Completions,
            "/tokenize" => Api::Tokenize,
            "/detokenize" => Api::Detokenize,
            "/v1/embeddings" => Api::Embeddings,
            "/v1/rerank" | "/rerank" => Api::Rerank,
            MODELS => Api::Models,
            _ if path.strip_prefix(MODELS).is_some_and(|rest| rest.starts_with('/')) => Api::Models,
            _ => Api::Other,
        };
        let exchange = Exchange::begin(request_id(&head.headers), api, Arc::clone(&self.metrics));
        let allowed = match api {
            Api::Models => Method::GET,
            Api::ChatCompletions
            | Api::Completions
            | Api::Embeddings
            | Api::Rerank
            | Api::Tokenize
            | Api::Detokenize => Method::POST,
            Api::Other => return Err(refuse(&ApiError::path_not_found(path), Outcome::Refused, exchange)),
        };
        if head.method != allowed {
            let error = ApiError::method_not_allowed(head.method.as_str(), path, allowed.as_str());
            let mut response = refuse(&error, Outcome::Refused, exchange);
            headers::set(response.headers_mut(), ALLOW, allowed.as_str());
            return Err(response);
        }
        if !self.routing.is_synced() {
            let error = ApiError::unavailable(
                "starting",
                "the gateway has not read its routes yet; try again soon",
                1,
            );
            return Err(refuse(&error, Outcome::NoEndpoint, exchange));
        }
        match api {
            Api::Models => Err(self.models(path, exchange)),
            _ => Ok(Begun { api, headers: head.headers, body, exchange }),
        }
    }

    /// While draining, asks clients to open their next connection elsewhere.
    fn finish(&self, mut response: Response<GatewayBody>) -> Response<GatewayBody> {
        if self.routing.is_draining() {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    async fn infer(
        self: &Arc<Self>,
        api: Api,
        headers: HeaderMap,
        mut body: ClientBody,
        mut exchange: Box<Exchange>,
    ) -> Response<GatewayBody> {
        let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() else {
            let message = "the gateway has as many requests as it takes (--max-in-flight); try again soon";
            let error = ApiError::unavailable("gateway_overloaded", message, 1);
            return refuse(&error, Outcome::Overloaded, exchange);
        };
        exchange.slot = Some(slot);
        let request = match self.read(&headers, &mut body, exchange.started()).await {
            Ok(body) if body.len() < LARGE_BODY => InferenceRequest::parse(api, body).map(Box::new),
            Ok(body) => Box::pin(self.parse_large(api, body)).await,
            Err(error) => Err(error),
        };
        match request {
            Ok(request) => Box::pin(forward(self, &request, &headers, exchange)).await,
            Err(error) => {
                let outcome = if error.status == 503 { Outcome::Overloaded } else { Outcome::Refused };
                refuse(&error, outcome, exchange)
            }
        }
    }

    /// The whole body, when it is not too large and not too slow.
    async fn read(
        &self,
        headers: &HeaderMap,
        body: &mut ClientBody,
        begun: Instant,
    ) -> Result<Bytes, ApiError> {
        if let Some(coding) = headers.get(CONTENT_ENCODING).filter(|coding| *coding != "identity") {
            let message = format!(
                "the request body is compressed (content-encoding: {coding:?}); send it uncompressed"
            );
            return Err(
                ApiError::new(415, "invalid_request_error", message).with_code("unsupported_encoding")
            );
        }
        let length =
            headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
        let deadline = TokioInstant::from_std(begun) + self.body_read_timeout;
        let limit = self.max_request_bytes;
        if length.is_some_and(|length| length > limit) {
            // Who waits for 100 Continue has not sent anything yet, and reading would ask for it.
            if !headers.contains_key(EXPECT) {
                Box::pin(discard(body, deadline)).await;
            }
            return Err(ApiError::too_large(limit));
        }
        // Once as the client wrote it, once with a backend's name for the model.
        let mut read = self.held.body(2);
        read.expect(length.unwrap_or(0));
        loop {
            let data = match within(deadline, body.frame()).await {
                Err(_) => {
                    let seconds = self.body_read_timeout.as_secs_f32();
                    let message =
                        format!("the request body did not arrive in {seconds} seconds; send it faster");
                    return Err(
                        ApiError::new(408, "invalid_request_error", message).with_code("request_timeout")
                    );
                }
                Ok(None) => return Ok(read.freeze()),
                Ok(Some(Err(error))) => {
                    return Err(ApiError::bad_request(format!(
                        "the request body broke off: {error}; send it again"
                    )));
                }
                Ok(Some(Ok(frame))) => frame.into_data().unwrap_or_default(),
            };
            if read.len() + data.len() > limit {
                Box::pin(discard(body, deadline)).await;
                return Err(ApiError::too_large(limit));
            }
            if !read.keep(data) {
                drop(read);
                Box::pin(discard(body, deadline)).await;
                let message = "the gateway holds as many bytes of requests as it takes (--max-held-bytes); try again soon";
                return Err(ApiError::unavailable("gateway_overloaded", message, 1));
            }
            if body.is_end_stream() {
                return Ok(read.freeze());
            }
        }
    }

    /// Parses a large body, away from the threads that carry everybody's streams.
    async fn parse_large(&self, api: Api, body: Bytes) -> Result<Box<InferenceRequest>, ApiError> {
        // Never closed, so this waits for its turn and nothing else.
        let turn = Arc::clone(&self.large_parses).acquire_owned().await;
        let parsed = tokio::task::spawn_blocking(move || {
            // Held to the end even when the client goes away meanwhile.
            let _turn = turn;
            InferenceRequest::parse(api, body).map(Box::new)
        })
        .await;
        parsed.unwrap_or_else(|error| {
            Err(ApiError::internal(format!("the request could not be read: {error}; send it again")))
        })
    }

    fn models(&self, path: &str, mut exchange: Box<Exchange>) -> Response<GatewayBody> {
        let snapshot = self.routing.snapshot();
        let of = |route: &Arc<Route>| Model::new(route.model.as_str(), route.created);
        let text = match path.strip_prefix(MODELS).and_then(|rest| rest.strip_prefix('/')) {
            None => serde_json::to_string(&ModelList::new(snapshot.routes().into_iter().map(of).collect())),
            Some(id) => {
                let id = percent_decode(id);
                let Some(route) = snapshot.route(&id) else {
                    let error = ApiError::model_not_found(&id, "GET /v1/models lists those there are");
                    return refuse(&error, Outcome::UnknownModel, exchange);
                };
                serde_json::to_string(&of(route))
            }
        };
        match text {
            Ok(text) => {
                let mut response = body::json(StatusCode::OK, text);
                headers::set_name(response.headers_mut(), headers::REQUEST_ID, &exchange.id);
                exchange.answered(200);
                exchange.ended(Outcome::Ok, None);
                response
            }
            Err(error) => {
                let error = ApiError::internal(format!("the list of models could not be written: {error}"));
                refuse(&error, Outcome::UpstreamError, exchange)
            }
        }
    }
}

/// A request for a model whose head was read.
struct Begun {
    api: Api,
    headers: HeaderMap,
    body: ClientBody,
    exchange: Box<Exchange>,
}

/// Reads on for a while and forgets it: a client that is still sending would otherwise see a reset instead of the answer.
async fn discard(body: &mut ClientBody, deadline: TokioInstant) {
    const MOST: usize = 64 << 20;
    let deadline = deadline.min(TokioInstant::now() + Duration::from_secs(5));
    let mut read = 0;
    while let Ok(Some(Ok(frame))) = timeout_at(deadline, body.frame()).await {
        read += frame.data_ref().map_or(0, Bytes::len);
        if read > MOST {
            return;
        }
    }
}

/// Undoes %XX; what is not UTF-8 after it becomes the replacement character and hence matches no model.
pub fn percent_decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let hex = |digit: u8| char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok());
        match (first, tail) {
            (b'%', [high, low, after @ ..]) if hex(*high).is_some() && hex(*low).is_some() => {
                bytes.push(hex(*high).unwrap_or(0) << 4 | hex(*low).unwrap_or(0));
                rest = after;
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::percent_decode;

    #[test]
    fn percent_decoding() {
        assert_eq!(percent_decode("org%2Fname@v1"), "org/name@v1");
        assert_eq!(percent_decode("caf%C3%A9"), "café");
        assert_eq!(percent_decode("100%"), "100%");
        assert_eq!(percent_decode("%zz%4"), "%zz%4");
    }
}
