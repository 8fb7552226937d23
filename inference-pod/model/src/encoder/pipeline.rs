//! What sentence-transformers writes beside a model: how the tokens' vectors become one, whether that is normalised, and
//! where texts are cut.
//!
//! A folder without these files is taken as sentence-transformers takes it: the mean of all tokens, not normalised. A module
//! that is not done is refused by its name: vectors that are almost right are worse than none.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::config::MAX_CONFIG_BYTES;
use crate::encoder::config::{EncoderConfig, EncoderFiles};
use crate::error::{ModelError, clip};
use crate::fields::read_object;

/// The list of modules.
pub const MODULES_FILE: &str = "modules.json";
/// How tokens' vectors become one.
pub const POOLING_FILE: &str = "1_Pooling/config.json";
/// Where texts are cut.
pub const SENTENCE_FILE: &str = "sentence_bert_config.json";
/// Where texts are cut, for models without the file above.
pub const TOKENIZER_CONFIG_FILE: &str = "tokenizer_config.json";

const POOLING_FOLDER: &str = "1_Pooling";
const MAX_MODULES: usize = 16;

/// How tokens' vectors become one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Pooling {
    /// Their mean.
    #[default]
    Mean,
    /// The first one's.
    Cls,
    /// The largest value of each dimension.
    Max,
}

/// What is done with the tokens' vectors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pipeline {
    /// How they become one.
    pub pooling: Pooling,
    /// Whether that one gets length 1.
    pub normalize: bool,
    /// Longest input in tokens, special tokens included, where the files say so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_seq_length: Option<u32>,
}

impl Pipeline {
    /// Reads the files around a model.
    ///
    /// # Errors
    /// [`ModelError::Invalid`] for broken files, [`ModelError::Unsupported`] for a module or a mode that is not done.
    pub(super) fn parse(files: &EncoderFiles<'_>, config: &EncoderConfig) -> Result<Self, ModelError> {
        let mut pipeline = Self { max_seq_length: max_seq_length(files)?, ..Self::default() };
        let Some(modules) = files.modules else { return Ok(pipeline) };
        for (index, module) in read_modules(modules)?.iter().enumerate() {
            match (index, module.kind.as_str()) {
                (0, "Transformer") if module.path.is_empty() => {}
                (0, "Transformer") => {
                    return Err(unsupported(format!(
                        "the model lies in the folder \"{}\"; only models in the root are read: save it again with \
                         sentence-transformers 3 or newer",
                        clip(&module.path)
                    )));
                }
                (1, "Pooling") if module.path == POOLING_FOLDER && !config.architecture.is_classifier() => {
                    let bytes = files.pooling.ok_or_else(|| {
                        ModelError::invalid(POOLING_FILE, format!("is missing, but {MODULES_FILE} names it"))
                    })?;
                    pipeline.pooling = read_pooling(bytes, config.hidden_size)?;
                }
                (2, "Normalize") => pipeline.normalize = true,
                (index, kind) => {
                    return Err(unsupported(format!(
                        "module {index} is {} in \"{}\"; supported are Transformer, then Pooling in {POOLING_FOLDER}, then \
                         Normalize",
                        clip(kind),
                        clip(&module.path)
                    )));
                }
            }
        }
        Ok(pipeline)
    }
}

fn unsupported(problem: String) -> ModelError {
    ModelError::unsupported(MODULES_FILE, problem)
}

struct Module {
    /// The class, without the package it is in: that has moved between versions.
    kind: String,
    path: String,
}

fn read_modules(bytes: &[u8]) -> Result<Vec<Module>, ModelError> {
    #[derive(Deserialize)]
    struct Entry {
        #[serde(rename = "type")]
        class: String,
        #[serde(default)]
        path: String,
    }
    let invalid = |problem: String| ModelError::invalid(MODULES_FILE, problem);
    if bytes.len() > MAX_CONFIG_BYTES {
        return Err(invalid(format!("is {} bytes long, at most {MAX_CONFIG_BYTES} are read", bytes.len())));
    }
    let entries: Vec<Entry> = serde_json::from_slice(bytes)
        .map_err(|error| invalid(format!("is not a list of modules: {error}")))?;
    if entries.is_empty() || entries.len() > MAX_MODULES {
        return Err(invalid(format!("holds {} modules, from 1 to {MAX_MODULES} are read", entries.len())));
    }
    let module = |entry: Entry| Module {
        kind: entry.class.rsplit('.').next().unwrap_or_default().to_owned(),
        path: entry.path,
    };
    Ok(entries.into_iter().map(module).collect())
}

fn read_pooling(bytes: &[u8], hidden_size: u32) -> Result<Pooling, ModelError> {
    let map = read_object(POOLING_FILE, bytes)?;
    for field in ["word_embedding_dimension", "embedding_dimension"] {
        if let Some(size) = map.get(field).and_then(Value::as_u64)
            && size != u64::from(hidden_size)
        {
            let problem = format!("{field} is {size}, but config.json's hidden_size is {hidden_size}");
            return Err(ModelError::invalid(POOLING_FILE, problem));
        }
    }
    let modes = modes(&map);
    match modes.as_slice() {
        [] => Ok(Pooling::Mean),
        ["mean"] => Ok(Pooling::Mean),
        ["cls"] => Ok(Pooling::Cls),
        ["max"] => Ok(Pooling::Max),
        [mode] => Err(ModelError::unsupported(
            POOLING_FILE,
            format!("the mode \"{}\" is not supported; supported: mean, cls, max", clip(mode)),
        )),
        several => Err(ModelError::unsupported(
            POOLING_FILE,
            format!("joins the modes {}; one of mean, cls and max is supported", clip(&several.join(", "))),
        )),
    }
}

/// The modes as newer versions write them, in one field, and as older ones did, in a flag for each.
fn modes(map: &Map<String, Value>) -> Vec<&str> {
    match map.get("pooling_mode") {
        Some(Value::String(mode)) => vec![mode],
        Some(Value::Array(modes)) => modes.iter().filter_map(Value::as_str).collect(),
        _ => map
            .iter()
            .filter(|(_, value)| value.as_bool() == Some(true))
            .filter_map(|(key, _)| key.strip_prefix("pooling_mode_"))
            .map(|mode| mode.strip_suffix("_tokens").or(mode.strip_suffix("_token")).unwrap_or(mode))
            .collect(),
    }
}

fn max_seq_length(files: &EncoderFiles<'_>) -> Result<Option<u32>, ModelError> {
    let length = |map: &Map<String, Value>, field: &str| {
        // Tokenizers without a limit write 10^30.
        map.get(field)
            .and_then(Value::as_u64)
            .and_then(|length| u32::try_from(length).ok())
            .filter(|it| *it > 0)
    };
    if let Some(bytes) = files.sentence_bert_config {
        let map = read_object(SENTENCE_FILE, bytes)?;
        if map.get("do_lower_case").and_then(Value::as_bool) == Some(true) {
            return Err(ModelError::unsupported(
                SENTENCE_FILE,
                "do_lower_case is true, which is not done; set it to false and let tokenizer.json lower the case",
            ));
        }
        if let Some(length) = length(&map, "max_seq_length") {
            return Ok(Some(length));
        }
    }
    let Some(bytes) = files.tokenizer_config else { return Ok(None) };
    Ok(length(&read_object(TOKENIZER_CONFIG_FILE, bytes)?, "model_max_length"))
}
