//! Spells the CEL rules that the API types carry in their schemas; each names the field and the remedy in its message.

use serde_json::{Value, json};

/// One entry of `x-kubernetes-validations`.
pub fn rule(rule: &str, message: &str) -> Value {
    json!({"rule": rule, "message": message})
}
