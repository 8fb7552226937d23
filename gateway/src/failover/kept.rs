//! What is kept of a request while its stream runs, and how another pod is asked to go on with it.
//!
//! Owns the request's body and the room that body and tokens take in the failover budget, the choice of the next pod (same
//! backend; the pod itself checks that it is of the same revision) and the limits of how often. Called by `relay`.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use fairlead_openai::continuation::{CONTINUES, Continued, IF_REVISION, RESUMABLE, REVISION_MISMATCH};
use fairlead_openai::error::ErrorBody;
use futures::future::BoxFuture;
use http::header::HeaderName;
use http::{HeaderMap, HeaderValue};
use tokio::sync::OwnedSemaphorePermit;

use crate::endpoint::{Endpoint, InFlight, least_loaded};
use crate::exchange::Exchange;
use crate::headers::{self, ForPods};
use crate::journey;
use crate::metrics::{Api, FailoverResult};
use crate::name::Name;
use crate::proxy::Gateway;
use crate::request::InferenceRequest;
use crate::retry;
use crate::rewrite;
use crate::snapshot::RouteBackend;
use crate::upstream::{Answer, AnswerBody, AttemptError, Call};

/// Asks a pod for notes, and says that they are there.
pub const NOTES: HeaderName = HeaderName::from_static(RESUMABLE);
/// How many milliseconds a client gives its request.
const TIMEOUT: HeaderName = HeaderName::from_static("x-request-timeout-ms");
/// A stream is continued this often at most: what kills pod after pod is the request.
const MOST_FAILOVERS: u32 = 4;
/// Tokens that room is taken for at a time.
const TOKENS_AT_A_TIME: usize = 1024;
/// Longest answer that is continued; pods take no longer one.
const MOST_TOKENS: usize = 1 << 20;

/// Everything that another pod must be asked with.
pub struct Kept {
    gateway: Arc<Gateway>,
    api: Api,
    model: String,
    body: Bytes,
    headers: HeaderMap,
    id: Name,
    backend: Name,
    revision: Option<HeaderValue>,
    tried: Vec<String>,
    /// Pods of another revision.
    others: Vec<String>,
    started: Instant,
    left: u32,
    include_usage: bool,
    /// Until when the whole answer must be there, where its route says so.
    deadline: Option<Instant>,
    room: Option<OwnedSemaphorePermit>,
    tokens_paid: usize,
}

/// A stream that goes on.
pub struct Resumed {
    /// What can be asked with when this one breaks, too.
    pub kept: Box<Kept>,
    /// What is here already.
    pub first: Bytes,
    /// What is to come.
    pub rest: AnswerBody,
    /// The pod.
    pub in_flight: InFlight,
    /// Pods that were asked for it.
    pub attempts: u32,
}

/// A stream that nobody could go on with.
#[derive(Debug)]
pub struct NotResumed {
    /// For metrics.
    pub result: FailoverResult,
    /// For a person.
    pub why: String,
    /// Pods that were asked.
    pub attempts: u32,
}

impl Kept {
    /// Keeps what is needed, when the request can be continued, the pod writes notes and there is room.
    pub fn of(
        gateway: &Arc<Gateway>,
        request: &InferenceRequest,
        told: &ForPods<'_>,
        answered: &HeaderMap,
        endpoint: &Endpoint,
        exchange: &Exchange,
        deadline: Option<Instant>,
    ) -> Option<Box<Self>> {
        if !request.resumable || !answered.contains_key(&NOTES) {
            return None;
        }
        let mut body = gateway.failover_room.body(1);
        if !body.push(request.body()) {
            return None;
        }
        Some(Box::new(Self {
            gateway: Arc::clone(gateway),
            api: request.api,
            model: request.model.clone(),
            body: body.freeze(),
            headers: told.headers(),
            id: exchange.id.clone(),
            backend: exchange.backend.clone()?,
            revision: answered.get(&headers::REVISION).cloned(),
            tried: vec![endpoint.address().to_owned()],
            others: Vec::new(),
            started: exchange.started(),
            left: MOST_FAILOVERS,
            include_usage: request.include_usage,
            deadline,
            room: None,
            tokens_paid: 0,
        }))
    }

    /// Takes room for an answer's tokens; false when there is none, or the answer is too long.
    #[must_use]
    pub fn pay_for(&mut self, tokens: usize) -> bool {
        if tokens > MOST_TOKENS {
            return false;
        }
        while self.tokens_paid < tokens {
            let Some(more) = self.gateway.failover_room.take(TOKENS_AT_A_TIME * size_of::<u32>()) else {
                return false;
            };
            match &mut self.room {
                Some(room) => room.merge(more),
                None => self.room = Some(more),
            }
            self.tokens_paid += TOKENS_AT_A_TIME;
        }
        true
    }

    /// Whether it may be continued once more.
    pub fn may_resume(&self) -> bool {
        self.left > 0
    }

    /// The last words of a stream whose answer is complete and whose pod died before it said so.
    pub fn last_words(&self, answer: &Continued, prompt: u64, completion: u64, usage_sent: bool) -> Bytes {
        let mut words = String::new();
        if self.include_usage && !usage_sent {
            let object =
                if self.api == Api::Completions { "text_completion" } else { "chat.completion.chunk" };
            let chunk = serde_json::json!({
                "id": answer.id, "object": object, "created": answer.created, "model": self.model, "choices": [],
                "usage": fairlead_openai::Usage::new(prompt, completion),
            });
            words.push_str(&format!("data: {chunk}\n\n"));
        }
        words.push_str("data: [DONE]\n\n");
        Bytes::from(words)
    }

    /// Asks other pods to go on after these tokens; without an `answer`, of which the client has nothing yet, to begin anew.
    pub fn resume(
        mut self: Box<Self>,
        answer: Option<&Continued>,
        tokens: &[u32],
    ) -> BoxFuture<'static, Result<Resumed, NotResumed>> {
        self.left = self.left.saturating_sub(1);
        let headers = self.headers_for(answer);
        let tokens = tokens.to_vec();
        Box::pin(async move { self.ask(headers, &tokens).await })
    }

    fn headers_for(&self, answer: Option<&Continued>) -> HeaderMap {
        let mut headers = self.headers.clone();
        if let Some(answer) = answer {
            headers::set(&mut headers, HeaderName::from_static(CONTINUES), &answer.to_string());
        }
        if let Some(revision) = &self.revision {
            headers.insert(HeaderName::from_static(IF_REVISION), revision.clone());
        }
        headers
    }

    async fn ask(mut self: Box<Self>, mut headers: HeaderMap, tokens: &[u32]) -> Result<Resumed, NotResumed> {
        let mut attempts = 0;
        let mut last: Option<NotResumed> = None;
        let not = |result, why: String, attempts| NotResumed { result, why, attempts };
        while attempts < self.gateway.max_attempts {
            let gateway = Arc::clone(&self.gateway);
            let snapshot = gateway.routing.snapshot();
            let Some(route) = snapshot.route(&self.model) else { break };
            let backend = route.backends.iter().find(|backend| backend.name == self.backend);
            let Some((backend, (endpoint, fresh))) =
                backend.and_then(|backend| Some((backend, self.next_endpoint(backend)?)))
            else {
                break;
            };
            let rules = &route.resilience;
            if !rules.budget.as_deref().unwrap_or(&gateway.budget).spend(Instant::now()) {
                let why = "too many requests are being repeated already".to_owned();
                return Err(not(FailoverResult::Denied, why, attempts));
            }
            if !fresh {
                tokio::time::sleep(retry::pause(attempts + 1)).await;
            }
            if !self.set_time_left(&mut headers) {
                let why = "the time that the client gave has passed".to_owned();
                return Err(not(FailoverResult::Refused, why, attempts));
            }
            let body = match self.body_for(backend, tokens) {
                Ok(body) => body,
                Err(why) => return Err(not(FailoverResult::NoRoom, why, attempts)),
            };
            let uri = match endpoint.uri(self.api.path()) {
                Ok(uri) => uri,
                Err(error) => return Err(not(FailoverResult::Failed, error.to_string(), attempts)),
            };
            let now = Instant::now();
            let first_byte = now + rules.first_byte.unwrap_or(gateway.upstream.first_byte_timeout());
            let first_byte = self.deadline.map_or(first_byte, |deadline| deadline.min(first_byte));
            let Ok(pass) = backend.circuit.enter(now, first_byte).await else {
                let why = "its backend is full, or left alone after failures".to_owned();
                return Err(not(FailoverResult::NoEndpoint, why, attempts));
            };
            attempts += 1;
            self.tried.push(endpoint.address().to_owned());
            let in_flight = endpoint.begin().with_pass(pass);
            let idle = rules.between_tokens;
            let call = Call {
                uri,
                headers: headers.clone(),
                body,
                stream: true,
                begun: now,
                first_byte,
                idle,
                provider: None,
            };
            match gateway.upstream.ask(call).await {
                Ok(Answer::Begun { head, first, rest, events: true })
                    if head.status.is_success() && head.headers.contains_key(&NOTES) =>
                {
                    in_flight.record_success();
                    return Ok(Resumed { kept: self, first, rest, in_flight, attempts });
                }
                Ok(Answer::Whole(head, body)) if is_mismatch(&body) => {
                    // It has cost nothing, so it counts for nothing.
                    attempts -= 1;
                    self.others.extend(self.tried.pop());
                    let why = format!("the pods that are left are of another revision ({})", head.status);
                    last = Some(not(FailoverResult::NoEndpoint, why, attempts));
                }
                Ok(Answer::Whole(head, _) | Answer::Begun { head, .. }) => {
                    let why = format!("another pod would not go on ({})", head.status);
                    last = Some(not(FailoverResult::Refused, why, attempts));
                    if head.status.is_client_error() {
                        break;
                    }
                }
                Err(error) => {
                    journey::note(&error, Some(&in_flight), &self.id, gateway.metrics());
                    let why = match error {
                        AttemptError::Busy(head, _) => {
                            format!("another pod could not go on ({})", head.status)
                        }
                        error => error.to_string(),
                    };
                    last = Some(not(FailoverResult::Failed, why, attempts));
                }
            }
        }
        let none = || "there is no other pod of its backend".to_owned();
        Err(last.unwrap_or_else(|| not(FailoverResult::NoEndpoint, none(), attempts)))
    }

    /// The next pod to ask, best first: one that is well, one that is left alone after failures, one that was asked before.
    fn next_endpoint(&self, backend: &RouteBackend) -> Option<(Arc<Endpoint>, bool)> {
        let now = Instant::now();
        let all: Vec<&Arc<Endpoint>> =
            backend.endpoints.iter().filter(|endpoint| self.may_be_of_revision(endpoint)).collect();
        let fresh: Vec<&Arc<Endpoint>> =
            all.iter().copied().filter(|endpoint| !contains(&self.tried, endpoint.address())).collect();
        let well: Vec<&Arc<Endpoint>> =
            fresh.iter().copied().filter(|endpoint| !endpoint.is_ejected(now)).collect();
        for (candidates, is_fresh) in [(well, true), (fresh, true), (all, false)] {
            if let Some(index) = least_loaded(&candidates, &mut rand::rng()) {
                return Some((Arc::clone(candidates.get(index)?), is_fresh));
            }
        }
        None
    }

    /// Whether a pod may serve the revision that the answer began with; where nobody knows it says so itself.
    fn may_be_of_revision(&self, endpoint: &Endpoint) -> bool {
        let differs = match (&self.revision, endpoint.revision()) {
            (Some(wanted), Some(serves)) => wanted.as_bytes() != serves.as_bytes(),
            _ => false,
        };
        !differs && !contains(&self.others, endpoint.address())
    }

    /// Leaves the new pod no more time than the client gave; false when none is left.
    fn set_time_left(&self, headers: &mut HeaderMap) -> bool {
        let given =
            self.headers.get(&TIMEOUT).and_then(|value| value.to_str().ok()?.trim().parse::<u64>().ok());
        let Some(given) = given else { return true };
        let spent = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        match given.saturating_sub(spent) {
            0 => false,
            left => {
                headers.insert(TIMEOUT, HeaderValue::from(left));
                true
            }
        }
    }

    /// The request, to go on after these tokens.
    fn body_for(&self, backend: &RouteBackend, tokens: &[u32]) -> Result<Bytes, String> {
        let text = |error: serde_json::Error| format!("the request could not be written again: {error}");
        // Where the client itself has resumed an answer, ours come after its.
        let field = rewrite::field(&self.body, "resume_token_ids").map_err(text)?;
        let mut all: Vec<u32> = field
            .map(serde_json::from_str::<Option<_>>)
            .transpose()
            .map_err(text)?
            .flatten()
            .unwrap_or_default();
        all.extend_from_slice(tokens);
        let model = backend.served_model.as_deref().unwrap_or(&self.model);
        let all = serde_json::to_string(&all).map_err(text)?;
        let changes =
            [("model", Some(serde_json::Value::from(model).to_string())), ("resume_token_ids", Some(all))];
        let written = rewrite::rewritten(&self.body, &changes).map_err(text)?;
        let mut held = self.gateway.held.body(1);
        if !held.push(&written) {
            return Err("the gateway holds as many bytes as it takes (--max-held-bytes)".to_owned());
        }
        Ok(held.freeze())
    }
}

fn contains(addresses: &[String], address: &str) -> bool {
    addresses.iter().any(|known| known == address)
}

fn is_mismatch(body: &[u8]) -> bool {
    serde_json::from_slice::<ErrorBody>(body)
        .is_ok_and(|body| body.error.code.as_deref() == Some(REVISION_MISMATCH))
}
