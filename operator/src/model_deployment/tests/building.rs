//! Fixture in, children out, as snapshots.

use serde_json::json;

use crate::model_deployment::build::{build, inspect_job};
use crate::model_deployment::{plan, validate};
use crate::testing::{encoder_inspection, inspected, inspection, model_deployment, settings};

const HUB: &str = include_str!("fixtures/hub.yaml");
const GPU: &str = include_str!("fixtures/gpu.yaml");
const IMAGE: &str = include_str!("fixtures/image.yaml");
const EMBED: &str = include_str!("fixtures/embed.yaml");
const CLAIM: &str = include_str!("fixtures/claim.yaml");

fn children(yaml: &str) -> serde_json::Value {
    let validated = validate::validate(&model_deployment(yaml), &settings()).unwrap();
    let nodes = [[(plan::GPU_MEMORY_LABEL.to_owned(), "81559".to_owned())].into()];
    let budget = plan::memory_budget(&validated, &nodes).unwrap();
    let inputs = plan::inputs(&validated, budget);
    let plan = plan::make(&validated, &inputs, budget, &inspected(inspection(1_235_814_400))).unwrap();
    let children = build(&validated, &plan, &std::collections::BTreeMap::new(), &settings());
    json!({
        "deployment": children.deployment,
        "service": children.service,
        "configMap": children.config_map,
        "serviceAccount": children.service_account,
        "podDisruptionBudget": children.pod_disruption_budget,
    })
}

#[test]
fn from_a_hub_on_the_cpu() {
    insta::assert_yaml_snapshot!(children(HUB));
}

#[test]
fn from_a_hub_on_a_gpu_with_everything_set() {
    insta::assert_yaml_snapshot!(children(GPU));
}

#[test]
fn an_encoder_has_settings_without_a_cache() {
    let validated = validate::validate(&model_deployment(EMBED), &settings()).unwrap();
    let budget = plan::memory_budget(&validated, &[]).unwrap();
    let plan = plan::make(&validated, "inputs", budget, &inspected(encoder_inspection())).unwrap();
    let children = build(&validated, &plan, &std::collections::BTreeMap::new(), &settings());
    assert_eq!((plan.kv_cache_bytes, plan.max_cached_tokens, plan.max_model_len), (0, 0, 256));
    let settings = children.config_map.data.unwrap()["config.json"].clone();
    let settings: serde_json::Value = serde_json::from_str(&settings).unwrap();
    assert_eq!(settings["task"], "Embed");
    assert_eq!(
        settings["engine"],
        json!({"device": "cpu", "dtype": "auto", "maxModelLen": 256, "maxSequences": 256, "maxBatchedTokens": 1024})
    );
}

#[test]
fn from_an_image() {
    insta::assert_yaml_snapshot!(children(IMAGE)["deployment"]);
}

#[test]
fn from_a_claim() {
    insta::assert_yaml_snapshot!(children(CLAIM)["deployment"]);
}

#[test]
fn inspection_jobs() {
    for (name, yaml) in [("image", IMAGE), ("claim", CLAIM)] {
        let validated = validate::validate(&model_deployment(yaml), &settings()).unwrap();
        let job = inspect_job::inspect_job(&validated);
        insta::assert_yaml_snapshot!(format!("inspection_job_{name}"), serde_json::to_value(job).unwrap());
    }
}

#[test]
fn the_revision_changes_with_what_pods_serve_and_with_nothing_else() {
    let revision = |yaml: &str| {
        let children = children(yaml);
        children["deployment"]["spec"]["template"]["metadata"]["labels"]["fairlead.dev/revision"].clone()
    };
    let original = revision(HUB);
    assert_eq!(revision(&HUB.replace("replicas: 2", "replicas: 3")), original);
    assert_eq!(revision(&HUB.replace("maxSurge: 0", "maxSurge: 1")), original);
    assert_ne!(revision(&HUB.replace("maxModelLen: 4096", "maxModelLen: 2048")), original);
    assert_ne!(revision(&HUB.replace("memory: 8Gi", "memory: 9Gi")), original);
}

#[test]
fn quantisation_and_guessing_reach_the_pod() {
    let of = |engine: &str| {
        let yaml = format!(
            "{{apiVersion: fairlead.dev/v1alpha1, kind: ModelDeployment, metadata: {{name: a}}, spec: {{model: {{uri: \
             'pvc://disk/llama'}}, engine: {engine}}}}}"
        );
        let settings = children(&yaml)["configMap"]["data"]["config.json"].clone();
        serde_json::from_str::<serde_json::Value>(settings.as_str().unwrap()).unwrap()
    };
    assert_eq!(of("{quantization: int4}")["engine"]["quantization"], "int4");
    assert_eq!(
        of("{speculation: {}}")["speculation"],
        json!({"method": "nGram", "tokens": 4, "longest": 4, "shortest": 2})
    );
    let on_claim = of("{speculation: {tokens: 3, draftModel: {uri: 'pvc://disk/small'}}}");
    assert_eq!(
        on_claim["speculation"],
        json!({"method": "draftModel", "tokens": 3, "uri": "file:///models/small"})
    );
    let at_hub = of("{speculation: {draftModel: {uri: 'hf://o/small@v1'}}}");
    assert_eq!(at_hub["speculation"]["uri"], "hf://o/small@v1");
    // Where there is nothing to fetch into otherwise.
    assert_eq!(at_hub["model"]["cacheDir"], "/tmp");
}

#[test]
fn adapters_reach_the_pod_from_the_models_claim_and_from_a_hub() {
    let yaml = "{apiVersion: fairlead.dev/v1alpha1, kind: ModelDeployment, metadata: {name: a}, spec: {model: {uri: \
                'pvc://disk/llama'}, adapters: [{name: fr, uri: 'pvc://disk/lora/fr'}, {name: de, uri: 'hf://o/de@v1'}]}}";
    let children = children(yaml);
    let settings: serde_json::Value =
        serde_json::from_str(children["configMap"]["data"]["config.json"].as_str().unwrap()).unwrap();
    assert_eq!(
        settings["adapters"],
        json!([{"name": "de", "uri": "hf://o/de@v1"}, {"name": "fr", "uri": "file:///models/lora/fr"}])
    );
    assert_eq!(
        (&settings["engine"]["maxAdapters"], &settings["model"]["cacheDir"]),
        (&json!(2), &json!("/tmp"))
    );
    let container = &children["deployment"]["spec"]["template"]["spec"]["containers"][0];
    assert!(container["env"].as_array().unwrap().iter().any(|variable| variable["name"] == "HF_ENDPOINT"));
    // The admin port is nobody's.
    assert_eq!(settings["server"]["adminListen"], serde_json::Value::Null);
    assert_eq!(container["ports"].as_array().unwrap().len(), 1);
}
