//! Condition types and reasons, shared by every kind, after the kstatus rules.
//!
//! `Ready` is always present. `Reconciling` and `Stalled` are abnormal-true: present with status True while they hold and
//! absent otherwise, so that no condition of a healthy object is ever False.

/// True when the object does what its spec says, at the observed generation.
pub const READY: &str = "Ready";
/// Present and True while the controller is still working towards the spec.
pub const RECONCILING: &str = "Reconciling";
/// Present and True while only a change by a person (to this object or to what it names) can help.
pub const STALLED: &str = "Stalled";

/// Of routes with providers, as far as gateways have told: False when one cannot be called. `Ready` does not depend on it.
pub const PROVIDERS_REACHABLE: &str = "ProvidersReachable";

/// Reasons of `Ready=True`.
pub mod ready {
    /// Every replica serves the current revision.
    pub const AVAILABLE: &str = "Available";
    /// A route's backends can take traffic.
    pub const ROUTED: &str = "Routed";
    /// Everybody who is to be asked has answered the questions at the current revision.
    pub const EVALUATED: &str = "Evaluated";
    /// Nobody has asked for a run, and the spec waits for that.
    pub const ON_REQUEST: &str = "OnRequest";
}

/// Reasons while `Reconciling`.
pub mod reconciling {
    /// The model is being inspected: its plan is not known yet.
    pub const INSPECTING: &str = "Inspecting";
    /// Pods are being created or replaced.
    pub const ROLLING_OUT: &str = "RollingOut";
    /// Something this object needs is not there yet or could not be reached; it is tried again.
    pub const WAITING: &str = "Waiting";
    /// A run is under way.
    pub const EVALUATING: &str = "Evaluating";
}

/// Reasons while `Stalled`.
pub mod stalled {
    /// The spec contradicts itself or names something unusable.
    pub const INVALID_SPEC: &str = "InvalidSpec";
    /// The model's files are absent at the place that `spec.model.uri` names.
    pub const MODEL_NOT_FOUND: &str = "ModelNotFound";
    /// The model's files are there but cut short, corrupt or contradictory.
    pub const MODEL_INVALID: &str = "ModelInvalid";
    /// No engine of ours runs this architecture.
    pub const UNSUPPORTED_ARCHITECTURE: &str = "UnsupportedArchitecture";
    /// Weights and one sequence do not fit the memory a replica has.
    pub const DOES_NOT_FIT: &str = "DoesNotFit";
    /// Engine pods keep failing to start.
    pub const POD_FAILED: &str = "PodFailed";
    /// A backend names a ModelDeployment that does not exist.
    pub const BACKEND_NOT_FOUND: &str = "BackendNotFound";
    /// An older route already answers to this model name.
    pub const MODEL_NAME_TAKEN: &str = "ModelNameTaken";
    /// An Evaluation's target does not exist.
    pub const TARGET_NOT_FOUND: &str = "TargetNotFound";
    /// An Evaluation's questions can't be read.
    pub const INVALID_QUESTIONS: &str = "InvalidQuestions";
    /// The questions could not be asked.
    pub const RUN_FAILED: &str = "RunFailed";
}

/// Reasons of events about an Evaluation's runs.
pub mod evaluation {
    /// A backend has answered the questions.
    pub const SCORED: &str = "Scored";
    /// It could not be asked.
    pub const RUN_FAILED: &str = "RunFailed";
}

/// Reasons of events about a route's canary.
pub mod rollout {
    /// The canary's share was decided: a step has begun, or goes on.
    pub const CANARY_STEP: &str = "CanaryStep";
    /// It keeps its share until someone lets it go on.
    pub const CANARY_PAUSED: &str = "CanaryPaused";
    /// It does not grow, as something is lacking: traffic, pods, a gateway's counts, a measurement, a clear verdict.
    pub const CANARY_WAITING: &str = "CanaryWaiting";
    /// A gate failed, not yet as often as takes it back.
    pub const CANARY_FAILING: &str = "CanaryFailing";
    /// It has everything.
    pub const CANARY_PROMOTED: &str = "CanaryPromoted";
    /// It has nothing any more.
    pub const CANARY_ROLLED_BACK: &str = "CanaryRolledBack";
    /// The spec has no canary any more.
    pub const CANARY_REMOVED: &str = "CanaryRemoved";
}

/// Reasons of `ProvidersReachable`, and of events about it.
pub mod providers {
    /// True: every gateway reaches every provider.
    pub const REACHED: &str = "ProvidersReached";
    /// A gateway may not call the host, or cannot read the key or the certificate authorities.
    pub const NOT_USABLE: &str = "ProviderNotUsable";
    /// The name of its host is not known.
    pub const NOT_RESOLVED: &str = "ProviderNotResolved";
    /// Nobody answers at its address.
    pub const NOT_CONNECTED: &str = "ProviderNotConnected";
    /// Its certificate is not accepted.
    pub const NOT_TRUSTED: &str = "ProviderNotTrusted";
    /// It refuses the key.
    pub const KEY_REFUSED: &str = "ProviderKeyRefused";
    /// It knows no such model.
    pub const MODEL_UNKNOWN: &str = "ProviderModelUnknown";
    /// Something that only newer gateways know.
    pub const FAILING: &str = "ProviderFailing";
}
