//! Metrics of one variant: a backend of a route. Their labels are names of operators' objects, never anything that users send, and
//! they go when the route or the backend goes.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// A backend of a route, as metrics know it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, EncodeLabelSet)]
pub struct VariantLabels {
    /// `namespace/name` of the ModelRoute.
    pub route: String,
    /// Name of the backend.
    pub backend: String,
}

/// How a variant's part of a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum End {
    /// Answered.
    Answered,
    /// Failed by the variant's fault.
    Failed,
    /// Refused by the pod as the client's mistake.
    Refused,
    /// The client left first.
    Left,
}

impl End {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Answered, Self::Failed, Self::Refused, Self::Left];
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EndLabels {
    route: String,
    backend: String,
    result: End,
}

const SECONDS: [f64; 16] =
    [0.01, 0.025, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];
const BETWEEN: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 2.0];
const TOKENS: [f64; 12] = [1.0, 4.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 16384.0];

/// The families that variants' metrics are members of.
#[derive(Debug)]
pub struct VariantMetrics {
    requests: Family<EndLabels, Counter>,
    in_flight: Family<VariantLabels, Gauge>,
    first_token: Family<VariantLabels, Histogram, fn() -> Histogram>,
    between_tokens: Family<VariantLabels, Histogram, fn() -> Histogram>,
    duration: Family<VariantLabels, Histogram, fn() -> Histogram>,
    tokens: Family<VariantLabels, Histogram, fn() -> Histogram>,
}

impl Default for VariantMetrics {
    fn default() -> Self {
        Self {
            requests: Family::default(),
            in_flight: Family::default(),
            first_token: Family::new_with_constructor(|| Histogram::new(SECONDS)),
            between_tokens: Family::new_with_constructor(|| Histogram::new(BETWEEN)),
            duration: Family::new_with_constructor(|| Histogram::new(SECONDS)),
            tokens: Family::new_with_constructor(|| Histogram::new(TOKENS)),
        }
    }
}

impl VariantMetrics {
    /// Registers all of them.
    pub fn register(&self, r: &mut Registry) {
        let help = "Requests by the variant that answered them or failed to, and how that ended";
        r.register("variant_requests", help, self.requests.clone());
        let help = "Requests that the variant is answering";
        r.register("variant_requests_in_flight", help, self.in_flight.clone());
        let help = "From the first attempt at a variant to the first token of a streamed answer";
        r.register_with_unit("variant_time_to_first_token", help, Unit::Seconds, self.first_token.clone());
        let help = "Mean time between two pieces of a streamed answer";
        r.register_with_unit("variant_inter_token_latency", help, Unit::Seconds, self.between_tokens.clone());
        let help = "From the first attempt at a variant to the end of its answer";
        r.register_with_unit("variant_request_duration", help, Unit::Seconds, self.duration.clone());
        r.register("variant_answer_tokens", "Tokens of an answer", self.tokens.clone());
    }

    /// Forgets a variant that is no more.
    pub fn forget(&self, labels: &VariantLabels) {
        let VariantLabels { route, backend } = labels;
        for result in End::ALL {
            self.requests.remove(&EndLabels { route: route.clone(), backend: backend.clone(), result });
        }
        self.in_flight.remove(labels);
        for family in [&self.first_token, &self.between_tokens, &self.duration, &self.tokens] {
            family.remove(labels);
        }
    }

    fn resolve(&self, labels: &VariantLabels) -> Handles {
        let VariantLabels { route, backend } = labels;
        let ended = End::ALL.map(|result| {
            let labels = EndLabels { route: route.clone(), backend: backend.clone(), result };
            self.requests.get_or_create_owned(&labels)
        });
        Handles {
            ended,
            in_flight: self.in_flight.get_or_create_owned(labels),
            first_token: self.first_token.get_or_create_owned(labels),
            between_tokens: self.between_tokens.get_or_create_owned(labels),
            duration: self.duration.get_or_create_owned(labels),
            tokens: self.tokens.get_or_create_owned(labels),
        }
    }
}

#[derive(Debug)]
struct Handles {
    ended: [Counter; 4],
    in_flight: Gauge,
    first_token: Histogram,
    between_tokens: Histogram,
    duration: Histogram,
    tokens: Histogram,
}

/// A request that a variant has.
#[derive(Debug)]
pub struct InFlight(Gauge);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// One variant. Looks its metrics up once, with its first request.
#[derive(Debug)]
pub struct Variant {
    labels: VariantLabels,
    handles: OnceLock<Handles>,
}

impl Variant {
    /// A backend of a route (`namespace/name`).
    pub fn new(route: &str, backend: &str) -> Self {
        let labels = VariantLabels { route: route.to_owned(), backend: backend.to_owned() };
        Self { labels, handles: OnceLock::new() }
    }

    /// `namespace/name` of the route.
    pub fn route(&self) -> &str {
        &self.labels.route
    }

    /// Name of the backend.
    pub fn backend(&self) -> &str {
        &self.labels.backend
    }

    /// What metrics call it.
    pub fn labels(&self) -> &VariantLabels {
        &self.labels
    }

    fn handles(&self, metrics: &VariantMetrics) -> &Handles {
        self.handles.get_or_init(|| metrics.resolve(&self.labels))
    }

    /// It has a request, until the guard is dropped.
    pub fn begin(&self, metrics: &VariantMetrics) -> InFlight {
        let gauge = self.handles(metrics).in_flight.clone();
        gauge.inc();
        InFlight(gauge)
    }

    /// The first token came after so long.
    pub fn first_token(&self, metrics: &VariantMetrics, after: Duration) {
        self.handles(metrics).first_token.observe(after.as_secs_f64());
    }

    /// Tokens came so many seconds apart.
    pub fn between_tokens(&self, metrics: &VariantMetrics, seconds: f64) {
        self.handles(metrics).between_tokens.observe(seconds);
    }

    /// Its part of a request has ended.
    pub fn ended(&self, metrics: &VariantMetrics, end: End, after: Duration, tokens: Option<u64>) {
        let handles = self.handles(metrics);
        let [answered, failed, refused, left] = &handles.ended;
        match end {
            End::Answered => answered,
            End::Failed => failed,
            End::Refused => refused,
            End::Left => left,
        }
        .inc();
        if end == End::Answered {
            handles.duration.observe(after.as_secs_f64());
            if let Some(tokens) = tokens {
                // Far below 2^53.
                #[allow(clippy::cast_precision_loss)]
                handles.tokens.observe(tokens as f64);
            }
        }
    }
}

/// Which variants have metrics, so that those that are no more can be forgotten.
#[derive(Debug, Default)]
pub struct KnownVariants(std::sync::Mutex<std::collections::BTreeSet<VariantLabels>>);

impl KnownVariants {
    /// These are the variants from now on.
    pub fn keep<'a>(&self, metrics: &VariantMetrics, variants: impl Iterator<Item = &'a Arc<Variant>>) {
        let now: std::collections::BTreeSet<VariantLabels> =
            variants.map(|variant| variant.labels.clone()).collect();
        let mut known = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        known.difference(&now).for_each(|gone| metrics.forget(gone));
        *known = now;
    }
}
