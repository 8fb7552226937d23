//! The Secrets and ConfigMaps that a route's providers name: whether they are there, with the keys that are named. What is in them is not
//! kept.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use fairlead_crds::condition::reconciling;
use fairlead_crds::model_route::provider::Provider;
use fairlead_crds::model_route::{Backend, ModelRoute};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{Api, ResourceExt};

use crate::context::Context;
use crate::error::Error;

/// They are not watched: reading them one by one needs fewer rights.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// What providers name objects of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A Secret.
    Secret,
    /// A ConfigMap.
    ConfigMap,
}

/// The keys of the objects that are there, by kind and name.
pub type Keys = BTreeMap<(Kind, String), BTreeSet<String>>;

/// One key of an object that a provider names.
struct Named<'a> {
    field: &'static str,
    kind: Kind,
    name: &'a str,
    key: &'a str,
}

/// Reads which keys the objects have that a route's providers name.
///
/// # Errors
/// When the API server cannot be asked.
pub async fn keys(object: &ModelRoute, context: &Context) -> Result<Keys, Error> {
    let namespace = object.namespace().unwrap_or_default();
    let wanted: BTreeSet<(Kind, &str)> =
        providers(object).flat_map(|(_, provider)| named(provider)).map(|it| (it.kind, it.name)).collect();
    let mut keys = Keys::new();
    for (kind, name) in wanted {
        let failed = Error::kube(format!("read {kind:?} {name}"));
        let found: Option<BTreeSet<String>> = match kind {
            Kind::Secret => {
                let secrets = Api::<Secret>::namespaced(context.client.clone(), &namespace);
                let secret = secrets.get_opt(name).await.map_err(failed)?;
                secret.map(|secret| secret.data.unwrap_or_default().into_keys().collect())
            }
            Kind::ConfigMap => {
                let config_maps = Api::<ConfigMap>::namespaced(context.client.clone(), &namespace);
                let config_map = config_maps.get_opt(name).await.map_err(failed)?;
                config_map.map(|it| {
                    let text = it.data.unwrap_or_default().into_keys();
                    text.chain(it.binary_data.unwrap_or_default().into_keys()).collect()
                })
            }
        };
        if let Some(found) = found {
            keys.insert((kind, name.to_owned()), found);
        }
    }
    Ok(keys)
}

/// Whether all that providers name is there.
///
/// # Errors
/// [`Error::Waiting`] for the first object, or key of one, that is not.
pub fn check(object: &ModelRoute, keys: &Keys) -> Result<(), Error> {
    for (backend, provider) in providers(object) {
        for named in named(provider) {
            if let Some(missing) = missing(&named, keys) {
                return Err(Error::Waiting {
                    reason: reconciling::WAITING,
                    message: format!("spec.backends[{}].provider.{}: {missing}", backend.name, named.field),
                    retry: LOOK_AGAIN,
                });
            }
        }
    }
    Ok(())
}

/// When to look at what a route's providers name again; `None` when they name nothing.
pub fn look_again(object: &ModelRoute) -> Option<Duration> {
    providers(object).flat_map(|(_, provider)| named(provider)).next().map(|_| 10 * LOOK_AGAIN)
}

fn missing(named: &Named<'_>, keys: &Keys) -> Option<String> {
    let Named { field: _, kind, name, key } = named;
    match keys.get(&(*kind, (*name).to_owned())) {
        None => Some(format!("there is no {kind:?} {name}; create it with the key {key}")),
        Some(known) if !known.contains(*key) => {
            Some(format!("{kind:?} {name} has no key {key}; add it, or correct the key"))
        }
        Some(_) => None,
    }
}

/// The objects that a provider names.
fn named(provider: &Provider) -> impl Iterator<Item = Named<'_>> {
    let secrets =
        [("apiKeySecretRef", &provider.api_key_secret_ref), ("caSecretRef", &provider.ca_secret_ref)];
    let secrets = secrets.into_iter().filter_map(|(field, secret)| {
        let secret = secret.as_ref()?;
        Some(Named { field, kind: Kind::Secret, name: &secret.name, key: &secret.key })
    });
    let config_maps = provider.ca_config_map_ref.iter().map(|it| Named {
        field: "caConfigMapRef",
        kind: Kind::ConfigMap,
        name: &it.name,
        key: &it.key,
    });
    secrets.chain(config_maps)
}

fn providers(object: &ModelRoute) -> impl Iterator<Item = (&Backend, &Provider)> {
    object.spec.backends.iter().filter_map(|backend| Some((backend, backend.provider.as_ref()?)))
}
