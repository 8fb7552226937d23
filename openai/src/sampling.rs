//! The fields that say how tokens are chosen: OpenAI's, and those that vLLM has beyond them.

use crate::error::ApiError;
use crate::fields::{Fields, describe, wrong};
use crate::generation::to_u32;
use crate::json::Json;

/// Most entries of `logit_bias`.
pub const MAX_LOGIT_BIAS: usize = 1024;
/// Largest `repetition_penalty`.
const MAX_REPETITION_PENALTY: f64 = 100.0;

/// How tokens are chosen. `None` means that the client left it open.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SamplingFields {
    /// 0 to 2; 0 takes the likeliest token.
    pub temperature: Option<f32>,
    /// Above 0, at most 1.
    pub top_p: Option<f32>,
    /// Keep this many likeliest tokens; 0 keeps all (vLLM's extension, whose -1 becomes 0).
    pub top_k: Option<u32>,
    /// Keep tokens at least this share as likely as the likeliest, 0 to 1 (vLLM's extension).
    pub min_p: Option<f32>,
    /// Above 0, at most 100; 1 changes nothing (vLLM's extension).
    pub repetition_penalty: Option<f32>,
    /// -2 to 2; 0 changes nothing.
    pub presence_penalty: Option<f32>,
    /// -2 to 2; 0 changes nothing.
    pub frequency_penalty: Option<f32>,
    /// Token ids and what is added to their logits, -100 to 100; in the request's order.
    pub logit_bias: Vec<(u32, f32)>,
    /// Seed of the random choices.
    pub seed: Option<i64>,
}

impl SamplingFields {
    pub(crate) fn parse(fields: &Fields<'_>) -> Result<Self, ApiError> {
        let sampling = Self {
            temperature: fields.number("temperature", 0.0..=2.0)?,
            top_p: fields.number("top_p", 0.0..=1.0)?,
            top_k: fields.integer("top_k", -1..=i64::from(u32::MAX))?.map(to_u32),
            min_p: fields.number("min_p", 0.0..=1.0)?,
            repetition_penalty: fields.number("repetition_penalty", 0.0..=MAX_REPETITION_PENALTY)?,
            presence_penalty: fields.number("presence_penalty", -2.0..=2.0)?,
            frequency_penalty: fields.number("frequency_penalty", -2.0..=2.0)?,
            logit_bias: parse_logit_bias(fields)?,
            seed: fields.integer("seed", i64::MIN..=i64::MAX)?,
        };
        if sampling.top_p == Some(0.0) {
            return Err(ApiError::invalid(
                "top_p",
                "top_p must be above 0 and at most 1, but is 0; use temperature 0",
            ));
        }
        // A tiny number may become 0 on its way to f32, too.
        if sampling.repetition_penalty.is_some_and(|penalty| penalty < 1e-6) {
            return Err(ApiError::invalid(
                "repetition_penalty",
                "repetition_penalty must be above 0 and at most 100, but is 0; 1 changes nothing",
            ));
        }
        Ok(sampling)
    }
}

fn parse_logit_bias(fields: &Fields<'_>) -> Result<Vec<(u32, f32)>, ApiError> {
    let Some(object) = fields.object("logit_bias")? else { return Ok(Vec::new()) };
    let biases = object.entries();
    if biases.len() > MAX_LOGIT_BIAS {
        let message = format!(
            "logit_bias has {} tokens, but at most {MAX_LOGIT_BIAS} are allowed; send fewer",
            biases.len()
        );
        return Err(ApiError::invalid("logit_bias", message));
    }
    let mut parsed: Vec<(u32, f32)> = Vec::with_capacity(biases.len());
    for (key, value) in biases {
        // "7" and "07" would be one token.
        let canonical = key.parse::<u32>().ok().filter(|token| token.to_string() == key);
        let Some(token) = canonical else {
            let name = describe(&Json::from(key));
            let message =
                format!("logit_bias must have token ids such as \"42\" for keys, but one is {name}");
            return Err(ApiError::invalid("logit_bias", message));
        };
        match value.as_f64() {
            Some(bias) if (-100.0..=100.0).contains(&bias) => parsed.push((token, bias as f32)),
            _ => return Err(wrong(format!("logit_bias.{key}"), "a number from -100 to 100", value)),
        }
    }
    Ok(parsed)
}
