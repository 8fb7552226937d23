//! `spec.backends[].provider` of a ModelRoute: a server of others that speaks OpenAI's API.

pub mod reach;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::validation::rule;

/// A server of others that speaks OpenAI's API.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = [
    rule(
        "(has(self.apiKeySecretRef) ? 1 : 0) + (has(self.apiKeyFile) ? 1 : 0) + (has(self.apiKeyEnv) ? 1 : 0) <= 1",
        "spec.backends[].provider: set at most one of apiKeySecretRef (in a cluster), apiKeyFile and apiKeyEnv (by hand)",
    ),
    rule(
        "(has(self.caSecretRef) ? 1 : 0) + (has(self.caConfigMapRef) ? 1 : 0) + (has(self.caFile) ? 1 : 0) <= 1",
        "spec.backends[].provider: set at most one of caSecretRef and caConfigMapRef (in a cluster) and caFile (by hand)",
    ),
]))]
#[serde(rename_all = "camelCase")]
pub struct Provider {
    /// Base URL of the API with its version, such as `https://api.example.com/v1`. In a cluster only hosts that the gateway's
    /// `--provider-hosts` names are called.
    #[schemars(length(max = 1024), extend("x-kubernetes-validations" = [rule(
        "self.matches('^https://[^/@?#]+(/[^?#]*)?$')",
        "spec.backends[].provider.url must be https://HOST with an optional path, without a user, a query or a fragment",
    )]))]
    pub url: String,
    /// The provider's name for the model.
    #[schemars(length(min = 1, max = 253))]
    pub model: String,
    /// The key in a Secret of the route's namespace. The gateway must be allowed to read it (`gateway.providers.secrets` of the
    /// chart).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key_secret_ref: Option<SecretKeyRef>,
    /// A file with the key, for a gateway that runs without Kubernetes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub api_key_file: Option<String>,
    /// An environment variable of the gateway with the key, for a gateway that runs without Kubernetes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub api_key_env: Option<String>,
    /// The certificate authorities (PEM) that the provider's certificate is checked by, in place of the system's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_secret_ref: Option<SecretKeyRef>,
    /// The same in a ConfigMap of the route's namespace, such as one that trust-manager keeps. The gateway must be allowed to read it
    /// (`gateway.providers.configMaps` of the chart).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_config_map_ref: Option<ConfigMapKeyRef>,
    /// The same in a file, for a gateway that runs without Kubernetes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub ca_file: Option<String>,
}

/// One key of a Secret.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretKeyRef {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Key within it.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

/// One key of a ConfigMap.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConfigMapKeyRef {
    /// Name of the ConfigMap.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Key within it.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

impl Provider {
    /// Where its certificate authorities are said to be, more than once: the fields, for who got around the schema.
    pub fn ca_twice(&self) -> Option<(&'static str, &'static str)> {
        let fields = [
            ("caSecretRef", self.ca_secret_ref.is_some()),
            ("caConfigMapRef", self.ca_config_map_ref.is_some()),
            ("caFile", self.ca_file.is_some()),
        ];
        let mut set = fields.into_iter().filter(|(_, set)| *set).map(|(field, _)| field);
        set.next().zip(set.next())
    }

    /// A field that names an object of a cluster, the first that is set, with the kind and the name of the object.
    pub fn in_cluster(&self) -> Option<(&'static str, &'static str, &str)> {
        let secrets = [("apiKeySecretRef", &self.api_key_secret_ref), ("caSecretRef", &self.ca_secret_ref)];
        let secret =
            secrets.into_iter().find_map(|(field, it)| Some((field, "Secret", it.as_ref()?.name.as_str())));
        secret
            .or_else(|| Some(("caConfigMapRef", "ConfigMap", self.ca_config_map_ref.as_ref()?.name.as_str())))
    }

    /// Fields that only a gateway by hand understands, the first that is set.
    pub fn by_hand(&self) -> Option<&'static str> {
        let fields =
            [("apiKeyFile", &self.api_key_file), ("apiKeyEnv", &self.api_key_env), ("caFile", &self.ca_file)];
        fields.into_iter().find(|(_, value)| value.is_some()).map(|(name, _)| name)
    }

    /// Its host, with the port where it has one; empty where the URL is none.
    pub fn host(&self) -> &str {
        let rest = self.url.strip_prefix("https://").unwrap_or_default();
        rest.split('/').next().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        let host = |url: &str| {
            let provider: Provider =
                serde_json::from_value(serde_json::json!({"url": url, "model": "m"})).unwrap();
            provider.host().to_owned()
        };
        assert_eq!(host("https://api.example.com/v1"), "api.example.com");
        assert_eq!(host("https://h:8443"), "h:8443");
        assert_eq!(host("http://h"), "");
    }
}
