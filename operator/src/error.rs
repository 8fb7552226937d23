//! What can go wrong in a reconcile; the variant decides what happens next.
//!
//! - [`Error::Invalid`]: only a change by a person helps. `Stalled`, and nothing until something watched changes (or,
//!   for what lies outside Kubernetes, after a long while).
//! - [`Error::Waiting`]: something is not there yet. `Reconciling`, and another look after a moment.
//! - [`Error::Outdated`]: it was decided on what has changed meanwhile. Nothing was written; decided again as soon as the watch has
//!   the change.
//! - [`Error::Transient`] and [`Error::Kube`]: a call failed. Tried again with exponential backoff.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures::FutureExt;
use kube::runtime::controller::Action;

use crate::metrics::Outcome;

/// What can go wrong in a reconcile.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Only a change by a person helps.
    #[error("{message}")]
    Invalid {
        /// Reason of the `Stalled` condition: one of `condition::stalled`.
        reason: &'static str,
        /// Names the field and the remedy.
        message: String,
        /// When to look again although nothing that is watched has changed.
        retry: Option<Duration>,
    },
    /// Something is not there yet.
    #[error("{message}")]
    Waiting {
        /// Reason of the `Reconciling` condition: one of `condition::reconciling`.
        reason: &'static str,
        /// What is waited for.
        message: String,
        /// When to look again.
        retry: Duration,
    },
    /// Something outside Kubernetes could not be reached.
    #[error("{0}")]
    Transient(String),
    /// The object has changed while it was looked at, and nothing was written.
    #[error("the object has changed meanwhile")]
    Outdated,
    /// The object's namespace is being deleted, and the object with it: there is nothing left to do.
    #[error("the namespace is being deleted")]
    NamespaceTerminating,
    /// The API server could not be reached, or refused.
    #[error("{doing}: {source}")]
    Kube {
        /// What was being done.
        doing: String,
        /// The client's error.
        #[source]
        source: Box<kube::Error>,
    },
}

/// The change that a decision was too old for is on its way to the store, and wakes the controller when it is there; this is for a
/// watch that has to be opened anew first.
const UNTIL_THE_WATCH_TELLS: Duration = Duration::from_secs(1);

/// Runs a reconcile so that a panic in it fails this one object, which is tried again with backoff, and not the process
/// that looks after all the others. An error that says what to do next is no failure.
///
/// # Errors
/// What the reconcile returns and only backoff is left for, or [`Error::Transient`] after a panic.
pub async fn contained(
    reconcile: impl Future<Output = Result<(Action, Outcome), Error>>,
) -> Result<(Action, Outcome), Error> {
    // What a reconcile shares with others is behind locks that a panic does not leave half-made.
    let result = AssertUnwindSafe(reconcile).catch_unwind().await;
    let panicked =
        || Err(Error::Transient("a bug in the operator: the reconcile panicked; see its log".to_owned()));
    let error = match result.unwrap_or_else(|_| panicked()) {
        Ok(done) => return Ok(done),
        Err(error) => error,
    };
    match error.action() {
        Some(action) => {
            tracing::debug!(%error, "nothing is written");
            Ok((action, error.category()))
        }
        None => Err(error),
    }
}

impl Error {
    /// Only a change by a person helps.
    pub fn invalid(reason: &'static str, message: impl Into<String>) -> Self {
        Self::Invalid { reason, message: message.into(), retry: None }
    }

    /// The API server could not be reached, or refused, while `doing`.
    pub fn kube(doing: impl Into<String>) -> impl FnOnce(kube::Error) -> Self {
        let doing = doing.into();
        move |source| {
            if namespace_terminating(&source) {
                return Self::NamespaceTerminating;
            }
            Self::Kube { doing, source: Box::new(source) }
        }
    }

    /// Whether the owner of the object should read of this in its status. A hiccup of the API server says nothing about
    /// the object; a refusal (a quota, a policy, a missing permission) does.
    pub fn concerns_the_object(&self) -> bool {
        match self {
            Self::Invalid { .. } | Self::Waiting { .. } | Self::Transient(_) => true,
            Self::NamespaceTerminating | Self::Outdated => false,
            Self::Kube { source, .. } => {
                matches!(&**source, kube::Error::Api(status) if (400..500).contains(&status.code) && !matches!(status.code, 404 | 408 | 409 | 429))
            }
        }
    }

    /// What to do next, when that does not depend on earlier failures; `None` asks for backoff.
    pub fn action(&self) -> Option<Action> {
        match self {
            Self::Invalid { retry: Some(retry), .. } | Self::Waiting { retry, .. } => {
                Some(Action::requeue(*retry))
            }
            Self::Invalid { retry: None, .. } | Self::NamespaceTerminating => Some(Action::await_change()),
            Self::Outdated => Some(Action::requeue(UNTIL_THE_WATCH_TELLS)),
            Self::Transient(_) | Self::Kube { .. } => None,
        }
    }

    /// The closed set of results that metrics tell apart.
    pub fn category(&self) -> Outcome {
        match self {
            Self::Invalid { .. } => Outcome::Invalid,
            Self::Waiting { .. } | Self::NamespaceTerminating | Self::Outdated => Outcome::Waiting,
            Self::Transient(_) | Self::Kube { .. } => Outcome::Error,
        }
    }
}

/// Kubernetes deletes a namespace's children one by one; each deletion wakes the controller, which must not mourn them.
fn namespace_terminating(error: &kube::Error) -> bool {
    let kube::Error::Api(status) = error else { return false };
    let causes = status.details.iter().flat_map(|details| &details.causes);
    causes.into_iter().any(|cause| cause.reason == "NamespaceTerminating")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(body: &str) -> Error {
        Error::kube("apply it")(kube::Error::Api(serde_json::from_str(body).unwrap()))
    }

    #[test]
    fn a_namespace_on_its_way_out_is_left_in_peace() {
        let error = refusal(
            r#"{"status": "Failure", "code": 403, "reason": "Forbidden", "message": "is being terminated",
                "details": {"causes": [{"reason": "NamespaceTerminating", "message": "", "field": "metadata.namespace"}]}}"#,
        );
        assert!(matches!(error, Error::NamespaceTerminating), "{error}");
        assert_eq!(error.action(), Some(Action::await_change()));
        assert!(!error.concerns_the_object());
    }

    #[test]
    fn another_refusal_is_told_to_the_object_and_tried_again() {
        let error = refusal(
            r#"{"status": "Failure", "code": 403, "reason": "Forbidden", "message": "exceeded quota", "details": {}}"#,
        );
        assert!(error.concerns_the_object() && error.action().is_none(), "{error}");
    }

    #[tokio::test]
    async fn a_panic_fails_one_reconcile_only() {
        let done = || (Action::await_change(), Outcome::Success);
        let error =
            contained(async { if true { panic!("on purpose") } else { Ok(done()) } }).await.unwrap_err();
        assert!(error.action().is_none(), "backoff");
        assert_eq!(contained(async { Ok(done()) }).await.unwrap().1, Outcome::Success);
    }

    #[tokio::test]
    async fn what_was_decided_on_an_old_object_is_no_failure() {
        let (action, outcome) = contained(async { Err(Error::Outdated) }).await.unwrap();
        assert_eq!((action, outcome), (Action::requeue(UNTIL_THE_WATCH_TELLS), Outcome::Waiting));
    }
}
