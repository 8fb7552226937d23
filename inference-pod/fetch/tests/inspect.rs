//! Inspection of models on a hub and in folders: what it costs, what it finds, what it refuses.
#![allow(clippy::expect_used)] // helpers of tests

mod common;

use std::fs;
use std::path::Path;

use common::{Scene, config_json, safetensors, shard_model, uri, write_model};
use fairlead_fetch::{FetchError, Inspection, SourceUri, inspect};
use fairlead_model::{ModelConfig, Reason};
use fairlead_test_hub::FaultKind;

const TINY: &str = "hf://org/tiny";

fn folder(path: &Path) -> SourceUri {
    uri(&format!("file://{}", path.display()))
}

/// Inspects the scene's model by both ways, which must agree, and returns the error of the folder's.
async fn refused(scene: &Scene) -> FetchError {
    let remote = inspect(&uri(TINY), &scene.client()).await.expect_err("the hub's must be refused");
    let local = inspect(&folder(&scene.model_dir()), &scene.client())
        .await
        .expect_err("the folder's must be refused");
    assert_eq!(remote.reason(), local.reason(), "{remote} / {local}");
    local
}

#[tokio::test]
async fn a_big_model_is_inspected_by_a_few_kilobytes() {
    let scene = Scene::new().await;
    let dir = scene.root.path().join("org/big");
    write_model(&dir, 1024, 1);
    let size = fs::metadata(dir.join("model.safetensors")).expect("is there").len();
    assert!(size > 50_000_000, "{size}");

    let inspection = inspect(&uri("hf://org/big"), &scene.client()).await.expect("is sound");
    let taken = scene.hub.log().body_bytes();
    assert!(taken < 16_000, "{taken} bytes for an inspection");
    assert_eq!(inspection.weight_file_bytes, size);
    assert_eq!(inspection.weight_files, 1);
    assert_eq!(inspection.config.decoder().expect("is a decoder").hidden_size, 1024);
}

#[tokio::test]
async fn hub_and_folder_agree_and_the_result_fits_a_termination_message() {
    let scene = Scene::new().await;
    let remote = inspect(&uri(TINY), &scene.client()).await.expect("is sound");
    let local = inspect(&folder(&scene.model_dir()), &scene.client()).await.expect("is sound");
    assert!(remote.revision.is_some() && local.revision.is_none());
    assert_eq!(Inspection { revision: None, ..remote.clone() }, local);

    let json = serde_json::to_string(&remote).expect("is JSON");
    assert!(json.len() < 2048, "{} bytes: {json}", json.len());
    assert_eq!(serde_json::from_str::<Inspection>(&json).expect("is read back"), remote);

    shard_model(&scene.model_dir(), 1);
    let sharded = inspect(&uri(TINY), &scene.client()).await.expect("is sound");
    assert_eq!(sharded.weights, remote.weights);
    assert_eq!(sharded.weight_files, 2);
    assert_ne!(sharded.fingerprint, remote.fingerprint);
}

#[tokio::test]
async fn parameters_are_counted_from_the_shapes() {
    let scene = Scene::new().await;
    let inspection = inspect(&uri(TINY), &scene.client()).await.expect("is sound");
    // Embedding 1000 x 128; per layer q, o 128 x 128, k, v 64 x 128, MLP 3 x 256 x 128, two norms; a last norm.
    let layer = 2 * 128 * 128 + 2 * 64 * 128 + 3 * 256 * 128 + 2 * 128;
    assert_eq!(inspection.weights.parameters, 1000 * 128 + 2 * layer + 128);
    assert_eq!(inspection.weights.tensors, 1 + 2 * 9 + 1);
}

#[tokio::test]
async fn truncated_weights_are_found_without_reading_them() {
    let scene = Scene::new().await;
    let weights = scene.model_dir().join("model.safetensors");
    let size = fs::metadata(&weights).expect("is there").len();
    let file = fs::File::options().write(true).open(&weights).expect("is there");
    for left in [size - 1, size / 2, 100, 4, 0] {
        file.set_len(left).expect("is cut");
        let error = refused(&scene).await;
        assert_eq!(error.reason(), Reason::ModelInvalid, "{left}: {error}");
        let message = error.to_string();
        assert!(message.contains("truncated") || message.contains("cut short"), "{left}: {message}");
        assert!(message.contains("model.safetensors"), "{message}");
    }
}

#[tokio::test]
async fn what_is_missing_is_named() {
    let scene = Scene::new().await;
    fs::remove_file(scene.model_dir().join("model.safetensors")).expect("was there");
    let error = refused(&scene).await;
    assert_eq!(error.reason(), Reason::ModelNotFound);
    assert!(error.to_string().contains("safe_serialization"), "{error}");
    fs::remove_file(scene.model_dir().join("config.json")).expect("was there");
    let error = refused(&scene).await;
    assert_eq!(error.reason(), Reason::ModelNotFound);
    assert!(error.to_string().contains("config.json"), "{error}");
    fs::remove_dir_all(scene.model_dir()).expect("was there");
    assert_eq!(refused(&scene).await.reason(), Reason::ModelNotFound);
}

#[tokio::test]
async fn an_unknown_architecture_is_told_before_the_weights_are_looked_at() {
    let scene = Scene::new().await;
    let config = config_json(128, 2).replace("LlamaForCausalLM", "MambaForCausalLM");
    fs::write(scene.model_dir().join("config.json"), config).expect("is written");
    scene.hub.log().clear();
    let error = refused(&scene).await;
    assert_eq!(error.reason(), Reason::UnsupportedArchitecture);
    assert!(error.to_string().contains("MambaForCausalLM"), "{error}");
    assert_eq!(scene.requests_for("model.safetensors"), []);
}

#[tokio::test]
async fn weights_of_another_model_are_told_by_their_tensors() {
    let scene = Scene::new().await;
    fs::write(scene.model_dir().join("config.json"), config_json(128, 3)).expect("is written");
    let error = refused(&scene).await;
    assert_eq!(error.reason(), Reason::ModelInvalid);
    assert!(error.to_string().contains("model.layers.2."), "{error}");

    fs::write(scene.model_dir().join("config.json"), config_json(256, 2)).expect("is written");
    let error = refused(&scene).await;
    assert!(error.to_string().contains("model.embed_tokens.weight has shape [1000, 128]"), "{error}");
}

#[tokio::test]
async fn an_index_that_lies_is_told() {
    let scene = Scene::new().await;
    shard_model(&scene.model_dir(), 1);
    let config = ModelConfig::parse(config_json(128, 2).as_bytes()).expect("is a config");
    let one: Vec<_> =
        config.tensors().expect("nothing is packed").into_iter().take(1).map(|t| (t.name, t.shape)).collect();
    fs::write(scene.model_dir().join("model-00001-of-00002.safetensors"), safetensors(&one, 1))
        .expect("is written");
    let error = refused(&scene).await;
    assert_eq!(error.reason(), Reason::ModelInvalid);
    assert!(error.to_string().contains("model.safetensors.index.json"), "{error}");
}

#[tokio::test]
async fn a_hub_without_ranges_is_read_no_further_than_needed() {
    let scene = Scene::new().await;
    scene.hub.faults().strike(FaultKind::IgnoreRange, 1, "model.safetensors");
    inspect(&uri(TINY), &scene.client()).await.expect("is sound");
}

#[tokio::test]
async fn a_long_header_is_read_in_two_steps() {
    let scene = Scene::new().await;
    let config = config_json(16, 40);
    let tensors =
        ModelConfig::parse(config.as_bytes()).expect("is a config").tensors().expect("nothing is packed");
    let tensors: Vec<_> = tensors.into_iter().map(|t| (t.name, t.shape)).collect();
    fs::write(scene.model_dir().join("config.json"), config).expect("is written");
    fs::write(scene.model_dir().join("model.safetensors"), safetensors(&tensors, 1)).expect("is written");
    let inspection = inspect(&uri(TINY), &scene.client()).await.expect("is sound");
    assert_eq!(inspection.weights.tensors, 40 * 9 + 2);
    assert_eq!(scene.requests_for("model.safetensors").len(), 2);
}

#[tokio::test]
async fn a_file_instead_of_a_folder_is_told() {
    let scene = Scene::new().await;
    let file = folder(&scene.model_dir().join("config.json"));
    let error = inspect(&file, &scene.client()).await.expect_err("is a file");
    assert!(error.to_string().contains("must name the folder"), "{error}");
}

#[tokio::test]
async fn a_redirect_that_leads_nowhere_does_not_tell_the_signature_it_came_with() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        use std::io::{BufRead, BufReader, Write};
        for mut stream in listener.incoming().flatten() {
            let mut lines = BufReader::new(&stream).lines().map_while(Result::ok);
            let signed = lines.next().is_some_and(|line| line.contains("/signed"));
            let _ = lines.find(String::is_empty);
            let location = if signed {
                String::new()
            } else {
                format!("Location: http://{address}/signed?sig=s3cret\r\n")
            };
            let head =
                format!("HTTP/1.1 302 Found\r\n{location}Content-Length: 0\r\nConnection: close\r\n\r\n");
            let _ = stream.write_all(head.as_bytes());
        }
    });
    let hub = fairlead_fetch::Hub::new(&format!("http://{address}"), None)
        .expect("a hub")
        .with_retry(fairlead_fetch::RetryPolicy::once());
    let error = inspect(&uri(TINY), &hub).await.expect_err("leads nowhere").to_string();
    assert!(error.contains("without saying where") && !error.contains("s3cret"), "{error}");
}
