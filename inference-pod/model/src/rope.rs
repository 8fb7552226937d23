//! Rotary position embedding: what config.json asks for, and the frequencies that follow from it.
//!
//! transformers 5 writes `rope_parameters` (with `rope_theta` inside), older versions `rope_theta` and `rope_scaling`; both
//! are read. The frequencies are computed in f32 step by step as transformers does, so that angles agree at long positions.

use std::f32::consts::PI;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::config::CONFIG_FILE;
use crate::error::{ModelError, clip};
use crate::fields::Fields;

const DEFAULT_THETA: f64 = 10_000.0;

/// Most positions that any setting may speak of.
const MOST_POSITIONS: u32 = 1 << 28;

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
    /// Dynamic NTK: a greater base for sequences longer than `max_position_embeddings`, and nothing up to there. The engine
    /// runs none that are longer, so nothing is what it comes to: were the base to change as a sequence grows, keys of the
    /// same token would depend on when they were computed, and no cached block could be used again.
    Dynamic {
        /// By how much longer sequences stretch the base; at least 1.
        factor: f64,
    },
    /// YaRN: frequencies that turn less than `beta_slow` times within the original context are divided by `factor`, those
    /// that turn more than `beta_fast` times are kept, those between are interpolated; queries and keys grow by
    /// `attention_factor`.
    #[serde(rename_all = "camelCase")]
    Yarn {
        /// The divisor; at least 1.
        factor: f64,
        /// Turns above which a frequency is kept.
        beta_fast: f64,
        /// Turns below which it is divided in full.
        beta_slow: f64,
        /// Context length the model was first trained on, in tokens.
        original_max_position_embeddings: u32,
        /// What sines and cosines are multiplied by.
        attention_factor: f64,
        /// Whether the two borders are rounded outwards to whole pairs.
        truncate: bool,
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
        let (low, high) = self.interpolated_pairs(head_dim);
        (0..head_dim / 2)
            .map(|pair| {
                let wavelength = theta.powf((2 * pair) as f32 / head_dim as f32);
                let frequency = 1.0 / wavelength;
                match self.scaling {
                    RopeScaling::Default | RopeScaling::Dynamic { .. } => frequency,
                    RopeScaling::Linear { factor } => frequency / factor as f32,
                    RopeScaling::Llama3 { .. } => self.scaling.llama3(frequency),
                    RopeScaling::Yarn { factor, .. } => {
                        let ramp = ((pair as f32 - low) / (high - low)).clamp(0.0, 1.0);
                        let kept = 1.0 - ramp;
                        1.0 / (factor as f32 * wavelength) * (1.0 - kept) + frequency * kept
                    }
                }
            })
            .collect()
    }

    /// What sines and cosines are multiplied by: 1 but for YaRN.
    #[must_use]
    pub fn attention_factor(&self) -> f64 {
        match self.scaling {
            RopeScaling::Yarn { attention_factor, .. } => attention_factor,
            _ => 1.0,
        }
    }

    /// Longest sequence that the stretching is made for, in tokens, where it says so itself. Checkpoints that are to run
    /// with YaRN often leave `max_position_embeddings` at the length they were trained on.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // clamped
    pub(crate) fn longest_sequence(&self) -> Option<u32> {
        match self.scaling {
            RopeScaling::Yarn { factor, original_max_position_embeddings, .. } => {
                let stretched = factor * f64::from(original_max_position_embeddings);
                Some(stretched.clamp(1.0, f64::from(MOST_POSITIONS)) as u32)
            }
            _ => None,
        }
    }

    /// The pairs between which YaRN interpolates: kept below the first, divided in full above the second.
    #[allow(clippy::cast_possible_truncation)] // f32 is what the ramp is computed in
    fn interpolated_pairs(&self, head_dim: u32) -> (f32, f32) {
        let RopeScaling::Yarn { beta_fast, beta_slow, original_max_position_embeddings, truncate, .. } =
            self.scaling
        else {
            return (0.0, 1.0);
        };
        let dim = f64::from(head_dim);
        let positions = f64::from(original_max_position_embeddings);
        // The pair that turns so many times in the original context.
        let pair = |turns: f64| {
            dim * (positions / (turns * 2.0 * std::f64::consts::PI)).ln() / (2.0 * self.theta.ln())
        };
        let (low, high) = (pair(beta_fast), pair(beta_slow));
        let (low, high) = if truncate { (low.floor(), high.ceil()) } else { (low, high) };
        let (low, high) = (low.max(0.0), high.min(dim - 1.0));
        // Two borders in one place would divide by nothing.
        let high = if low.total_cmp(&high).is_eq() { high + 0.001 } else { high };
        (low as f32, high as f32)
    }

    /// Reads the rotary settings of a config.json whose `max_position_embeddings` is `positions`.
    pub(crate) fn parse(config: Fields<'_>, positions: u32) -> Result<Self, ModelError> {
        let settings = settings(config)?;
        let within = settings.map(|fields| fields.optional_number("rope_theta", 1.0, 1e12)).transpose()?;
        let theta = match within.flatten() {
            Some(theta) => theta,
            None => config.optional_number("rope_theta", 1.0, 1e12)?.unwrap_or(DEFAULT_THETA),
        };
        for fields in settings.iter().chain([&config]) {
            if let Some(partial) = fields.get("partial_rotary_factor").and_then(Value::as_f64)
                && (partial - 1.0).abs() > f64::EPSILON
            {
                let problem = format!("is {partial}, which is not supported; only 1.0 is");
                return Err(fields.unsupported("partial_rotary_factor", &problem));
            }
        }
        let Some(fields) = settings else { return Ok(Self { theta, scaling: RopeScaling::Default }) };
        if let Some((layer_type, _)) = fields.map.iter().find(|(_, value)| value.is_object()) {
            let problem = "holds settings of its own for one type of layers, which is not supported";
            return Err(fields.unsupported(&clip(layer_type), problem));
        }
        let kind = match fields.optional_text("rope_type")? {
            Some(kind) => kind,
            None => fields.optional_text("type")?.unwrap_or("default"),
        };
        let scaling = Scaling { config, fields, kind, positions, theta }.parse()?;
        Ok(Self { theta, scaling })
    }
}

/// The object that holds the rotary settings, if there is one.
fn settings(config: Fields<'_>) -> Result<Option<Fields<'_>>, ModelError> {
    let within = |prefix, map| Some(Fields { file: CONFIG_FILE, prefix, map });
    match (config.get("rope_parameters"), config.get("rope_scaling")) {
        (Some(Value::Object(map)), _) => Ok(within("rope_parameters.", map)),
        (None, Some(Value::Object(map))) => Ok(within("rope_scaling.", map)),
        (None, None) => Ok(None),
        _ => Err(config.invalid("rope_parameters", "must be an object")),
    }
}

/// What the settings of one type of stretching are read from.
struct Scaling<'a> {
    config: Fields<'a>,
    fields: Fields<'a>,
    kind: &'a str,
    positions: u32,
    theta: f64,
}

impl Scaling<'_> {
    fn parse(&self) -> Result<RopeScaling, ModelError> {
        match self.kind {
            "default" => Ok(RopeScaling::Default),
            "linear" => Ok(RopeScaling::Linear { factor: self.need("factor", 1.0, 1e6)? }),
            "dynamic" => Ok(RopeScaling::Dynamic { factor: self.need("factor", 1.0, 1e6)? }),
            "yarn" => self.yarn(),
            "llama3" => {
                let low_freq_factor = self.need("low_freq_factor", 1e-6, 1e6)?;
                let high_freq_factor = self.need("high_freq_factor", 1e-6, 1e6)?;
                if high_freq_factor <= low_freq_factor {
                    let problem = format!(
                        "({high_freq_factor}) must be greater than low_freq_factor ({low_freq_factor})"
                    );
                    return Err(self.fields.invalid("high_freq_factor", &problem));
                }
                Ok(RopeScaling::Llama3 {
                    factor: self.need("factor", 1.0, 1e6)?,
                    low_freq_factor,
                    high_freq_factor,
                    original_max_position_embeddings: self.original_positions()?,
                })
            }
            other => {
                let problem = format!(
                    "\"{}\" is not supported; supported are default, linear, dynamic, yarn and llama3",
                    clip(other)
                );
                Err(self.fields.unsupported("rope_type", &problem))
            }
        }
    }

    fn yarn(&self) -> Result<RopeScaling, ModelError> {
        let fields = self.fields;
        let original_max_position_embeddings = self.original_positions()?;
        let factor = match fields.optional_number("factor", 1.0, 1e6)? {
            Some(factor) => factor,
            None => (f64::from(self.positions) / f64::from(original_max_position_embeddings)).max(1.0),
        };
        // The base's logarithm divides.
        if self.theta <= 1.0 {
            return Err(self.config.invalid("rope_theta", "must be greater than 1 for rope type yarn"));
        }
        let grown = |by: f64| if factor <= 1.0 { 1.0 } else { 0.1 * by * factor.ln() + 1.0 };
        let scale = |field: &str| Ok(fields.optional_number(field, 0.0, 1e6)?.filter(|scale| *scale > 0.0));
        let attention_factor = match fields.optional_number("attention_factor", 0.0, 1e6)? {
            Some(attention_factor) => attention_factor,
            None => match (scale("mscale")?, scale("mscale_all_dim")?) {
                (Some(scale), Some(all)) => grown(scale) / grown(all),
                _ => grown(1.0),
            },
        };
        // Zero is absent there, as it is to transformers.
        let beta = |field: &str, default: f64| Ok::<_, ModelError>(scale(field)?.unwrap_or(default));
        let (beta_fast, beta_slow) = (beta("beta_fast", 32.0)?, beta("beta_slow", 1.0)?);
        if beta_fast < beta_slow {
            let problem = format!("({beta_fast}) must not be less than beta_slow ({beta_slow})");
            return Err(fields.invalid("beta_fast", &problem));
        }
        Ok(RopeScaling::Yarn {
            factor,
            beta_fast,
            beta_slow,
            original_max_position_embeddings,
            attention_factor,
            truncate: fields.optional_flag("truncate")?.unwrap_or(true),
        })
    }

    fn need(&self, field: &str, least: f64, most: f64) -> Result<f64, ModelError> {
        self.fields.optional_number(field, least, most)?.ok_or_else(|| {
            self.fields.invalid(field, &format!("is missing, rope type {} needs it", self.kind))
        })
    }

    /// Context length the model was first trained on. One beside the settings goes before the one in them, and
    /// `max_position_embeddings` stands in for both, as transformers has it.
    fn original_positions(&self) -> Result<u32, ModelError> {
        let field = "original_max_position_embeddings";
        let beside = self.config.optional_size(field, MOST_POSITIONS)?;
        let within = self.fields.optional_size(field, MOST_POSITIONS)?;
        Ok(beside.or(within).unwrap_or(self.positions))
    }
}

impl RopeScaling {
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation)] // f32 throughout, as the reference does
    fn llama3(self, frequency: f32) -> f32 {
        let Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } =
            self
        else {
            return frequency;
        };
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
