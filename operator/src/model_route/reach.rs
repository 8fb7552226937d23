//! Whether the gateways can call a route's providers: from what they tell to the condition `ProvidersReachable`. Pure; [`super::poll`]
//! asks them.
//!
//! Each gateway finds out for itself, so one may reach a provider that another does not: the trouble of one is told. Who says nothing,
//! because it is older or has only just begun, changes nothing of what was known. Who speaks of another spec than the route has now says
//! nothing of this one, and is waited for.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use fairlead_crds::condition::{PROVIDERS_REACHABLE, providers};
use fairlead_crds::model_route::ModelRoute;
use fairlead_crds::model_route::provider::Provider;
use fairlead_crds::model_route::provider::reach::{ProviderReach, ProvidersReport, Trouble, TroubleKind};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

/// So many gateways are named where not all have a trouble.
const MOST_NAMED: usize = 3;

/// What one gateway that serves says of providers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// This.
    Report(ProvidersReport),
    /// Nothing: it is of a version that knows nothing of it.
    Nothing,
    /// It could not be asked.
    Unread,
}

/// What all of them say, by their names, as they were last asked; nobody was asked yet where there is nobody.
#[derive(Debug, Default)]
pub struct Heard(Mutex<Arc<Vec<(String, Said)>>>);

impl Heard {
    /// What they say.
    pub fn now(&self) -> Arc<Vec<(String, Said)>> {
        Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Keeps what they say.
    pub fn keep(&self, said: Vec<(String, Said)>) -> Arc<Vec<(String, Said)>> {
        let said = Arc::new(said);
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&said);
        said
    }
}

/// What that comes to for one route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reach {
    /// There is nothing to be said: it names no provider, or no gateway knows how to tell.
    Silent,
    /// Not all is known: what was known still holds.
    Unknown,
    /// Every gateway reaches every provider.
    Reached {
        /// In words.
        message: String,
    },
    /// One cannot be called.
    Trouble {
        /// One of `condition::providers`.
        reason: &'static str,
        /// Which, why, and the remedy.
        message: String,
    },
}

/// Whether a route names any provider.
pub fn names_providers(route: &ModelRoute) -> bool {
    route.spec.backends.iter().any(|backend| backend.provider.is_some())
}

/// What the gateways' words come to for a route.
pub fn reach(route: &ModelRoute, said: &[(String, Said)]) -> Reach {
    if !names_providers(route) || (!said.is_empty() && said.iter().all(|(_, said)| *said == Said::Nothing)) {
        return Reach::Silent;
    }
    let (uid, generation) = (route.uid().unwrap_or_default(), route.metadata.generation);
    // Those that have the route: one that is starting, or carries another namespace, has none of it.
    let told: Vec<_> = said
        .iter()
        .filter_map(|(gateway, said)| match said {
            Said::Report(report) if report.synced => {
                Some((gateway.as_str(), report.routes.iter().find(|it| it.uid == uid)?))
            }
            _ => None,
        })
        .collect();
    // A gateway of an older version does not say of which spec it speaks.
    let (told, others): (Vec<_>, Vec<_>) =
        told.into_iter().partition(|(_, route)| route.generation.is_none() || route.generation == generation);
    let mut troubles: Vec<(TroubleKind, String)> = Vec::new();
    let (mut names, mut all_known) = (Vec::new(), !told.is_empty() && others.is_empty());
    let backends =
        route.spec.backends.iter().filter_map(|it| Some((it.name.as_str(), it.provider.as_ref()?)));
    for (backend, provider) in backends {
        names.push(backend);
        let reaches: Vec<(&str, Option<&ProviderReach>)> =
            told.iter().map(|(gateway, route)| (*gateway, route.backends.get(backend))).collect();
        let mut troubled: Vec<(&str, &Trouble)> = reaches
            .iter()
            .filter_map(|(gateway, it)| Some((*gateway, it.as_ref()?.trouble.as_ref()?)))
            .collect();
        troubled.sort_by(|(one, a), (other, b)| (a.kind, one).cmp(&(b.kind, other)));
        match troubled.first() {
            Some((_, worst)) => {
                let remedy = remedy(worst.kind, provider);
                let at = place(&troubled, told.len());
                troubles.push((worst.kind, format!("backend {backend}{at}: {}; {remedy}", worst.message)));
            }
            None => all_known &= reaches.iter().all(|(_, it)| it.is_some_and(|it| it.reached)),
        }
    }
    if let Some((kind, _)) = troubles.first() {
        let reason = reason(*kind);
        let messages: Vec<String> = troubles.into_iter().map(|(_, message)| message).collect();
        return Reach::Trouble { reason, message: messages.join(". ") };
    }
    let all_read = said.iter().all(|(_, said)| *said != Said::Unread);
    if all_known && all_read {
        Reach::Reached { message: format!("the gateways reach {}", names.join(", ")) }
    } else {
        Reach::Unknown
    }
}

/// The condition; `None` where there is nothing to be said.
pub fn condition(
    reach: &Reach,
    before: &[Condition],
    generation: Option<i64>,
    now: Timestamp,
) -> Option<Condition> {
    let before = before.iter().find(|it| it.type_ == PROVIDERS_REACHABLE);
    let (status, reason, message) = match reach {
        Reach::Silent => return None,
        // What was known of another spec may be of another provider.
        Reach::Unknown => return before.filter(|it| it.observed_generation == generation).cloned(),
        Reach::Reached { message } => ("True", providers::REACHED, message),
        Reach::Trouble { reason, message } => ("False", *reason, message),
    };
    let since = before.filter(|it| it.status == status).map(|it| it.last_transition_time.clone());
    Some(Condition {
        type_: PROVIDERS_REACHABLE.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: message.clone(),
        observed_generation: generation,
        last_transition_time: since.unwrap_or(Time(now)),
    })
}

/// At which gateways, where it is not all of them.
fn place(troubled: &[(&str, &Trouble)], of: usize) -> String {
    let gateways: BTreeSet<&str> = troubled.iter().map(|(gateway, _)| *gateway).collect();
    if gateways.len() >= of {
        return String::new();
    }
    let named: Vec<&str> = gateways.iter().copied().take(MOST_NAMED).collect();
    let more = if gateways.len() > named.len() { ", …" } else { "" };
    format!(" at {} of {of} gateways ({}{more})", gateways.len(), named.join(", "))
}

fn reason(kind: TroubleKind) -> &'static str {
    match kind {
        TroubleKind::NotUsable => providers::NOT_USABLE,
        TroubleKind::NotResolved => providers::NOT_RESOLVED,
        TroubleKind::NotConnected => providers::NOT_CONNECTED,
        TroubleKind::NotTrusted => providers::NOT_TRUSTED,
        TroubleKind::KeyRefused => providers::KEY_REFUSED,
        TroubleKind::ModelUnknown => providers::MODEL_UNKNOWN,
        TroubleKind::Other => providers::FAILING,
    }
}

fn remedy(kind: TroubleKind, provider: &Provider) -> String {
    match kind {
        // Its message has the remedy.
        TroubleKind::NotUsable => "requests do not go there until then".to_owned(),
        TroubleKind::NotResolved => {
            "correct the host in provider.url, or see whether the gateways' DNS knows it".to_owned()
        }
        TroubleKind::NotConnected => {
            "see whether it is up, whether provider.url has the right port, and whether NetworkPolicies and firewalls let the \
             gateways reach it"
                .to_owned()
        }
        TroubleKind::NotTrusted => {
            let secret = provider.ca_secret_ref.as_ref().map(|it| ("Secret", &it.name, &it.key));
            let config_map = || provider.ca_config_map_ref.as_ref().map(|it| ("ConfigMap", &it.name, &it.key));
            match secret.or_else(config_map) {
                Some((kind, name, key)) => format!(
                    "give {kind} {name} under {key} the certificate authority that has signed it, or correct provider.url"
                ),
                None => "name the certificate authority that has signed it in provider.caSecretRef or caConfigMapRef, or correct \
                         provider.url"
                    .to_owned(),
            }
        }
        TroubleKind::KeyRefused => match &provider.api_key_secret_ref {
            Some(secret) => {
                format!("store a key that it accepts in Secret {} under {}", secret.name, secret.key)
            }
            None => "name a key that it accepts in provider.apiKeySecretRef".to_owned(),
        },
        TroubleKind::ModelUnknown => "correct provider.model".to_owned(),
        TroubleKind::Other => "see the log of the gateways".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn route() -> ModelRoute {
        serde_json::from_value(json!({
            "apiVersion": "fairlead.dev/v1alpha1", "kind": "ModelRoute", "metadata": {"name": "chat", "uid": "u", "generation": 2},
            "spec": {"backends": [
                {"name": "own", "modelDeployment": "m", "weight": 1},
                {"name": "cloud", "provider": {"url": "https://h/v1", "model": "m", "caSecretRef": {"name": "ca", "key": "ca.crt"}}},
                {"name": "other", "provider": {"url": "https://o/v1", "model": "m", "apiKeySecretRef": {"name": "keys", "key": "o"}}},
            ]},
        }))
        .unwrap()
    }

    fn trouble(kind: &str, message: &str) -> serde_json::Value {
        json!({"reached": false, "trouble": {"kind": kind, "message": message, "since": "2026-01-01T00:00:00Z"}})
    }

    fn well() -> serde_json::Value {
        json!({"reached": true})
    }

    fn said(cloud: &serde_json::Value, other: &serde_json::Value) -> Said {
        let routes = json!([{"route": "ns/chat", "uid": "u", "backends": {"cloud": cloud, "other": other}}]);
        Said::Report(serde_json::from_value(json!({"synced": true, "routes": routes})).unwrap())
    }

    /// Of this spec.
    fn of_generation(generation: i64, said: Said) -> Said {
        let Said::Report(mut report) = said else { panic!("a report") };
        report.routes[0].generation = Some(generation);
        Said::Report(report)
    }

    fn of(said: Vec<Said>) -> Reach {
        let named: Vec<_> = said.into_iter().enumerate().map(|(at, said)| (format!("g{at}"), said)).collect();
        reach(&route(), &named)
    }

    #[test]
    fn the_trouble_of_one_gateway_is_told_with_its_place_and_the_remedy() {
        let good = said(&well(), &well());
        let bad = said(&trouble("NotTrusted", "the certificate is not accepted"), &well());
        let Reach::Trouble { reason, message } = of(vec![good.clone(), bad.clone()]) else {
            panic!("trouble")
        };
        assert_eq!(reason, providers::NOT_TRUSTED);
        assert_eq!(
            message,
            "backend cloud at 1 of 2 gateways (g1): the certificate is not accepted; give Secret ca under ca.crt the certificate \
             authority that has signed it, or correct provider.url"
        );
        let Reach::Trouble { message, .. } = of(vec![bad.clone(), bad.clone()]) else { panic!("trouble") };
        assert!(message.starts_with("backend cloud: the certificate"), "{message}");
        // Others that cannot be asked, or know nothing of it, take nothing away.
        for silent in [Said::Unread, Said::Nothing] {
            let Reach::Trouble { message, .. } = of(vec![bad.clone(), silent]) else { panic!("trouble") };
            assert!(message.starts_with("backend cloud: the certificate"), "{message}");
        }
    }

    #[test]
    fn each_backend_has_its_own_trouble_and_the_first_names_the_reason() {
        let bad = said(&trouble("NotResolved", "no such name"), &trouble("KeyRefused", "it answers 401"));
        let Reach::Trouble { reason, message } = of(vec![bad]) else { panic!("trouble") };
        assert_eq!(reason, providers::NOT_RESOLVED);
        assert!(
            message.contains(
                ". backend other: it answers 401; store a key that it accepts in Secret keys under o"
            )
        );
        let newer = said(&trouble("Bewitched", "by a witch"), &well());
        let Reach::Trouble { reason, .. } = of(vec![newer]) else { panic!("trouble") };
        assert_eq!(reason, providers::FAILING);
    }

    #[test]
    fn reached_is_said_when_everybody_says_so() {
        let good = || said(&well(), &well());
        let reached = Reach::Reached { message: "the gateways reach cloud, other".to_owned() };
        assert_eq!(of(vec![good(), good()]), reached);
        assert_eq!(of(vec![good(), Said::Nothing]), reached, "an older gateway keeps nobody waiting");
        let starting = Said::Report(ProvidersReport::default());
        assert_eq!(of(vec![good(), starting.clone()]), reached);
        assert_eq!(of(vec![good(), Said::Unread]), Reach::Unknown);
        assert_eq!(of(vec![good(), said(&well(), &json!({}))]), Reach::Unknown);
        assert_eq!(of(vec![starting]), Reach::Unknown);
        assert_eq!(of(vec![]), Reach::Unknown);
        assert_eq!(of(vec![Said::Nothing, Said::Nothing]), Reach::Silent);
        let mut without = route();
        without.spec.backends.truncate(1);
        assert_eq!(reach(&without, &[]), Reach::Silent);
    }

    #[test]
    fn what_is_said_of_another_spec_says_nothing_of_this_one() {
        let good = |generation| of_generation(generation, said(&well(), &well()));
        let bad = |generation| of_generation(generation, said(&trouble("NotTrusted", "expired"), &well()));
        // The route has generation 2.
        assert_eq!(of(vec![good(1)]), Reach::Unknown);
        assert_eq!(of(vec![bad(1)]), Reach::Unknown);
        assert_eq!(of(vec![bad(3)]), Reach::Unknown, "what this operator has not seen yet");
        assert_eq!(of(vec![good(2), bad(1)]), Reach::Unknown, "who is behind is waited for");
        assert!(matches!(of(vec![good(2), good(2)]), Reach::Reached { .. }));
        let Reach::Trouble { message, .. } = of(vec![bad(2), good(1)]) else { panic!("trouble") };
        assert!(message.starts_with("backend cloud: expired"), "{message}");
    }

    #[test]
    fn what_was_known_holds_until_something_else_is_known_of_the_same_spec() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let bad = Reach::Trouble { reason: providers::NOT_TRUSTED, message: "m".to_owned() };
        let first = condition(&bad, &[], Some(2), at(1)).unwrap();
        assert_eq!((first.status.as_str(), first.reason.as_str()), ("False", providers::NOT_TRUSTED));
        let known = [first.clone()];
        assert_eq!(condition(&Reach::Unknown, &known, Some(2), at(2)), Some(first));
        assert_eq!(condition(&Reach::Unknown, &known, Some(3), at(2)), None);
        assert_eq!(condition(&Reach::Silent, &known, Some(2), at(2)), None);
        let other = Reach::Trouble { reason: providers::NOT_RESOLVED, message: "n".to_owned() };
        let second = condition(&other, &known, Some(3), at(2)).unwrap();
        assert_eq!((second.last_transition_time, second.observed_generation), (Time(at(1)), Some(3)));
        let well = Reach::Reached { message: String::new() };
        assert_eq!(condition(&well, &known, Some(2), at(3)).unwrap().last_transition_time, Time(at(3)));
    }
}
