//! config.json of a Hugging Face model folder, checked and bounded.
//!
//! Callers get a [`ModelConfig`] in which every number is in a range where the arithmetic of this crate cannot overflow and
//! no allocation is driven by the file alone. What our engine does not run is refused here by name.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::architecture::{Architecture, ArchitectureRow, AttentionBias};
use crate::dtype::StoredDtype;
use crate::error::{ModelError, clip};
use crate::fields::{Fields, read_object};
use crate::quantization::Quantization;
use crate::rope::Rope;
use crate::sliding_window::{AttentionKind, SlidingWindow};

/// The file this module reads.
pub const CONFIG_FILE: &str = "config.json";

/// Longest config.json that is read, in bytes.
pub const MAX_CONFIG_BYTES: usize = 1 << 20;

/// Values of `hidden_act` that the engine's MLP computes.
const ACTIVATIONS: [&str; 2] = ["silu", "swish"];

/// Upper limits of sizes, above any model there is. They keep every product of this crate well inside 64 bits.
pub(crate) mod limit {
    pub const WIDTH: u32 = 1 << 18;
    pub const LAYERS: u32 = 1 << 10;
    pub const HEADS: u32 = 1 << 12;
    pub const HEAD_DIM: u32 = 1 << 12;
    pub const VOCABULARY: u32 = 1 << 24;
    pub const POSITIONS: u32 = 1 << 28;
    pub const STOP_TOKENS: usize = 64;
}

/// A model's shape and settings, from config.json.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ModelConfig {
    /// First of `architectures`.
    pub architecture: Architecture,
    /// Width of the residual stream.
    pub hidden_size: u32,
    /// Width of the MLP.
    pub intermediate_size: u32,
    /// Transformer layers.
    pub num_hidden_layers: u32,
    /// Query heads.
    pub num_attention_heads: u32,
    /// Key and value heads; divides `num_attention_heads`.
    pub num_key_value_heads: u32,
    /// Width of one head; even.
    pub head_dim: u32,
    /// Rows of the embedding.
    pub vocab_size: u32,
    /// Added to the mean square in RMS norm.
    pub rms_norm_eps: f64,
    /// Rotary position embedding.
    pub rope: Rope,
    /// Whether the output projection is the embedding.
    pub tie_word_embeddings: bool,
    /// Whether the q, k and v projections have a bias.
    pub qkv_bias: bool,
    /// Whether the o projection has a bias.
    pub output_bias: bool,
    /// Whether each head of queries and keys is normed before it is turned.
    pub qk_norm: bool,
    /// Whether the gate, up and down projections have a bias.
    pub mlp_bias: bool,
    /// How the projections are packed; `None` if they are not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantization: Option<Quantization>,
    /// Layers that see only the last so many tokens; `None` if all see everything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sliding_window: Option<SlidingWindow>,
    /// Longest sequence the model was made for, in tokens; where YaRN stretches it further, that length.
    pub max_position_embeddings: u32,
    /// Number type the weights were saved in, when config.json says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stored_dtype: Option<StoredDtype>,
    /// Token that starts a sequence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bos_token_id: Option<u32>,
    /// Tokens that end an answer; generation_config.json may name more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub eos_token_ids: Vec<u32>,
}

impl ModelConfig {
    /// Reads config.json.
    ///
    /// # Errors
    /// [`ModelError::Invalid`] for bytes that are not a config.json or hold impossible numbers;
    /// [`ModelError::Unsupported`] for a model that the engine does not run, naming what is missing.
    pub fn parse(bytes: &[u8]) -> Result<Self, ModelError> {
        let map = read_object(CONFIG_FILE, bytes)?;
        let fields = Fields { file: CONFIG_FILE, prefix: "", map: &map };

        let row = ArchitectureRow::of(fields)?;
        if let Some(activation) = map.get("hidden_act").and_then(Value::as_str)
            && !ACTIVATIONS.contains(&activation)
        {
            let problem = format!("hidden_act \"{}\" is not supported; supported: silu", clip(activation));
            return Err(ModelError::unsupported(CONFIG_FILE, problem));
        }

        let hidden_size = fields.size("hidden_size", limit::WIDTH)?;
        let num_attention_heads = fields.size("num_attention_heads", limit::HEADS)?;
        let num_key_value_heads = match fields.optional_size("num_key_value_heads", limit::HEADS)? {
            Some(heads) => heads,
            None if map.contains_key("num_key_value_heads") => num_attention_heads,
            None => row.kv_heads.unwrap_or(num_attention_heads),
        };
        if num_attention_heads % num_key_value_heads != 0 {
            return Err(invalid(format!(
                "num_attention_heads ({num_attention_heads}) must be a multiple of num_key_value_heads \
                 ({num_key_value_heads})"
            )));
        }
        let head_dim = match fields.optional_size("head_dim", limit::HEAD_DIM)?.or(row.head_dim) {
            Some(head_dim) => head_dim,
            None if hidden_size % num_attention_heads == 0 => hidden_size / num_attention_heads,
            None => {
                return Err(invalid(format!(
                    "hidden_size ({hidden_size}) must be a multiple of num_attention_heads ({num_attention_heads}), \
                     or head_dim must be given"
                )));
            }
        };
        if head_dim % 2 != 0 || head_dim > limit::HEAD_DIM {
            return Err(invalid(format!(
                "head_dim is {head_dim}, it must be even and at most {}",
                limit::HEAD_DIM
            )));
        }
        let num_hidden_layers = fields.size("num_hidden_layers", limit::LAYERS)?;
        let positions = fields.size("max_position_embeddings", limit::POSITIONS)?;
        let rope = Rope::parse(fields, positions)?;
        let attention_bias =
            row.attention_bias == AttentionBias::Configured && fields.flag("attention_bias")?;

        Ok(Self {
            architecture: row.architecture,
            hidden_size,
            intermediate_size: fields.size("intermediate_size", limit::WIDTH * 4)?,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            vocab_size: fields.size("vocab_size", limit::VOCABULARY)?,
            rms_norm_eps: fields.optional_number("rms_norm_eps", 0.0, 1.0)?.unwrap_or(1e-6),
            rope,
            tie_word_embeddings: fields.flag("tie_word_embeddings")?,
            qkv_bias: attention_bias || row.attention_bias == AttentionBias::QueryKeyValue,
            output_bias: attention_bias,
            qk_norm: row.qk_norm,
            mlp_bias: row.mlp_bias && fields.flag("mlp_bias")?,
            quantization: Quantization::parse(fields)?,
            sliding_window: SlidingWindow::parse(fields, row.window, num_hidden_layers, limit::POSITIONS)?,
            max_position_embeddings: rope
                .longest_sequence()
                .unwrap_or(0)
                .max(positions)
                .min(limit::POSITIONS),
            stored_dtype: stored_dtype(&map),
            bos_token_id: token_ids(CONFIG_FILE, "bos_token_id", map.get("bos_token_id"))?.first().copied(),
            eos_token_ids: token_ids(CONFIG_FILE, "eos_token_id", map.get("eos_token_id"))?,
        })
    }

    /// Query heads that share one key and value head.
    #[must_use]
    pub fn query_groups(&self) -> u32 {
        self.num_attention_heads / self.num_key_value_heads.max(1)
    }

    /// What a layer attends to.
    #[must_use]
    pub fn attention_kind(&self, layer: u32) -> AttentionKind {
        self.sliding_window.as_ref().map_or(AttentionKind::Full, |window| window.kind(layer))
    }
}

pub(crate) fn stored_dtype(map: &Map<String, Value>) -> Option<StoredDtype> {
    let name = map.get("dtype").or_else(|| map.get("torch_dtype"))?.as_str()?;
    match name.trim_start_matches("torch.") {
        "bfloat16" => Some(StoredDtype::BF16),
        "float16" | "half" => Some(StoredDtype::F16),
        "float32" | "float" => Some(StoredDtype::F32),
        "float64" => Some(StoredDtype::F64),
        _ => None,
    }
}

/// Reads one token id, a list of them, or nothing.
pub(crate) fn token_ids(file: &str, field: &str, value: Option<&Value>) -> Result<Vec<u32>, ModelError> {
    let one = |value: &Value| {
        value.as_u64().and_then(|id| u32::try_from(id).ok()).filter(|id| *id < limit::VOCABULARY).ok_or_else(
            || {
                ModelError::invalid(
                    file,
                    format!("{field} holds {}, which is no token id", clip(&value.to_string())),
                )
            },
        )
    };
    match value {
        None | Some(Value::Null) => Ok(Vec::new()),
        // Some exporters write -1 for "none".
        Some(Value::Number(number)) if number.as_i64() == Some(-1) => Ok(Vec::new()),
        Some(Value::Array(values)) if values.len() > limit::STOP_TOKENS => Err(ModelError::invalid(
            file,
            format!("{field} holds {} tokens, at most 64 are taken", values.len()),
        )),
        Some(Value::Array(values)) => values.iter().map(one).collect(),
        Some(value) => Ok(vec![one(value)?]),
    }
}

pub(crate) fn invalid(problem: impl Into<String>) -> ModelError {
    ModelError::invalid(CONFIG_FILE, problem)
}
