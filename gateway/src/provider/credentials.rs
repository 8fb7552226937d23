//! Keys and certificates that routes name, as a source has read them. They are never shown: not in logs, not in problems.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use fairlead_crds::model_route::ModelRoute;
use kube::ResourceExt;

/// Where a key or a certificate is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Place {
    /// A key of a Secret in this namespace.
    Secret {
        /// Namespace.
        namespace: String,
        /// Name of the Secret.
        name: String,
        /// Key within it.
        key: String,
    },
    /// A key of a ConfigMap in this namespace.
    ConfigMap {
        /// Namespace.
        namespace: String,
        /// Name of the ConfigMap.
        name: String,
        /// Key within it.
        key: String,
    },
    /// A file.
    File(String),
    /// An environment variable of the gateway.
    Env(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Secret { namespace, name, key } => write!(f, "the key {key} of Secret {namespace}/{name}"),
            Self::ConfigMap { namespace, name, key } => {
                write!(f, "the key {key} of ConfigMap {namespace}/{name}")
            }
            Self::File(path) => write!(f, "the file {path}"),
            Self::Env(name) => write!(f, "the environment variable {name}"),
        }
    }
}

/// Something that must not be seen.
#[derive(Clone, PartialEq, Eq)]
pub struct Hidden(Arc<[u8]>);

impl Hidden {
    /// Hides bytes.
    pub fn new(bytes: &[u8]) -> Self {
        Self(bytes.into())
    }

    /// The bytes.
    pub fn reveal(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("hidden")
    }
}

/// What has been read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Credentials(HashMap<Place, Hidden>);

impl Credentials {
    /// Notes what is at a place.
    pub fn insert(&mut self, place: Place, what: Hidden) {
        self.0.insert(place, what);
    }

    /// What is at a place.
    pub fn get(&self, place: &Place) -> Option<&Hidden> {
        self.0.get(place)
    }
}

impl Place {
    /// The value of the chart that lets the gateway read it, where it is the chart's to allow.
    pub fn allowed_by(&self) -> Option<&'static str> {
        match self {
            Self::Secret { .. } => Some("gateway.providers.secrets"),
            Self::ConfigMap { .. } => Some("gateway.providers.configMaps"),
            Self::File(_) | Self::Env(_) => None,
        }
    }
}

/// The places that routes name, each once.
pub fn places<'a>(routes: impl Iterator<Item = &'a Arc<ModelRoute>>) -> Vec<Place> {
    let mut places: Vec<Place> = routes
        .flat_map(|route| {
            let namespace = route.namespace().unwrap_or_default();
            let providers = route.spec.backends.iter().filter_map(|backend| backend.provider.as_ref());
            providers
                .flat_map(|provider| [key_place(&namespace, provider), ca_place(&namespace, provider)])
                .flatten()
                .collect::<Vec<_>>()
        })
        .collect();
    places.sort();
    places.dedup();
    places
}

/// Where a provider's key is.
pub fn key_place(
    namespace: &str,
    provider: &fairlead_crds::model_route::provider::Provider,
) -> Option<Place> {
    let secret = provider.api_key_secret_ref.as_ref().map(|secret| in_secret(namespace, secret));
    secret
        .or_else(|| provider.api_key_file.clone().map(Place::File))
        .or_else(|| provider.api_key_env.clone().map(Place::Env))
}

/// Where its certificate authorities are.
pub fn ca_place(namespace: &str, provider: &fairlead_crds::model_route::provider::Provider) -> Option<Place> {
    let secret = provider.ca_secret_ref.as_ref().map(|secret| in_secret(namespace, secret));
    let config_map = || {
        provider.ca_config_map_ref.as_ref().map(|it| Place::ConfigMap {
            namespace: namespace.to_owned(),
            name: it.name.clone(),
            key: it.key.clone(),
        })
    };
    secret.or_else(config_map).or_else(|| provider.ca_file.clone().map(Place::File))
}

fn in_secret(namespace: &str, secret: &fairlead_crds::model_route::provider::SecretKeyRef) -> Place {
    Place::Secret { namespace: namespace.to_owned(), name: secret.name.clone(), key: secret.key.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_hidden_stays_hidden() {
        let mut credentials = Credentials::default();
        credentials.insert(Place::Env("KEY".to_owned()), Hidden::new(b"sk-secret"));
        assert!(!format!("{credentials:?}").contains("sk-"));
        assert_eq!(credentials.get(&Place::Env("KEY".to_owned())).expect("known").reveal(), b"sk-secret");
    }
}
