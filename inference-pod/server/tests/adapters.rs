//! LoRA adapters of a real pod: model names of their own, loaded and unloaded on the admin port while others are answered.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod pod;

use std::path::Path;

use pod::{Pod, make_model, run_to_failure};
use serde_json::{Value, json};

const TEXT: &str = "/v1/completions";

fn adapter(name: &str) -> String {
    let folder =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../backend-torch/tests/lora_reference").join(name);
    folder.to_str().unwrap().to_owned()
}

fn text(model: &str, extra: Value) -> Value {
    let mut body = json!({"model": model, "prompt": "the quick brown fox jumps over the lazy dog", "temperature": 0,
        "max_tokens": 20, "ignore_eos": true});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

async fn answer(pod: &Pod, model: &str) -> String {
    let (status, answer) = pod.ask(TEXT, text(model, json!({}))).await;
    assert_eq!(status, 200, "{answer}");
    answer["choices"][0]["text"].as_str().unwrap().to_owned()
}

/// Sends to the admin port; returns the status and the text.
async fn admin(pod: &Pod, what: &str, body: Value) -> (u16, String) {
    let url = format!("{}/v1/{what}", pod.admin.as_deref().unwrap());
    let answer = pod.client.post(url).json(&body).send().await.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

async fn load(pod: &Pod, name: &str, folder: &str) -> (u16, String) {
    admin(pod, "load_lora_adapter", json!({"lora_name": name, "lora_path": folder})).await
}

async fn unload(pod: &Pod, name: &str) -> (u16, String) {
    admin(pod, "unload_lora_adapter", json!({ "lora_name": name })).await
}

async fn start(arguments: &[&str]) -> Pod {
    let first = format!("french={}", adapter("every_projection"));
    let mut all = vec!["--admin-listen", "127.0.0.1:0", "--max-adapters", "2", "--adapter", &first];
    all.extend(arguments);
    Pod::start(&all).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_adapter_is_a_model_name_with_answers_of_its_own() {
    let pod = start(&[]).await;
    let models = pod.get("/v1/models").await;
    let ids: Vec<&Value> = models["data"].as_array().unwrap().iter().map(|model| &model["id"]).collect();
    assert_eq!(ids, ["tiny", "french"]);
    let french = pod.get("/v1/models/french").await;
    assert_eq!(
        (&french["parent"], french["root"].as_str().unwrap()),
        (&json!("tiny"), &*adapter("every_projection"))
    );

    let (own, base) = (answer(&pod, "french").await, answer(&pod, "tiny").await);
    assert_ne!(own, base);
    let together = tokio::join!(answer(&pod, "tiny"), answer(&pod, "french"), answer(&pod, "tiny"));
    assert_eq!(together, (base.clone(), own.clone(), base));

    // The same files under another name answer alike; a third adapter is one too many.
    let (status, told) = load(&pod, "german", &adapter("every_projection")).await;
    assert_eq!((status, &*told), (200, "Success: LoRA adapter 'german' added successfully."));
    assert_eq!(answer(&pod, "german").await, own);
    let (status, told) = load(&pod, "third", &adapter("patterns")).await;
    assert!(status == 400 && told.contains("engine.maxAdapters"), "{told}");
    let listed = pod.client.get(format!("{}/v1/lora_adapters", pod.admin.as_deref().unwrap()));
    let listed: Value = listed.send().await.unwrap().json().await.unwrap();
    assert_eq!((&listed["max_loras"], &listed["data"][1]["lora_name"]), (&json!(2), &json!("german")));
    assert_eq!(listed["data"][0]["rank"], 8);

    let metrics = pod.client.get(format!("{}/metrics", pod.url)).send().await.unwrap().text().await.unwrap();
    let line = metrics.lines().find(|line| line.starts_with("vllm:lora_requests_info{")).unwrap();
    assert!(line.contains("max_lora=\"2\"") && line.contains("running_lora_adapters=\"\""), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_requests_are_answered_as_vllm_does_and_change_nothing() {
    let pod = start(&[]).await;
    for (name, folder, status, text) in [
        ("", "/x", 400, "must be provided"),
        ("x", "", 400, "must be provided"),
        ("french", "/x", 400, "already been loaded"),
        ("tiny", "/x", 400, "the model's own name"),
        ("a,b", "/x", 400, "lora_name"),
        ("x", "/nowhere", 404, "adapter_config.json"),
        ("x", "s3://bucket/x", 400, "unknown scheme"),
        ("x", &adapter("tied"), 200, "added"),
        ("y", &adapter("first_layer"), 400, "engine.maxAdapters"),
    ] {
        let (found, told) = load(&pod, name, folder).await;
        assert!(found == status && told.contains(text), "{name} {folder}: {found} {told}");
    }
    let (status, told) = admin(&pod, "load_lora_adapter", json!(7)).await;
    assert_eq!(status, 400, "{told}");
    let (status, told) = unload(&pod, "nobody").await;
    assert!(status == 404 && told.contains("cannot be found"), "{told}");
    assert_eq!(unload(&pod, "").await.0, 400);

    // The public port knows nothing of all this, and the admin port answers no request for text.
    for path in ["/v1/load_lora_adapter", "/v1/unload_lora_adapter"] {
        let (status, _) = pod.ask(path, json!({"lora_name": "x", "lora_path": "/x"})).await;
        assert_eq!(status, 404);
    }
    let (status, told) = admin(&pod, "completions", text("tiny", json!({}))).await;
    assert!(status == 404 && told.contains("the API has /v1/load_lora_adapter"), "{told}");
    let url = format!("{}/v1/load_lora_adapter", pod.admin.as_deref().unwrap());
    let read = pod.client.get(url).send().await.unwrap();
    assert_eq!((read.status().as_u16(), read.headers()["allow"].to_str().unwrap()), (405, "POST"));
    let (status, told) = pod.ask(TEXT, text("klingon", json!({}))).await;
    assert_eq!(status, 404);
    let message = told["error"]["message"].as_str().unwrap();
    assert!(message.contains("tiny, french"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_adapter_leaves_without_cutting_an_answer_and_its_name_can_come_back_as_another() {
    let pod = start(&[]).await;
    let before = answer(&pod, "french").await;
    let mut stream =
        pod.post(TEXT, &text("french", json!({"max_tokens": 400, "stream": true}))).send().await.unwrap();
    let mut received = stream.chunk().await.unwrap().expect("a first chunk").to_vec();
    let reading = async {
        while let Some(chunk) = stream.chunk().await.unwrap() {
            received.extend_from_slice(&chunk);
        }
        received
    };
    let (received, (status, told)) = tokio::join!(reading, unload(&pod, "french"));
    assert_eq!((status, &*told), (200, "Success: LoRA adapter 'french' removed successfully."));
    let chunks = pod::events(std::str::from_utf8(&received).unwrap());
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "length");
    assert_eq!(pod.ask(TEXT, text("french", json!({}))).await.0, 404);
    assert_eq!(pod.get("/v1/models").await["data"].as_array().unwrap().len(), 1);

    // The same name, other weights: nothing that was computed with the old ones is used.
    assert_eq!(load(&pod, "french", &adapter("patterns")).await.0, 200);
    let after = answer(&pod, "french").await;
    assert_ne!(after, before);
    assert_eq!(load(&pod, "fresh", &adapter("patterns")).await.0, 200);
    let salted = pod.ask(TEXT, text("fresh", json!({"cache_salt": "none of the old"}))).await.1;
    assert_eq!(salted["choices"][0]["text"], *after);
    assert_eq!(unload(&pod, "french").await.0, 200);
    assert_eq!(load(&pod, "french", &adapter("every_projection")).await.0, 200);
    assert_eq!(answer(&pod, "french").await, before);
}

#[test]
fn a_pod_whose_adapter_cannot_be_served_does_not_start() {
    let model = make_model();
    let (code, reason) = run_to_failure(model.path(), &["--adapter", "french=/nowhere"]);
    assert_eq!(code, Some(1));
    assert!(reason.starts_with("ModelNotFound: adapters: french: "), "{reason}");
    let own = format!("tiny={}", adapter("patterns"));
    let (_, reason) = run_to_failure(model.path(), &["--adapter", &own]);
    assert!(reason.starts_with("InvalidSpec: adapters: tiny: "), "{reason}");
    let (_, reason) = run_to_failure(model.path(), &["--admin-listen", "256.0.0.1:1"]);
    assert!(reason.starts_with("PodFailed: server.adminListen (--admin-listen): "), "{reason}");
}
