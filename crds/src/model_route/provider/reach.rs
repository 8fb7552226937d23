//! What a gateway tells of the providers that its routes name (`GET /providers` on its admin port). Plain data: the gateway writes it,
//! the operator reads it. Never a key, a certificate or a provider's own words.

use std::collections::BTreeMap;

use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// One gateway's answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProvidersReport {
    /// Whether it has routes already; until then it calls nobody.
    pub synced: bool,
    /// The routes that name providers.
    pub routes: Vec<RouteProviders>,
}

/// What it tells of one route.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RouteProviders {
    /// `namespace/name`.
    pub route: String,
    /// Of the ModelRoute.
    pub uid: String,
    /// Of the spec that this is of; `None` of older gateways.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<i64>,
    /// By the name of the backend.
    pub backends: BTreeMap<String, ProviderReach>,
}

/// Whether a provider can be called.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProviderReach {
    /// Whether it was reached since its address, its key or its certificate authorities last changed.
    pub reached: bool,
    /// What is wrong; a success takes it away.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trouble: Option<Trouble>,
}

/// Why a provider cannot be called.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Trouble {
    /// Of what kind.
    pub kind: TroubleKind,
    /// In words that stay the same as long as the trouble does.
    pub message: String,
    /// When it began.
    pub since: Timestamp,
}

/// What can be wrong with a provider. The worst to be told first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum TroubleKind {
    /// The gateway may not call it, or lacks its key or certificate authorities.
    NotUsable,
    /// The name of its host is not known.
    NotResolved,
    /// Nobody answers at its address.
    NotConnected,
    /// Its certificate is not accepted, or it speaks no TLS.
    NotTrusted,
    /// It refuses the key.
    KeyRefused,
    /// It knows no such model.
    ModelUnknown,
    /// One of a newer gateway.
    #[serde(other)]
    Other,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_newer_gateway_tells_can_be_read() {
        let newer = r#"{"synced": true, "more": 1, "routes": [{"route": "a/b", "uid": "u", "backends": {"cloud":
            {"reached": true, "trouble": {"kind": "Bewitched", "message": "m", "since": "2026-01-01T00:00:00Z", "more": 1}}}}]}"#;
        let report: ProvidersReport = serde_json::from_str(newer).unwrap();
        let trouble = report.routes[0].backends["cloud"].trouble.clone().unwrap();
        assert_eq!(trouble.kind, TroubleKind::Other);
        assert_eq!(report.routes[0].generation, None, "an older gateway does not say");
        let again: ProvidersReport = serde_json::from_value(serde_json::to_value(&report).unwrap()).unwrap();
        assert_eq!(again, report);
    }
}
