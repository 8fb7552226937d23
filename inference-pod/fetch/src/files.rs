//! Which files of a model's folder are in use. Everything else (other formats, training state, pictures) is neither
//! fetched nor digested.
//!
//! In use are the small files of [`SMALL_FILES`] that exist, and the weights: `model.safetensors`, or, without it, the shards
//! that `model.safetensors.index.json` names.

use std::collections::BTreeSet;

use fairlead_model::SafetensorsIndex;
use fairlead_model::config::CONFIG_FILE;
use fairlead_model::encoder::pipeline::{MODULES_FILE, POOLING_FILE, SENTENCE_FILE};
use fairlead_model::index::{INDEX_FILE, SINGLE_FILE};
use fairlead_model::lora::{ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE};

use crate::error::FetchError;

/// The tokenizer as the pods read it.
pub const TOKENIZER_FILE: &str = "tokenizer.json";

/// Small files that are in use where they exist.
pub const SMALL_FILES: &[&str] = &[
    POOLING_FILE,
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    CONFIG_FILE,
    "generation_config.json",
    "merges.txt",
    MODULES_FILE,
    SENTENCE_FILE,
    "special_tokens_map.json",
    TOKENIZER_FILE,
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
];

/// Longest small file that is fetched, in bytes.
pub const MAX_SMALL_FILE_BYTES: u64 = 256 << 20;

/// How the weights of a model are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightsLayout {
    /// One file.
    Single,
    /// Shards, named by an index.
    Sharded,
}

/// Decides how the weights are stored and checks that the small files every model needs are there.
///
/// # Errors
/// [`FetchError::NotFound`] that says what is missing in `place` and what is there instead.
pub fn layout(place: &str, names: &[String]) -> Result<WeightsLayout, FetchError> {
    let has = |name: &str| names.iter().any(|other| other == name);
    if !has(CONFIG_FILE) {
        return Err(FetchError::NotFound(format!(
            "{place} has no {CONFIG_FILE}, so it is no model in the Hugging Face layout; it holds {}",
            listing(names)
        )));
    }
    if !has(TOKENIZER_FILE) {
        return Err(FetchError::NotFound(format!(
            "{place} has no {TOKENIZER_FILE}; save the tokenizer with transformers' save_pretrained (a fast tokenizer)"
        )));
    }
    if has(SINGLE_FILE) {
        Ok(WeightsLayout::Single)
    } else if has(INDEX_FILE) {
        Ok(WeightsLayout::Sharded)
    } else {
        let remedy = if names.iter().any(|name| name.ends_with(".bin") || name.ends_with(".pth")) {
            "its weights are in PyTorch's pickle format: save them again with safe_serialization=True"
        } else {
            "upload the weights as safetensors"
        };
        Err(FetchError::NotFound(format!("{place} has neither {SINGLE_FILE} nor {INDEX_FILE}: {remedy}")))
    }
}

/// Names of the weights files, all of which must be among `names`.
///
/// # Errors
/// [`FetchError::NotFound`] that names a missing shard.
pub fn weights(
    place: &str,
    names: &[String],
    index: Option<&SafetensorsIndex>,
) -> Result<Vec<String>, FetchError> {
    let Some(index) = index else { return Ok(vec![SINGLE_FILE.to_owned()]) };
    let shards = index.shards();
    match shards.iter().find(|shard| !names.iter().any(|name| name == *shard)) {
        None => Ok(shards.into_iter().map(str::to_owned).collect()),
        Some(missing) => Err(FetchError::NotFound(format!(
            "{place} has no {missing}, which {INDEX_FILE} names ({} shards); upload it",
            shards.len()
        ))),
    }
}

/// Names of the small files in use, the index of sharded weights included, sorted.
#[must_use]
pub fn small(names: &[String], layout: WeightsLayout) -> Vec<String> {
    let mut small: Vec<String> =
        names.iter().filter(|name| SMALL_FILES.contains(&name.as_str())).cloned().collect();
    if layout == WeightsLayout::Sharded {
        small.push(INDEX_FILE.to_owned());
    }
    small.sort();
    small
}

/// Names of the files of a LoRA adapter, all of which must be among `names`.
///
/// # Errors
/// [`FetchError::NotFound`] that names what is missing.
pub fn adapter(place: &str, names: &[String]) -> Result<BTreeSet<String>, FetchError> {
    let wanted = [ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE];
    match wanted.iter().find(|wanted| !names.iter().any(|name| name == *wanted)) {
        None => Ok(wanted.map(str::to_owned).into()),
        Some(missing) => Err(FetchError::NotFound(format!(
            "{place} has no {missing}, so it is no LoRA adapter as PEFT saves it; it holds {}",
            listing(names)
        ))),
    }
}

fn listing(names: &[String]) -> String {
    const SHOWN: usize = 6;
    match names {
        [] => "nothing".to_owned(),
        names if names.len() <= SHOWN => names.join(", "),
        names => format!("{} and {} more", names[..SHOWN].join(", "), names.len() - SHOWN),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn a_single_file_wins_over_an_index() {
        let all = names(&[CONFIG_FILE, TOKENIZER_FILE, SINGLE_FILE, INDEX_FILE, "consolidated.safetensors"]);
        assert_eq!(layout("x", &all).expect("is complete"), WeightsLayout::Single);
        assert_eq!(small(&all, WeightsLayout::Single), [CONFIG_FILE, TOKENIZER_FILE]);
        assert_eq!(weights("x", &all, None).expect("is there"), [SINGLE_FILE]);
    }

    #[test]
    fn an_adapter_is_its_two_files_and_nothing_else() {
        let all = names(&[ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE, "optimizer.pt", TOKENIZER_FILE]);
        let files = adapter("x", &all).expect("is complete");
        assert_eq!(files.into_iter().collect::<Vec<_>>(), [ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE]);
        let error = adapter("x", &names(&[ADAPTER_CONFIG_FILE])).expect_err("is not").to_string();
        assert!(error.contains("has no adapter_model.safetensors"), "{error}");
    }

    #[test]
    fn what_is_missing_is_named() {
        let error =
            |list: &[&str]| layout("the repository", &names(list)).expect_err("incomplete").to_string();
        assert!(error(&["README.md"]).contains("has no config.json"));
        assert!(error(&["README.md"]).contains("it holds README.md"));
        assert!(error(&[CONFIG_FILE, SINGLE_FILE]).contains("has no tokenizer.json"));
        assert!(error(&[CONFIG_FILE, TOKENIZER_FILE, "pytorch_model.bin"]).contains("safe_serialization"));
        let index =
            SafetensorsIndex::parse(br#"{"weight_map":{"a":"m-1.safetensors"}}"#).expect("is an index");
        let missing = weights("x", &names(&[INDEX_FILE]), Some(&index)).expect_err("is missing").to_string();
        assert!(missing.contains("m-1.safetensors"), "{missing}");
    }
}
