//! The Secrets that a route's providers name: whether they are there, with the keys that are named. What is in them is not kept.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use fairlead_crds::condition::reconciling;
use fairlead_crds::model_route::provider::{Provider, SecretKeyRef};
use fairlead_crds::model_route::{Backend, ModelRoute};
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, ResourceExt};

use crate::context::Context;
use crate::error::Error;

/// Secrets are not watched: reading them one by one needs fewer rights.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// The keys of the Secrets that are there, by the Secret's name.
pub type SecretKeys = BTreeMap<String, BTreeSet<String>>;

/// Reads which keys the Secrets have that a route's providers name.
///
/// # Errors
/// When the API server cannot be asked.
pub async fn secret_keys(object: &ModelRoute, context: &Context) -> Result<SecretKeys, Error> {
    let namespace = object.namespace().unwrap_or_default();
    let names: BTreeSet<&str> = providers(object)
        .flat_map(|(_, provider)| provider.secrets())
        .map(|secret| secret.name.as_str())
        .collect();
    let secrets = Api::<Secret>::namespaced(context.client.clone(), &namespace);
    let mut keys = SecretKeys::new();
    for name in names {
        let read = secrets.get_opt(name).await.map_err(Error::kube(format!("read Secret {name}")))?;
        if let Some(secret) = read {
            keys.insert(name.to_owned(), secret.data.unwrap_or_default().into_keys().collect());
        }
    }
    Ok(keys)
}

/// Whether all that providers name is there.
///
/// # Errors
/// [`Error::Waiting`] for the first Secret, or key of one, that is not.
pub fn check(object: &ModelRoute, keys: &SecretKeys) -> Result<(), Error> {
    for (backend, provider) in providers(object) {
        for (field, secret) in
            [("apiKeySecretRef", &provider.api_key_secret_ref), ("caSecretRef", &provider.ca_secret_ref)]
        {
            if let Some(missing) = secret.as_ref().and_then(|secret| missing(secret, keys)) {
                return Err(Error::Waiting {
                    reason: reconciling::WAITING,
                    message: format!("spec.backends[{}].provider.{field}: {missing}", backend.name),
                    retry: LOOK_AGAIN,
                });
            }
        }
    }
    Ok(())
}

/// When to look at a route's Secrets again; `None` when it names none.
pub fn look_again(object: &ModelRoute) -> Option<Duration> {
    providers(object).flat_map(|(_, provider)| provider.secrets()).next().map(|_| 10 * LOOK_AGAIN)
}

fn missing(secret: &SecretKeyRef, keys: &SecretKeys) -> Option<String> {
    let SecretKeyRef { name, key } = secret;
    match keys.get(name) {
        None => Some(format!("there is no Secret {name}; create it with the key {key}")),
        Some(known) if !known.contains(key) => {
            Some(format!("Secret {name} has no key {key}; add it, or correct the key"))
        }
        Some(_) => None,
    }
}

fn providers(object: &ModelRoute) -> impl Iterator<Item = (&Backend, &Provider)> {
    object.spec.backends.iter().filter_map(|backend| Some((backend, backend.provider.as_ref()?)))
}
