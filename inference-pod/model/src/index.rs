//! model.safetensors.index.json: which shard of a model holds which tensor.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use crate::error::{ModelError, clip};

/// The file this module reads.
pub const INDEX_FILE: &str = "model.safetensors.index.json";

/// The only weights file of a model that has no index.
pub const SINGLE_FILE: &str = "model.safetensors";

/// Longest index that is read, in bytes.
pub const MAX_INDEX_BYTES: usize = 32 << 20;

const MAX_SHARDS: usize = 1024;

/// Which shard holds which tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SafetensorsIndex {
    /// Shard file by tensor name.
    pub weight_map: BTreeMap<String, String>,
}

impl SafetensorsIndex {
    /// Reads an index. Shards must lie beside it: a name with a folder in it is refused.
    ///
    /// # Errors
    /// [`ModelError::Invalid`] that says what is wrong.
    pub fn parse(bytes: &[u8]) -> Result<Self, ModelError> {
        #[derive(Deserialize)]
        struct Index {
            weight_map: BTreeMap<String, String>,
        }
        let invalid = |problem: String| ModelError::invalid(INDEX_FILE, problem);
        if bytes.len() > MAX_INDEX_BYTES {
            return Err(invalid(format!(
                "is {} bytes long, at most {MAX_INDEX_BYTES} are read",
                bytes.len()
            )));
        }
        let index: Index = serde_json::from_slice(bytes)
            .map_err(|error| invalid(format!("is not a safetensors index: {error}")))?;
        if index.weight_map.is_empty() {
            return Err(invalid("has an empty weight_map".to_owned()));
        }
        let index = Self { weight_map: index.weight_map };
        let shards = index.shards();
        if shards.len() > MAX_SHARDS {
            return Err(invalid(format!("names {} shards, at most {MAX_SHARDS} are read", shards.len())));
        }
        if let Some(shard) = shards.iter().find(|shard| !is_plain_weights_name(shard)) {
            let problem =
                format!("names the shard \"{}\", it must be a *.safetensors file beside it", clip(shard));
            return Err(invalid(problem));
        }
        Ok(index)
    }

    /// Names of all shards, sorted.
    #[must_use]
    pub fn shards(&self) -> Vec<&str> {
        let shards: BTreeSet<&str> = self.weight_map.values().map(String::as_str).collect();
        shards.into_iter().collect()
    }
}

fn is_plain_weights_name(name: &str) -> bool {
    name.len() <= 255
        && name.ends_with(".safetensors")
        && !name.starts_with('.')
        && !name.contains(['/', '\\', '\0'])
        && !name.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_each_shard_once() {
        let json = br#"{"metadata":{"total_size":1},"weight_map":{"a":"m-2.safetensors","b":"m-1.safetensors","c":"m-2.safetensors"}}"#;
        let index = SafetensorsIndex::parse(json).expect("is well formed");
        assert_eq!(index.shards(), ["m-1.safetensors", "m-2.safetensors"]);
    }

    #[test]
    fn refuses_paths_and_other_formats() {
        for shard in
            ["../m.safetensors", "/etc/x.safetensors", "a/b.safetensors", "pytorch_model.bin", ".safetensors"]
        {
            let json = format!(r#"{{"weight_map":{{"a":"{shard}"}}}}"#);
            let error = SafetensorsIndex::parse(json.as_bytes()).expect_err("must be refused");
            assert!(error.to_string().contains(shard), "{error}");
        }
        assert!(SafetensorsIndex::parse(b"{}").is_err());
        assert!(SafetensorsIndex::parse(br#"{"weight_map":{}}"#).is_err());
    }
}
