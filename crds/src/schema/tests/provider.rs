//! What an API server says of `spec.backends[].provider`.

use serde_json::{Value, json};

use super::{refusals, route};

fn refused(provider: &Value) -> Vec<String> {
    let mut whole = json!({"url": "https://api.example.com/v1", "model": "m"});
    if let (Some(whole), Some(more)) = (whole.as_object_mut(), provider.as_object()) {
        whole.extend(more.clone());
    }
    refusals("modelroutes", &route(&json!([{"name": "cloud", "provider": whole}])))
}

#[test]
fn a_key_and_certificate_authorities_come_from_one_place_each() {
    let of = |name: &str| json!({"name": name, "key": "k"});
    for good in [
        json!({}),
        json!({"apiKeySecretRef": of("key"), "caSecretRef": of("ca")}),
        json!({"apiKeySecretRef": of("key"), "caConfigMapRef": of("bundle")}),
        json!({"apiKeyFile": "/key", "caFile": "/ca.pem"}),
    ] {
        assert_eq!(refused(&good), Vec::<String>::new(), "{good}");
    }
    for (bad, part) in [
        (json!({"apiKeySecretRef": of("key"), "apiKeyEnv": "KEY"}), "at most one of apiKeySecretRef"),
        (
            json!({"caSecretRef": of("ca"), "caConfigMapRef": of("bundle")}),
            "at most one of caSecretRef and caConfigMapRef",
        ),
        (
            json!({"caConfigMapRef": of("bundle"), "caFile": "/ca.pem"}),
            "at most one of caSecretRef and caConfigMapRef",
        ),
        (json!({"url": "http://api.example.com"}), "provider.url must be https"),
    ] {
        let found = refused(&bad);
        assert!(found.len() == 1 && found[0].contains(part), "{bad}: {found:?}");
    }
}
