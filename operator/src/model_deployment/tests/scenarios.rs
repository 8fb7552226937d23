//! Whole reconciles against an API server in memory.

use std::sync::Arc;

use fairlead_model::Reason;
use kube::runtime::controller::Action;
use serde_json::{Value, json};

use crate::error::Error;
use crate::inspector::InspectError;
use crate::metrics::Outcome;
use crate::model_deployment::reconcile;
use crate::stores::get;
use crate::testing::{Cluster, inspection, model_deployment};

const OBJECT: &str = "/apis/fairlead.dev/v1alpha1/namespaces/models/modeldeployments/llama";
const DEPLOYMENT: &str = "/apis/apps/v1/namespaces/models/deployments/llama";
const JOB: &str = "/apis/batch/v1/namespaces/models/jobs/llama-inspect";
const INSPECTION_POD: &str = "/api/v1/namespaces/models/pods/llama-inspect-x";
const POD: &str = "/api/v1/namespaces/models/pods/llama-x";

fn cluster(yaml: &str) -> Cluster {
    let cluster = Cluster::new();
    cluster.put(OBJECT, serde_json::to_value(model_deployment(yaml)).unwrap());
    cluster
}

fn from_hub(memory: &str) -> Cluster {
    let cluster = cluster(&include_str!("fixtures/hub.yaml").replace("8Gi", memory));
    cluster.hub_has("hf://org/llama@main", Ok(inspection(1_235_814_400)));
    cluster.hub_has("hf://org/llama@c0ffee", Ok(inspection(1_235_814_400)));
    cluster
}

async fn step(cluster: &mut Cluster) -> Result<(Action, Outcome), Error> {
    cluster.sync();
    let object = get(&cluster.context.stores.model_deployments, "models", "llama").unwrap();
    reconcile(object, Arc::clone(&cluster.context)).await
}

fn ready(cluster: &Cluster) -> (String, String, String) {
    let status = cluster.get(OBJECT).unwrap()["status"].clone();
    let condition =
        status["conditions"].as_array().unwrap().iter().find(|it| it["type"] == "Ready").unwrap().clone();
    let text = |key: &str| condition[key].as_str().unwrap().to_owned();
    (text("status"), text("reason"), text("message"))
}

fn revision(cluster: &Cluster) -> Value {
    cluster.get(DEPLOYMENT).unwrap()["spec"]["template"]["metadata"]["labels"]["fairlead.dev/revision"]
        .clone()
}

/// Does what Kubernetes' own controllers and the kubelet would.
fn pods_become_ready(cluster: &Cluster) {
    let generation = cluster.get(DEPLOYMENT).unwrap()["metadata"]["generation"].clone();
    cluster.edit(DEPLOYMENT, |it| {
        it["status"] = json!({"observedGeneration": generation, "updatedReplicas": 2, "availableReplicas": 2, "replicas": 2});
    });
    for name in ["x", "y"] {
        cluster.put(
            &POD.replace("llama-x", &format!("llama-{name}")),
            json!({"metadata": {"name": format!("llama-{name}"), "namespace": "models", "labels": {
                "app.kubernetes.io/name": "fairlead-inference", "fairlead.dev/model-deployment": "llama",
                "fairlead.dev/revision": revision(cluster)}},
                "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}}),
        );
    }
}

#[tokio::test]
async fn from_nothing_to_ready_and_then_no_write_at_all() {
    let mut cluster = from_hub("8Gi");
    step(&mut cluster).await.unwrap();
    let children = [
        "serviceaccounts/llama",
        "configmaps/llama-config",
        "services/llama",
        "poddisruptionbudgets/llama",
        "deployments/llama",
    ];
    let writes = cluster.writes();
    assert_eq!(writes.len(), children.len() + 1, "{writes:?}");
    for (write, child) in writes.iter().zip(children) {
        assert!(write.starts_with("PATCH") && write.ends_with(child), "{write}");
    }
    assert_eq!(ready(&cluster).1, "RollingOut");
    assert_eq!(cluster.events(), ["RollingOut"]);
    let status = cluster.get(OBJECT).unwrap()["status"].clone();
    assert_eq!(status["plan"]["fits"], true);
    assert_eq!(status["plan"]["resolvedRevision"], "c0ffee");
    assert_eq!(status["serving"], "0/2");

    pods_become_ready(&cluster);
    step(&mut cluster).await.unwrap();
    assert_eq!((ready(&cluster).0.as_str(), ready(&cluster).1.as_str()), ("True", "Available"));
    assert_eq!(cluster.events(), ["Available"]);
    assert_eq!(cluster.writes().len(), 1, "only the status");
    assert_eq!(cluster.get(OBJECT).unwrap()["status"]["serving"], "2/2");

    assert_eq!(cluster.hub_was_asked().len(), 1);
    for _ in 0..3 {
        step(&mut cluster).await.unwrap();
    }
    assert_eq!(cluster.writes(), Vec::<String>::new());
    assert_eq!(cluster.events(), Vec::<String>::new());
    assert_eq!(cluster.hub_was_asked(), Vec::<String>::new(), "the plan is in the status");
}

#[tokio::test]
async fn drift_is_undone_and_foreign_fields_are_left_alone() {
    let mut cluster = from_hub("8Gi");
    step(&mut cluster).await.unwrap();
    cluster.writes();
    cluster.edit(DEPLOYMENT, |it| it["spec"]["minReadySeconds"] = json!(7));
    step(&mut cluster).await.unwrap();
    assert_eq!(cluster.writes(), Vec::<String>::new());
    cluster.edit(DEPLOYMENT, |it| it["spec"]["template"]["spec"]["containers"][0]["image"] = json!("evil"));
    step(&mut cluster).await.unwrap();
    assert_eq!(cluster.writes(), [format!("PATCH {DEPLOYMENT}")]);
}

#[tokio::test]
async fn what_does_not_fit_makes_no_pod_and_heals_when_fixed() {
    let mut cluster = from_hub("2Gi");
    let (_, outcome) = step(&mut cluster).await.unwrap();
    assert_eq!(outcome, Outcome::Invalid);
    assert_eq!(cluster.writes(), [format!("PATCH {OBJECT}/status")]);
    let (status, reason, message) = ready(&cluster);
    assert_eq!((status.as_str(), reason.as_str()), ("False", "DoesNotFit"));
    assert!(message.contains("GiB") && message.contains("resources.memory"), "{message}");
    assert_eq!(cluster.get(OBJECT).unwrap()["status"]["plan"]["fits"], false);
    assert!(cluster.get(DEPLOYMENT).is_none());
    // It stays settled, and the hub is left alone.
    cluster.hub_was_asked();
    step(&mut cluster).await.unwrap();
    assert_eq!((cluster.writes().len(), cluster.hub_was_asked().len()), (0, 0));

    cluster.edit(OBJECT, |it| {
        it["spec"]["resources"]["memory"] = json!("8Gi");
        it["metadata"]["generation"] = json!(2);
    });
    step(&mut cluster).await.unwrap();
    assert!(cluster.get(DEPLOYMENT).is_some());
    assert_eq!(ready(&cluster).1, "RollingOut");
    assert_eq!(cluster.hub_was_asked(), ["hf://org/llama@c0ffee"], "the revision stays where it was");
}

#[tokio::test]
async fn a_new_spec_that_does_not_fit_leaves_what_serves_alone() {
    let mut cluster = from_hub("8Gi");
    step(&mut cluster).await.unwrap();
    pods_become_ready(&cluster);
    step(&mut cluster).await.unwrap();
    let before = cluster.get(DEPLOYMENT);
    cluster.edit(OBJECT, |it| it["spec"]["resources"]["memory"] = json!("2Gi"));
    step(&mut cluster).await.unwrap();
    assert_eq!(cluster.get(DEPLOYMENT), before);
    assert_eq!(ready(&cluster).1, "DoesNotFit");
    assert_eq!(cluster.get(OBJECT).unwrap()["status"]["readyReplicas"], 2, "they still serve");
}

#[tokio::test]
async fn an_encoder_for_generation_is_stalled_until_the_task_is_corrected() {
    let mut cluster = cluster(include_str!("fixtures/hub.yaml"));
    let encoder = || Ok(crate::testing::encoder_inspection());
    cluster.hub_has("hf://org/llama@main", encoder());
    cluster.hub_has("hf://org/llama@c0ffee", encoder());
    cluster.edit(OBJECT, |it| it["spec"]["engine"] = json!({}));
    step(&mut cluster).await.unwrap();
    let (status, reason, message) = ready(&cluster);
    assert_eq!((status.as_str(), reason.as_str()), ("False", "InvalidSpec"));
    assert!(message.contains("spec.task is Generate") && message.contains("set task to Embed"), "{message}");
    assert!(cluster.get(DEPLOYMENT).is_none());

    cluster.edit(OBJECT, |it| it["spec"]["task"] = json!("Embed"));
    step(&mut cluster).await.unwrap();
    assert_eq!(ready(&cluster).1, "RollingOut");
    let plan = cluster.get(OBJECT).unwrap()["status"]["plan"].clone();
    assert_eq!((&plan["architecture"], &plan["kvCacheBytes"]), (&json!("BertModel"), &json!(0)));
}

#[tokio::test]
async fn a_model_that_is_not_there_heals_when_the_uri_is_corrected() {
    let mut cluster = from_hub("8Gi");
    let error =
        InspectError::Model { reason: Reason::ModelNotFound, message: "no repository org/lama".into() };
    cluster.hub_has("hf://org/lama@main", Err(error));
    cluster.edit(OBJECT, |it| it["spec"]["model"]["uri"] = json!("hf://org/lama"));
    step(&mut cluster).await.unwrap();
    assert_eq!(ready(&cluster), ("False".into(), "ModelNotFound".into(), "no repository org/lama".into()));
    cluster.edit(OBJECT, |it| it["spec"]["model"]["uri"] = json!("hf://org/llama"));
    step(&mut cluster).await.unwrap();
    assert_eq!(ready(&cluster).1, "RollingOut");
}

#[tokio::test]
async fn a_hub_that_does_not_answer_is_told_and_tried_again_with_backoff() {
    let mut cluster = from_hub("8Gi");
    cluster.hub_has("hf://org/llama@main", Err(InspectError::Unreachable("connection refused".into())));
    let error = step(&mut cluster).await.unwrap_err();
    assert!(error.action().is_none(), "backoff");
    let (_, reason, message) = ready(&cluster);
    assert_eq!(reason, "Waiting");
    assert!(message.contains("connection refused"));
}

#[tokio::test]
async fn hiccups_of_the_api_server_ask_for_backoff_and_say_nothing_about_the_object() {
    let mut cluster = from_hub("8Gi");
    step(&mut cluster).await.unwrap();
    pods_become_ready(&cluster);
    for code in [429, 500] {
        cluster.fail_next("modeldeployments/llama/status", code);
        let error = step(&mut cluster).await.unwrap_err();
        assert!(error.action().is_none() && !error.concerns_the_object(), "{error}");
    }
    cluster.edit(DEPLOYMENT, |it| it["spec"]["template"]["spec"]["containers"][0]["image"] = json!("evil"));
    cluster.fail_next("PATCH /apis/apps/v1", 503);
    assert!(step(&mut cluster).await.is_err());
    assert_eq!(ready(&cluster).1, "RollingOut", "the status is as it was");
    step(&mut cluster).await.unwrap();
    assert_eq!(ready(&cluster).1, "RollingOut");
}

#[tokio::test]
async fn a_refusal_of_the_api_server_is_told() {
    let mut cluster = from_hub("8Gi");
    cluster.fail_next("PATCH /apis/apps/v1", 403);
    assert!(step(&mut cluster).await.is_err());
    let (_, reason, message) = ready(&cluster);
    assert_eq!(reason, "Waiting");
    assert!(message.contains("apply Deployment llama"), "{message}");
}

#[tokio::test]
async fn a_service_of_somebody_else_is_not_taken_over() {
    let mut cluster = from_hub("8Gi");
    cluster.put(
        "/api/v1/namespaces/models/services/llama",
        json!({"metadata": {"name": "llama", "namespace": "models"}}),
    );
    step(&mut cluster).await.unwrap();
    let (_, reason, message) = ready(&cluster);
    assert_eq!(reason, "InvalidSpec");
    assert!(message.contains("Service named llama exists already"), "{message}");
    assert!(cluster.get(DEPLOYMENT).is_none());
}

#[tokio::test]
async fn an_image_is_inspected_by_a_job_whose_result_becomes_the_plan() {
    let mut cluster = cluster(&include_str!("fixtures/image.yaml").replace("name: tiny", "name: llama"));
    step(&mut cluster).await.unwrap();
    assert_eq!(ready(&cluster).1, "Inspecting");
    assert!(cluster.get(DEPLOYMENT).is_none(), "no engine pod before the plan");
    let uid = cluster.get(JOB).unwrap()["metadata"]["uid"].clone();
    cluster.writes();
    step(&mut cluster).await.unwrap();
    assert_eq!(cluster.writes(), Vec::<String>::new(), "the Job is waited for");

    cluster.edit(JOB, |it| it["status"] = json!({"conditions": [{"type": "Complete", "status": "True"}]}));
    let pod = |message: String, code: i32| {
        json!({"metadata": {"name": "llama-inspect-x", "namespace": "models", "ownerReferences": [
            {"apiVersion": "batch/v1", "kind": "Job", "name": "llama-inspect", "uid": uid}], "labels": {
            "app.kubernetes.io/name": "fairlead-inspection", "fairlead.dev/model-deployment": "llama"}},
            "status": {"phase": "Succeeded", "containerStatuses": [{"name": "inspect", "image": "", "imageID": "", "ready": false,
                "restartCount": 0, "state": {"terminated": {"exitCode": code, "message": message}}}]}})
    };
    cluster.put(INSPECTION_POD, pod(serde_json::to_string(&inspection(1_235_814_400)).unwrap(), 0));
    step(&mut cluster).await.unwrap();
    assert_eq!(ready(&cluster).1, "RollingOut");
    assert!(cluster.get(DEPLOYMENT).is_some());
    // Once the plan is in the status the Job has done its work.
    step(&mut cluster).await.unwrap();
    assert!(cluster.get(JOB).is_none());
    assert_eq!(ready(&cluster).1, "RollingOut");
    cluster.remove(INSPECTION_POD);
    cluster.writes();
    step(&mut cluster).await.unwrap();
    assert_eq!(cluster.writes(), Vec::<String>::new());
}

#[tokio::test]
async fn a_failed_inspection_is_told_once_and_looked_at_anew_for_another_image() {
    let mut cluster = cluster(&include_str!("fixtures/image.yaml").replace("name: tiny", "name: llama"));
    step(&mut cluster).await.unwrap();
    let uid = cluster.get(JOB).unwrap()["metadata"]["uid"].clone();
    cluster.edit(JOB, |it| it["status"] = json!({"conditions": [{"type": "Failed", "status": "True"}]}));
    cluster.put(
        INSPECTION_POD,
        json!({"metadata": {"name": "llama-inspect-x", "namespace": "models", "ownerReferences": [
            {"apiVersion": "batch/v1", "kind": "Job", "name": "llama-inspect", "uid": uid}], "labels": {
            "app.kubernetes.io/name": "fairlead-inspection", "fairlead.dev/model-deployment": "llama"}},
            "status": {"phase": "Failed", "containerStatuses": [{"name": "inspect", "image": "", "imageID": "", "ready": false,
                "restartCount": 0, "state": {"terminated": {"exitCode": 1,
                    "message": "UnsupportedArchitecture: config.json: MambaForCausalLM"}}}]}}),
    );
    step(&mut cluster).await.unwrap();
    assert_eq!(
        ready(&cluster),
        ("False".into(), "UnsupportedArchitecture".into(), "config.json: MambaForCausalLM".into())
    );
    cluster.writes();
    step(&mut cluster).await.unwrap();
    assert_eq!(cluster.writes(), Vec::<String>::new(), "no Job in a circle");

    cluster.edit(OBJECT, |it| it["spec"]["model"]["uri"] = json!("oci://registry.test/models/other:1"));
    step(&mut cluster).await.unwrap();
    assert!(cluster.get(JOB).is_none(), "the old Job goes first");
    step(&mut cluster).await.unwrap();
    assert!(cluster.get(JOB).is_some());
    assert_eq!(ready(&cluster).1, "Inspecting");
}

/// A smaller model of the same family.
fn small() -> fairlead_fetch::Inspection {
    let mut small = inspection(500_000_000);
    small.revision = Some("d4af7".to_owned());
    small
}

/// What an inspecting container leaves.
fn found(inspection: &fairlead_fetch::Inspection) -> String {
    serde_json::to_string(inspection).unwrap()
}

/// The inspection Job ends, its containers with these names, exit codes and messages.
fn inspection_ends(cluster: &Cluster, how: &str, containers: &[(&str, i32, String)]) {
    let uid = cluster.get(JOB).unwrap()["metadata"]["uid"].clone();
    let statuses: Vec<Value> = containers
        .iter()
        .map(|(name, code, message)| {
            json!({"name": name, "image": "", "imageID": "", "ready": false, "restartCount": 0,
                "state": {"terminated": {"exitCode": code, "message": message}}})
        })
        .collect();
    cluster.put(
        INSPECTION_POD,
        json!({"metadata": {"name": "llama-inspect-x", "namespace": "models", "ownerReferences": [
            {"apiVersion": "batch/v1", "kind": "Job", "name": "llama-inspect", "uid": uid}], "labels": {
            "app.kubernetes.io/name": "fairlead-inspection", "fairlead.dev/model-deployment": "llama"}},
            "status": {"phase": "Succeeded", "containerStatuses": statuses}}),
    );
    let conditions = json!({"conditions": [{"type": how, "status": "True"}]});
    cluster.edit(JOB, |it| it["status"] = conditions);
}

fn settings(cluster: &Cluster) -> Value {
    let map = cluster.get("/api/v1/namespaces/models/configmaps/llama-config").unwrap();
    serde_json::from_str(map["data"]["config.json"].as_str().unwrap()).unwrap()
}

#[tokio::test]
async fn what_is_served_beside_a_model_keeps_its_commit_until_its_uri_changes() {
    let mut cluster = from_hub("16Gi");
    cluster.hub_has("hf://org/small@main", Ok(small()));
    cluster.hub_has("hf://org/small@d4af7", Ok(small()));
    cluster.hub_has("hf://org/french@main", Ok(small()));
    cluster.edit(OBJECT, |it| {
        it["spec"]["engine"]["speculation"] = json!({"draftModel": {"uri": "hf://org/small"}});
        it["spec"]["adapters"] = json!([{"name": "fr", "uri": "hf://org/french"}]);
    });
    step(&mut cluster).await.unwrap();
    assert_eq!(ready(&cluster).1, "RollingOut");
    let plan = cluster.get(OBJECT).unwrap()["status"]["plan"].clone();
    assert_eq!(plan["resolved"], json!({"hf://org/french@main": "d4af7", "hf://org/small@main": "d4af7"}));
    let [alone, draft] = [1_235_814_400, 500_000_000].map(|parameters: u64| parameters * 4);
    assert_eq!(plan["weightBytes"], alone + draft, "both run as f32");
    let settings_before = settings(&cluster);
    assert_eq!(settings_before["adapters"][0]["uri"], "hf://org/french@d4af7");
    assert_eq!(settings_before["speculation"]["uri"], "hf://org/small@d4af7");

    // Both branches move on; something else changes.
    let moved = || Ok(fairlead_fetch::Inspection { revision: Some("fee1".to_owned()), ..small() });
    cluster.hub_has("hf://org/small@main", moved());
    cluster.hub_has("hf://org/french@main", moved());
    cluster.edit(OBJECT, |it| it["spec"]["engine"]["maxModelLen"] = json!(2048));
    cluster.hub_was_asked();
    step(&mut cluster).await.unwrap();
    assert_eq!(cluster.hub_was_asked(), ["hf://org/llama@c0ffee", "hf://org/small@d4af7"]);
    assert_eq!(settings(&cluster)["adapters"], settings_before["adapters"]);
    assert_eq!(settings(&cluster)["speculation"], settings_before["speculation"]);

    cluster.hub_has("hf://org/french@v2", moved());
    cluster.edit(OBJECT, |it| it["spec"]["adapters"][0]["uri"] = json!("hf://org/french@v2"));
    step(&mut cluster).await.unwrap();
    assert_eq!(settings(&cluster)["adapters"][0]["uri"], "hf://org/french@fee1");
    let resolved = cluster.get(OBJECT).unwrap()["status"]["plan"]["resolved"].clone();
    assert_eq!(resolved, json!({"hf://org/french@v2": "fee1", "hf://org/small@main": "d4af7"}));
}

#[tokio::test]
async fn an_adapter_that_is_not_there_is_named() {
    let mut cluster = from_hub("8Gi");
    let error = InspectError::Model { reason: Reason::ModelNotFound, message: "no repository org/fr".into() };
    cluster.hub_has("hf://org/fr@main", Err(error));
    cluster.edit(OBJECT, |it| it["spec"]["adapters"] = json!([{"name": "fr", "uri": "hf://org/fr"}]));
    step(&mut cluster).await.unwrap();
    let (_, reason, message) = ready(&cluster);
    assert_eq!(
        (reason.as_str(), message.as_str()),
        ("ModelNotFound", "spec.adapters[fr].uri: no repository org/fr")
    );
}

#[tokio::test]
async fn what_is_wrong_with_a_draft_model_is_told_of_the_draft_model() {
    let mut cluster = from_hub("16Gi");
    let absent =
        InspectError::Model { reason: Reason::ModelNotFound, message: "no repository org/small".into() };
    let encoder = crate::testing::encoder_inspection();
    for (answer, reason, words) in [
        (Err(absent), "ModelNotFound", "no repository org/small"),
        (Ok(encoder), "InvalidSpec", "it is a BertModel, which continues no text"),
    ] {
        cluster.hub_has("hf://org/small@main", answer);
        cluster.edit(OBJECT, |it| {
            it["spec"]["engine"]["speculation"] = json!({"draftModel": {"uri": "hf://org/small"}});
        });
        step(&mut cluster).await.unwrap();
        let (_, found, message) = ready(&cluster);
        assert_eq!(found, reason);
        assert!(
            message.starts_with("spec.engine.speculation.draftModel: ") && message.contains(words),
            "{message}"
        );
    }
}

#[tokio::test]
async fn an_images_pull_secret_is_no_token_for_a_hub() {
    let mut cluster = cluster(&include_str!("fixtures/image.yaml").replace("name: tiny", "name: llama"));
    cluster.hub_has("hf://org/fr@main", Ok(small()));
    cluster.put(
        "/api/v1/namespaces/models/secrets/pull",
        json!({"metadata": {"name": "pull", "namespace": "models"}, "data": {".dockerconfigjson": "e30="}}),
    );
    cluster.edit(OBJECT, |it| {
        it["spec"]["model"]["secretRef"] = json!({"name": "pull"});
        it["spec"]["adapters"] = json!([{"name": "fr", "uri": "hf://org/fr"}]);
    });
    step(&mut cluster).await.unwrap();
    inspection_ends(&cluster, "Complete", &[("inspect", 0, found(&inspection(1_235_814_400)))]);
    step(&mut cluster).await.unwrap();
    assert_eq!(ready(&cluster).1, "RollingOut");
    assert_eq!(settings(&cluster)["adapters"][0]["uri"], "hf://org/fr@d4af7");
}

#[tokio::test]
async fn a_draft_model_on_the_claim_is_inspected_beside_the_model() {
    let mut cluster = cluster(
        "{apiVersion: fairlead.dev/v1alpha1, kind: ModelDeployment, metadata: {name: llama}, spec: {model: {uri: \
         'pvc://disk/llama'}, resources: {memory: 16Gi}, engine: {speculation: {draftModel: {uri: 'pvc://disk/small'}}}}}",
    );
    step(&mut cluster).await.unwrap();
    let job = cluster.get(JOB).unwrap();
    let containers = job["spec"]["template"]["spec"]["containers"].as_array().unwrap();
    let arguments: Vec<_> = containers.iter().map(|it| it["args"][2].as_str().unwrap()).collect();
    assert_eq!(arguments, ["file:///models/llama", "file:///models/small"]);
    let model = || ("inspect", 0, found(&inspection(1_235_814_400)));
    let missing = ("inspect-draft", 1, "ModelNotFound: config.json is missing".to_owned());
    inspection_ends(&cluster, "Failed", &[model(), missing]);
    step(&mut cluster).await.unwrap();
    let (_, reason, message) = ready(&cluster);
    assert_eq!(reason, "ModelNotFound");
    assert_eq!(message, "spec.engine.speculation.draftModel: config.json is missing");

    inspection_ends(&cluster, "Complete", &[model(), ("inspect-draft", 0, found(&small()))]);
    step(&mut cluster).await.unwrap();
    assert_eq!(ready(&cluster).1, "RollingOut");
    let plan = cluster.get(OBJECT).unwrap()["status"]["plan"].clone();
    assert_eq!(plan["weightBytes"], (1_235_814_400_u64 + 500_000_000) * 4);
    assert_eq!(settings(&cluster)["speculation"]["uri"], "file:///models/small");
}

#[tokio::test]
async fn an_object_that_is_being_deleted_is_left_alone() {
    let mut cluster = from_hub("8Gi");
    cluster.edit(OBJECT, |it| it["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z"));
    step(&mut cluster).await.unwrap();
    assert_eq!(cluster.writes(), Vec::<String>::new());
}

#[tokio::test]
async fn without_replicas_the_number_is_left_to_others() {
    let mut cluster = cluster(&include_str!("fixtures/hub.yaml").replace("  replicas: 2\n", ""));
    cluster.hub_has("hf://org/llama@main", Ok(inspection(1_235_814_400)));
    step(&mut cluster).await.unwrap();
    assert!(cluster.get(DEPLOYMENT).unwrap()["spec"].get("replicas").is_none());
    cluster.edit(DEPLOYMENT, |it| it["spec"]["replicas"] = json!(5));
    cluster.writes();
    step(&mut cluster).await.unwrap();
    assert_eq!(cluster.get(OBJECT).unwrap()["status"]["serving"], "0/5");
    assert_eq!(cluster.writes(), [format!("PATCH {OBJECT}/status")]);
}

const CONFIG: &str = "/api/v1/namespaces/models/configmaps/llama-config";
const NODE: &str = "/api/v1/nodes/gpu";

#[tokio::test]
async fn pods_of_an_older_revision_keep_their_settings_while_they_last() {
    let mut cluster = from_hub("8Gi");
    step(&mut cluster).await.unwrap();
    let mounted = |cluster: &Cluster| {
        let volumes = cluster.get(DEPLOYMENT).unwrap()["spec"]["template"]["spec"]["volumes"].clone();
        let config = volumes.as_array().unwrap().iter().find(|it| it["name"] == "config").unwrap().clone();
        assert_eq!(config["configMap"]["items"][0]["path"], "config.json");
        config["configMap"]["items"][0]["key"].as_str().unwrap().to_owned()
    };
    let settings = |cluster: &Cluster, key: &str| cluster.get(CONFIG).unwrap()["data"][key].clone();
    let old = mounted(&cluster);
    let old_settings = settings(&cluster, &old);
    assert_eq!(settings(&cluster, "config.json"), old_settings);
    pods_become_ready(&cluster);
    let spec = cluster.get(DEPLOYMENT).unwrap()["spec"]["template"]["spec"].clone();
    for name in ["x", "y"] {
        cluster.edit(&POD.replace("llama-x", &format!("llama-{name}")), |it| it["spec"] = spec.clone());
    }
    step(&mut cluster).await.unwrap();

    cluster.edit(OBJECT, |it| it["spec"]["engine"]["maxModelLen"] = json!(1024));
    // Stopped between the two writes, whatever the Deployment still makes finds its settings.
    cluster.fail_next("PATCH /apis/apps/v1", 503);
    assert!(step(&mut cluster).await.is_err());
    assert_eq!((mounted(&cluster), settings(&cluster, &old)), (old.clone(), old_settings.clone()));
    step(&mut cluster).await.unwrap();
    let new = mounted(&cluster);
    assert_ne!(new, old);
    assert!(settings(&cluster, &new).as_str().unwrap().contains("1024"));
    assert_eq!(settings(&cluster, "config.json"), settings(&cluster, &new));
    assert_eq!(settings(&cluster, &old), old_settings, "a container that restarts reads what it read before");
    cluster.writes();
    step(&mut cluster).await.unwrap();
    assert_eq!(cluster.writes(), Vec::<String>::new());

    cluster.remove(POD);
    cluster.remove(&POD.replace("llama-x", "llama-y"));
    step(&mut cluster).await.unwrap();
    assert_eq!(cluster.writes()[0], format!("PATCH {CONFIG}"));
    assert_eq!(cluster.get(CONFIG).unwrap()["data"].as_object().unwrap().len(), 2, "the old ones are gone");
    cluster.writes();
    step(&mut cluster).await.unwrap();
    assert_eq!(cluster.writes(), Vec::<String>::new());
}

#[tokio::test]
async fn an_inspection_that_cannot_start_is_made_anew_once_the_spec_is_corrected() {
    let mut cluster = cluster(&include_str!("fixtures/image.yaml").replace("name: tiny", "name: llama"));
    step(&mut cluster).await.unwrap();
    let uid = cluster.get(JOB).unwrap()["metadata"]["uid"].clone();
    // Its pod can't pull the image, or finds no node: what is missing is added.
    cluster.edit(OBJECT, |it| {
        it["spec"]["podTemplate"]["imagePullSecrets"] = json!([{"name": "registry"}]);
        it["spec"]["placement"]["tolerations"] = json!([{"key": "models", "operator": "Exists"}]);
    });
    step(&mut cluster).await.unwrap();
    assert!(cluster.get(JOB).is_none());
    step(&mut cluster).await.unwrap();
    let job = cluster.get(JOB).unwrap();
    assert_ne!(job["metadata"]["uid"], uid);
    let pod = &job["spec"]["template"]["spec"];
    assert_eq!(pod["tolerations"][0]["key"], "models");
    assert!(pod["imagePullSecrets"].as_array().unwrap().iter().any(|it| it["name"] == "registry"));
    // What does not concern the Job leaves it alone.
    cluster.edit(OBJECT, |it| it["spec"]["replicas"] = json!(3));
    step(&mut cluster).await.unwrap();
    assert_eq!(cluster.get(JOB).unwrap()["metadata"]["uid"], job["metadata"]["uid"]);
}

#[tokio::test]
async fn once_somebody_elses_service_is_gone_the_object_heals() {
    let service = "/api/v1/namespaces/models/services/llama";
    let mut cluster = from_hub("8Gi");
    cluster.put(service, json!({"metadata": {"name": "llama", "namespace": "models"}}));
    let (action, _) = step(&mut cluster).await.unwrap();
    assert_ne!(action, Action::await_change(), "nobody tells when it goes");
    cluster.remove(service);
    step(&mut cluster).await.unwrap();
    assert_eq!(ready(&cluster).1, "RollingOut");
}

#[tokio::test]
async fn replicas_that_the_spec_lets_go_of_stay_as_they_are() {
    let mut cluster = from_hub("8Gi");
    step(&mut cluster).await.unwrap();
    cluster.writes();
    cluster.edit(OBJECT, |it| {
        it["spec"].as_object_mut().unwrap().remove("replicas");
    });
    step(&mut cluster).await.unwrap();
    let to_deployment: Vec<_> =
        cluster.writes().into_iter().filter(|write| write.ends_with(DEPLOYMENT)).collect();
    assert_eq!(to_deployment.len(), 2, "first another manager takes them, then ours lets go");
    assert_eq!(cluster.get(DEPLOYMENT).unwrap()["spec"]["replicas"], 2);
    step(&mut cluster).await.unwrap();
    assert!(!cluster.writes().iter().any(|write| write.ends_with(DEPLOYMENT)));
}

#[tokio::test]
async fn nodes_that_come_and_go_do_not_disturb_what_fits() {
    let node = |mebibytes: u32| {
        json!({"apiVersion": "v1", "kind": "Node",
            "metadata": {"name": "gpu", "labels": {"nvidia.com/gpu.memory": mebibytes.to_string()}}})
    };
    let yaml = "apiVersion: fairlead.dev/v1alpha1\nkind: ModelDeployment\nmetadata: {name: llama}\n\
                spec: {model: {uri: \"hf://org/llama@main\"}, resources: {gpus: 1}}\n";
    let mut cluster = cluster(yaml);
    for revision in ["main", "c0ffee"] {
        cluster.hub_has(&format!("hf://org/llama@{revision}"), Ok(inspection(1_235_814_400)));
    }
    step(&mut cluster).await.unwrap();
    assert_eq!(ready(&cluster).1, "Waiting", "no node says what its GPU has");
    cluster.put(NODE, node(2048));
    step(&mut cluster).await.unwrap();
    assert_eq!(ready(&cluster).1, "DoesNotFit");
    cluster.edit(NODE, |it| *it = node(81_559));
    step(&mut cluster).await.unwrap();
    assert_eq!(ready(&cluster).1, "RollingOut");
    cluster.writes();
    cluster.edit(NODE, |it| *it = node(2048));
    step(&mut cluster).await.unwrap();
    cluster.remove(NODE);
    step(&mut cluster).await.unwrap();
    assert_eq!(cluster.writes(), Vec::<String>::new());
    // A pod measures its GPU itself.
    let settings = cluster.get(CONFIG).unwrap()["data"]["config.json"].as_str().unwrap().to_owned();
    assert!(settings.contains("gpuMemoryUtilization") && !settings.contains("kvCacheBytes"), "{settings}");
    // But another spec is planned anew.
    cluster.edit(OBJECT, |it| it["spec"]["engine"] = json!({"maxModelLen": 1024}));
    step(&mut cluster).await.unwrap();
    assert_eq!(ready(&cluster).1, "Waiting");
}

#[tokio::test]
async fn a_hub_that_fails_in_other_words_each_time_is_not_asked_in_circles() {
    let mut cluster = from_hub("8Gi");
    for (attempt, asked) in [(1, 1), (2, 0), (3, 0)] {
        let error = InspectError::Unreachable(format!("no answer, request {attempt}"));
        cluster.hub_has("hf://org/llama@main", Err(error));
        assert!(step(&mut cluster).await.is_err());
        assert_eq!((cluster.hub_was_asked().len(), cluster.writes().len()), (asked, asked));
    }
}
