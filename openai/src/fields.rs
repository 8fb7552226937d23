//! Reading a JSON object field by field, so that every complaint names the field, what it must be and what it is.
//!
//! serde's derived errors do not know the path ("invalid type: map, expected a string at line 1 column 40"); clients of an
//! API deserve `messages[0].content must be …`.

use std::fmt;
use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use crate::error::{ApiError, clip};

/// Most values in a request's body. Parsed, each takes up to a hundred bytes however short it was written, so that a body of
/// nothing but `{},{},…` would take many times its size.
const MAX_JSON_VALUES: usize = 1 << 20;

/// Reads a request body as JSON.
///
/// # Errors
/// 400 with line and column when it is not JSON, and when it holds more than 2^20 values.
pub fn parse_json(body: &[u8]) -> Result<Value, ApiError> {
    check_size(body)?;
    serde_json::from_slice(body).map_err(|error| not_json(&error))
}

/// 400 when there is nothing to read, or too much.
pub(crate) fn check_size(body: &[u8]) -> Result<(), ApiError> {
    if body.is_empty() {
        return Err(
            ApiError::bad_request("the request body is empty; send a JSON object").with_code("invalid_json")
        );
    }
    if body.len() > MAX_JSON_VALUES && value_count(body) > MAX_JSON_VALUES {
        return Err(ApiError::bad_request(format!(
            "the request body holds more than {MAX_JSON_VALUES} JSON values; send fewer messages, prompts or tokens at a time"
        ))
        .with_code("too_many_values"));
    }
    Ok(())
}

/// 400 for what is no JSON.
pub(crate) fn not_json(error: &serde_json::Error) -> ApiError {
    // serde_json's message ends with the position already.
    ApiError::bad_request(format!("the request body is not valid JSON: {error}; correct it there"))
        .with_code("invalid_json")
}

/// At least as many values as the text holds: those that a comma ends, and those that open an array or object.
fn value_count(body: &[u8]) -> usize {
    let (mut count, mut in_string, mut escaped) = (1, false, false);
    for byte in body {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b',' | b'[' | b'{' if !in_string => count += 1,
            _ => {}
        }
    }
    count
}

/// A value by its key. Some fifty keys are asked for in a request of a handful: to compare lengths takes less than a hash of each.
fn find<'a>(object: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    const FEW: usize = 16;
    if object.len() > FEW {
        return object.get(key);
    }
    object.iter().find(|(name, _)| *name == key).map(|(_, value)| value)
}

/// One more than the largest i64.
const I64_END: f64 = 9_223_372_036_854_775_808.0;

/// A JSON object and the path that leads to it.
pub(crate) struct Fields<'a> {
    object: &'a Map<String, Value>,
    path: Path,
}

/// The way to an object. Written out when there is something to complain of, and not for each message of a conversation.
enum Path {
    Root,
    Item(&'static str, usize),
    Text(String),
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => Ok(()),
            Self::Item(array, index) => write!(f, "{array}[{index}]"),
            Self::Text(path) => f.write_str(path),
        }
    }
}

impl<'a> Fields<'a> {
    pub(crate) fn root(value: &'a Value) -> Result<Self, ApiError> {
        match value {
            Value::Object(object) => Ok(Self { object, path: Path::Root }),
            other => Err(ApiError::bad_request(format!(
                "the request body must be a JSON object, but is {}",
                describe(other)
            ))),
        }
    }

    pub(crate) fn at(value: &'a Value, path: String) -> Result<Self, ApiError> {
        Self::under(value, Path::Text(path))
    }

    /// An item of an array of the root.
    pub(crate) fn item(array: &'static str, index: usize, value: &'a Value) -> Result<Self, ApiError> {
        Self::under(value, Path::Item(array, index))
    }

    fn under(value: &'a Value, path: Path) -> Result<Self, ApiError> {
        match value {
            Value::Object(object) => Ok(Self { object, path }),
            other => Err(wrong(path.to_string(), "an object", other)),
        }
    }

    /// The full path of one of this object's fields.
    pub(crate) fn name(&self, key: &str) -> String {
        match &self.path {
            Path::Root => key.to_owned(),
            path => format!("{path}.{key}"),
        }
    }

    /// A field's value; `null` counts as absent, as it does for OpenAI.
    pub(crate) fn get(&self, key: &str) -> Option<&'a Value> {
        find(self.object, key).filter(|value| !value.is_null())
    }

    pub(crate) fn string(&self, key: &str) -> Result<Option<&'a str>, ApiError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(wrong(self.name(key), "a string", other)),
        }
    }

    pub(crate) fn boolean(&self, key: &str) -> Result<Option<bool>, ApiError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(*value)),
            Some(other) => Err(wrong(self.name(key), "true or false", other)),
        }
    }

    pub(crate) fn integer(&self, key: &str, range: RangeInclusive<i64>) -> Result<Option<i64>, ApiError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        // 5.0 is an integer to JavaScript clients. What no i64 holds is in no range.
        let float = value.as_f64().filter(|number| number.fract() == 0.0);
        let fits = |number: &f64| (-I64_END..I64_END).contains(number);
        let whole = value.as_i64().or_else(|| float.filter(fits).map(|number| number as i64));
        match whole {
            Some(number) if range.contains(&number) => Ok(Some(number)),
            _ => Err(wrong(self.name(key), &integer_words(&range, float), value)),
        }
    }

    pub(crate) fn number(&self, key: &str, range: RangeInclusive<f64>) -> Result<Option<f64>, ApiError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_f64() {
            Some(number) if range.contains(&number) => Ok(Some(number)),
            _ => Err(wrong(
                self.name(key),
                &format!("a number from {} to {}", range.start(), range.end()),
                value,
            )),
        }
    }

    pub(crate) fn array(&self, key: &str) -> Result<Option<&'a [Value]>, ApiError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(items)) => Ok(Some(items)),
            Some(other) => Err(wrong(self.name(key), "an array", other)),
        }
    }

    pub(crate) fn object(&self, key: &str) -> Result<Option<Fields<'a>>, ApiError> {
        self.get(key).map(|value| Fields::at(value, self.name(key))).transpose()
    }

    pub(crate) fn entries(&self) -> impl Iterator<Item = (&'a str, &'a Value)> {
        self.object.iter().map(|(key, value)| (key.as_str(), value))
    }

    pub(crate) fn len(&self) -> usize {
        self.object.len()
    }
}

/// The limits worth naming: those of u32 and i64 themselves only to who crossed them. `found` is absent where it is no whole
/// number.
fn integer_words(range: &RangeInclusive<i64>, found: Option<f64>) -> String {
    match (*range.start(), *range.end()) {
        (i64::MIN, i64::MAX) if found.is_none() => "an integer".to_owned(),
        (start, end)
            if start != i64::MIN
                && end >= i64::from(u32::MAX)
                && found.is_none_or(|number| number < start as f64) =>
        {
            format!("an integer of at least {start}")
        }
        (start, end) => format!("an integer from {start} to {end}"),
    }
}

/// 400: the field at `path` must be `expected`, and is not.
pub(crate) fn wrong(path: impl Into<String>, expected: &str, found: &Value) -> ApiError {
    let path = path.into();
    let message = format!("{path} must be {expected}, but is {}", describe(found));
    ApiError::invalid(path, message)
}

/// A value in a person's words, never longer than a line.
pub(crate) fn describe(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(flag) => flag.to_string(),
        Value::Number(number) => number.to_string(),
        Value::String(text) if text.is_empty() => "an empty string".to_owned(),
        Value::String(text) => format!("the string \"{}\"", clip(text)),
        Value::Array(items) if items.is_empty() => "an empty array".to_owned(),
        Value::Array(_) => "an array".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    }
}
