//! What an API server says of `spec.endpointPolicy`: the same as `EndpointPolicy::check` says of objects from files.

use serde_json::{Value, json};

use super::refusals;
use crate::model_route::endpoint_policy::EndpointPolicy;

fn route(policy: &Value) -> Value {
    json!({"apiVersion": "fairlead.dev/v1alpha1", "kind": "ModelRoute", "metadata": {"name": "chat"},
           "spec": {"backends": [{"name": "a", "modelDeployment": "x"}], "endpointPolicy": policy}})
}

#[test]
fn the_schema_and_the_check_agree() {
    for policy in [
        json!({}),
        json!({"kind": "PrefixAware", "minMatchPercent": 50, "maxExtraRequests": 0, "maxLoadPercent": 100}),
        json!({"minMatchPercent": 1}),
        json!({"kind": "LeastLoad"}),
        json!({"kind": "SessionAffinity", "session": {"by": "User"}, "maxLoadPercent": 200}),
        json!({"kind": "SessionAffinity", "session": {"by": "Header", "header": "x-session-id"}}),
    ] {
        assert_eq!(refusals("modelroutes", &route(&policy)), Vec::<String>::new(), "{policy}");
        let read: EndpointPolicy = serde_json::from_value(policy.clone()).unwrap();
        assert_eq!(read.check(), Ok(()), "{policy}");
    }
    for (policy, part) in [
        (json!({"kind": "LeastLoad", "minMatchPercent": 30}), "minMatchPercent is for kind PrefixAware"),
        (json!({"kind": "LeastLoad", "maxExtraRequests": 3}), "remove maxExtraRequests and maxLoadPercent"),
        (json!({"kind": "SessionAffinity"}), "session goes with kind SessionAffinity"),
        (json!({"session": {"by": "User"}}), "session goes with kind SessionAffinity"),
        (
            json!({"kind": "SessionAffinity", "session": {"by": "Header"}}),
            "session.header goes with by: Header",
        ),
        (
            json!({"kind": "SessionAffinity", "session": {"by": "User", "header": "x"}}),
            "session.header goes with by: Header",
        ),
        (
            json!({"kind": "SessionAffinity", "session": {"by": "Header", "header": "x y"}}),
            "session.header must be the name of a header",
        ),
    ] {
        let refusals = refusals("modelroutes", &route(&policy));
        assert!(refusals.iter().any(|refusal| refusal.contains(part)), "{policy}: {refusals:?}");
        let read: EndpointPolicy = serde_json::from_value(policy.clone()).unwrap();
        assert!(read.check().is_err(), "{policy}");
    }
}
