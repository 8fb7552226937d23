//! The gateway's metrics: their names and buckets in one place, their labels in [`labels`]. Labels are closed enums; only the
//! metrics of variants (`observe::variant`) and of shadows (`shadow::metrics`) have names of routes and backends, which are
//! operators' objects.

mod labels;

use std::sync::OnceLock;
use std::time::Duration;

use fairlead_crds::model_route::resilience::FallbackOn;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::observe::variant::{KnownVariants, Variant, VariantMetrics};
use crate::policy::Why;
use crate::shadow::metrics::ShadowMetrics;
use labels::{
    ApiLabels, ChoiceLabels, FailoverLabels, FallbackLabels, HedgeLabels, RequestLabels, RetryLabels,
};

pub use labels::{Api, CodeClass, FailoverResult, FallbackReason, HedgeResult, Outcome, RetryReason};

/// All metrics of the process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    duration: Family<ApiLabels, Histogram>,
    first_byte: Family<ApiLabels, Histogram>,
    in_flight: Gauge,
    connections: Gauge,
    retries: Family<RetryLabels, Counter>,
    retries_denied: Counter,
    failovers: Family<FailoverLabels, Counter>,
    fallbacks: Family<FallbackLabels, Counter>,
    hedges: Family<HedgeLabels, Counter>,
    /// Of mirrored requests.
    pub shadows: ShadowMetrics,
    ejections: Counter,
    diverted: Counter,
    endpoint_choices: Family<ChoiceLabels, Counter>,
    prefix_looked_up: Counter,
    prefix_matched: Counter,
    looked_up: LookedUp,
    snapshot_age: Gauge<f64, std::sync::atomic::AtomicU64>,
    snapshot_builds: Histogram,
    snapshot_problems: Gauge,
    source_errors: Counter,
    source_failing: Gauge,
    routes: Gauge,
    endpoints: Gauge,
    variants: VariantMetrics,
    known_variants: KnownVariants,
}

/// Members of families that each request counts in. A family finds a member by a hash of its labels, under a lock; it is asked once.
#[derive(Debug)]
struct LookedUp {
    requests: [[[OnceLock<Counter>; OUTCOMES]; CODES]; APIS],
    durations: [OnceLock<Histogram>; APIS],
    first_bytes: [OnceLock<Histogram>; APIS],
    choices: [OnceLock<Counter>; CHOICES],
}

const APIS: usize = Api::Other as usize + 1;
const CODES: usize = CodeClass::ServerError as usize + 1;
const OUTCOMES: usize = Outcome::ClientGone as usize + 1;
const CHOICES: usize = Why::LeastLoad as usize + 1;

impl Default for LookedUp {
    fn default() -> Self {
        Self {
            requests: [const { [const { [const { OnceLock::new() }; OUTCOMES] }; CODES] }; APIS],
            durations: [const { OnceLock::new() }; APIS],
            first_bytes: [const { OnceLock::new() }; APIS],
            choices: [const { OnceLock::new() }; CHOICES],
        }
    }
}

/// Counts in a member that is looked up the first time, or each time where it has no place.
fn once<M, T>(place: Option<&OnceLock<M>>, find: impl FnOnce() -> M, count: impl FnOnce(&M) -> T) {
    match place {
        Some(place) => count(place.get_or_init(find)),
        None => count(&find()),
    };
}

const DURATION_BUCKETS: [f64; 17] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0];

fn histogram() -> Histogram {
    Histogram::new(DURATION_BUCKETS)
}

impl Default for Metrics {
    fn default() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("fairlead_gateway"),
            requests: Family::default(),
            duration: Family::new_with_constructor(histogram),
            first_byte: Family::new_with_constructor(histogram),
            in_flight: Gauge::default(),
            connections: Gauge::default(),
            retries: Family::default(),
            retries_denied: Counter::default(),
            failovers: Family::default(),
            fallbacks: Family::default(),
            hedges: Family::default(),
            shadows: ShadowMetrics::default(),
            ejections: Counter::default(),
            diverted: Counter::default(),
            endpoint_choices: Family::default(),
            prefix_looked_up: Counter::default(),
            prefix_matched: Counter::default(),
            looked_up: LookedUp::default(),
            snapshot_age: Gauge::default(),
            snapshot_builds: histogram(),
            snapshot_problems: Gauge::default(),
            source_errors: Counter::default(),
            source_failing: Gauge::default(),
            routes: Gauge::default(),
            endpoints: Gauge::default(),
            variants: VariantMetrics::default(),
            known_variants: KnownVariants::default(),
        };
        metrics.register();
        metrics
    }
}

impl Metrics {
    fn register(&mut self) {
        let r = &mut self.registry;
        r.register("requests", "Finished requests", self.requests.clone());
        let help = "From the arrival of a request's head to the end of its answer";
        r.register_with_unit("request_duration", help, Unit::Seconds, self.duration.clone());
        let help = "From the arrival of a request's head to the first byte of its stream from a pod";
        r.register_with_unit("time_to_first_byte", help, Unit::Seconds, self.first_byte.clone());
        r.register("requests_in_flight", "Requests being answered", self.in_flight.clone());
        r.register("connections", "Open client connections", self.connections.clone());
        r.register("retries", "Attempts that were repeated", self.retries.clone());
        r.register(
            "retries_denied",
            "Attempts not repeated because the budget was spent",
            self.retries_denied.clone(),
        );
        let help = "Streams whose pod died in the middle, by what came of them";
        r.register("stream_failovers", help, self.failovers.clone());
        let help = "Requests that a fallback answered, by why the backends before could not";
        r.register("fallbacks", help, self.fallbacks.clone());
        let help = "Second questions to a backend that was slow to begin, by what came of them";
        r.register("hedges", help, self.hedges.clone());
        self.shadows.register(r);
        r.register("ejections", "Endpoints left alone for a while after failures", self.ejections.clone());
        let help = "Requests answered by another backend than the weights had chosen, because that one had no endpoint";
        r.register("diverted", help, self.diverted.clone());
        r.register(
            "endpoint_choices",
            "Choices of an endpoint, by what decided",
            self.endpoint_choices.clone(),
        );
        let help = "Bytes of the prompts for which an endpoint that has their beginning was looked for";
        r.register_with_unit("prefix_lookup", help, Unit::Bytes, self.prefix_looked_up.clone());
        let help = "Bytes of those that the chosen endpoints are believed to have in their KV caches";
        r.register_with_unit("prefix_match", help, Unit::Bytes, self.prefix_matched.clone());
        let help = "Age of the routing snapshot in force";
        r.register_with_unit("snapshot_age", help, Unit::Seconds, self.snapshot_age.clone());
        let help = "How long it took to build a routing snapshot and put it in force";
        r.register_with_unit("snapshot_build", help, Unit::Seconds, self.snapshot_builds.clone());
        r.register(
            "snapshot_problems",
            "What in the routing objects cannot be used",
            self.snapshot_problems.clone(),
        );
        r.register("source_errors", "Failures to read routing objects", self.source_errors.clone());
        let help = "1 while the newest routing objects cannot be read and older ones are in force";
        r.register("source_failing", help, self.source_failing.clone());
        r.register("routes", "Model names that are routed", self.routes.clone());
        r.register("endpoints", "Ready endpoints that the routes reach", self.endpoints.clone());
        self.variants.register(r);
    }

    /// A request has arrived.
    pub fn request_started(&self) {
        self.in_flight.inc();
    }

    /// A request has ended.
    pub fn request_finished(
        &self,
        api: Api,
        status: u16,
        outcome: Outcome,
        duration: Duration,
        first_byte: Option<Duration>,
    ) {
        self.in_flight.dec();
        let code = match status {
            0..400 => CodeClass::Success,
            400..500 => CodeClass::ClientError,
            _ => CodeClass::ServerError,
        };
        let LookedUp { requests, durations, first_bytes, .. } = &self.looked_up;
        let known =
            requests.get(api as usize).and_then(|codes| codes.get(code as usize)?.get(outcome as usize));
        let labels = RequestLabels { api, code, outcome };
        once(known, || self.requests.get_or_create_owned(&labels), Counter::inc);
        let observe = |family: &Family<ApiLabels, Histogram>, members: &[_], time: Duration| {
            let find = || family.get_or_create_owned(&ApiLabels { api });
            once(members.get(api as usize), find, |histogram: &Histogram| {
                histogram.observe(time.as_secs_f64());
            });
        };
        observe(&self.duration, durations, duration);
        if let Some(first_byte) = first_byte {
            observe(&self.first_byte, first_bytes, first_byte);
        }
    }

    /// A connection was opened (`true`) or closed.
    pub fn connection(&self, opened: bool) {
        if opened {
            self.connections.inc();
        } else {
            self.connections.dec();
        }
    }

    /// An attempt is repeated.
    pub fn retried(&self, reason: RetryReason) {
        self.retries.get_or_create(&RetryLabels { reason }).inc();
    }

    /// An attempt would have been repeated, had the budget not been spent.
    pub fn retry_denied(&self) {
        self.retries_denied.inc();
    }

    /// A stream's pod died, and this came of it.
    pub fn failed_over(&self, result: FailoverResult) {
        self.failovers.get_or_create(&FailoverLabels { result }).inc();
    }

    /// A fallback answered.
    pub fn fell_back(&self, why: FallbackOn) {
        let reason = match why {
            FallbackOn::NoEndpoint => FallbackReason::NoEndpoint,
            FallbackOn::Error => FallbackReason::Error,
            FallbackOn::Timeout => FallbackReason::Timeout,
            FallbackOn::Overloaded => FallbackReason::Overloaded,
        };
        self.fallbacks.get_or_create(&FallbackLabels { reason }).inc();
    }

    /// A second pod was asked, or would have been.
    pub fn hedged(&self, result: HedgeResult) {
        self.hedges.get_or_create(&HedgeLabels { result }).inc();
    }

    /// An endpoint was ejected.
    pub fn ejected(&self) {
        self.ejections.inc();
    }

    /// A request went to another backend than the weights had chosen.
    pub fn diverted(&self) {
        self.diverted.inc();
    }

    /// An endpoint was chosen for a prompt of so many bytes, of which it has `matched`.
    pub fn endpoint_chosen(&self, reason: Why, prompt: usize, matched: usize) {
        let find = || self.endpoint_choices.get_or_create_owned(&ChoiceLabels { reason });
        once(self.looked_up.choices.get(reason as usize), find, Counter::inc);
        if matches!(reason, Why::PrefixMatch | Why::PrefixOverruled | Why::NoPrefixMatch) {
            self.prefix_looked_up.inc_by(prompt as u64);
            self.prefix_matched.inc_by(matched as u64);
        }
    }

    /// The metrics by route and backend.
    pub fn variants(&self) -> &VariantMetrics {
        &self.variants
    }

    /// These are the variants from now on; the metrics of others go.
    pub fn keep_variants<'a>(&self, variants: impl Iterator<Item = &'a std::sync::Arc<Variant>>) {
        self.known_variants.keep(&self.variants, variants);
    }

    /// A snapshot came into force, after so long a time of work.
    pub fn snapshot_built(&self, took: Duration, routes: usize, endpoints: usize, problems: usize) {
        let gauge = |gauge: &Gauge, value: usize| {
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        };
        self.snapshot_builds.observe(took.as_secs_f64());
        gauge(&self.routes, routes);
        gauge(&self.endpoints, endpoints);
        gauge(&self.snapshot_problems, problems);
    }

    /// Routing objects could not be read.
    pub fn source_error(&self) {
        self.source_errors.inc();
    }

    /// Whether what is in force is older than what the source has.
    pub fn source_failing(&self, failing: bool) {
        self.source_failing.set(i64::from(failing));
    }

    /// Everything in OpenMetrics text; the snapshot's age is as of now.
    pub fn render(&self, snapshot_age: Duration) -> Result<String, std::fmt::Error> {
        self.snapshot_age.set(snapshot_age.as_secs_f64());
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happened_is_told() {
        let metrics = Metrics::default();
        metrics.request_started();
        metrics.request_started();
        let (took, first) = (Duration::from_millis(30), Some(Duration::from_millis(2)));
        metrics.request_finished(Api::ChatCompletions, 200, Outcome::Ok, took, first);
        metrics.retried(RetryReason::Connect);
        let text = metrics.render(Duration::from_secs(3)).expect("text");
        for line in [
            "fairlead_gateway_requests_total{api=\"ChatCompletions\",code=\"Success\",outcome=\"Ok\"} 1",
            "fairlead_gateway_requests_in_flight 1",
            "fairlead_gateway_time_to_first_byte_seconds_bucket{le=\"0.0025\",api=\"ChatCompletions\"} 1",
            "fairlead_gateway_request_duration_seconds_count{api=\"ChatCompletions\"} 1",
            "fairlead_gateway_retries_total{reason=\"Connect\"} 1",
            "fairlead_gateway_snapshot_age_seconds 3.0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in:\n{text}");
        }
    }
}
