//! Sliding windows: which layers see only the last so many tokens.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::architecture::WindowRule;
use crate::error::{ModelError, clip};
use crate::fields::Fields;

/// Most stretches of layers with a window. An inspection must stay small, and no model comes near.
const MOST_STRETCHES: usize = 64;

/// Tokens of a window where config.json does not say, in every class of transformers that has one.
const DEFAULT_TOKENS: u32 = 4096;

/// First layer with a window where config.json does not say, in the classes of transformers that have such a field.
const DEFAULT_FIRST_LAYER: u32 = 28;

/// What a layer attends to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AttentionKind {
    /// All tokens up to its own.
    Full,
    /// The last tokens up to its own, as many as [`SlidingWindow::tokens`].
    Sliding,
}

/// The sliding window of a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SlidingWindow {
    /// Tokens that a layer with a window sees, the one that looks included.
    pub tokens: u32,
    /// Layers with a window, as stretches: first layer, and the one after the last.
    pub layers: Vec<(u32, u32)>,
}

impl SlidingWindow {
    /// What a layer attends to.
    #[must_use]
    pub fn kind(&self, layer: u32) -> AttentionKind {
        let within = self.layers.iter().any(|(first, end)| (*first..*end).contains(&layer));
        if within { AttentionKind::Sliding } else { AttentionKind::Full }
    }

    /// Reads the window of a model with so many layers; `None` if no layer has one.
    pub(crate) fn parse(
        fields: Fields<'_>,
        rule: WindowRule,
        layers: u32,
        most_tokens: u32,
    ) -> Result<Option<Self>, ModelError> {
        let tokens = || match fields.map.get("sliding_window") {
            None => Ok(Some(DEFAULT_TOKENS)),
            Some(_) => fields.optional_size("sliding_window", most_tokens),
        };
        let (tokens, kinds) = match rule {
            WindowRule::Never => return Ok(None),
            WindowRule::EveryLayer => {
                let Some(tokens) = tokens()? else { return Ok(None) };
                if fields.get("layer_types").is_some() {
                    let problem = "is not supported for this architecture: all its layers have the window";
                    return Err(fields.unsupported("layer_types", problem));
                }
                (tokens, vec![AttentionKind::Sliding; layers as usize])
            }
            WindowRule::ByLayer => {
                let tokens = if fields.flag("use_sliding_window")? { tokens()? } else { None };
                let kinds = match fields.get("layer_types") {
                    Some(types) => listed(fields, types, layers)?,
                    None => {
                        let most = u32::MAX;
                        let first = fields.optional_count("max_window_layers", 0, most)?;
                        let full = first.unwrap_or(DEFAULT_FIRST_LAYER).min(layers) as usize;
                        let mut kinds = vec![AttentionKind::Full; full];
                        kinds.resize(layers as usize, AttentionKind::Sliding);
                        if tokens.is_none() { Vec::new() } else { kinds }
                    }
                };
                match tokens {
                    Some(tokens) => (tokens, kinds),
                    None if kinds.contains(&AttentionKind::Sliding) => {
                        let problem = "names sliding_attention, but use_sliding_window is false or sliding_window is \
                                       null";
                        return Err(fields.invalid("layer_types", problem));
                    }
                    None => return Ok(None),
                }
            }
        };
        let layers = stretches(&kinds);
        if layers.len() > MOST_STRETCHES {
            let problem =
                format!("switches {} times to a window, at most {MOST_STRETCHES} are taken", layers.len());
            return Err(fields.unsupported("layer_types", &problem));
        }
        Ok((!layers.is_empty()).then_some(Self { tokens, layers }))
    }
}

/// Reads `layer_types`.
fn listed(fields: Fields<'_>, types: &Value, layers: u32) -> Result<Vec<AttentionKind>, ModelError> {
    let Value::Array(types) = types else {
        return Err(fields.invalid("layer_types", "must be a list of names"));
    };
    if types.len() != layers as usize {
        let problem = format!("has {} entries for {layers} layers", types.len());
        return Err(fields.invalid("layer_types", &problem));
    }
    let kind = |name: &Value| match name.as_str() {
        Some("full_attention") => Ok(AttentionKind::Full),
        Some("sliding_attention") => Ok(AttentionKind::Sliding),
        _ => {
            let name = clip(&name.to_string());
            let problem = format!(
                "holds {name}, which is not supported; supported are full_attention and sliding_attention"
            );
            Err(fields.unsupported("layer_types", &problem))
        }
    };
    types.iter().map(kind).collect()
}

fn stretches(kinds: &[AttentionKind]) -> Vec<(u32, u32)> {
    let mut stretches: Vec<(u32, u32)> = Vec::new();
    for (layer, kind) in (0u32..).zip(kinds) {
        match (kind, stretches.last_mut()) {
            (AttentionKind::Full, _) => {}
            (AttentionKind::Sliding, Some(last)) if last.1 == layer => last.1 += 1,
            (AttentionKind::Sliding, _) => stretches.push((layer, layer + 1)),
        }
    }
    stretches
}
