//! Reads the keys and certificates that routes name: Secrets and ConfigMaps one by one, which takes fewer rights than a watch of all, and
//! files and variables where there is no Kubernetes. What was read is never shown.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use fairlead_crds::model_route::ModelRoute;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;

use crate::provider::credentials::{Credentials, Hidden, Place, places};

/// How long the API may take for one of them, so that it does not hold routes up.
const LONGEST_READ: Duration = Duration::from_secs(2);

/// The Secrets and ConfigMaps that routes name, as last read.
#[derive(Debug, Default)]
pub struct Reader {
    places: Vec<Place>,
    known: Credentials,
}

impl Reader {
    /// Reads again where routes name other places than before, or where `all` are wanted anew. True when something is new.
    pub async fn refresh(&mut self, client: &Client, routes: &[Arc<ModelRoute>], all: bool) -> bool {
        let places = places(routes.iter());
        if !all && places == self.places {
            return false;
        }
        let mut objects: BTreeMap<(Kind, &str, &str), Option<Values>> = BTreeMap::new();
        let mut next = Credentials::default();
        for place in &places {
            let (kind, namespace, name, key) = match place {
                Place::Secret { namespace, name, key } => (Kind::Secret, namespace, name, key),
                Place::ConfigMap { namespace, name, key } => (Kind::ConfigMap, namespace, name, key),
                Place::File(_) | Place::Env(_) => continue,
            };
            let values = match objects.entry((kind, namespace, name)) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(place) => place.insert(kind.read(client, namespace, name).await),
            };
            let found = match values {
                Some(values) => values.get(key).cloned(),
                // It could not be asked: what was known stays.
                None => self.known.get(place).cloned(),
            };
            if let Some(found) = found {
                next.insert(place.clone(), found);
            }
        }
        let changed = next != self.known;
        self.places = places;
        self.known = next;
        changed
    }

    /// Whether routes name any.
    pub fn any(&self) -> bool {
        !self.places.is_empty()
    }

    /// What was read.
    pub fn known(&self) -> Credentials {
        self.known.clone()
    }
}

/// What an object has, by key.
type Values = BTreeMap<String, Hidden>;

/// What routes name objects of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Secret,
    ConfigMap,
}

impl Kind {
    /// What an object has, nothing where there is none; `None` where that could not be found out.
    async fn read(self, client: &Client, namespace: &str, name: &str) -> Option<Values> {
        match self {
            Self::Secret => {
                let secret: Secret = read(client, namespace, name).await?;
                let data = secret.data.unwrap_or_default().into_iter();
                Some(data.map(|(key, bytes)| (key, Hidden::new(&bytes.0))).collect())
            }
            Self::ConfigMap => {
                let config_map: ConfigMap = read(client, namespace, name).await?;
                let text = config_map.data.unwrap_or_default().into_iter();
                let text = text.map(|(key, text)| (key, Hidden::new(text.as_bytes())));
                let bytes = config_map.binary_data.unwrap_or_default().into_iter();
                Some(text.chain(bytes.map(|(key, bytes)| (key, Hidden::new(&bytes.0)))).collect())
            }
        }
    }
}

/// An object, empty where there is none; `None` where that could not be found out.
async fn read<K>(client: &Client, namespace: &str, name: &str) -> Option<K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Default
        + DeserializeOwned
        + std::fmt::Debug,
{
    let kind = K::kind(&());
    let objects = Api::<K>::namespaced(client.clone(), namespace);
    match tokio::time::timeout(LONGEST_READ, objects.get_opt(name)).await {
        Ok(Ok(object)) => Some(object.unwrap_or_default()),
        Ok(Err(error)) => {
            tracing::warn!(%kind, namespace, name, %error, "an object that a route names cannot be read");
            None
        }
        Err(_) => {
            tracing::warn!(%kind, namespace, name, "an object that a route names could not be read in time");
            None
        }
    }
}

/// Reads the files and variables that routes name.
pub fn by_hand(routes: &[Arc<ModelRoute>]) -> Credentials {
    let mut credentials = Credentials::default();
    for place in places(routes.iter()) {
        let found = match &place {
            Place::Secret { .. } | Place::ConfigMap { .. } => None,
            Place::File(path) => std::fs::read(path).ok(),
            Place::Env(name) => {
                std::env::var_os(name).map(|value| value.to_string_lossy().into_owned().into_bytes())
            }
        };
        if let Some(found) = found {
            credentials.insert(place, Hidden::new(&found));
        }
    }
    credentials
}
