//! Encoders on a hub and in a folder: the files of sentence-transformers are part of the model.
#![allow(clippy::expect_used)] // helpers of tests

mod common;

use std::fs;
use std::path::Path;

use common::{Scene, safetensors, uri};
use fairlead_fetch::{FetchOptions, SourceUri, fetch, inspect};
use fairlead_model::encoder::{EncoderNames, Pooling};
use fairlead_model::{Checkpoint, EncoderConfig, EncoderFiles, ModelShape, Purpose, Reason};

const CONFIG: &str = r#"{"architectures":["BertModel"],"hidden_size":32,"intermediate_size":48,"num_hidden_layers":2,
    "num_attention_heads":4,"vocab_size":100,"max_position_embeddings":64,"pad_token_id":0}"#;
const MODULES: &str = r#"[{"path":"","type":"sentence_transformers.models.Transformer"},
    {"path":"1_Pooling","type":"sentence_transformers.models.Pooling"}]"#;

fn write_encoder(dir: &Path) {
    let config = EncoderConfig::parse(&EncoderFiles { config: CONFIG.as_bytes(), ..EncoderFiles::default() })
        .expect("is a config");
    let names = EncoderNames::of(&config, &Checkpoint::default());
    let tensors: Vec<_> = config.tensors(&names).into_iter().map(|t| (t.name, t.shape)).collect();
    fs::create_dir_all(dir.join("1_Pooling")).expect("a folder");
    for (name, bytes) in [
        ("config.json", CONFIG.as_bytes()),
        ("modules.json", MODULES.as_bytes()),
        ("1_Pooling/config.json", br#"{"pooling_mode": "cls"}"#),
        ("sentence_bert_config.json", br#"{"max_seq_length": 48}"#),
        ("tokenizer.json", b"{}"),
        ("model.safetensors", &safetensors(&tensors, 3)),
    ] {
        fs::write(dir.join(name), bytes).expect("is written");
    }
}

#[tokio::test]
async fn an_encoder_is_inspected_and_fetched_with_the_files_around_it() {
    let scene = Scene::new().await;
    let dir = scene.root.path().join("org/encoder");
    write_encoder(&dir);
    let hub = uri("hf://org/encoder");
    let remote = inspect(&hub, &scene.client()).await.expect("is sound");
    let ModelShape::Encoder(config) = &remote.config else { unreachable!("{:?}", remote.config) };
    assert_eq!((config.pipeline.pooling, config.max_input_tokens()), (Pooling::Cls, 48));
    assert_eq!(remote.config.purpose(), Purpose::Embed);

    let fetched =
        fetch(&hub, &scene.client(), scene.cache.path(), &FetchOptions::default()).await.expect("is fetched");
    assert_eq!(fetched.inspection, remote);
    for name in ["1_Pooling/config.json", "modules.json", "sentence_bert_config.json"] {
        let (from, to) = (fs::read(dir.join(name)), fs::read(scene.cache.path().join(name)));
        assert_eq!(from.expect("is there"), to.expect("was fetched"), "{name}");
    }

    // The vectors depend on it, so the digest does.
    fs::write(scene.cache.path().join("1_Pooling/config.json"), r#"{"pooling_mode": "max"}"#)
        .expect("is written");
    let changed = SourceUri::Folder { path: scene.cache.path().to_owned() };
    let options = FetchOptions { digest: fetched.digest, ..FetchOptions::default() };
    let error = fetch(&changed, &scene.client(), scene.cache.path(), &options).await.expect_err("is refused");
    assert_eq!(error.reason(), Reason::ModelInvalid);
}

#[tokio::test]
async fn a_module_that_is_not_done_is_told_before_a_weight_is_fetched() {
    let scene = Scene::new().await;
    let dir = scene.root.path().join("org/encoder");
    write_encoder(&dir);
    let dense = MODULES.replace("models.Pooling", "models.Dense");
    fs::write(dir.join("modules.json"), dense).expect("is written");
    let error = inspect(&uri("hf://org/encoder"), &scene.client()).await.expect_err("is refused");
    assert_eq!(error.reason(), Reason::UnsupportedArchitecture);
    assert!(error.to_string().contains("Dense"), "{error}");
    assert!(scene.requests_for("model.safetensors").is_empty());
}
