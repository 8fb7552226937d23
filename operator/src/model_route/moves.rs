//! Tells of a canary's moves, each by an Event of its own.
//!
//! The history in the status is what is told of, not what one reconcile has changed: an operator that ended between a write and its Event,
//! or whose write was answered by nobody, is made up for by the next look, its own or its successor's.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use fairlead_crds::model_route::canary::{REFUSED, RolloutStatus};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::jiff::{SignedDuration, Timestamp};

use crate::events;
use crate::recorder::Recorder;

/// What is older is not told of any more: an API server forgets Events after an hour, and a second one would read as a second move.
const RECENT: SignedDuration = SignedDuration::from_mins(10);

/// How far each route's history was told of by this process.
#[derive(Debug, Default)]
pub struct Moves {
    told: Mutex<HashMap<String, Timestamp>>,
}

impl Moves {
    /// Tells of what is in the history, is recent, and was not told of. `uid`: of the route.
    pub async fn tell(
        &self,
        uid: &str,
        rollout: &RolloutStatus,
        about: &ObjectReference,
        recorder: &Recorder,
        now: Timestamp,
    ) {
        let history = &rollout.state.history;
        let told = self.told(uid, now);
        // A clock that was set back, or a slower one of another leader, may have put a later entry before an earlier one.
        let told = told.and_then(|told| history.iter().rposition(|entry| entry.at == told));
        let first = told.map_or(0, |told| told + 1);
        // As far as all was told of: what could not be is tried again, and holds up nothing that comes after it.
        let mut whole = true;
        let mut last = None;
        for (place, entry) in history.iter().enumerate().skip(first) {
            // The status says more of the last one.
            let message = rollout.message.as_deref().filter(|_| place + 1 == history.len());
            let message = message.filter(|message| !message.starts_with(REFUSED));
            let told = !is_recent(entry.at, now)
                || recorder.publish_once(&events::moved(entry, message), about, entry.at).await;
            whole &= told;
            if whole {
                last = Some(entry.at);
            }
        }
        if let Some(at) = last {
            let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            told.insert(uid.to_owned(), at);
        }
    }

    /// The time of the last entry of a route's history that was told of.
    fn told(&self, uid: &str, now: Timestamp) -> Option<Timestamp> {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        // What is no more told of anyhow need not be remembered.
        told.retain(|_, told| is_recent(*told, now));
        told.get(uid).copied()
    }
}

fn is_recent(at: Timestamp, now: Timestamp) -> bool {
    now.duration_since(at) < RECENT
}
