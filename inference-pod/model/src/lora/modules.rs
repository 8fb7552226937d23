//! Names of the modules that an adapter changes, as PEFT writes and matches them.

use regex::{Regex, RegexBuilder};
use serde_json::Value;

use crate::config::ModelConfig;
use crate::error::{ModelError, clip};

/// Longest pattern that is compiled, in bytes, and the most memory that a compiled one may take.
const MAX_PATTERN_BYTES: usize = 4096;
const MAX_COMPILED_BYTES: usize = 1 << 20;
/// Most names or patterns in one field.
const MAX_PATTERNS: usize = 4096;

/// A projection of a layer that an adapter may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Projection {
    /// Queries of the attention.
    Query,
    /// Its keys.
    Key,
    /// Its values.
    Value,
    /// Its output.
    Output,
    /// The gate of the MLP.
    Gate,
    /// What the gate is multiplied with.
    Up,
    /// The MLP's output.
    Down,
}

impl Projection {
    /// All of them, in the order in which a layer uses them.
    pub const ALL: [Self; 7] =
        [Self::Query, Self::Key, Self::Value, Self::Output, Self::Gate, Self::Up, Self::Down];

    /// The module's name below its layer.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Query => "self_attn.q_proj",
            Self::Key => "self_attn.k_proj",
            Self::Value => "self_attn.v_proj",
            Self::Output => "self_attn.o_proj",
            Self::Gate => "mlp.gate_proj",
            Self::Up => "mlp.up_proj",
            Self::Down => "mlp.down_proj",
        }
    }

    /// Numbers that it gives and takes: its weight is `[out, in]`.
    #[must_use]
    pub fn sizes(self, config: &ModelConfig) -> (u32, u32) {
        let hidden = config.hidden_size;
        let query = config.num_attention_heads * config.head_dim;
        let key_value = config.num_key_value_heads * config.head_dim;
        match self {
            Self::Query => (query, hidden),
            Self::Key | Self::Value => (key_value, hidden),
            Self::Output => (hidden, query),
            Self::Gate | Self::Up => (config.intermediate_size, hidden),
            Self::Down => (hidden, config.intermediate_size),
        }
    }

    /// The module's name in the model: `model.layers.3.self_attn.q_proj`.
    #[must_use]
    pub fn module(self, layer: u32) -> String {
        format!("model.layers.{layer}.{}", self.as_str())
    }

    /// Reads a module's name back: its layer and which projection it is.
    #[must_use]
    pub fn parse_module(name: &str) -> Option<(u32, Self)> {
        let (layer, part) = name.strip_prefix("model.layers.")?.split_once('.')?;
        let projection = Self::ALL.into_iter().find(|projection| projection.as_str() == part)?;
        let number = layer.parse().ok()?;
        (projection.module(number) == name).then_some((number, projection))
    }
}

/// The modules that `target_modules` names.
#[derive(Clone, Debug)]
pub(crate) enum Targets {
    /// Whatever the file holds: the field is null.
    Any,
    /// `all-linear`: every projection.
    AllLinear,
    /// Modules with one of these names, or whose name ends in one after a dot.
    Names(Vec<String>),
    /// Modules whose whole name matches.
    Pattern(Regex),
}

impl Targets {
    pub(crate) fn parse(field: &str, value: Option<&Value>) -> Result<Self, ModelError> {
        match value {
            None | Some(Value::Null) => Ok(Self::Any),
            Some(Value::String(text)) if text == "all-linear" => Ok(Self::AllLinear),
            Some(Value::String(text)) => {
                Ok(Self::Pattern(compile(field, text, |text| format!("^(?:{text})$"))?))
            }
            Some(Value::Array(names)) if names.len() <= MAX_PATTERNS => {
                let name = |value: &Value| value.as_str().map(str::to_owned);
                names
                    .iter()
                    .map(name)
                    .collect::<Option<_>>()
                    .map(Self::Names)
                    .ok_or_else(|| super::config::invalid(format!("{field} must hold names of modules only")))
            }
            Some(_) => Err(super::config::invalid(format!(
                "{field} must be a list of at most {MAX_PATTERNS} module names, a pattern, or \"all-linear\""
            ))),
        }
    }

    /// Whether a module is among them.
    pub(crate) fn contains(&self, module: &str) -> bool {
        match self {
            Self::Any | Self::AllLinear => true,
            Self::Names(names) => names.iter().any(|name| {
                module == name || module.strip_suffix(name.as_str()).is_some_and(|rest| rest.ends_with('.'))
            }),
            Self::Pattern(pattern) => pattern.is_match(module),
        }
    }

    /// Whether each of the modules that it contains must have matrices.
    pub(crate) fn is_exact(&self) -> bool {
        !matches!(self, Self::Any)
    }
}

/// Values for the modules that match a pattern; the first match counts.
#[derive(Clone, Debug, Default)]
pub(crate) struct Patterns<T>(Vec<(Regex, T)>);

impl<T: Copy> Patterns<T> {
    /// Reads an object of values by pattern.
    pub(crate) fn parse(
        field: &str,
        value: Option<&Value>,
        read: impl Fn(&str, &Value) -> Result<T, ModelError>,
    ) -> Result<Self, ModelError> {
        match value {
            None | Some(Value::Null) => Ok(Self(Vec::new())),
            Some(Value::Object(entries)) if entries.len() <= MAX_PATTERNS => entries
                .iter()
                .map(|(pattern, value)| {
                    let regex = compile(field, pattern, |text| format!(r"^(?:.*\.)?(?:{text})$"))?;
                    Ok((regex, read(&format!("{field} of {}", clip(pattern)), value)?))
                })
                .collect::<Result<_, _>>()
                .map(Self),
            Some(_) => Err(super::config::invalid(format!(
                "{field} must be an object with at most {MAX_PATTERNS} patterns of module names"
            ))),
        }
    }

    pub(crate) fn get(&self, module: &str) -> Option<T> {
        self.0.iter().find(|(pattern, _)| pattern.is_match(module)).map(|(_, value)| *value)
    }
}

/// Python's patterns and ours agree on what adapters use; lookaround and back references, which ours lack, are refused.
fn compile(field: &str, text: &str, whole: impl Fn(&str) -> String) -> Result<Regex, ModelError> {
    if text.len() > MAX_PATTERN_BYTES {
        return Err(super::config::invalid(format!(
            "{field} has a pattern of {} bytes, at most {MAX_PATTERN_BYTES} are read",
            text.len()
        )));
    }
    RegexBuilder::new(&whole(text)).size_limit(MAX_COMPILED_BYTES).build().map_err(|_| {
        super::config::invalid(format!(
            "{field}: \"{}\" is no pattern that can be read; name the modules in a list instead",
            clip(text)
        ))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_module_is_read_back_from_its_name() {
        for projection in Projection::ALL {
            assert_eq!(Projection::parse_module(&projection.module(17)), Some((17, projection)));
        }
        for name in [
            "lm_head",
            "model.layers.01.mlp.up_proj",
            "model.layers.+1.mlp.up_proj",
            "model.layers.1.mlp.up_projx",
        ] {
            assert_eq!(Projection::parse_module(name), None, "{name}");
        }
    }

    #[test]
    fn targets_match_as_in_peft() {
        let targets = |value: Value| Targets::parse("target_modules", Some(&value)).unwrap();
        let module = "model.layers.1.self_attn.q_proj";
        for (value, expected) in [
            (json!(["q_proj"]), true),
            (json!(["self_attn.q_proj"]), true),
            (json!([module]), true),
            (json!(["_proj"]), false),
            (json!([]), false),
            (json!("all-linear"), true),
            (json!(r".*\.(q|k)_proj"), true),
            (json!("q_proj"), false),
        ] {
            assert_eq!(targets(value.clone()).contains(module), expected, "{value}");
        }
        for value in [
            json!(7),
            json!([1]),
            json!("(?=x)"),
            json!("("),
            json!("a".repeat(5000)),
            json!("(a{1000}){1000}"),
        ] {
            let error = Targets::parse("target_modules", Some(&value)).unwrap_err().to_string();
            assert!(error.contains("target_modules"), "{error}");
        }
    }

    #[test]
    fn the_first_pattern_that_matches_counts() {
        let value = json!({"layers.1.mlp.up_proj": 3, "up_proj": 5});
        let patterns =
            Patterns::parse("rank_pattern", Some(&value), |_, value| Ok(value.as_u64().unwrap())).unwrap();
        assert_eq!(patterns.get("model.layers.1.mlp.up_proj"), Some(3));
        assert_eq!(patterns.get("model.layers.0.mlp.up_proj"), Some(5));
        assert_eq!(patterns.get("model.layers.0.mlp.xup_proj"), None);
    }
}
