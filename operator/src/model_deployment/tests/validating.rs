//! Specs that contradict themselves, budgets, and when a plan must be made anew.

use std::collections::BTreeMap;

use crate::error::Error;
use crate::model_deployment::plan::{self, GPU_MEMORY_LABEL};
use crate::model_deployment::validate::{ValidatedModelDeployment, validate};
use crate::testing::{encoder_inspection, inspected, inspection, model_deployment, settings};

fn try_spec(spec: &str) -> Result<ValidatedModelDeployment, Error> {
    let yaml = format!(
        "{{apiVersion: fairlead.dev/v1alpha1, kind: ModelDeployment, metadata: {{name: a}}, spec: {spec}}}"
    );
    validate(&model_deployment(&yaml), &settings())
}

fn spec(spec: &str) -> ValidatedModelDeployment {
    try_spec(spec).unwrap()
}

#[test]
fn contradictions_name_the_field_and_the_remedy() {
    for (bad, part) in [
        ("{model: {uri: 'http://x'}}", "spec.model.uri"),
        ("{model: {uri: 'hf://x'}}", "hf://org/name@revision"),
        ("{model: {uri: 'pvc://claim/../etc'}}", "spec.model.uri"),
        ("{model: {uri: 'file:///models'}}", "pvc://claim/path"),
        ("{model: {uri: 'hf://a/b', digest: 'md5:0'}}", "spec.model.digest"),
        ("{model: {uri: 'hf://a/b'}, adapters: [{name: a, uri: 'hf://a/c'}]}", "own name"),
        ("{model: {uri: 'hf://a/b'}, adapters: [{name: x, uri: 'c'}]}", "spec.adapters[x].uri"),
        ("{model: {uri: 'hf://a/b'}, adapters: [{name: x, uri: 'pvc://c/x'}]}", "spec.adapters[x].uri"),
        ("{model: {uri: 'pvc://c/m'}, adapters: [{name: x, uri: 'pvc://d/x'}]}", "that spec.model.uri names"),
        (
            "{model: {uri: 'hf://a/b'}, adapters: [{name: x, uri: 'hf://a/c'}, {name: x, uri: 'hf://a/d'}]}",
            "two are named x",
        ),
        ("{model: {uri: 'hf://a/b'}, replicas: -1}", "spec.replicas"),
        ("{model: {uri: 'hf://a/b'}, update: {maxSurge: 0, maxUnavailable: 0}}", "set one to 1"),
        ("{model: {uri: 'hf://a/b'}, kvCache: {blockTokens: 8}}", "spec.kvCache.blockTokens"),
        ("{task: Embed, model: {uri: 'hf://a/b'}, kvCache: {blockTokens: 16}}", "spec.kvCache is for models"),
        (
            "{model: {uri: 'hf://a/b'}, kvCache: {prefixSharing: false, tiers: [{name: host, memory: 1Gi}]}}",
            "spec.kvCache.prefixSharing",
        ),
        ("{model: {uri: 'hf://a/b'}, kvCache: {tiers: [{name: host}]}}", "memory of the tier host is absent"),
        ("{model: {uri: 'hf://a/b'}, kvCache: {tiers: [{name: host, memory: '0'}]}}", "positive"),
        (
            "{model: {uri: 'hf://a/b'}, kvCache: {tiers: [{name: host, memory: 1Gi, size: 1Gi}]}}",
            "neither size",
        ),
        ("{model: {uri: 'hf://a/b'}, kvCache: {tiers: [{name: disk, memory: 1Gi, size: 1Gi}]}}", "no memory"),
        ("{model: {uri: 'hf://a/b'}, kvCache: {tiers: [{name: disk, size: '-1'}]}}", "size of the tier disk"),
        (
            "{model: {uri: 'hf://a/b'}, kvCache: {tiers: [{name: disk, size: 1Gi, volume: {}}]}}",
            "either claim",
        ),
        (
            "{model: {uri: 'hf://a/b'}, kvCache: {tiers: [{name: disk, size: 1Gi}, {name: host, memory: 1Gi}]}}",
            "host comes before disk",
        ),
        (
            "{model: {uri: 'hf://a/b'}, kvCache: {tiers: [{name: host, memory: 1Gi}, {name: host, memory: 1Gi}]}}",
            "host twice",
        ),
        (
            "{model: {uri: 'hf://a/b'}, engine: {gpuMemoryUtilization: '1.5'}}",
            "spec.engine.gpuMemoryUtilization",
        ),
        (
            "{model: {uri: 'hf://a/b'}, engine: {gpuMemoryUtilization: 'NaN'}}",
            "spec.engine.gpuMemoryUtilization",
        ),
        ("{model: {uri: 'hf://a/b'}, engine: {speculation: {tokens: 0}}}", "spec.engine.speculation.tokens"),
        (
            "{model: {uri: 'hf://a/b'}, engine: {speculation: {draftModel: {uri: 'pvc://c/x'}}}}",
            "spec.engine.speculation.draftModel.uri",
        ),
        ("{task: Embed, model: {uri: 'hf://a/b'}, engine: {quantization: int8}}", "spec.engine.quantization"),
        ("{task: Embed, model: {uri: 'hf://a/b'}, engine: {speculation: {}}}", "spec.engine.speculation"),
        ("{model: {uri: 'hf://a/b'}, resources: {memory: 'lots'}}", "spec.resources.memory"),
        ("{model: {uri: 'hf://a/b'}, resources: {cpu: '0'}}", "spec.resources.cpu"),
        ("{model: {uri: 'hf://a/b'}, resources: {gpus: 2}}", "set it to 1"),
    ] {
        match try_spec(bad) {
            Err(Error::Invalid { reason: "InvalidSpec", message, .. }) => {
                assert!(message.contains(part), "{bad}: {message}");
            }
            other => panic!("{bad}: {other:?}"),
        }
    }
}

#[test]
fn the_budget_is_a_share_of_memory_or_of_the_smallest_gpu() {
    let cpu =
        spec("{model: {uri: 'hf://a/b'}, resources: {memory: 10Gi}, engine: {gpuMemoryUtilization: '0.5'}}");
    assert_eq!(plan::memory_budget(&cpu, &[]).unwrap(), 5 << 30);
    let node = |zone: &str, memory: &str| -> BTreeMap<String, String> {
        [("zone".to_owned(), zone.to_owned()), (GPU_MEMORY_LABEL.to_owned(), memory.to_owned())].into()
    };
    let nodes = [node("a", "40960"), node("b", "81920"), node("b", "nonsense"), node("b", "163840")];
    let gpu = spec(
        "{model: {uri: 'hf://a/b'}, resources: {gpus: 1}, engine: {gpuMemoryUtilization: '0.5'}, \
         placement: {nodeSelector: {zone: b}}}",
    );
    assert_eq!(plan::memory_budget(&gpu, &nodes).unwrap(), 40 << 30);
    assert!(matches!(plan::memory_budget(&gpu, &nodes[..1]), Err(Error::Waiting { .. })), "no node matches");
    let said = spec(
        "{model: {uri: 'hf://a/b'}, resources: {gpus: 1, gpuMemory: 80Gi}, engine: {gpuMemoryUtilization: '0.5'}}",
    );
    assert_eq!(plan::memory_budget(&said, &[]).unwrap(), 40 << 30);
}

#[test]
fn tiers_add_to_the_containers_memory_and_not_to_the_plans() {
    let tiered = |tiers: &str| {
        spec(&format!(
            "{{model: {{uri: 'hf://a/b'}}, resources: {{memory: 10Gi}}, kvCache: {{tiers: {tiers}}}}}"
        ))
    };
    for (tiers, memory) in [
        ("[]", "10Gi"),
        ("[{name: host, memory: 512Mi}]", "11008Mi"),
        ("[{name: host, memory: 8Gi}]", "20480Mi"),
        ("[{name: disk, size: 100Gi}]", "10496Mi"),
    ] {
        let validated = tiered(tiers);
        assert_eq!(validated.kv_tiers.container_memory(&validated.resources).0, memory, "{tiers}");
        assert_eq!(plan::memory_budget(&validated, &[]).unwrap(), (10_u64 << 30) / 10 * 9);
    }
    let config = tiered("[{name: disk, size: 100Gi, volume: {emptyDir: {}}}]").kv_tiers.config;
    assert_eq!(config.disk.unwrap().bytes, (100_u64 << 30) / 100 * 95);
}

#[test]
fn a_plan_is_made_anew_when_what_it_rests_on_changes() {
    let inputs = |yaml: &str, budget| plan::inputs(&spec(yaml), budget);
    let original = inputs("{model: {uri: 'hf://a/b'}}", 1);
    assert_eq!(inputs("{model: {uri: 'hf://a/b'}, replicas: 7, podTemplate: {labels: {a: b}}}", 1), original);
    let known =
        plan::make(&spec("{model: {uri: 'hf://a/b'}}"), &original, 64 << 30, &inspected(inspection(1)))
            .unwrap();
    for (changed, same_source) in [
        (inputs("{model: {uri: 'hf://a/b'}}", 2), true),
        (inputs("{model: {uri: 'hf://a/b'}, engine: {dtype: bf16}}", 1), true),
        (inputs("{model: {uri: 'hf://a/b'}, engine: {maxModelLen: 9}}", 1), true),
        (inputs("{model: {uri: 'hf://a/b'}, kvCache: {blockTokens: 32}}", 1), true),
        (inputs("{model: {uri: 'hf://a/b'}, engine: {quantization: int8}}", 1), true),
        (
            inputs("{model: {uri: 'hf://a/b'}, engine: {speculation: {draftModel: {uri: 'hf://a/c'}}}}", 1),
            true,
        ),
        (inputs("{model: {uri: 'hf://a/b'}, adapters: [{name: x, uri: 'hf://a/c'}]}", 1), true),
        (inputs("{model: {uri: 'hf://a/b@v2'}}", 1), false),
        (inputs("{model: {uri: 'pvc://a/b'}}", 1), false),
    ] {
        assert_ne!(changed, original);
        assert_eq!(plan::same_source(&known, &changed), same_source);
    }
}

#[test]
fn a_task_that_the_model_is_not_for_is_refused_with_the_right_one() {
    for (yaml, found, words) in [
        (
            "{model: {uri: 'hf://a/b'}}",
            encoder_inspection(),
            "spec.task is Generate, but the model is a BertModel",
        ),
        ("{task: Rerank, model: {uri: 'hf://a/b'}}", encoder_inspection(), "set task to Embed"),
        ("{task: Embed, model: {uri: 'hf://a/b'}}", inspection(1), "set task to Generate"),
    ] {
        let error = plan::make(&spec(yaml), "x", 64 << 30, &inspected(found)).unwrap_err();
        assert!(matches!(error, Error::Invalid { reason: "InvalidSpec", .. }), "{error}");
        assert!(error.to_string().contains(words), "{error}");
    }
    let embed = spec("{task: Embed, model: {uri: 'hf://a/b'}}");
    assert!(plan::make(&embed, "x", 64 << 30, &inspected(encoder_inspection())).unwrap().fits);
    assert_ne!(plan::inputs(&embed, 1), plan::inputs(&spec("{model: {uri: 'hf://a/b'}}"), 1));
}

#[test]
fn a_length_that_the_model_was_not_made_for_is_refused() {
    let validated = spec("{model: {uri: 'hf://a/b'}, engine: {maxModelLen: 100000}}");
    let error = plan::make(&validated, "x", 64 << 30, &inspected(inspection(1))).unwrap_err();
    assert!(error.to_string().starts_with("spec.engine.maxModelLen"), "{error}");
}
