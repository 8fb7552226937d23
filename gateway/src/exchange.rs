//! One request's record, from arrival to the last byte: what metrics count and what the log says of it.
//!
//! It travels with the answer's body, so that a stream is accounted for when it ends and not when it begins. Dropped
//! without an outcome, it says that the client went away. Never holds anything of a prompt or an answer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fairlead_crds::model_route::resilience::FallbackOn;
use tokio::sync::OwnedSemaphorePermit;

use crate::decide::Decision;
use crate::endpoint::Endpoint;
use crate::metrics::{Api, Metrics, Outcome};
use crate::name::Name;
use crate::observe::Observed;
use crate::shadow::live::Watch;
use crate::snapshot::Route;

/// What access logs conventionally write when the client closed the connection before an answer.
const CLIENT_CLOSED: u16 = 499;

/// One request's record.
#[derive(Debug)]
pub struct Exchange {
    /// The request's id.
    pub id: Name,
    /// `namespace/name` of the route that was found.
    pub route: Option<Name>,
    /// The backend of the newest attempt.
    pub backend: Option<Name>,
    /// What was decided of it: the rule, whose weights, the subject.
    pub decision: Option<Decision>,
    /// The hash of the route and the sticky key, when the split is sticky for this request. Requests of one subject are not
    /// independent of each other.
    pub subject: Option<u64>,
    /// The backend that the weights chose, when it is another one.
    pub diverted_from: Option<Name>,
    /// What a million tokens cost there.
    pub cost: Option<Name>,
    /// The endpoint of the newest attempt.
    pub endpoint: Option<Arc<Endpoint>>,
    /// Why that endpoint and no other of the backend.
    pub endpoint_choice: Option<&'static str>,
    /// Attempts made.
    pub attempts: u32,
    /// Attempts that failed: the backend, and why as a route names it.
    pub failed: Vec<(Name, &'static str)>,
    /// The backend that could not answer and why, where a fallback did.
    pub fallback: Option<(Name, FallbackOn)>,
    /// Watches it for its mirrored leg.
    pub watch: Option<Watch>,
    /// How often its stream went on at another pod.
    pub failovers: u32,
    /// Whether its stream is one that could.
    pub resumable: bool,
    /// A place among the requests in flight, held to the end.
    pub slot: Option<OwnedSemaphorePermit>,
    api: Api,
    status: u16,
    started: Instant,
    first_byte: Option<Duration>,
    outcome: Option<Outcome>,
    detail: Option<String>,
    metrics: Arc<Metrics>,
    observed: Observed,
}

/// Where a request was last.
#[derive(Clone, Debug, Default)]
pub struct Place {
    backend: Option<Name>,
    diverted_from: Option<Name>,
    endpoint: Option<Arc<Endpoint>>,
}

impl Exchange {
    /// A request that has just arrived.
    ///
    /// In a box, because it is handed on from function to function, each of whose futures would have room for all of it.
    pub fn begin(id: Name, api: Api, metrics: Arc<Metrics>) -> Box<Self> {
        metrics.request_started();
        Box::new(Self {
            id,
            route: None,
            backend: None,
            decision: None,
            subject: None,
            diverted_from: None,
            cost: None,
            endpoint: None,
            endpoint_choice: None,
            attempts: 0,
            failed: Vec::new(),
            fallback: None,
            watch: None,
            failovers: 0,
            resumable: false,
            slot: None,
            api,
            status: CLIENT_CLOSED,
            started: Instant::now(),
            first_byte: None,
            outcome: None,
            detail: None,
            metrics,
            observed: Observed::default(),
        })
    }

    /// The metrics that this record goes to.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// An attempt at a backend begins; `streamed`: the client asked for events.
    pub fn attempt(&mut self, route: &Route, backend: &str, streamed: bool, now: Instant) {
        // What a rule sends, or what is pinned to a backend, says nothing of a canary.
        let own = self.decision.as_ref().is_some_and(Decision::by_own_split);
        let counted = own && self.api.is_inference();
        let how = (streamed, counted, self.subject);
        self.observed.attempt(self.metrics.variants(), &route.observed, backend, how, now);
    }

    /// The attempt failed by the variant's fault: no connection, a connection that broke, no answer in time.
    pub fn attempt_failed(&mut self) {
        self.observed.fault();
        self.failed.push((self.backend.clone().unwrap_or_default(), "failed"));
    }

    /// The pod had no room for the attempt, or was on its way in or out.
    pub fn attempt_refused(&mut self) {
        self.observed.busy();
        self.failed.push((self.backend.clone().unwrap_or_default(), "busy"));
    }

    /// These whole events are passed on to the client.
    pub fn passed_events(&mut self, events: &[u8]) {
        self.observed.events(self.metrics.variants(), events);
    }

    /// This whole answer is passed on.
    pub fn passed_whole(&mut self, body: &[u8]) {
        self.observed.whole(body);
    }

    /// The address of the newest attempt's endpoint.
    pub fn address(&self) -> Option<&str> {
        self.endpoint.as_deref().map(Endpoint::address)
    }

    /// Where it is now.
    pub fn place(&self) -> Place {
        Place {
            backend: self.backend.clone(),
            diverted_from: self.diverted_from.clone(),
            endpoint: self.endpoint.clone(),
        }
    }

    /// It was elsewhere in vain.
    pub fn put_back(&mut self, place: Place) {
        let Place { backend, diverted_from, endpoint } = place;
        (self.backend, self.diverted_from, self.endpoint) = (backend, diverted_from, endpoint);
    }

    /// When the request came in.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// The first byte of a stream is here. An answer that is not streamed has no such moment worth a metric.
    pub fn first_byte(&mut self) {
        self.first_byte.get_or_insert_with(|| self.started.elapsed());
    }

    /// The status that the client gets.
    pub fn answered(&mut self, status: u16) {
        self.status = status;
    }

    /// How it ended. The first word counts.
    pub fn ended(&mut self, outcome: Outcome, detail: Option<String>) {
        if self.outcome.is_none() {
            self.outcome = Some(outcome);
            self.detail = detail;
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let outcome = self.outcome.unwrap_or(Outcome::ClientGone);
        let now = Instant::now();
        let duration = now.saturating_duration_since(self.started);
        if let Some(watch) = &mut self.watch {
            watch.ended(outcome);
        }
        self.metrics.request_finished(self.api, self.status, outcome, duration, self.first_byte);
        self.observed.ended(self.metrics.variants(), outcome, now);
        macro_rules! log {
            ($level:ident) => {
                tracing::$level!(
                    request_id = self.id.as_str(),
                    api = ?self.api,
                    status = self.status,
                    outcome = ?outcome,
                    route = self.route.as_deref(),
                    rule = self.decision.as_ref().and_then(|decision| decision.rule.as_deref()),
                    backend = self.backend.as_deref(),
                    endpoint = self.address(),
                    attempts = self.attempts,
                    failovers = self.failovers,
                    failed = ?self.failed,
                    fallback = ?self.fallback,
                    duration_ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX),
                    first_byte_ms = self.first_byte.and_then(|time| u64::try_from(time.as_millis()).ok()),
                    detail = self.detail,
                    "request"
                )
            };
        }
        match outcome {
            Outcome::Ok | Outcome::Refused | Outcome::UnknownModel if self.attempts <= 1 => log!(debug),
            Outcome::Ok | Outcome::Refused | Outcome::UnknownModel | Outcome::ClientGone => log!(info),
            Outcome::NoEndpoint
            | Outcome::Overloaded
            | Outcome::UpstreamError
            | Outcome::UpstreamTimeout
            | Outcome::Broken => log!(warn),
        }
    }
}
