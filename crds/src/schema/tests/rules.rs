//! What an API server says of `spec.rules` and `spec.stickiness`.

use serde_json::{Value, json};

use super::{refusals, route};

fn ruled(rule: &Value) -> Value {
    let mut route =
        route(&json!([{"name": "v1", "modelDeployment": "x", "weight": 1, "costPerMillionTokens": "0.5"},
                                  {"name": "v2", "modelDeployment": "y"}]));
    route["spec"]["rules"] = json!([rule]);
    route
}

#[test]
fn good_rules_pass() {
    let any = json!({"users": ["ada"]});
    for rule in [
        json!({"name": "own-split", "match": any}),
        json!({"name": "r", "match": any, "split": [{"backend": "v2"}]}),
        json!({"name": "r", "match": any, "choose": {"prefer": "Cheapest", "among": ["v1"], "maxCostPerMillionTokens": "1.5"}}),
        json!({"name": "r", "match": {"headers": [{"name": "X-Priority", "regex": "^(?i)urgent|[a-z]{3}$"}]}}),
        json!({"name": "r", "match": {"headers": [{"name": "x", "present": false}]}}),
        json!({"name": "r", "match": {"promptTokens": {"min": 1}, "promptContains": ["in detail"]}}),
        json!({"name": "r", "match": {"maxCostPerMillionTokens": {}}}),
    ] {
        assert_eq!(refusals("modelroutes", &ruled(&rule)), Vec::<String>::new(), "{rule}");
    }
    let mut sticky = route(&json!([{"name": "a", "modelDeployment": "x"}]));
    for stickiness in [json!({"by": "User"}), json!({"by": "Header", "header": "x-session-id"})] {
        sticky["spec"]["stickiness"] = stickiness;
        assert_eq!(refusals("modelroutes", &sticky), Vec::<String>::new());
    }
}

#[test]
fn bad_rules_are_refused_at_admission() {
    let any = json!({"users": ["ada"]});
    let header = |header: Value| json!({"name": "r", "match": {"headers": [header]}});
    for (rule, part) in [
        (
            json!({"name": "r", "match": any, "split": [{"backend": "v9"}]}),
            "spec.rules[].split[].backend must be",
        ),
        (
            json!({"name": "r", "match": any, "split": [{"backend": "v1", "weight": 0}]}),
            "weights sum to zero",
        ),
        (
            json!({"name": "r", "match": any, "choose": {"prefer": "Cheapest", "among": ["v9"]}}),
            "spec.rules[].choose.among",
        ),
        (
            json!({"name": "r", "match": any, "choose": {"prefer": "Cheapest", "among": ["v2"]}}),
            "spec.rules[].choose.among",
        ),
        (
            json!({"name": "r", "match": any, "split": [{"backend": "v1"}], "choose": {"prefer": "Cheapest"}}),
            "set split or choose",
        ),
        (json!({"name": "R", "match": any}), "spec.rules[].name"),
        (json!({"name": "r", "match": {}}), "spec.rules[].match is empty"),
        (json!({"name": "r", "match": {"promptTokens": {}}}), "spec.rules[].match.promptTokens"),
        (
            json!({"name": "r", "match": {"promptTokens": {"min": 2, "max": 1}}}),
            "spec.rules[].match.promptTokens",
        ),
        (json!({"name": "r", "match": {"maxCostPerMillionTokens": {"min": "-1"}}}), "decimal in a string"),
        (header(json!({"name": "x"})), "exactly one of exact"),
        (header(json!({"name": "x", "exact": "1", "present": true})), "exactly one of exact"),
        (header(json!({"name": "a b", "present": true})), "must be the name of a header"),
        (header(json!({"name": "x", "regex": "("})), "spec.rules[0].match.headers[0].regex"),
    ] {
        let refusals = refusals("modelroutes", &ruled(&rule));
        assert!(refusals.iter().any(|refusal| refusal.contains(part)), "{rule}: {refusals:?}");
    }
    let mut priceless = ruled(&json!({"name": "r", "match": any, "choose": {"prefer": "Cheapest"}}));
    let backends = priceless["spec"]["backends"][0].as_object_mut().unwrap();
    backends.remove("costPerMillionTokens");
    assert!(
        refusals("modelroutes", &priceless)
            .iter()
            .any(|it| it.contains("spec.rules[].choose has no backend"))
    );
    let mut sticky = route(&json!([{"name": "a", "modelDeployment": "x"}]));
    for stickiness in [
        json!({"by": "Header"}),
        json!({"by": "User", "header": "x"}),
        json!({"by": "Header", "header": "a b"}),
    ] {
        sticky["spec"]["stickiness"] = stickiness;
        assert!(refusals("modelroutes", &sticky).iter().any(|it| it.contains("spec.stickiness.header")));
    }
}
