//! What a route does when its backends are slow, full or broken: `spec.timeouts`, `retries`, `circuitBreaker`, `hedging` and
//! `fallbacks`. What is left out is as the gateway's flags say.

pub mod check;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::duration;

/// How long a backend may take. What is left out is as the gateway's flags say.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Timeouts {
    /// Until the first byte of an answer; for an answer that is not streamed that is all of it. Default: the gateway's
    /// `--first-byte-timeout`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), extend("x-kubernetes-validations" = [duration::rule_for("spec.timeouts.firstByte")]))]
    pub first_byte: Option<String>,
    /// Between two pieces of a stream; when it has passed the stream goes on at another pod. Default: the gateway's
    /// `--idle-timeout`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), extend("x-kubernetes-validations" = [duration::rule_for("spec.timeouts.betweenTokens")]))]
    pub between_tokens: Option<String>,
    /// For a request with all of its attempts and the whole of its answer. Default: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), extend("x-kubernetes-validations" = [duration::rule_for("spec.timeouts.request")]))]
    pub request: Option<String>,
}

/// Which failures are tried again, and how often. What is left out is as the gateway's flags say.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Retries {
    /// Most pods that a request is tried on; 1 tries none again. Default: the gateway's `--max-attempts`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10))]
    pub attempts: Option<u32>,
    /// Most retries as a share of the route's requests, in percent, so that an outage is not made worse by them. Default: one
    /// budget of 20 % for all routes of a gateway together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 100))]
    pub budget_percent: Option<u32>,
    /// What is tried again. Default: Connect, Reset and Busy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 5))]
    pub on: Option<Vec<RetryOn>>,
}

/// A failure that may be tried again. In all cases the client has been sent nothing yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum RetryOn {
    /// No connection.
    Connect,
    /// The connection broke.
    Reset,
    /// 503 or 429: starting, draining or full.
    Busy,
    /// Nothing came in time. Tried again it takes the time once more.
    Timeout,
    /// 500, 502 or 504.
    ServerError,
}

/// When a backend is left alone as a whole. Single pods that fail are left alone in any case.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CircuitBreaker {
    /// Most requests that a backend answers at a time, for each gateway. Default: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_in_flight: Option<u32>,
    /// Most requests that wait for a place among those, in each gateway; more are refused with 503 `backend_full`, or go where
    /// `whenFull` says. Default: 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 1_000_000))]
    pub max_pending: Option<u32>,
    /// What happens to a request that finds no place. Default: Shed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when_full: Option<WhenFull>,
    /// So many failures in a row open the circuit: the backend gets no requests. Default: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000))]
    pub consecutive_failures: Option<u32>,
    /// How long it is open before one request tries whether the backend is well again. Default: 30s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), extend("x-kubernetes-validations" = [duration::rule_for("spec.circuitBreaker.openFor")]))]
    pub open_for: Option<String>,
}

/// What happens to a request whose backend is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum WhenFull {
    /// It is refused, or goes to a fallback. Splits stay exact.
    Shed,
    /// It goes to the other backends, by their weights.
    Divert,
}

/// Asks a second pod when the first is slow to begin; the quicker one answers, and the other one's work is lost. For requests
/// whose delay costs more than their tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Hedging {
    /// How long the first pod may take to begin before a second one is asked.
    #[schemars(length(max = 16), extend("x-kubernetes-validations" = [duration::rule_for("spec.hedging.after")]))]
    pub after: String,
    /// Most second questions as a share of the route's requests, in percent. Default: 5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub max_percent: Option<u32>,
}

/// A backend that is tried when the others could not answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Fallback {
    /// One of `spec.backends`; a weight of its own it needs none.
    #[schemars(length(max = 63))]
    pub backend: String,
    /// When it is tried. Default: always when nothing else could answer. What is wrong with the request itself (4xx) goes to no
    /// fallback.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 4))]
    pub on: Option<Vec<FallbackOn>>,
}

/// Why the backends before could not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum FallbackOn {
    /// There is no pod that is ready, or the circuit is open.
    NoEndpoint,
    /// No connection, a connection that broke, or a server error (5xx).
    Error,
    /// Nothing came in time.
    Timeout,
    /// 429, 503, or a backend that is full.
    Overloaded,
}
