//! What of a route's words about slow and broken backends, and about its shadow, cannot be used. The schema refuses most of it before; by
//! hand there is no schema. Pure. The operator stalls the route for it, the gateways report it and do without.

use crate::model_route::ModelRouteSpec;
use crate::model_route::duration::parse;

/// Each problem in a person's words, with the field and the remedy.
pub fn problems(spec: &ModelRouteSpec) -> Vec<String> {
    let ModelRouteSpec { backends, timeouts, circuit_breaker, hedging, fallbacks, shadow, .. } = spec;
    let timeouts = timeouts.as_ref();
    let times = [
        ("timeouts.firstByte", timeouts.and_then(|it| it.first_byte.as_ref())),
        ("timeouts.betweenTokens", timeouts.and_then(|it| it.between_tokens.as_ref())),
        ("timeouts.request", timeouts.and_then(|it| it.request.as_ref())),
        ("circuitBreaker.openFor", circuit_breaker.as_ref().and_then(|it| it.open_for.as_ref())),
        ("hedging.after", hedging.as_ref().map(|it| &it.after)),
        ("shadow.timeout", shadow.as_ref().and_then(|it| it.timeout.as_ref())),
    ];
    let unreadable = times.into_iter().filter_map(|(field, text)| {
        let text = text.filter(|text| parse(text).is_none())?;
        Some(format!("spec.{field} is {text:?}; write a time above 0, such as 250ms, 30s or 1m30s"))
    });
    let named = fallbacks.iter().map(|it| ("fallbacks[].backend", it.backend.as_str()));
    let named = named.chain(shadow.as_ref().map(|it| ("shadow.backend", it.backend.as_str())));
    let unknown = named.filter(|(_, name)| !backends.iter().any(|backend| backend.name == *name));
    let unknown = unknown.map(|(field, name)| {
        format!("spec.{field}: there is no backend {name} in spec.backends; name one of them")
    });
    unreadable.chain(unknown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn of(extra: &Value) -> Vec<String> {
        let mut spec = json!({"backends": [{"name": "v1", "modelDeployment": "m"}]});
        for (field, value) in extra.as_object().into_iter().flatten() {
            spec[field] = value.clone();
        }
        problems(&serde_json::from_value(spec).unwrap())
    }

    #[test]
    fn each_problem_names_its_field_and_what_is_right_is_none() {
        let well = json!({"timeouts": {"firstByte": "1s", "betweenTokens": "250ms", "request": "1m30s"},
            "circuitBreaker": {"openFor": "30s"}, "hedging": {"after": "1s"},
            "fallbacks": [{"backend": "v1"}], "shadow": {"backend": "v1", "percent": 1, "timeout": "2m"}});
        assert!(of(&json!({})).is_empty() && of(&well).is_empty());
        for (field, extra) in [
            ("spec.timeouts.firstByte", json!({"timeouts": {"firstByte": "soon"}})),
            ("spec.timeouts.betweenTokens", json!({"timeouts": {"betweenTokens": "0s"}})),
            ("spec.timeouts.request", json!({"timeouts": {"request": "5"}})),
            ("spec.circuitBreaker.openFor", json!({"circuitBreaker": {"openFor": ""}})),
            ("spec.hedging.after", json!({"hedging": {"after": "-1s"}})),
            ("spec.shadow.timeout", json!({"shadow": {"backend": "v1", "percent": 1, "timeout": "1d"}})),
            ("spec.shadow.backend", json!({"shadow": {"backend": "v2", "percent": 1}})),
            ("spec.fallbacks[].backend", json!({"fallbacks": [{"backend": "v1"}, {"backend": "cloud"}]})),
        ] {
            let found = of(&extra);
            assert!(found.len() == 1 && found[0].starts_with(field), "{field}: {found:?}");
        }
        assert_eq!(of(&json!({"timeouts": {"firstByte": "x", "request": "y"}})).len(), 2);
    }
}
