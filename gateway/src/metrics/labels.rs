//! What tells the members of a family of metrics from one another. None of it is anything that users send.

use fairlead_crds::model_route::resilience::RetryOn;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};

use crate::policy::Why;

/// Which API a request came by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Api {
    /// `/v1/chat/completions`.
    ChatCompletions,
    /// `/v1/completions`.
    Completions,
    /// `/tokenize`.
    Tokenize,
    /// `/detokenize`.
    Detokenize,
    /// `/v1/embeddings`.
    Embeddings,
    /// `/v1/rerank` and `/rerank`.
    Rerank,
    /// `/v1/models` and below.
    Models,
    /// Any other path.
    Other,
}

impl Api {
    /// Whether a model computes the answer, which is what users feel of a variant.
    pub fn is_inference(self) -> bool {
        match self {
            Self::ChatCompletions | Self::Completions | Self::Embeddings | Self::Rerank => true,
            Self::Tokenize | Self::Detokenize | Self::Models | Self::Other => false,
        }
    }

    /// All that [`Self::path`] says.
    pub const PATHS: [&str; 7] = [
        "/v1/chat/completions",
        "/v1/completions",
        "/tokenize",
        "/detokenize",
        "/v1/embeddings",
        "/v1/rerank",
        "/v1/models",
    ];

    /// The path that requests of this API are sent to.
    pub fn path(self) -> &'static str {
        match self {
            Self::Completions => "/v1/completions",
            Self::Tokenize => "/tokenize",
            Self::Detokenize => "/detokenize",
            Self::Embeddings => "/v1/embeddings",
            Self::Rerank => "/v1/rerank",
            Self::Models => "/v1/models",
            Self::ChatCompletions | Self::Other => "/v1/chat/completions",
        }
    }
}

/// Class of the status that the client got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum CodeClass {
    /// 1xx to 3xx.
    Success,
    /// 4xx.
    ClientError,
    /// 5xx.
    ServerError,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Outcome {
    /// Answered, whole.
    Ok,
    /// The request was wrong; a pod or the gateway said so.
    Refused,
    /// No route answers to the model name.
    UnknownModel,
    /// The route has no endpoint that can take requests.
    NoEndpoint,
    /// The gateway has too many requests already.
    Overloaded,
    /// Every attempt failed, or the pod answered with a server error.
    UpstreamError,
    /// No pod answered in time.
    UpstreamTimeout,
    /// The answer broke off after it had begun to reach the client.
    Broken,
    /// The client went away first.
    ClientGone,
}

/// Why an attempt was repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum RetryReason {
    /// No connection.
    Connect,
    /// The connection broke before the client had seen anything of the answer.
    Reset,
    /// The pod is starting, draining or full.
    Busy,
    /// Nothing came in time.
    Timeout,
    /// A server error.
    ServerError,
}

impl RetryReason {
    /// As a route names it.
    pub fn of(on: RetryOn) -> Self {
        match on {
            RetryOn::Connect => Self::Connect,
            RetryOn::Reset => Self::Reset,
            RetryOn::Busy => Self::Busy,
            RetryOn::Timeout => Self::Timeout,
            RetryOn::ServerError => Self::ServerError,
        }
    }
}

/// Why a fallback was tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum FallbackReason {
    /// No pod, or an open circuit.
    NoEndpoint,
    /// Connections and server errors.
    Error,
    /// Nothing came in time.
    Timeout,
    /// Full.
    Overloaded,
}

/// What came of a second question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum HedgeResult {
    /// The second one answered first.
    Won,
    /// The first one did.
    Lost,
    /// It was not asked: the share of second questions was used up.
    Denied,
}

/// What came of a stream whose pod died.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum FailoverResult {
    /// Another pod went on with it.
    Continued,
    /// Only its last words were missing, and the gateway said them.
    Completed,
    /// It cannot be continued: several answers, an echo, a pod that writes no notes.
    Impossible,
    /// There was no room to remember it (`--max-failover-bytes`).
    NoRoom,
    /// It was continued too often already.
    TooOften,
    /// The budget of retries was spent.
    Denied,
    /// There is no other pod of its backend and revision.
    NoEndpoint,
    /// Another pod refused to go on.
    Refused,
    /// Other pods failed, too.
    Failed,
}

/// Labels of a finished request.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct RequestLabels {
    pub(super) api: Api,
    pub(super) code: CodeClass,
    pub(super) outcome: Outcome,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ApiLabels {
    pub(super) api: Api,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct FallbackLabels {
    pub(super) reason: FallbackReason,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct HedgeLabels {
    pub(super) result: HedgeResult,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct FailoverLabels {
    pub(super) result: FailoverResult,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct RetryLabels {
    pub(super) reason: RetryReason,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ChoiceLabels {
    pub(super) reason: Why,
}
