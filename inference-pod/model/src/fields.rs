//! Typed access to the fields of a JSON object that came from outside; every error names the file and the field.

use serde_json::{Map, Value};

use crate::config::MAX_CONFIG_BYTES;
use crate::error::{ModelError, clip};

/// Reads one of a model's small JSON files.
pub(crate) fn read_object(file: &str, bytes: &[u8]) -> Result<Map<String, Value>, ModelError> {
    if bytes.len() > MAX_CONFIG_BYTES {
        let problem = format!("is {} bytes long, at most {MAX_CONFIG_BYTES} are read", bytes.len());
        return Err(ModelError::invalid(file, problem));
    }
    let value: Value = serde_json::from_slice(bytes)
        .map_err(|error| ModelError::invalid(file, format!("is not JSON: {error}")))?;
    match value {
        Value::Object(map) => Ok(map),
        _ => Err(ModelError::invalid(file, "must hold a JSON object")),
    }
}

/// The fields of one object.
#[derive(Clone, Copy)]
pub(crate) struct Fields<'a> {
    /// Which file the object is from.
    pub(crate) file: &'static str,
    /// What comes before a field's name in messages: nothing, or the path of the object and a dot.
    pub(crate) prefix: &'static str,
    /// The object.
    pub(crate) map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    /// A field's value; `null` is absent.
    pub(crate) fn get(&self, field: &str) -> Option<&'a Value> {
        self.map.get(field).filter(|value| !value.is_null())
    }

    /// The object is what it must not be.
    pub(crate) fn invalid(&self, field: &str, problem: &str) -> ModelError {
        ModelError::invalid(self.file, format!("{}{field} {problem}", self.prefix))
    }

    /// The object asks for what there is not.
    pub(crate) fn unsupported(&self, field: &str, problem: &str) -> ModelError {
        ModelError::unsupported(self.file, format!("{}{field} {problem}", self.prefix))
    }

    /// A whole number from 1 to `most`.
    pub(crate) fn size(&self, field: &str, most: u32) -> Result<u32, ModelError> {
        self.optional_size(field, most)?.ok_or_else(|| self.invalid(field, "is missing"))
    }

    /// A whole number from 1 to `most`, or nothing.
    pub(crate) fn optional_size(&self, field: &str, most: u32) -> Result<Option<u32>, ModelError> {
        self.optional_count(field, 1, most)
    }

    /// A whole number from `least` to `most`, or nothing.
    pub(crate) fn optional_count(
        &self,
        field: &str,
        least: u32,
        most: u32,
    ) -> Result<Option<u32>, ModelError> {
        let Some(value) = self.get(field) else { return Ok(None) };
        value
            .as_u64()
            .and_then(|size| u32::try_from(size).ok())
            .filter(|size| (least..=most).contains(size))
            .map(Some)
            .ok_or_else(|| {
                let value = clip(&value.to_string());
                self.invalid(field, &format!("is {value}, it must be a whole number from {least} to {most}"))
            })
    }

    /// A number from `least` to `most`, or nothing.
    pub(crate) fn optional_number(
        &self,
        field: &str,
        least: f64,
        most: f64,
    ) -> Result<Option<f64>, ModelError> {
        let Some(value) = self.get(field) else { return Ok(None) };
        match value.as_f64() {
            Some(number) if (least..=most).contains(&number) => Ok(Some(number)),
            _ => {
                let value = clip(&value.to_string());
                Err(self.invalid(field, &format!("is {value}, it must be a number from {least} to {most}")))
            }
        }
    }

    /// True, false, or false for nothing.
    pub(crate) fn flag(&self, field: &str) -> Result<bool, ModelError> {
        Ok(self.optional_flag(field)?.unwrap_or(false))
    }

    /// True, false or nothing.
    pub(crate) fn optional_flag(&self, field: &str) -> Result<Option<bool>, ModelError> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(value) => {
                let value = clip(&value.to_string());
                Err(self.invalid(field, &format!("is {value}, it must be true or false")))
            }
        }
    }

    /// A string, or nothing.
    pub(crate) fn optional_text(&self, field: &str) -> Result<Option<&'a str>, ModelError> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.invalid(field, "must be a string")),
        }
    }
}
