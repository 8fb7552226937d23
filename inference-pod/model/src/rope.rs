//! Rotary position embedding: what config.json asks for, and the frequencies that follow from it.
//!
//! transformers 5 writes `rope_parameters` (with `rope_theta` inside), older versions `rope_theta` and `rope_scaling`; both
//! are read. The frequencies are computed in f32 step by step as transformers does, so that angles agree at long positions.

use std::f32::consts::PI;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::config::CONFIG_FILE;
use crate::error::{ModelError, clip};

const DEFAULT_THETA: f64 = 10_000.0;

/// Rotary position embedding of a model.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rope {
    /// Base of the geometric series of wavelengths.
    pub theta: f64,
    /// How the series is stretched for contexts longer than the model was first trained on.
    pub scaling: RopeScaling,
}

/// How rotary frequencies are stretched.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "type")]
pub enum RopeScaling {
    /// Not at all.
    Default,
    /// Every frequency divided by `factor`.
    Linear {
        /// The divisor; at least 1.
        factor: f64,
    },
    /// Llama 3: long wavelengths divided by `factor`, short ones kept, those between interpolated.
    #[serde(rename_all = "camelCase")]
    Llama3 {
        /// The divisor of long wavelengths; at least 1.
        factor: f64,
        /// Wavelengths above `original_max_position_embeddings / low_freq_factor` are long.
        low_freq_factor: f64,
        /// Wavelengths below `original_max_position_embeddings / high_freq_factor` are short.
        high_freq_factor: f64,
        /// Context length the model was first trained on, in tokens.
        original_max_position_embeddings: u32,
    },
}

impl Rope {
    /// Frequencies in radians per position, `head_dim / 2` of them, highest first. The angle of pair `i` at position `p` is
    /// `p * frequencies[i]`; pair `i` is made of the head's elements `i` and `i + head_dim / 2`.
    #[must_use]
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation)] // f32 throughout, as the reference does
    pub fn inverse_frequencies(&self, head_dim: u32) -> Vec<f32> {
        let theta = self.theta as f32;
        (0..head_dim / 2)
            .map(|pair| 1.0 / theta.powf((2 * pair) as f32 / head_dim as f32))
            .map(|frequency| self.scaling.apply(frequency))
            .collect()
    }

    /// Reads the rotary settings of a config.json.
    pub(crate) fn parse(config: &Map<String, Value>) -> Result<Self, ModelError> {
        let (field, settings) = match (config.get("rope_parameters"), config.get("rope_scaling")) {
            (Some(Value::Object(settings)), _) => ("rope_parameters", Some(settings)),
            (_, Some(Value::Object(settings))) => ("rope_scaling", Some(settings)),
            (Some(Value::Null) | None, Some(Value::Null) | None) => ("rope_parameters", None),
            _ => return Err(ModelError::invalid(CONFIG_FILE, "rope_parameters must be an object")),
        };
        let theta = match settings.and_then(|s| s.get("rope_theta")).or_else(|| config.get("rope_theta")) {
            None | Some(Value::Null) => DEFAULT_THETA,
            Some(value) => number("rope_theta", value, 1.0, 1e12)?,
        };
        let Some(settings) = settings else { return Ok(Self { theta, scaling: RopeScaling::Default }) };
        if let Some(partial) = settings.get("partial_rotary_factor").and_then(Value::as_f64)
            && (partial - 1.0).abs() > f64::EPSILON
        {
            let problem = format!("{field}.partial_rotary_factor {partial} is not supported, only 1.0 is");
            return Err(ModelError::unsupported(CONFIG_FILE, problem));
        }
        let kind = match settings.get("rope_type").or_else(|| settings.get("type")) {
            None | Some(Value::Null) => "default",
            Some(Value::String(kind)) => kind.as_str(),
            Some(_) => {
                return Err(ModelError::invalid(CONFIG_FILE, format!("{field}.rope_type must be a string")));
            }
        };
        let need = |key: &str, least: f64, most: f64| match settings.get(key) {
            Some(value) => number(&format!("{field}.{key}"), value, least, most),
            None => Err(ModelError::invalid(
                CONFIG_FILE,
                format!("{field}.{key} is missing, rope type {kind} needs it"),
            )),
        };
        let scaling = match kind {
            "default" => RopeScaling::Default,
            "linear" => RopeScaling::Linear { factor: need("factor", 1.0, 1e6)? },
            "llama3" => {
                let low_freq_factor = need("low_freq_factor", 1e-6, 1e6)?;
                let high_freq_factor = need("high_freq_factor", 1e-6, 1e6)?;
                if high_freq_factor <= low_freq_factor {
                    let problem = format!(
                        "{field}.high_freq_factor ({high_freq_factor}) must be greater than low_freq_factor ({low_freq_factor})"
                    );
                    return Err(ModelError::invalid(CONFIG_FILE, problem));
                }
                let original = need("original_max_position_embeddings", 1.0, 2f64.powi(28))?;
                #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // bounded above
                RopeScaling::Llama3 {
                    factor: need("factor", 1.0, 1e6)?,
                    low_freq_factor,
                    high_freq_factor,
                    original_max_position_embeddings: original as u32,
                }
            }
            other => {
                let problem = format!(
                    "{field}.rope_type \"{}\" is not supported; supported are default, linear and llama3",
                    clip(other)
                );
                return Err(ModelError::unsupported(CONFIG_FILE, problem));
            }
        };
        Ok(Self { theta, scaling })
    }
}

impl RopeScaling {
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation)] // f32 throughout, as the reference does
    fn apply(self, frequency: f32) -> f32 {
        match self {
            Self::Default => frequency,
            Self::Linear { factor } => frequency / factor as f32,
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                let original = original_max_position_embeddings as f32;
                let (factor, low, high) = (factor as f32, low_freq_factor as f32, high_freq_factor as f32);
                let wavelength = 2.0 * PI / frequency;
                if wavelength > original / low {
                    frequency / factor
                } else if wavelength < original / high {
                    frequency
                } else {
                    let smooth = (original / wavelength - low) / (high - low);
                    (1.0 - smooth) * frequency / factor + smooth * frequency
                }
            }
        }
    }
}

fn number(field: &str, value: &Value, least: f64, most: f64) -> Result<f64, ModelError> {
    match value.as_f64() {
        Some(number) if (least..=most).contains(&number) => Ok(number),
        _ => Err(ModelError::invalid(
            CONFIG_FILE,
            format!("{field} is {}, it must be a number from {least} to {most}", clip(&value.to_string())),
        )),
    }
}
