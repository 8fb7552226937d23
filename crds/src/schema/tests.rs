mod endpoint_policy;
mod provider;
mod rules;

use std::path::Path;

use serde_json::{Value, json};

use super::{definitions, generated_files};

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

fn schema_of(plural: &str) -> Value {
    let definition = definitions().unwrap().into_iter().find(|crd| crd.spec.names.plural == plural).unwrap();
    serde_json::to_value(definition)
        .unwrap()
        .pointer("/spec/versions/0/schema/openAPIV3Schema")
        .unwrap()
        .clone()
}

#[test]
fn generated_files_are_current() {
    for (path, contents) in generated_files().unwrap() {
        let checked_in = std::fs::read_to_string(root().join(&path)).unwrap_or_default();
        assert!(
            checked_in == contents,
            "{} is stale: run `cargo run -p fairlead-crds --bin fairlead-crdgen`",
            path.display()
        );
    }
}

#[test]
fn every_definition_stays_far_below_the_limit_of_client_side_apply() {
    for (path, contents) in generated_files().unwrap() {
        assert!(contents.len() < 256 * 1024, "{} has {} bytes", path.display(), contents.len());
        assert!(!contents.contains("{{"), "{} would be taken for a Helm expression", path.display());
    }
}

#[test]
fn schemas_are_structural() {
    for plural in ["evaluations", "modeldeployments", "modelroutes"] {
        structural(plural, &schema_of(plural));
    }
}

/// Every value has a type (or is an int-or-string), no schema has `$ref`, `default`, `nullable` or a format that is
/// unknown to Kubernetes, and `additionalProperties` and `properties` exclude each other.
fn structural(path: &str, schema: &Value) {
    let known = ["int32", "int64", "double", "date-time"];
    assert!(schema.is_object(), "{path} is {schema}");
    assert!(
        schema.get("type").is_some() || schema.get("x-kubernetes-int-or-string").is_some(),
        "{path} has no type: {schema}"
    );
    for forbidden in ["$ref", "default", "nullable", "definitions", "uniqueItems"] {
        assert!(schema.get(forbidden).is_none(), "{path} has {forbidden}");
    }
    if let Some(format) = schema.get("format").and_then(Value::as_str) {
        assert!(known.contains(&format), "{path} has the format {format}");
    }
    assert!(schema.get("properties").is_none() || schema.get("additionalProperties").is_none(), "{path}");
    for (name, below) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        structural(&format!("{path}.{name}"), below);
    }
    for below in ["items", "additionalProperties"] {
        if let Some(below) = schema.get(below) {
            structural(&format!("{path}[]"), below);
        }
    }
}

#[test]
fn strings_and_lists_with_rules_are_bounded_so_that_the_rules_stay_cheap() {
    for plural in ["evaluations", "modeldeployments", "modelroutes"] {
        bounded(plural, &schema_of(plural)["properties"]["spec"]);
    }
}

fn bounded(path: &str, schema: &Value) {
    if schema.get("x-kubernetes-validations").is_some() {
        let bound = match schema["type"].as_str() {
            Some("string") => schema.get("maxLength"),
            Some("array") => schema.get("maxItems"),
            _ => Some(&Value::Null),
        };
        assert!(bound.is_some(), "{path} has rules and no bound");
    }
    for (name, below) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        bounded(&format!("{path}.{name}"), below);
    }
    if let Some(below) = schema.get("items") {
        bounded(&format!("{path}[]"), below);
    }
}

/// What the rules say of an object, as an API server would.
fn refusals(plural: &str, object: &Value) -> Vec<String> {
    match kube_cel::Validator::new().validate(&schema_of(plural), object, None) {
        Ok(()) => Vec::new(),
        Err(errors) => errors.iter().map(ToString::to_string).collect(),
    }
}

fn deployment(spec: &Value) -> Value {
    json!({"apiVersion": "fairlead.dev/v1alpha1", "kind": "ModelDeployment", "metadata": {"name": "tiny"}, "spec": spec})
}

fn route(backends: &Value) -> Value {
    json!({"apiVersion": "fairlead.dev/v1alpha1", "kind": "ModelRoute", "metadata": {"name": "chat"},
           "spec": {"backends": backends}})
}

#[test]
fn good_objects_pass_the_rules() {
    for uri in [
        "hf://org/name",
        "hf://org/name@main",
        "hf://org/name@refs/pr/1",
        "pvc://claim",
        "pvc://claim/a/b",
        "oci://registry:5000/models/tiny:1",
        "oci://tiny@sha256:00#/weights",
        "file:///models/tiny",
    ] {
        assert_eq!(
            refusals("modeldeployments", &deployment(&json!({"model": {"uri": uri}}))),
            Vec::<String>::new()
        );
    }
    for utilization in ["0.9", ".5", "1", "1.0", "0.05"] {
        let spec = json!({"model": {"uri": "hf://a/b"}, "engine": {"gpuMemoryUtilization": utilization}});
        assert_eq!(refusals("modeldeployments", &deployment(&spec)), Vec::<String>::new());
    }
    for tiers in [
        json!([]),
        json!([{"name": "host", "memory": "32Gi"}]),
        json!([{"name": "host", "memory": "0.5Gi"}, {"name": "disk", "size": "200Gi", "volume": {"claim": "kv"}}]),
        json!([{"name": "disk", "size": "1e11", "volume": {"emptyDir": {}}}]),
    ] {
        let spec = json!({"model": {"uri": "hf://a/b"}, "kvCache": {"prefixSharing": true, "tiers": tiers}});
        assert_eq!(refusals("modeldeployments", &deployment(&spec)), Vec::<String>::new());
    }
    let spec = json!({"model": {"uri": "hf://a/b"}, "update": {"maxSurge": 0}});
    assert_eq!(refusals("modeldeployments", &deployment(&spec)), Vec::<String>::new());
    for backends in [
        json!([{"name": "a", "modelDeployment": "x"}]),
        json!([{"name": "a", "modelDeployment": "x", "weight": 1}, {"name": "b", "modelDeployment": "y"}]),
        json!([{"name": "a", "endpoints": ["http://127.0.0.1:8001"]}]),
    ] {
        assert_eq!(refusals("modelroutes", &route(&backends)), Vec::<String>::new());
    }
}

#[test]
fn bad_objects_are_refused_with_the_field_and_the_remedy() {
    let model = json!({"uri": "hf://a/b"});
    for (spec, part) in [
        (json!({"model": {"uri": "http://a/b"}}), "spec.model.uri must start with hf://"),
        (json!({"model": {"uri": "hf://a"}}), "hf://org/name@revision"),
        (json!({"model": {"uri": "pvc:///x"}}), "pvc://claim/path"),
        (json!({"model": {"uri": "oci://"}}), "oci://image#/folder"),
        (json!({"model": {"uri": "hf://a/b", "digest": "md5:1"}}), "spec.model.digest must be sha256:"),
        (json!({"model": model, "engine": {"gpuMemoryUtilization": "0"}}), "above 0 and at most 1"),
        (json!({"model": model, "engine": {"gpuMemoryUtilization": "1.1"}}), "above 0 and at most 1"),
        (json!({"model": model, "update": {"maxSurge": 0, "maxUnavailable": 0}}), "must not both be 0"),
        (
            json!({"model": model, "kvCache": {"prefixSharing": false, "tiers": [{"name": "host", "memory": "1Gi"}]}}),
            "set it to true or leave the tiers out",
        ),
        (
            json!({"model": model,
                   "kvCache": {"tiers": [{"name": "disk", "size": "1Gi"}, {"name": "host", "memory": "1Gi"}]}}),
            "host comes before disk",
        ),
        (json!({"model": model, "kvCache": {"tiers": [{"name": "host"}]}}), "the tier host has memory"),
        (
            json!({"model": model, "kvCache": {"tiers": [{"name": "host", "memory": "0Gi"}]}}),
            "positive quantity",
        ),
        (
            json!({"model": model, "kvCache": {"tiers": [{"name": "disk", "size": "-1Gi"}]}}),
            "positive quantity",
        ),
        (
            json!({"model": model, "kvCache": {"tiers": [{"name": "disk", "size": "1Gi", "memory": "1Gi"}]}}),
            "the tier disk has size",
        ),
        (
            json!({"model": model, "kvCache": {"tiers": [{"name": "disk", "size": "1Gi", "volume": {}}]}}),
            "either claim or emptyDir",
        ),
    ] {
        let refusals = refusals("modeldeployments", &deployment(&spec));
        assert!(refusals.iter().any(|refusal| refusal.contains(part)), "{spec}: {refusals:?}");
    }
    for (backends, part) in [
        (json!([{"name": "a", "modelDeployment": "x", "weight": 0}]), "weights sum to zero"),
        (
            json!([{"name": "a", "modelDeployment": "x"}, {"name": "b", "modelDeployment": "y"}]),
            "weights sum to zero",
        ),
        (json!([{"name": "a"}]), "exactly one of modelDeployment"),
        (
            json!([{"name": "a", "modelDeployment": "x", "endpoints": ["http://h"]}]),
            "exactly one of modelDeployment",
        ),
        (json!([{"name": "A b", "modelDeployment": "x"}]), "spec.backends[].name"),
        (
            json!([{"name": "a", "modelDeployment": "x", "costPerMillionTokens": "cheap"}]),
            "decimal in a string",
        ),
    ] {
        let refusals = refusals("modelroutes", &route(&backends));
        assert!(refusals.iter().any(|refusal| refusal.contains(part)), "{backends}: {refusals:?}");
    }
    let mut long = deployment(&json!({"model": model}));
    long["metadata"]["name"] = json!("1-starts-with-a-digit");
    assert!(refusals("modeldeployments", &long).iter().any(|refusal| refusal.contains("metadata.name")));
}

fn evaluation(change: &Value) -> Value {
    let mut object = json!({"apiVersion": "fairlead.dev/v1alpha1", "kind": "Evaluation", "metadata": {"name": "quality"},
        "spec": {"questions": {"configMapRef": {"name": "questions", "key": "all.jsonl"}}, "target": {"route": "chat"}}});
    for (path, value) in change.as_object().unwrap() {
        let (parent, field) = path.rsplit_once('/').unwrap();
        object.pointer_mut(parent).unwrap()[field] = value.clone();
    }
    object
}

#[test]
fn evaluations_keep_the_rules_or_are_told_the_field_and_the_remedy() {
    for good in [
        json!({}),
        json!({"/spec/target": {"route": "chat", "backends": ["v1", "v2"]}}),
        json!({"/spec/target": {"modelDeployment": "tiny"}}),
        json!({"/spec/sampling": {"temperature": "0.7", "maxTokens": 64, "seed": 7}}),
        json!({"/spec/timeout": "1h30m", "/spec/requestTimeout": "45s", "/spec/runOn": "Request"}),
        json!({"/spec/scores": ["f1", "exactMatch"], "/spec/ignore": []}),
    ] {
        assert_eq!(refusals("evaluations", &evaluation(&good)), Vec::<String>::new(), "{good}");
    }
    for (bad, part) in [
        (json!({"/spec/target": {}}), "exactly one of route and modelDeployment"),
        (
            json!({"/spec/target": {"route": "a", "modelDeployment": "b"}}),
            "exactly one of route and modelDeployment",
        ),
        (
            json!({"/spec/target": {"modelDeployment": "b", "backends": ["v1"]}}),
            "backends are those of a route",
        ),
        (json!({"/spec/sampling": {"temperature": "2.5"}}), "between 0 and 2"),
        (json!({"/spec/timeout": "soon"}), "spec.timeout must be hours"),
        (json!({"/spec/requestTimeout": ""}), "spec.requestTimeout must be hours"),
        (json!({"/spec/questions/configMapRef": {"name": "Q", "key": "a"}}), "the name of a ConfigMap"),
        (json!({"/spec/questions/configMapRef": {"name": "q", "key": "a/b"}}), "a key of a ConfigMap"),
        (json!({"/metadata/name": "9"}), "metadata.name"),
    ] {
        let refusals = refusals("evaluations", &evaluation(&bad));
        assert!(refusals.iter().any(|refusal| refusal.contains(part)), "{bad}: {refusals:?}");
    }
}

fn judged(analysis: &Value) -> Value {
    let mut route = route(
        &json!([{"name": "v1", "modelDeployment": "x", "weight": 1}, {"name": "v2", "modelDeployment": "y"}]),
    );
    route["spec"]["canary"] =
        json!({"backend": "v2", "steps": [{"weight": 5, "hold": "10m"}], "analysis": analysis});
    route
}

#[test]
fn gates_keep_the_rules_or_are_told_the_field_and_the_remedy() {
    for gate in [
        json!({"metric": "ErrorRate", "max": "2%"}),
        json!({"metric": "ErrorRate", "maxRegression": "0.01"}),
        json!({"metric": "TimeToFirstToken", "quantile": "0.95", "max": "800ms"}),
        json!({"metric": "InterTokenLatency", "minImprovement": "10%"}),
        json!({"metric": "TokensPerAnswer", "quantile": ".5", "min": "20"}),
        json!({"metric": "Prometheus", "max": "-1.5", "prometheus": {"query": "up"}}),
        json!({"metric": "Evaluation", "evaluation": "faq", "score": "exactMatch", "maxRegression": "2%"}),
    ] {
        assert_eq!(refusals("modelroutes", &judged(&json!({"gates": [gate]}))), Vec::<String>::new());
    }
    for (gate, part) in [
        (json!({"metric": "ErrorRate"}), "set exactly one of max, min"),
        (json!({"metric": "ErrorRate", "max": "1%", "maxRegression": "1%"}), "set exactly one of max, min"),
        (json!({"metric": "ErrorRate", "max": "1 %"}), "a bound is a number"),
        (json!({"metric": "ErrorRate", "max": "1%", "quantile": "0.5"}), "leave it out"),
        (json!({"metric": "EndToEndLatency", "max": "1s", "quantile": "95"}), "above 0 and below 1"),
        (json!({"metric": "Prometheus", "max": "1"}), "needs prometheus with its query"),
        (
            json!({"metric": "Prometheus", "maxRegression": "1", "prometheus": {"query": "up"}}),
            "gives one number",
        ),
        (json!({"metric": "Evaluation", "min": "1", "evaluation": "faq"}), "needs evaluation and score"),
        (json!({"metric": "ErrorRate", "max": "1", "score": "f1"}), "no other metric has them"),
    ] {
        let refusals = refusals("modelroutes", &judged(&json!({"gates": [gate]})));
        assert!(refusals.iter().any(|refusal| refusal.contains(part)), "{gate}: {refusals:?}");
    }
    for (field, value, part) in [
        ("interval", json!("soon"), "spec.canary.analysis.interval"),
        ("alpha", json!("1"), "spec.canary.analysis.alpha"),
        ("alpha", json!("0.0"), "spec.canary.analysis.alpha"),
    ] {
        let mut analysis = json!({"gates": [{"metric": "ErrorRate", "max": "1%"}]});
        analysis[field] = value;
        let refusals = refusals("modelroutes", &judged(&analysis));
        assert!(refusals.iter().any(|refusal| refusal.contains(part)), "{analysis}: {refusals:?}");
    }
}
