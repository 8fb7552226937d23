//! What users feel of each variant of a route: errors, time to first token, time between tokens, time to the end, length.
//!
//! Owns the counts that canaries are judged by ([`epoch`], asked for by the operator at `/rollouts`, [`report`]) and the metrics by
//! route and backend that people look at ([`variant`]). Fed by the request's record (`exchange`), attempt by attempt. Must not: hold
//! anything of a prompt or an answer, choose anything, or make the request path wait.
//!
//! What counts against a variant: an attempt that found no connection, broke, timed out or was answered 5xx, also when another pod
//! saved the request; a stream that broke or ended with an error; and 429 or 503 when no pod of the variant took the request. What does
//! not: the client's own mistakes (other 4xx), which are not counted at all, and clients who leave, whose waiting counts and no more.

pub mod attempt;
pub mod epoch;
pub mod report;
pub mod subjects;
pub mod tokens;
pub mod variant;

use std::sync::Arc;

use fairlead_crds::model_route::ModelRoute;
use fairlead_crds::model_route::canary::Canary;
use fairlead_rollout::Phase;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

pub use attempt::Observed;
pub use epoch::{Epoch, EpochKey};
pub use variant::Variant;

/// What is observed of one route. Handed on from snapshot to snapshot.
#[derive(Debug, Default)]
pub struct RouteObserver {
    /// Uid of the ModelRoute; empty where it has none.
    pub uid: String,
    variants: Vec<Arc<Variant>>,
    epoch: Option<Arc<Epoch>>,
}

impl RouteObserver {
    /// The observer of a route as it is now; what `previous` has of the same variants and of the same epoch goes on.
    pub fn of(id: &str, route: &ModelRoute, previous: Option<&Self>) -> Self {
        let variant = |backend: &str| {
            let known = previous.and_then(|previous| previous.variant(backend)).filter(|it| it.route() == id);
            known.cloned().unwrap_or_else(|| Arc::new(Variant::new(id, backend)))
        };
        let names: Vec<&str> = route.spec.backends.iter().map(|backend| backend.name.as_str()).collect();
        let epoch = epoch_of(route).map(|(key, interval)| {
            let known = previous.and_then(|previous| previous.epoch.as_ref()).filter(|it| *it.key() == key);
            known.cloned().unwrap_or_else(|| Arc::new(Epoch::new(key, interval, &names, Timestamp::now())))
        });
        Self {
            uid: route.uid().unwrap_or_default(),
            variants: names.into_iter().map(variant).collect(),
            epoch,
        }
    }

    /// One variant.
    pub fn variant(&self, backend: &str) -> Option<&Arc<Variant>> {
        self.variants.iter().find(|variant| variant.backend() == backend)
    }

    /// All of them.
    pub fn variants(&self) -> &[Arc<Variant>] {
        &self.variants
    }

    /// The epoch that requests count in, while a canary is under way.
    pub fn epoch(&self) -> Option<&Arc<Epoch>> {
        self.epoch.as_ref()
    }
}

/// The epoch that a route is in, and the length of its intervals.
fn epoch_of(route: &ModelRoute) -> Option<(EpochKey, std::time::Duration)> {
    let Canary { analysis, .. } = route.spec.canary.as_ref()?;
    let interval = analysis.as_ref()?.interval()?;
    let state = &route.status.as_ref()?.rollout.as_ref()?.state;
    let fingerprint = route.rollout_fingerprint();
    let under_way = matches!(state.phase, Phase::Progressing | Phase::Paused);
    (under_way && state.fingerprint == fingerprint).then(|| {
        let key = EpochKey { uid: route.uid().unwrap_or_default(), fingerprint, epoch: state.epoch };
        (key, interval)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn route(epoch: u64, phase: &str) -> ModelRoute {
        let mut route: ModelRoute = serde_json::from_value(json!({
            "apiVersion": "fairlead.dev/v1alpha1", "kind": "ModelRoute",
            "metadata": {"name": "chat", "namespace": "ns", "uid": "u"},
            "spec": {
                "backends": [{"name": "v1", "modelDeployment": "a", "weight": 1}, {"name": "v2", "modelDeployment": "b"}],
                "canary": {"backend": "v2", "steps": [{"weight": 5, "hold": "1m"}],
                    "analysis": {"gates": [{"metric": "ErrorRate", "max": "1%"}]}},
            },
        }))
        .expect("a route");
        let status = json!({"rollout": {"fingerprint": route.rollout_fingerprint(), "phase": phase, "reason": "Holding", "epoch": epoch}});
        route.status = serde_json::from_value(status).expect("a status");
        route
    }

    #[test]
    fn an_epoch_goes_on_until_another_begins() {
        let first = RouteObserver::of("ns/chat", &route(1, "Progressing"), None);
        let epoch = first.epoch().expect("an epoch");
        let same = RouteObserver::of("ns/chat", &route(1, "Paused"), Some(&first));
        assert!(Arc::ptr_eq(same.epoch().expect("an epoch"), epoch));
        assert!(Arc::ptr_eq(same.variant("v2").expect("v2"), first.variant("v2").expect("v2")));
        let next = RouteObserver::of("ns/chat", &route(2, "Progressing"), Some(&same));
        assert!(!Arc::ptr_eq(next.epoch().expect("an epoch"), epoch));
        assert!(RouteObserver::of("ns/chat", &route(2, "Promoted"), Some(&next)).epoch().is_none());
        let mut edited = route(2, "Progressing");
        edited.spec.canary.as_mut().expect("a canary").steps[0].weight = 9;
        assert!(
            RouteObserver::of("ns/chat", &edited, Some(&next)).epoch().is_none(),
            "nothing is decided of it yet"
        );
    }
}
