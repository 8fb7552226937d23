//! The architectures that the engine runs, and what distinguishes one from another.
//!
//! All are decoders of one family: RMS norm, rotary positions, grouped query attention, a gated MLP. What differs is a row
//! of a table, read once when config.json is; after that a [`crate::ModelConfig`] says what to do and nobody asks for the
//! architecture's name again.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{ModelError, clip};
use crate::fields::Fields;

/// Architectures that the engine runs. A new one is a variant and a row in [`ArchitectureRow::TABLE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Architecture {
    /// Llama 1 to 3.x and whatever else is saved under that name.
    LlamaForCausalLM,
    /// Mistral: Llama with a sliding window.
    MistralForCausalLM,
    /// Qwen 2 and 2.5: biases on queries, keys and values; some layers may have a sliding window.
    Qwen2ForCausalLM,
    /// Qwen 3: queries and keys are normed head by head.
    Qwen3ForCausalLM,
}

/// What distinguishes one architecture from another. Defaults are those of the architecture's class in transformers 5.23,
/// as config.json may leave out what equals them.
pub(crate) struct ArchitectureRow {
    pub(crate) architecture: Architecture,
    name: &'static str,
    /// Which attention projections have a bias.
    pub(crate) attention_bias: AttentionBias,
    /// Whether `mlp_bias` counts.
    pub(crate) mlp_bias: bool,
    /// Whether each head of queries and keys is normed before it is turned.
    pub(crate) qk_norm: bool,
    /// Which layers have a sliding window.
    pub(crate) window: WindowRule,
    /// Key and value heads where config.json does not say; `None` is as many as query heads.
    pub(crate) kv_heads: Option<u32>,
    /// Width of a head where config.json does not say; `None` is hidden size by heads.
    pub(crate) head_dim: Option<u32>,
}

/// Which attention projections have a bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AttentionBias {
    /// None, whatever config.json says.
    Never,
    /// Queries, keys and values; not the output.
    QueryKeyValue,
    /// All four, or none: as `attention_bias` says.
    Configured,
}

/// Which layers have a sliding window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WindowRule {
    /// None.
    Never,
    /// All, if `sliding_window` is a number; it is 4,096 where config.json does not say.
    EveryLayer,
    /// If `use_sliding_window`: those that `layer_types` names, or those from `max_window_layers` on.
    ByLayer,
}

impl ArchitectureRow {
    const TABLE: &'static [Self] = &[
        Self {
            architecture: Architecture::LlamaForCausalLM,
            name: "LlamaForCausalLM",
            attention_bias: AttentionBias::Configured,
            mlp_bias: true,
            qk_norm: false,
            window: WindowRule::Never,
            kv_heads: None,
            head_dim: None,
        },
        Self {
            architecture: Architecture::MistralForCausalLM,
            name: "MistralForCausalLM",
            attention_bias: AttentionBias::Never,
            mlp_bias: false,
            qk_norm: false,
            window: WindowRule::EveryLayer,
            kv_heads: Some(8),
            head_dim: None,
        },
        Self {
            architecture: Architecture::Qwen2ForCausalLM,
            name: "Qwen2ForCausalLM",
            attention_bias: AttentionBias::QueryKeyValue,
            mlp_bias: false,
            qk_norm: false,
            window: WindowRule::ByLayer,
            kv_heads: Some(32),
            head_dim: None,
        },
        Self {
            architecture: Architecture::Qwen3ForCausalLM,
            name: "Qwen3ForCausalLM",
            attention_bias: AttentionBias::Configured,
            mlp_bias: false,
            qk_norm: true,
            window: WindowRule::ByLayer,
            kv_heads: Some(32),
            head_dim: Some(128),
        },
    ];

    /// The row of the architecture that a config.json names.
    pub(crate) fn of(fields: Fields<'_>) -> Result<&'static Self, ModelError> {
        let name = architecture_name(fields)?;
        Self::TABLE.iter().find(|row| row.name == name).ok_or_else(|| {
            let supported = Architecture::supported();
            let problem = format!("architecture \"{}\" is not supported; supported: {supported}", clip(name));
            ModelError::unsupported(fields.file, problem)
        })
    }
}

/// The first of `architectures` in a config.json.
pub(crate) fn architecture_name<'a>(fields: Fields<'a>) -> Result<&'a str, ModelError> {
    let name = match fields.get("architectures") {
        Some(Value::Array(names)) => names.iter().find_map(Value::as_str),
        None => None,
        Some(_) => return Err(fields.invalid("architectures", "must be a list of names")),
    };
    let problem = "is missing; it must name the model's class, as transformers writes it";
    name.ok_or_else(|| fields.invalid("architectures", problem))
}

impl Architecture {
    /// Finds an architecture by its name in config.json.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        ArchitectureRow::TABLE.iter().find(|row| row.name == name).map(|row| row.architecture)
    }

    /// The name in `architectures` of config.json.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        ArchitectureRow::TABLE.iter().find(|row| row.architecture == self).map_or("", |row| row.name)
    }

    /// Names of all architectures, for messages.
    #[must_use]
    pub fn supported() -> String {
        ArchitectureRow::TABLE.iter().map(|row| row.name).collect::<Vec<_>>().join(", ")
    }
}
