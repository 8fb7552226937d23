//! generation_config.json: the sampling defaults and stop tokens that a model's authors chose. Optional in a model's folder.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::config::{MAX_CONFIG_BYTES, token_ids};
use crate::error::ModelError;

/// The file this module reads.
pub const GENERATION_CONFIG_FILE: &str = "generation_config.json";

/// Sampling defaults of a model; what is absent is the server's choice.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GenerationDefaults {
    /// Tokens that end an answer, beside those of config.json.
    #[serde(default)]
    pub eos_token_ids: Vec<u32>,
    /// Sampling temperature.
    pub temperature: Option<f32>,
    /// Nucleus size.
    pub top_p: Option<f32>,
    /// Number of likeliest tokens kept.
    pub top_k: Option<u32>,
}

impl GenerationDefaults {
    /// Reads generation_config.json. Sampling numbers out of range are treated as absent: they are advice, not structure.
    ///
    /// # Errors
    /// [`ModelError::Invalid`] for bytes that are not a JSON object, or stop tokens that are no token ids.
    #[allow(clippy::cast_possible_truncation)] // f64 -> f32 of a bounded advice value
    pub fn parse(bytes: &[u8]) -> Result<Self, ModelError> {
        let invalid = |problem: String| ModelError::invalid(GENERATION_CONFIG_FILE, problem);
        if bytes.len() > MAX_CONFIG_BYTES {
            return Err(invalid(format!(
                "is {} bytes long, at most {MAX_CONFIG_BYTES} are read",
                bytes.len()
            )));
        }
        let value: Value =
            serde_json::from_slice(bytes).map_err(|error| invalid(format!("is not JSON: {error}")))?;
        let Value::Object(map) = value else { return Err(invalid("must hold a JSON object".to_owned())) };
        let number = |field: &str, least: f64, most: f64| {
            map.get(field).and_then(Value::as_f64).filter(|n| (least..=most).contains(n)).map(|n| n as f32)
        };
        Ok(Self {
            eos_token_ids: token_ids(GENERATION_CONFIG_FILE, "eos_token_id", map.get("eos_token_id"))?,
            temperature: number("temperature", 0.0, 2.0),
            top_p: number("top_p", f64::from(f32::EPSILON), 1.0),
            top_k: map.get("top_k").and_then(Value::as_u64).and_then(|k| u32::try_from(k).ok()),
        })
    }
}
