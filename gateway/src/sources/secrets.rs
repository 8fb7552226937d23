//! Reads the keys and certificates that routes name: Secrets one by one, which takes fewer rights than a watch of all, and files
//! and variables where there is no Kubernetes. What was read is never shown.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use fairlead_crds::model_route::ModelRoute;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};

use crate::provider::credentials::{Credentials, Hidden, Place, places};

/// How long the API may take for one Secret, so that it does not hold routes up.
const LONGEST_READ: Duration = Duration::from_secs(2);

/// The Secrets that routes name, as last read.
#[derive(Debug, Default)]
pub struct Secrets {
    places: Vec<Place>,
    known: Credentials,
}

impl Secrets {
    /// Reads again where routes name other places than before, or where `all` are wanted anew. True when something is new.
    pub async fn refresh(&mut self, client: &Client, routes: &[Arc<ModelRoute>], all: bool) -> bool {
        let places = places(routes.iter());
        if !all && places == self.places {
            return false;
        }
        let mut secrets: BTreeMap<(&str, &str), Option<Secret>> = BTreeMap::new();
        let mut next = Credentials::default();
        for place in &places {
            let Place::Secret { namespace, name, key } = place else { continue };
            let at = (namespace.as_str(), name.as_str());
            let secret = match secrets.entry(at) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(place) => place.insert(read(client, namespace, name).await),
            };
            let found = match secret {
                Some(secret) => {
                    secret.data.as_ref().and_then(|data| data.get(key)).map(|bytes| Hidden::new(&bytes.0))
                }
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

/// A Secret, empty where there is none; `None` where that could not be found out.
async fn read(client: &Client, namespace: &str, name: &str) -> Option<Secret> {
    let secrets = Api::<Secret>::namespaced(client.clone(), namespace);
    match tokio::time::timeout(LONGEST_READ, secrets.get_opt(name)).await {
        Ok(Ok(secret)) => Some(secret.unwrap_or_default()),
        Ok(Err(error)) => {
            tracing::warn!(namespace, name, %error, "a Secret that a route names cannot be read");
            None
        }
        Err(_) => {
            tracing::warn!(namespace, name, "a Secret that a route names could not be read in time");
            None
        }
    }
}

/// Reads the files and variables that routes name.
pub fn by_hand(routes: &[Arc<ModelRoute>]) -> Credentials {
    let mut credentials = Credentials::default();
    for place in places(routes.iter()) {
        let found = match &place {
            Place::Secret { .. } => None,
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
