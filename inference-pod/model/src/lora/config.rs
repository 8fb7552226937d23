//! adapter_config.json, checked and bounded.

use serde_json::{Map, Value};

use super::modules::{Patterns, Targets};
use super::{ADAPTER_CONFIG_FILE, MAX_ADAPTER_CONFIG_BYTES, MAX_RANK};
use crate::error::{ModelError, clip};

/// Fields that matter to training only, or are read below. Any other one that is switched on is refused: it may well change
/// what the adapter computes.
const KNOWN: &[&str] = &[
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "corda_config",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_alpha",
    "lora_dropout",
    "lora_ga_config",
    "peft_type",
    "r",
    "rank_pattern",
    "runtime_config",
    "target_modules",
    "task_type",
    "use_rslora",
];

/// Ways to begin that leave the base model's weights as they are. The others take something out of them, and the adapter
/// is right only for what is left.
const INITIALISATIONS: &[&str] = &["gaussian", "eva", "orthogonal"];

/// What an adapter is, from adapter_config.json.
#[derive(Clone, Debug)]
pub struct LoraConfig {
    rank: u32,
    alpha: f64,
    rank_pattern: Patterns<u32>,
    alpha_pattern: Patterns<f64>,
    use_rslora: bool,
    pub(super) targets: Targets,
    /// Whether some of the modules that `targets` contains have no matrices: other fields leave them out.
    pub(super) is_partial: bool,
}

impl LoraConfig {
    /// Reads adapter_config.json.
    ///
    /// # Errors
    /// [`ModelError::Invalid`] for bytes that are not an adapter_config.json or hold impossible numbers;
    /// [`ModelError::Unsupported`] for an adapter that the engine cannot serve as it was trained, naming the field.
    pub fn parse(bytes: &[u8]) -> Result<Self, ModelError> {
        if bytes.len() > MAX_ADAPTER_CONFIG_BYTES {
            return Err(invalid(format!(
                "is {} bytes long, at most {MAX_ADAPTER_CONFIG_BYTES} are read",
                bytes.len()
            )));
        }
        let value: Value =
            serde_json::from_slice(bytes).map_err(|error| invalid(format!("is not JSON: {error}")))?;
        let Value::Object(map) = value else { return Err(invalid("must hold a JSON object")) };
        refuse_what_is_not_lora(&map)?;
        let rank = rank("r", map.get("r").unwrap_or(&Value::Null))?;
        let alpha = alpha("lora_alpha", map.get("lora_alpha").unwrap_or(&Value::Null))?;
        Ok(Self {
            rank,
            alpha,
            rank_pattern: Patterns::parse("rank_pattern", map.get("rank_pattern"), self::rank)?,
            alpha_pattern: Patterns::parse("alpha_pattern", map.get("alpha_pattern"), self::alpha)?,
            use_rslora: is_on(map.get("use_rslora")),
            targets: Targets::parse("target_modules", map.get("target_modules"))?,
            is_partial: is_given(map.get("layers_to_transform")) || is_given(map.get("exclude_modules")),
        })
    }

    /// Rank of a module's matrices.
    #[must_use]
    pub fn rank(&self, module: &str) -> u32 {
        self.rank_pattern.get(module).unwrap_or(self.rank)
    }

    /// What a module's `B(A x)` is multiplied with.
    #[must_use]
    pub fn scale(&self, module: &str) -> f64 {
        let rank = f64::from(self.rank(module));
        let alpha = self.alpha_pattern.get(module).unwrap_or(self.alpha);
        alpha / if self.use_rslora { rank.sqrt() } else { rank }
    }
}

fn refuse_what_is_not_lora(map: &Map<String, Value>) -> Result<(), ModelError> {
    let unsupported = |problem: String| Err(ModelError::unsupported(ADAPTER_CONFIG_FILE, problem));
    match map.get("peft_type").and_then(Value::as_str) {
        Some("LORA") => {}
        Some(other) => {
            return unsupported(format!("peft_type is {}; only LORA adapters are served", clip(other)));
        }
        None => return Err(invalid("has no peft_type, so it is no adapter that PEFT has saved")),
    }
    if let Some(task) = map.get("task_type").and_then(Value::as_str).filter(|task| *task != "CAUSAL_LM") {
        return unsupported(format!("task_type is {}; only CAUSAL_LM adapters are served", clip(task)));
    }
    if let Some(bias) = map.get("bias").and_then(Value::as_str).filter(|bias| *bias != "none") {
        return unsupported(format!(
            "bias is \"{}\"; adapters with trained biases are not served: train with bias=\"none\"",
            clip(bias)
        ));
    }
    if let Some(Value::String(how)) = map.get("init_lora_weights")
        && !INITIALISATIONS.contains(&how.as_str())
    {
        return unsupported(format!(
            "init_lora_weights is \"{}\", which changes the base model's weights; save the adapter with \
             save_pretrained(path_initial_model_for_weight_conversion=…), which makes it a plain one",
            clip(how)
        ));
    }
    let switched_on = map.iter().find(|(name, value)| !KNOWN.contains(&name.as_str()) && is_on(Some(value)));
    match switched_on {
        Some((name, _)) => unsupported(format!(
            "{} is set, and adapters with it are not served; plain LoRA on the projections of attention and MLP is",
            clip(name)
        )),
        None => Ok(()),
    }
}

fn rank(field: &str, value: &Value) -> Result<u32, ModelError> {
    let rank = value.as_u64().and_then(|rank| u32::try_from(rank).ok());
    rank.filter(|rank| (1..=MAX_RANK).contains(rank))
        .ok_or_else(|| invalid(format!("{field} must be a whole number from 1 to {MAX_RANK}")))
}

fn alpha(field: &str, value: &Value) -> Result<f64, ModelError> {
    value
        .as_f64()
        .filter(|alpha| alpha.abs() <= 1e6)
        .ok_or_else(|| invalid(format!("{field} must be a number of at most a million")))
}

/// Whether a field does anything: true, or an object or a list with something in it. Numbers and texts alone switch
/// nothing on.
fn is_on(value: Option<&Value>) -> bool {
    match value {
        Some(Value::Bool(on)) => *on,
        Some(Value::Object(entries)) => !entries.is_empty(),
        Some(Value::Array(items)) => !items.is_empty(),
        _ => false,
    }
}

fn is_given(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null) => false,
        Some(Value::Array(items)) => !items.is_empty(),
        Some(_) => true,
    }
}

pub(super) fn invalid(problem: impl Into<String>) -> ModelError {
    ModelError::invalid(ADAPTER_CONFIG_FILE, problem)
}
