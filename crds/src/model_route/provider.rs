//! `spec.backends[].provider` of a ModelRoute: a server of others that speaks OpenAI's API.

pub mod reach;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::validation::rule;

/// A server of others that speaks OpenAI's API.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = [rule(
    "(has(self.apiKeySecretRef) ? 1 : 0) + (has(self.apiKeyFile) ? 1 : 0) + (has(self.apiKeyEnv) ? 1 : 0) <= 1",
    "spec.backends[].provider: set at most one of apiKeySecretRef (in a cluster), apiKeyFile and apiKeyEnv (by hand)",
)]))]
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

impl Provider {
    /// The Secrets that it names.
    pub fn secrets(&self) -> impl Iterator<Item = &SecretKeyRef> {
        self.api_key_secret_ref.iter().chain(&self.ca_secret_ref)
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
