//! Publishes Events. Owns: what one looks like to the API server, and which is one that repeats. Must not: decide what deserves one
//! ([`crate::events`]), or fail a reconcile. Called by every reconcile after its status is written.
//!
//! kube's own `Recorder` takes two Events of one reason for one that repeats, whatever they say: the second step of a canary would read as
//! the first. Here they repeat only when they say the same.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::runtime::events::{Event, EventType};
use kube::{Client, Error};
use sha2::{Digest, Sha256};

/// Who reports.
const CONTROLLER: &str = "fairlead-operator";
/// For so long after it was told last, an Event that says the same repeats it.
const REPEATS: SignedDuration = SignedDuration::from_mins(6);
/// So many Events are known again at most; with more in [`REPEATS`], some are told as new ones.
const KNOWN: usize = 4096;
/// An Event's name is its object's and a number; together they have to fit into a name.
const LONGEST_NAME: usize = 200;

/// Publishes the Events of a process.
pub struct Recorder {
    client: Client,
    instance: String,
    known: Mutex<HashMap<Key, Sent>>,
}

/// What makes two Events the same.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    uid: Option<String>,
    warning: bool,
    reason: String,
    note: Option<String>,
}

/// An Event that was told.
#[derive(Clone)]
struct Sent {
    name: String,
    times: i32,
    last: Timestamp,
}

impl Recorder {
    /// For a process of this identity.
    pub fn new(client: Client, identity: Option<String>) -> Self {
        let instance = identity.unwrap_or_else(|| CONTROLLER.to_owned());
        Self { client, instance, known: Mutex::default() }
    }

    /// Tells of something that happened to an object now. One that says the same as another of a few minutes ago repeats it. Nothing
    /// depends on Events: one that the API server does not take is in the log.
    pub async fn publish(&self, event: &Event, about: &ObjectReference) {
        if let Err(error) = self.tell(event, about).await {
            warn(event, about, &error);
        }
    }

    /// Tells of something that happened at a time, once, however often this is called and by whichever process. Returns whether it was
    /// told.
    pub async fn publish_once(&self, event: &Event, about: &ObjectReference, at: Timestamp) -> bool {
        let mut hash = Sha256::new();
        for part in [about.uid.as_deref().unwrap_or_default(), &event.reason, &at.to_string()] {
            hash.update(part);
            hash.update([0]);
        }
        let id: String = hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        match self.create(&name(about, &id), event, about, at).await {
            Ok(()) => true,
            Err(Error::Api(refusal)) if refusal.code == 409 => true,
            Err(error) => {
                warn(event, about, &error);
                false
            }
        }
    }

    async fn tell(&self, event: &Event, about: &ObjectReference) -> Result<(), Error> {
        let now = Timestamp::now();
        let key = Key {
            uid: about.uid.clone(),
            warning: event.type_ == EventType::Warning,
            reason: event.reason.clone(),
            note: event.note.clone(),
        };
        if let Some(Sent { name, times, last: _ }) = self.known(&key, now) {
            let times = times.saturating_add(1);
            let series = serde_json::json!({"series": {"count": times, "lastObservedTime": MicroTime(now)}});
            match self.events(about).patch(&name, &PatchParams::default(), &Patch::Merge(&series)).await {
                Ok(_) => {
                    self.remember(key, Sent { name, times, last: now });
                    return Ok(());
                }
                // It was too old for the API server, or somebody has removed it.
                Err(Error::Api(refusal)) if refusal.code == 404 => {}
                Err(error) => return Err(error),
            }
        }
        let name = name(about, &format!("{:x}", now.as_nanosecond()));
        self.create(&name, event, about, now).await?;
        self.remember(key, Sent { name, times: 1, last: now });
        Ok(())
    }

    async fn create(
        &self,
        name: &str,
        event: &Event,
        about: &ObjectReference,
        at: Timestamp,
    ) -> Result<(), Error> {
        let Event { type_, reason, note, action, secondary } = event;
        let object = v1::Event {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                namespace: about.namespace.clone(),
                ..ObjectMeta::default()
            },
            type_: Some(match type_ {
                EventType::Normal => "Normal".to_owned(),
                EventType::Warning => "Warning".to_owned(),
            }),
            reason: Some(reason.clone()),
            note: note.clone(),
            action: Some(action.clone()),
            regarding: Some(about.clone()),
            related: secondary.clone(),
            event_time: Some(MicroTime(at)),
            reporting_controller: Some(CONTROLLER.to_owned()),
            reporting_instance: Some(self.instance.clone()),
            ..v1::Event::default()
        };
        self.events(about).create(&PostParams::default(), &object).await.map(drop)
    }

    fn events(&self, about: &ObjectReference) -> Api<v1::Event> {
        Api::namespaced(self.client.clone(), about.namespace.as_deref().unwrap_or("default"))
    }

    fn known(&self, key: &Key, now: Timestamp) -> Option<Sent> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, sent| now.duration_since(sent.last) < REPEATS);
        known.get(key).cloned()
    }

    fn remember(&self, key: Key, sent: Sent) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= KNOWN {
            known.clear();
        }
        known.insert(key, sent);
    }
}

/// A name for an Event of an object.
fn name(about: &ObjectReference, id: &str) -> String {
    let object: String = about.name.as_deref().unwrap_or(CONTROLLER).chars().take(LONGEST_NAME).collect();
    format!("{}.{id}", object.trim_end_matches(['.', '-']))
}

fn warn(event: &Event, about: &ObjectReference, error: &Error) {
    tracing::warn!(
        namespace = about.namespace, name = about.name, reason = event.reason, %error,
        "the event could not be published"
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Cluster;

    fn about(name: &str) -> ObjectReference {
        ObjectReference {
            name: Some(name.to_owned()),
            namespace: Some("models".to_owned()),
            uid: Some(format!("uid of {name}")),
            ..ObjectReference::default()
        }
    }

    fn event(note: &str) -> Event {
        Event {
            type_: EventType::Normal,
            reason: "CanaryStep".to_owned(),
            note: Some(note.to_owned()),
            action: "Reconcile".to_owned(),
            secondary: None,
        }
    }

    #[tokio::test]
    async fn what_says_the_same_repeats_and_what_says_something_else_does_not() {
        let cluster = Cluster::new();
        let recorder = &cluster.context.recorder;
        for (note, of) in [("5 %", "a"), ("25 %", "a"), ("5 %", "a"), ("5 %", "b"), ("5 %", "a")] {
            recorder.publish(&event(note), &about(of)).await;
        }
        assert_eq!(
            cluster.told(),
            [("CanaryStep", "5 %", 3), ("CanaryStep", "25 %", 1), ("CanaryStep", "5 %", 1)]
                .map(|(reason, note, times)| (reason.to_owned(), note.to_owned(), times))
        );
        recorder.publish(&event("5 %"), &about("a")).await;
        assert_eq!(cluster.told(), [("CanaryStep".to_owned(), "5 %".to_owned(), 4)]);
        cluster.events_are_forgotten();
        recorder.publish(&event("5 %"), &about("a")).await;
        assert_eq!(cluster.told(), [("CanaryStep".to_owned(), "5 %".to_owned(), 1)]);
    }

    #[tokio::test]
    async fn what_is_told_once_is_told_once_by_all_processes() {
        let cluster = Cluster::new();
        let at = |second| Timestamp::from_second(second).unwrap();
        for process in ["one", "two"] {
            let recorder = Recorder::new(cluster.context.client.clone(), Some(process.to_owned()));
            for second in [1, 2, 1] {
                assert!(recorder.publish_once(&event("5 %"), &about("a"), at(second)).await);
            }
        }
        assert_eq!(cluster.told().len(), 2);
        cluster.fail_next("POST", 500);
        assert!(!cluster.context.recorder.publish_once(&event("5 %"), &about("a"), at(3)).await);
        assert!(cluster.context.recorder.publish_once(&event("5 %"), &about("a"), at(3)).await);
    }

    #[test]
    fn a_long_name_leaves_room_for_the_number() {
        let long = format!("{}.-{}", "a".repeat(199), "b".repeat(52));
        assert_eq!(name(&about(&long), "1f"), format!("{}.1f", "a".repeat(199)));
        assert_eq!(name(&about("chat"), "1f"), "chat.1f");
    }
}
