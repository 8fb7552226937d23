//! Reads the keys and certificates that routes name: Secrets and ConfigMaps one by one, which takes fewer rights than a watch of all, and
//! files and variables where there is no Kubernetes. What was read is never shown.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use fairlead_crds::model_route::ModelRoute;
use futures::StreamExt;
use futures::stream;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;

use crate::provider::credentials::{Credentials, Hidden, Place, places};

/// How long the API may take for all that routes name newly. The routes wait for it, since what they name is not usable before.
const LONGEST_WAIT: Duration = Duration::from_secs(2);
/// How long it may take to read all of them again, for which nothing waits.
const LONGEST_REREAD: Duration = Duration::from_secs(30);
/// How many are read at once.
const AT_ONCE: usize = 8;

/// The Secrets and ConfigMaps that routes name, as last read.
#[derive(Debug, Default)]
pub struct Reader {
    places: Vec<Place>,
    known: Credentials,
}

/// What was read.
#[derive(Debug)]
pub struct Read {
    places: Vec<Place>,
    objects: Objects,
}

impl Reader {
    /// Reads, where routes name other places than before, what they name now.
    pub async fn follow(&mut self, client: &Client, routes: &[Arc<ModelRoute>]) {
        let places = places(routes.iter());
        if places == self.places {
            return;
        }
        let objects = objects_of(client, &places, LONGEST_WAIT).await;
        self.places.clone_from(&places);
        self.take(Read { places, objects });
    }

    /// Reads all of them again; [`Self::take`] takes what comes of it. Routes are published meanwhile.
    pub fn reread(&self, client: &Client) -> impl Future<Output = Read> + Send + use<> {
        let (client, places) = (client.clone(), self.places.clone());
        async move {
            let objects = objects_of(&client, &places, LONGEST_REREAD).await;
            Read { places, objects }
        }
    }

    /// Takes over what was read. True when something is new.
    pub fn take(&mut self, read: Read) -> bool {
        // Routes name other places by now, which were read since.
        if read.places != self.places {
            return false;
        }
        let mut next = Credentials::default();
        for place in &self.places {
            let Some((object, key)) = object_of(place) else { continue };
            let found = match read.objects.get(&object) {
                Some(Some(values)) => values.get(key).cloned(),
                // It could not be asked: what was known stays.
                Some(None) | None => self.known.get(place).cloned(),
            };
            if let Some(found) = found {
                next.insert(place.clone(), found);
            }
        }
        let changed = next != self.known;
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

/// An object that a place is in, and the place's key in it. Files and variables are in none.
fn object_of(place: &Place) -> Option<(Object, &str)> {
    let (kind, namespace, name, key) = match place {
        Place::Secret { namespace, name, key } => (Kind::Secret, namespace, name, key),
        Place::ConfigMap { namespace, name, key } => (Kind::ConfigMap, namespace, name, key),
        Place::File(_) | Place::Env(_) => return None,
    };
    Some(((kind, namespace.clone(), name.clone()), key))
}

/// Reads the objects that these places are in, some at once and each once. What does not come in time is not among them.
async fn objects_of(client: &Client, places: &[Place], time: Duration) -> Objects {
    let wanted: BTreeSet<Object> = places.iter().filter_map(object_of).map(|(object, _)| object).collect();
    let asked = wanted.len();
    let reads = stream::iter(wanted).map(|object| async move {
        let (kind, namespace, name) = &object;
        let values = kind.read(client, namespace, name).await;
        (object, values)
    });
    let mut reads = std::pin::pin!(reads.buffer_unordered(AT_ONCE));
    let deadline = tokio::time::Instant::now() + time;
    let mut objects = Objects::new();
    while let Ok(Some((object, values))) = tokio::time::timeout_at(deadline, reads.next()).await {
        objects.insert(object, values);
    }
    if objects.len() < asked {
        let missing = asked - objects.len();
        tracing::warn!(
            missing,
            asked,
            "objects that routes name could not be read in time; what was known of them stays"
        );
    }
    objects
}

/// Kind, namespace, name.
type Object = (Kind, String, String);

/// What objects have; `None` of one that could not be asked for.
type Objects = BTreeMap<Object, Option<Values>>;

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
    match objects.get_opt(name).await {
        Ok(object) => Some(object.unwrap_or_default()),
        Err(error) => {
            tracing::warn!(%kind, namespace, name, %error, "an object that a route names cannot be read");
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

#[cfg(test)]
mod tests {
    use super::*;
    use http::{Request, Response};
    use kube::client::Body;
    use serde_json::json;
    use std::convert::Infallible;
    use tokio::sync::Barrier;
    use tower::service_fn;

    fn secret(name: &str) -> Place {
        Place::Secret { namespace: "shop".to_owned(), name: name.to_owned(), key: "key".to_owned() }
    }

    /// An API server that answers when so many are asked for at once, and never for `hangs`.
    fn api(at_once: usize) -> Client {
        let all_here = Arc::new(Barrier::new(at_once));
        let service = service_fn(move |request: Request<Body>| {
            let all_here = Arc::clone(&all_here);
            async move {
                let name = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
                if name == "hangs" {
                    std::future::pending::<()>().await;
                }
                all_here.wait().await;
                let secret = json!({"metadata": {"name": name}, "data": {"key": "dmFsdWU="}});
                Ok::<_, Infallible>(Response::new(Body::from(secret.to_string().into_bytes())))
            }
        });
        Client::new(service, "default")
    }

    #[tokio::test]
    async fn what_routes_name_is_read_at_once_and_what_hangs_holds_up_nothing() {
        let mut places: Vec<Place> =
            (0..2 * (AT_ONCE - 1)).map(|number| secret(&format!("s{number}"))).collect();
        places.insert(0, secret("hangs"));
        let read = objects_of(&api(AT_ONCE - 1), &places, Duration::from_millis(500)).await;
        assert_eq!(read.len(), places.len() - 1);
        assert!(read.values().all(Option::is_some));
        // What was known of the one that hangs stays, and what was read of others for nobody is forgotten.
        let mut known = Credentials::default();
        known.insert(secret("hangs"), Hidden::new(b"old"));
        known.insert(secret("gone"), Hidden::new(b"x"));
        let mut reader = Reader { places: places.clone(), known };
        assert!(reader.take(Read { places: places.clone(), objects: read }));
        assert_eq!(reader.known().get(&secret("hangs")), Some(&Hidden::new(b"old")));
        assert_eq!(reader.known().get(&secret("s3")), Some(&Hidden::new(b"value")));
        assert_eq!(reader.known().get(&secret("gone")), None);
        // What was read for routes that have changed since is not taken.
        let late = Read { places: vec![secret("gone")], objects: Objects::new() };
        assert!(!reader.take(late));
        assert_eq!(reader.known().get(&secret("s3")), Some(&Hidden::new(b"value")));
    }
}
