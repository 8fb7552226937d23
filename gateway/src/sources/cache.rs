//! The objects of one kind as a watch tells of them. Pure; `kubernetes` feeds it.
//!
//! Two things it does that a plain store does not: a re-list takes effect only when it is complete, and an object that
//! cannot be read (a newer CRD's field, for instance) keeps the form in which it could last be read, instead of vanishing
//! or taking the other objects with it.

use std::collections::HashMap;
use std::sync::Arc;

use kube::core::DeserializeGuard;
use kube::runtime::watcher::Event;
use kube::{Resource, ResourceExt};

type Key = (String, String);

/// The objects of one kind.
#[derive(Debug)]
pub struct Cache<K> {
    current: HashMap<Key, Arc<K>>,
    listing: Option<HashMap<Key, Arc<K>>>,
    synced: bool,
    /// Whether a newer form of an object is the same for our purposes.
    same: fn(&K, &K) -> bool,
}

/// What an event did.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// The objects may differ from before.
    pub changed: bool,
    /// An object could not be read: its namespace/name and why.
    pub unreadable: Option<(String, String)>,
}

impl<K> Default for Cache<K> {
    fn default() -> Self {
        Self::new(|_, _| false)
    }
}

impl<K> Cache<K> {
    /// An empty one; a newer form of an object that is the `same` is no change.
    pub fn new(same: fn(&K, &K) -> bool) -> Self {
        Self { current: HashMap::new(), listing: None, synced: false, same }
    }
}

impl<K: Resource + Clone> Cache<K> {
    /// Takes in an event of the watch.
    pub fn apply(&mut self, event: Event<DeserializeGuard<K>>) -> Applied {
        match event {
            Event::Init => {
                self.listing = Some(HashMap::new());
                Applied::default()
            }
            Event::InitApply(object) => Applied { unreadable: self.insert(object), changed: false },
            Event::InitDone => {
                if let Some(listing) = self.listing.take() {
                    self.current = listing;
                }
                self.synced = true;
                Applied { changed: true, unreadable: None }
            }
            Event::Apply(object) => {
                let before = self.current.get(&key(&object)).cloned();
                let unreadable = self.insert(object);
                let after = before.as_ref().and_then(|before| self.current.get(&key(&**before)));
                let same =
                    before.as_ref().zip(after).is_some_and(|(before, after)| (self.same)(before, after));
                Applied { unreadable, changed: !same }
            }
            Event::Delete(object) => {
                self.current.remove(&key(&object));
                Applied { changed: true, unreadable: None }
            }
        }
    }

    /// Whether a first list was complete.
    pub fn is_synced(&self) -> bool {
        self.synced
    }

    /// All objects.
    pub fn objects(&self) -> Vec<Arc<K>> {
        self.current.values().map(Arc::clone).collect()
    }

    fn insert(&mut self, object: DeserializeGuard<K>) -> Option<(String, String)> {
        let key = key(&object);
        let (object, unreadable) = match object.0 {
            Ok(mut object) => {
                // As large as the rest of the object, and of no use here.
                object.meta_mut().managed_fields = None;
                (Some(Arc::new(object)), None)
            }
            Err(invalid) => {
                (self.current.get(&key).cloned(), Some((format!("{}/{}", key.0, key.1), invalid.error)))
            }
        };
        if let Some(object) = object {
            self.listing.as_mut().unwrap_or(&mut self.current).insert(key, object);
        }
        unreadable
    }
}

fn key<K: Resource>(object: &K) -> Key {
    (object.namespace().unwrap_or_default(), object.meta().name.clone().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use fairlead_crds::model_route::ModelRoute;
    use serde_json::json;

    fn route(name: &str, model: serde_json::Value) -> DeserializeGuard<ModelRoute> {
        let spec = json!({"model": model, "backends": [{"name": "b", "modelDeployment": "d"}]});
        serde_json::from_value(
            json!({"metadata": {"namespace": "ns", "name": name, "managedFields": [{}]}, "spec": spec}),
        )
        .expect("guarded")
    }

    fn models(cache: &Cache<ModelRoute>) -> Vec<String> {
        let mut models: Vec<_> = cache.objects().iter().map(|route| route.model_name()).collect();
        models.sort();
        models
    }

    #[test]
    fn a_list_takes_effect_when_it_is_complete() {
        let mut cache = Cache::default();
        assert!(!cache.apply(Event::Init).changed);
        assert!(!cache.apply(Event::InitApply(route("a", json!("one")))).changed);
        assert!(!cache.is_synced() && cache.objects().is_empty());
        assert!(cache.apply(Event::InitDone).changed);
        assert!(cache.is_synced());
        // A second list, as after an outage, drops what is no longer there, and not before its end.
        cache.apply(Event::Init);
        cache.apply(Event::InitApply(route("b", json!("two"))));
        assert_eq!(models(&cache), ["one"]);
        cache.apply(Event::InitDone);
        assert_eq!(models(&cache), ["two"]);
    }

    #[test]
    fn changes_come_one_by_one() {
        let mut cache = Cache::default();
        cache.apply(Event::Init);
        cache.apply(Event::InitDone);
        cache.apply(Event::Apply(route("a", json!("one"))));
        cache.apply(Event::Apply(route("a", json!("uno"))));
        assert_eq!(models(&cache), ["uno"]);
        assert!(cache.objects()[0].metadata.managed_fields.is_none());
        cache.apply(Event::Delete(route("a", json!("uno"))));
        assert!(cache.objects().is_empty());
    }

    #[test]
    fn what_is_the_same_is_no_change() {
        let mut cache = Cache::new(|one: &ModelRoute, other| one.spec == other.spec);
        cache.apply(Event::Init);
        cache.apply(Event::InitDone);
        assert!(cache.apply(Event::Apply(route("a", json!("one")))).changed);
        assert!(!cache.apply(Event::Apply(route("a", json!("one")))).changed);
        assert!(cache.apply(Event::Apply(route("a", json!("uno")))).changed);
    }

    #[test]
    fn an_unreadable_object_keeps_its_last_readable_form_even_through_a_list() {
        let mut cache = Cache::default();
        cache.apply(Event::Init);
        cache.apply(Event::InitApply(route("a", json!("one"))));
        cache.apply(Event::InitDone);
        let applied = cache.apply(Event::Apply(route("a", json!(7))));
        assert_eq!(applied.unreadable.expect("unreadable").0, "ns/a");
        assert_eq!(models(&cache), ["one"]);
        cache.apply(Event::Init);
        cache.apply(Event::InitApply(route("a", json!(7))));
        cache.apply(Event::InitApply(route("new", json!(8))));
        cache.apply(Event::InitDone);
        assert_eq!(models(&cache), ["one"]);
        cache.apply(Event::Delete(route("a", json!(7))));
        assert!(cache.objects().is_empty(), "deleting needs no reading");
    }
}
