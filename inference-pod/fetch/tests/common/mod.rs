//! Small models on disk and a hub that serves them, for the tests of this crate.
#![allow(dead_code)] // each test binary uses its own part
#![allow(clippy::expect_used)] // helpers of tests

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fairlead_fetch::{Hub, RetryPolicy, SourceUri};
use fairlead_model::ModelConfig;
use fairlead_test_hub::{HubOptions, TestHub};
use tempfile::TempDir;

/// A folder of repositories, a hub before it, and a folder to fetch into.
pub struct Scene {
    pub root: TempDir,
    pub cache: TempDir,
    pub hub: TestHub,
}

impl Scene {
    /// One model, `org/tiny`, with weights of about a megabyte.
    pub async fn new() -> Self {
        Self::with(|_| {}).await
    }

    pub async fn with(change: impl FnOnce(&mut HubOptions)) -> Self {
        let root = tempfile::tempdir().expect("a folder");
        write_model(&root.path().join("org/tiny"), 128, 1);
        let mut options = HubOptions::local(root.path());
        change(&mut options);
        let hub = TestHub::start(options).await.expect("the hub starts");
        Self { root, cache: tempfile::tempdir().expect("a folder"), hub }
    }

    pub fn model_dir(&self) -> PathBuf {
        self.root.path().join("org/tiny")
    }

    /// A client that does not wait long between attempts.
    pub fn client(&self) -> Hub {
        self.client_with_token(None)
    }

    pub fn client_with_token(&self, token: Option<&str>) -> Hub {
        let quick = RetryPolicy {
            attempts: 4,
            first_delay: Duration::from_millis(1),
            longest_delay: Duration::from_millis(5),
        };
        Hub::new(&self.hub.url(), token.map(str::to_owned)).expect("is a URL").with_retry(quick)
    }

    /// Requests for `file` that brought a body.
    pub fn requests_for(&self, file: &str) -> Vec<fairlead_test_hub::RequestRecord> {
        let records = self.hub.log().records();
        records.into_iter().filter(|record| record.path.ends_with(file) && record.status < 300).collect()
    }
}

pub fn uri(text: &str) -> SourceUri {
    SourceUri::parse(text).expect("is a URI")
}

pub fn config_json(hidden: u32, layers: u32) -> String {
    format!(
        r#"{{"architectures":["LlamaForCausalLM"],"hidden_size":{hidden},"intermediate_size":{},"num_hidden_layers":{layers},
        "num_attention_heads":4,"num_key_value_heads":2,"vocab_size":1000,"rms_norm_eps":1e-5,"rope_theta":10000.0,
        "max_position_embeddings":512,"tie_word_embeddings":true,"torch_dtype":"float32","bos_token_id":1,"eos_token_id":2}}"#,
        hidden * 2
    )
}

/// Writes a whole model whose weights are a pattern made from `seed`.
pub fn write_model(dir: &Path, hidden: u32, seed: u8) {
    let config = config_json(hidden, 2);
    fs::create_dir_all(dir).expect("a folder");
    let parsed = ModelConfig::parse(config.as_bytes()).expect("is a config");
    let tensors: Vec<(String, Vec<u64>)> =
        parsed.tensors().expect("nothing is packed").into_iter().map(|t| (t.name, t.shape)).collect();
    fs::write(dir.join("config.json"), config).expect("is written");
    fs::write(dir.join("tokenizer.json"), format!(r#"{{"version":"1.0","seed":{seed}}}"#))
        .expect("is written");
    fs::write(dir.join("README.md"), "A model for tests.").expect("is written");
    fs::write(dir.join("pytorch_model.bin"), [0; 64]).expect("is written");
    fs::write(dir.join("model.safetensors"), safetensors(&tensors, seed)).expect("is written");
}

/// Splits the weights of a model into two shards with an index.
pub fn shard_model(dir: &Path, seed: u8) {
    let config = fs::read(dir.join("config.json")).expect("is there");
    let tensors: Vec<_> =
        ModelConfig::parse(&config).expect("is a config").tensors().expect("nothing is packed");
    let mut map = serde_json::Map::new();
    for (number, part) in tensors.chunks(tensors.len().div_ceil(2)).enumerate() {
        let shard = format!("model-0000{}-of-00002.safetensors", number + 1);
        let part: Vec<_> = part.iter().map(|t| (t.name.clone(), t.shape.clone())).collect();
        map.extend(part.iter().map(|(name, _)| (name.clone(), shard.clone().into())));
        fs::write(dir.join(shard), safetensors(&part, seed)).expect("is written");
    }
    let index = serde_json::json!({"metadata": {"total_size": 0}, "weight_map": map});
    fs::write(dir.join("model.safetensors.index.json"), index.to_string()).expect("is written");
    fs::remove_file(dir.join("model.safetensors")).expect("was there");
}

/// A safetensors file of f32 tensors.
pub fn safetensors(tensors: &[(String, Vec<u64>)], seed: u8) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    let mut position = 0;
    for (name, shape) in tensors {
        let end = position + 4 * shape.iter().product::<u64>();
        header.insert(
            name.clone(),
            serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": [position, end]}),
        );
        position = end;
    }
    let header = serde_json::Value::Object(header).to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    let data = (0..position).map(|i| u8::try_from(i % 251).expect("is small").wrapping_mul(seed | 1));
    bytes.extend(data);
    bytes
}
