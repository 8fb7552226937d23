//! ModelRoutes as the plugin reads them.
//!
//! Owns: the part of a route that is shown, read leniently: a plugin on someone's machine is older or newer than the operator, and a
//! field or phase that it does not know must not keep it from showing the rest. Also finding and watching routes. Called by every
//! command.

use fairlead_crds::model_route::ModelRoute;
use futures::{Stream, StreamExt};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::{ApiResource, DynamicObject, ListParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Resource};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::connect::Session;
use crate::fault::{Call, Fault, Role};

const RESOURCE: &str = "modelroutes.fairlead.dev";

/// A ModelRoute.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Route {
    /// Its name and place.
    pub metadata: Metadata,
    /// What is wanted.
    pub spec: Spec,
    /// What is.
    pub status: Status,
}

/// A part of `metadata`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Metadata {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Counts changes of the spec.
    pub generation: i64,
}

/// A part of `spec`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Spec {
    /// What clients send.
    pub model: Option<String>,
    /// The canary.
    pub canary: Option<Canary>,
}

/// A part of `spec.canary`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Canary {
    /// The backend that is tried.
    pub backend: String,
    /// Its steps.
    pub steps: Vec<Step>,
    /// What it is judged by.
    pub analysis: Option<Analysis>,
}

/// A part of `spec.canary.analysis`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Analysis {
    /// A gate is not judged on fewer requests.
    pub min_requests: Option<u64>,
}

/// A step.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Step {
    /// Percent.
    pub weight: u32,
    /// `10m`.
    pub hold: String,
}

/// A part of `status`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Status {
    /// The generation that the rest speaks of.
    pub observed_generation: Option<i64>,
    /// `Ready`, `Stalled`.
    pub conditions: Vec<Condition>,
    /// The model name.
    pub model: Option<String>,
    /// Shares in percent.
    pub effective_split: Vec<Share>,
    /// The canary.
    pub rollout: Option<Rollout>,
    /// The latest request.
    pub request: Option<Request>,
}

/// A backend's share.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Share {
    /// The backend.
    pub backend: String,
    /// Percent.
    #[serde(deserialize_with = "number")]
    pub percent: Option<f64>,
}

/// A part of `status.rollout`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Rollout {
    /// `Progressing`.
    pub phase: String,
    /// `Holding`.
    pub reason: String,
    /// In words.
    pub message: Option<String>,
    /// The backend that is tried.
    pub canary: String,
    /// What it is compared with.
    pub stable: String,
    /// Counted from zero.
    pub step: usize,
    /// Percent.
    pub weight: u32,
    /// When the step began.
    pub step_began: Option<Timestamp>,
    /// Whether the canary has had a pod in this step.
    pub served: bool,
    /// Looks in a row at which a gate failed.
    pub failures: u32,
    /// The last request that was followed or refused.
    pub handled: Option<String>,
    /// What happened, the latest last.
    pub history: Vec<Entry>,
    /// What the gates say.
    pub analysis: Vec<Finding>,
}

/// One line of the history.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Entry {
    /// When.
    pub at: Option<Timestamp>,
    /// The canary.
    pub canary: String,
    /// The phase.
    pub phase: String,
    /// Why.
    pub reason: String,
    /// Percent from then on.
    pub weight: u32,
}

/// What was found of one gate at the last look.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Finding {
    /// `TimeToFirstToken`.
    pub metric: String,
    /// Of an Evaluation: its name and score.
    pub of: Option<String>,
    /// Which quantile.
    #[serde(deserialize_with = "number")]
    pub quantile: Option<f64>,
    /// `max`, `min`, `maxRegression`, `minImprovement`.
    pub bound: String,
    /// The bound.
    #[serde(deserialize_with = "number")]
    pub limit: Option<f64>,
    /// The canary's value.
    #[serde(deserialize_with = "number")]
    pub canary: Option<f64>,
    /// Stable's value.
    #[serde(deserialize_with = "number")]
    pub stable: Option<f64>,
    /// Lower end of the interval.
    #[serde(deserialize_with = "number")]
    pub low: Option<f64>,
    /// Its upper end.
    #[serde(deserialize_with = "number")]
    pub high: Option<f64>,
    /// `Pass`.
    pub verdict: String,
    /// Values of the canary.
    pub requests: u64,
    /// Values of stable.
    pub stable_requests: Option<u64>,
    /// `Step`, `Recent`.
    pub window: String,
    /// Since when the recent requests began.
    pub since: Option<String>,
    /// All of it in words.
    pub message: Option<String>,
}

/// A person's request.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Request {
    /// Another for every request.
    pub id: String,
    /// `Promote`.
    pub action: String,
}

/// A number that may be written as one or as text, as decimals in Kubernetes objects are.
pub fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    Ok(match Value::deserialize(deserializer)? {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => text.parse().ok(),
        _ => None,
    })
}

impl Route {
    /// Reads an object of the API server.
    ///
    /// # Errors
    /// [`Fault`] for one that is no ModelRoute as this plugin knows them.
    pub fn read(object: &DynamicObject) -> Result<Self, Fault> {
        let value = serde_json::to_value(object);
        value.and_then(serde_json::from_value).map_err(|error| {
            let name = object.metadata.name.as_deref().unwrap_or_default();
            Fault::new(format!(
                "the ModelRoute {name} cannot be read by this version of the plugin ({}): {error}; use the version of the operator",
                env!("CARGO_PKG_VERSION")
            ))
        })
    }

    /// The name that clients send as `model`.
    pub fn model(&self) -> &str {
        self.spec.model.as_deref().unwrap_or(&self.metadata.name)
    }

    /// Why the operator cannot act on the route, if it cannot.
    pub fn stalled(&self) -> Option<&Condition> {
        self.status
            .conditions
            .iter()
            .find(|condition| condition.type_ == "Stalled" && condition.status == "True")
    }
}

/// The routes of a namespace, or of all.
pub fn api(session: &Session, namespace: Option<&str>) -> Api<DynamicObject> {
    let resource = ApiResource::erase::<ModelRoute>(&());
    match namespace {
        Some(namespace) => Api::namespaced_with(session.client.clone(), namespace, &resource),
        None => Api::all_with(session.client.clone(), &resource),
    }
}

/// One route.
///
/// # Errors
/// [`Fault`]; where there is no such route it names those that there are.
pub async fn get(session: &Session, name: &str) -> Result<Route, Fault> {
    let namespace = session.namespace.as_str();
    let call = Call { verb: "get", resource: RESOURCE, namespace: Some(namespace), role: Role::View };
    match api(session, Some(namespace)).get_opt(name).await {
        Ok(Some(object)) => Route::read(&object),
        Ok(None) => Err(missing(session, name).await),
        Err(error) => Err(call.failed(&error)),
    }
}

/// The routes of a namespace, or of all.
///
/// # Errors
/// [`Fault`] where they cannot be listed.
pub async fn list(session: &Session, namespace: Option<&str>) -> Result<Vec<Route>, Fault> {
    let call = Call { verb: "list", resource: RESOURCE, namespace, role: Role::View };
    let listed = api(session, namespace).list(&ListParams::default()).await;
    listed.map_err(|error| call.failed(&error))?.items.iter().map(Route::read).collect()
}

/// A route whenever it changes, `None` when it is gone; begins with how it is. Interruptions of the watch are bridged.
pub fn watch(session: &Session, name: &str) -> impl Stream<Item = Result<Option<Route>, Fault>> + use<> {
    let namespace = session.namespace.clone();
    watcher::watch_object(api(session, Some(&namespace)), name).default_backoff().filter_map(move |event| {
        let event = match event {
            Ok(object) => Some(object.as_ref().map(Route::read).transpose()),
            // What does not pass by itself is told; everything else is tried again.
            Err(watcher::Error::InitialListFailed(error) | watcher::Error::WatchStartFailed(error))
                if final_refusal(&error) =>
            {
                let call =
                    Call { verb: "watch", resource: RESOURCE, namespace: Some(&namespace), role: Role::View };
                Some(Err(call.failed(&error)))
            }
            Err(_) => None,
        };
        std::future::ready(event)
    })
}

fn final_refusal(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if matches!(status.code, 401 | 403 | 404))
}

/// What is said of a route that is not there.
async fn missing(session: &Session, name: &str) -> Fault {
    let here = match list(session, Some(&session.namespace)).await {
        Ok(here) => here,
        Err(fault) => return fault,
    };
    let elsewhere = list(session, None).await.unwrap_or_default();
    Fault::new(missing_words(&session.namespace, name, &here, &elsewhere))
}

fn missing_words(namespace: &str, name: &str, here: &[Route], elsewhere: &[Route]) -> String {
    let mut words = format!("there is no ModelRoute {name} in namespace {namespace}");
    if let Some(route) = here.iter().find(|route| route.model() == name) {
        let by_model = format!("; {} answers to the model name {name}", route.metadata.name);
        return words + &by_model;
    }
    let others: Vec<&str> = elsewhere
        .iter()
        .filter(|route| route.metadata.name == name && route.metadata.namespace != namespace)
        .map(|route| route.metadata.namespace.as_str())
        .collect();
    if let [other, ..] = others.as_slice() {
        words += &format!("; there is one in {}: add -n {other}", others.join(", "));
        return words;
    }
    let names: Vec<&str> = here.iter().map(|route| route.metadata.name.as_str()).collect();
    words += &match names.as_slice() {
        [] => "; there is none at all: choose another with -n".to_owned(),
        names => format!("; there are: {}", names.join(", ")),
    };
    words
}

/// The kind's name as kubectl prints it.
pub fn kind() -> String {
    ModelRoute::kind(&()).to_lowercase()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn route(namespace: &str, name: &str, model: Option<&str>) -> Route {
        serde_json::from_value(
            json!({"metadata": {"namespace": namespace, "name": name}, "spec": {"model": model}}),
        )
        .unwrap()
    }

    #[test]
    fn whoever_names_a_missing_route_hears_which_there_are() {
        let here = [route("shop", "chat", Some("support")), route("shop", "search", None)];
        let elsewhere = [here[0].clone(), here[1].clone(), route("prod", "orders", None)];
        for (name, here, expected) in [
            ("cha", &here[..], "there is no ModelRoute cha in namespace shop; there are: chat, search"),
            (
                "support",
                &here,
                "there is no ModelRoute support in namespace shop; chat answers to the model name support",
            ),
            (
                "orders",
                &here,
                "there is no ModelRoute orders in namespace shop; there is one in prod: add -n prod",
            ),
            (
                "cha",
                &[],
                "there is no ModelRoute cha in namespace shop; there is none at all: choose another with -n",
            ),
        ] {
            assert_eq!(missing_words("shop", name, here, &elsewhere), expected);
        }
    }

    /// What the operator writes is what the plugin reads.
    #[test]
    fn the_operators_own_types_are_read() {
        let written: ModelRoute = serde_json::from_value(json!({
            "apiVersion": "fairlead.dev/v1alpha1", "kind": "ModelRoute", "metadata": {"namespace": "shop", "name": "chat"},
            "spec": {
                "backends": [{"name": "v1", "modelDeployment": "m1", "weight": 1}, {"name": "v2", "modelDeployment": "m2"}],
                "canary": {"backend": "v2", "steps": [{"weight": 5, "hold": "10m"}]},
            },
            "status": {"effectiveSplit": [{"backend": "v1", "percent": "97.5"}], "rollout": {
                "fingerprint": "f", "phase": "Paused", "reason": "Requested", "canary": "v2", "stable": "v1", "step": 1, "weight": 5,
                "stepBegan": "2026-11-29T06:00:00Z", "epoch": 3, "handled": "id", "analysis": [
                    {"metric": "TimeToFirstToken", "quantile": "0.95", "bound": "maxRegression", "limit": "0.2", "canary": "1.5",
                    "stable": "1", "low": "0.3", "high": "0.7", "verdict": "Fail", "requests": 90, "stableRequests": 900,
                    "window": "Recent", "message": "slow"}], "history": [
                    {"at": "2026-11-29T06:00:00Z", "canary": "v2", "phase": "Progressing", "reason": "Holding", "weight": 5}],
            }, "request": {"id": "id", "action": "Pause", "canary": "v2"}},
        }))
        .unwrap();
        let read: Route = serde_json::from_value(serde_json::to_value(&written).unwrap()).unwrap();
        let rollout = read.status.rollout.unwrap();
        assert_eq!((rollout.phase.as_str(), rollout.step, rollout.weight), ("Paused", 1, 5));
        assert_eq!((rollout.handled.as_deref(), rollout.history.len()), (Some("id"), 1));
        let [found] = rollout.analysis.as_slice() else { panic!("{rollout:?}") };
        assert_eq!(
            (found.metric.as_str(), found.bound.as_str(), found.verdict.as_str(), found.window.as_str()),
            ("TimeToFirstToken", "maxRegression", "Fail", "Recent")
        );
        assert_eq!(
            [found.quantile, found.limit, found.canary, found.stable, found.low, found.high],
            [0.95, 0.2, 1.5, 1.0, 0.3, 0.7].map(Some)
        );
        assert_eq!((found.requests, found.stable_requests), (90, Some(900)));
        assert_eq!(read.status.effective_split, [Share { backend: "v1".to_owned(), percent: Some(97.5) }]);
        assert_eq!(read.spec.canary.unwrap().steps[0].hold, "10m");
    }

    #[test]
    fn what_a_newer_operator_adds_is_no_obstacle() {
        let read: Route = serde_json::from_value(json!({
            "spec": {"canary": {"backend": "v2", "novel": 1}}, "status": {"rollout": {"phase": "Reversing", "more": []}, "other": {}},
        }))
        .unwrap();
        assert_eq!(read.status.rollout.unwrap().phase, "Reversing");
    }
}
