//! What happened between two looks at all gateways. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::metrics::{Buckets, Counters, Key, Variant};
use crate::route::Route;

/// One look: what each gateway said, by its name.
pub type Look = BTreeMap<String, Counters>;

/// What is shown.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Top {
    /// What rates and times are of.
    pub window_seconds: f64,
    /// How many gateways answered.
    pub gateways: usize,
    /// Those that did not, and why.
    pub silent: Vec<String>,
    /// Requests that the gateways are answering.
    pub in_flight: f64,
    /// Every backend of every route.
    pub backends: Vec<Backend>,
}

/// One backend.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Backend {
    /// The route's namespace.
    pub namespace: String,
    /// The route's name.
    pub route: String,
    /// The backend's name.
    pub backend: String,
    /// Its share by the weights in force, in percent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub percent: Option<f64>,
    /// Its share of what the gateways sent, in percent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seen_percent: Option<f64>,
    /// Requests that ended, a second.
    pub requests_per_second: f64,
    /// Those that failed by its fault, of all, in percent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed_percent: Option<f64>,
    /// Seconds to the first token of a stream.
    pub time_to_first_token: Quantiles,
    /// Seconds to the end of an answer.
    pub end_to_end: Quantiles,
    /// Tokens of answers that ended, a second.
    pub tokens_per_second: f64,
    /// Requests that it is answering now.
    pub in_flight: f64,
}

/// Of a time in seconds; none where there was nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Quantiles {
    /// The median.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p50: Option<f64>,
    /// The 99th percentile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p99: Option<f64>,
}

impl Quantiles {
    fn of(buckets: &Buckets) -> Self {
        Self { p50: buckets.quantile(0.5), p99: buckets.quantile(0.99) }
    }
}

/// What happened from `then` to `now`. A gateway that was not there then does not count yet. `routes`: those that are shown; all that
/// the gateways know of where there are none.
pub fn between(then: &Look, now: &Look, window: Duration, routes: Option<&[Route]>) -> Vec<Backend> {
    let mut sums: BTreeMap<Key, Variant> = BTreeMap::new();
    for (name, counters) in now {
        let Some(before) = then.get(name) else { continue };
        for (key, variant) in &counters.variants {
            let since =
                before.variants.get(key).map_or_else(|| variant.clone(), |before| variant.since(before));
            sums.entry(key.clone()).or_default().add(&since);
        }
    }
    let ended = |variant: &Variant| variant.answered + variant.failed + variant.other;
    let mut totals: BTreeMap<String, f64> = BTreeMap::new();
    for (key, variant) in &sums {
        *totals.entry(key.route.clone()).or_default() += ended(variant);
    }
    let configured = routes.map(configured);
    // A backend that nobody was sent to is shown, too.
    for key in configured.iter().flat_map(BTreeMap::keys) {
        sums.entry(key.clone()).or_default();
    }
    let seconds = window.as_secs_f64().max(1e-3);
    let shown = |key: &Key| routes.is_none_or(|routes| routes.iter().any(|route| id(route) == key.route));
    let backend = |(key, variant): (Key, Variant)| {
        let total = totals.get(&key.route).copied().unwrap_or(0.0);
        let (mine, judged) = (ended(&variant), variant.answered + variant.failed);
        let (namespace, route) = key.route.split_once('/').unwrap_or(("", &key.route));
        Backend {
            namespace: namespace.to_owned(),
            route: route.to_owned(),
            percent: configured.as_ref().map(|configured| configured.get(&key).copied().unwrap_or(0.0)),
            seen_percent: (total > 0.0).then(|| 100.0 * mine / total),
            requests_per_second: mine / seconds,
            failed_percent: (judged > 0.0).then(|| 100.0 * variant.failed / judged),
            time_to_first_token: Quantiles::of(&variant.first_token),
            end_to_end: Quantiles::of(&variant.duration),
            tokens_per_second: variant.tokens / seconds,
            in_flight: variant.in_flight,
            backend: key.backend,
        }
    };
    sums.into_iter().filter(|(key, _)| shown(key)).map(backend).collect()
}

fn id(route: &Route) -> String {
    format!("{}/{}", route.metadata.namespace, route.metadata.name)
}

fn configured(routes: &[Route]) -> BTreeMap<Key, f64> {
    let shares = |route: &Route| {
        let id = id(route);
        let shares = route.status.effective_split.clone();
        shares.into_iter().map(move |share| {
            (Key { route: id.clone(), backend: share.backend }, share.percent.unwrap_or(0.0))
        })
    };
    routes.iter().flat_map(shares).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn look(gateways: &[(&str, f64, f64)]) -> Look {
        let counters = |v1: f64, v2: f64| {
            let variant = |backend: &str, answered: f64| {
                let key = Key { route: "shop/chat".to_owned(), backend: backend.to_owned() };
                (
                    key,
                    Variant {
                        answered,
                        failed: answered / 10.0,
                        tokens: answered * 8.0,
                        ..Variant::default()
                    },
                )
            };
            Counters { variants: [variant("v1", v1), variant("v2", v2)].into(), in_flight: 0.0 }
        };
        gateways.iter().map(|(name, v1, v2)| ((*name).to_owned(), counters(*v1, *v2))).collect()
    }

    fn route(name: &str) -> Route {
        serde_json::from_value(
            json!({"metadata": {"namespace": "shop", "name": name}, "status": {"effectiveSplit": [
            {"backend": "v1", "percent": "75"}, {"backend": "v3", "percent": "25"}]}}),
        )
        .unwrap()
    }

    #[test]
    fn gateways_are_added_up_and_newcomers_wait() {
        let then = look(&[("a", 100.0, 100.0), ("b", 0.0, 0.0)]);
        let now = look(&[("a", 130.0, 110.0), ("b", 30.0, 10.0), ("new", 1e6, 1e6)]);
        let backends = between(&then, &now, Duration::from_secs(10), Some(&[route("chat")]));
        let [v1, v2, v3] = backends.try_into().expect("three backends");
        assert_eq!((v1.requests_per_second, v1.tokens_per_second), (6.6, 48.0));
        assert_eq!((v1.percent, v1.seen_percent), (Some(75.0), Some(75.0)));
        assert!((v1.failed_percent.expect("requests") - 100.0 / 11.0).abs() < 1e-9);
        assert_eq!(
            (v2.percent, v2.seen_percent),
            (Some(0.0), Some(25.0)),
            "a backend without a weight, as a rule sends to"
        );
        assert_eq!((v3.percent, v3.seen_percent, v3.requests_per_second), (Some(25.0), Some(0.0), 0.0));
    }

    #[test]
    fn other_routes_are_left_out_and_without_routes_all_are_shown() {
        let (then, now) = (look(&[("a", 0.0, 0.0)]), look(&[("a", 1.0, 1.0)]));
        assert_eq!(between(&then, &now, Duration::from_secs(1), Some(&[])).len(), 0);
        let all = between(&then, &now, Duration::from_secs(1), None);
        assert_eq!((all.len(), all[0].percent), (2, None));
        let nothing = between(&then, &then, Duration::ZERO, None);
        assert_eq!(
            (nothing[0].seen_percent, nothing[0].failed_percent, nothing[0].requests_per_second),
            (None, None, 0.0)
        );
    }
}
