//! Reading a JSON object field by field, so that every complaint names the field, what it must be and what it is.
//!
//! serde's derived errors do not know the path ("invalid type: map, expected a string at line 1 column 40"); clients of an
//! API deserve `messages[0].content must be …`.

use std::collections::HashMap;
use std::fmt;
use std::ops::RangeInclusive;

use serde_json_borrow::ObjectAsVec;

use crate::error::{ApiError, clip};
use crate::json::Json;

/// One more than the largest i64.
const I64_END: f64 = 9_223_372_036_854_775_808.0;

/// Most keys of an object that are looked for one by one.
const FEW: usize = 16;

/// A JSON object and the path that leads to it.
pub(crate) struct Fields<'a> {
    object: &'a ObjectAsVec<'a>,
    /// The [`mark`]s of its keys: of some fifty that are asked for in a request of a handful, most are seen to be absent by
    /// it alone.
    marks: u64,
    /// Where there are many keys: by each its value.
    many: Option<HashMap<&'a str, &'a Json<'a>>>,
    path: Path,
}

/// One bit of 64 for a key. Different keys may have the same.
#[inline]
pub(crate) const fn mark(key: &str) -> u64 {
    let bytes = key.as_bytes();
    let (first, last) = match bytes {
        [] => (0, 0),
        [first, .., last] => (*first, *last),
        [only] => (*only, *only),
    };
    1 << ((bytes.len() * 5 + first as usize + last as usize * 3) % 64)
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
    pub(crate) fn root(value: &'a Json<'a>) -> Result<Self, ApiError> {
        match value {
            Json::Object(object) => Ok(Self::of(object, Path::Root)),
            other => Err(ApiError::bad_request(format!(
                "the request body must be a JSON object, but is {}",
                describe(other)
            ))),
        }
    }

    pub(crate) fn at(value: &'a Json<'a>, path: String) -> Result<Self, ApiError> {
        Self::under(value, Path::Text(path))
    }

    /// An item of an array of the root.
    pub(crate) fn item(array: &'static str, index: usize, value: &'a Json<'a>) -> Result<Self, ApiError> {
        Self::under(value, Path::Item(array, index))
    }

    fn under(value: &'a Json<'a>, path: Path) -> Result<Self, ApiError> {
        match value {
            Json::Object(object) => Ok(Self::of(object, path)),
            other => Err(wrong(path.to_string(), "an object", other)),
        }
    }

    fn of(object: &'a ObjectAsVec<'a>, path: Path) -> Self {
        let marks = object.keys().fold(0, |marks, key| marks | mark(key));
        let many = (object.len() > FEW).then(|| object.iter().collect());
        Self { object, marks, many, path }
    }

    /// The full path of one of this object's fields.
    pub(crate) fn name(&self, key: &str) -> String {
        match &self.path {
            Path::Root => key.to_owned(),
            path => format!("{path}.{key}"),
        }
    }

    /// A field's value; `null` counts as absent, as it does for OpenAI.
    #[inline]
    pub(crate) fn get(&self, key: &str) -> Option<&'a Json<'a>> {
        self.get_marked(key, mark(key))
    }

    /// The same for who has the key's [`mark`] already.
    #[inline]
    pub(crate) fn get_marked(&self, key: &str, mark: u64) -> Option<&'a Json<'a>> {
        if self.marks & mark == 0 { None } else { self.find(key) }
    }

    /// The last value of a key, where it is not `null`.
    fn find(&self, key: &str) -> Option<&'a Json<'a>> {
        let value = match &self.many {
            None => self.object.as_vec().iter().rfind(|(name, _)| **name == *key).map(|(_, value)| value),
            Some(many) => many.get(key).copied(),
        };
        value.filter(|value| !value.is_null())
    }

    // Each of these is in two parts: the first, which is all that most keys need, becomes part of the caller.

    #[inline]
    pub(crate) fn string(&self, key: &str) -> Result<Option<&'a str>, ApiError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        self.to_string(key, value).map(Some)
    }

    fn to_string(&self, key: &str, value: &'a Json<'a>) -> Result<&'a str, ApiError> {
        value.as_str().ok_or_else(|| wrong(self.name(key), "a string", value))
    }

    #[inline]
    pub(crate) fn boolean(&self, key: &str) -> Result<Option<bool>, ApiError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        self.to_boolean(key, value).map(Some)
    }

    fn to_boolean(&self, key: &str, value: &Json<'_>) -> Result<bool, ApiError> {
        value.as_bool().ok_or_else(|| wrong(self.name(key), "true or false", value))
    }

    #[inline]
    pub(crate) fn integer(&self, key: &str, range: RangeInclusive<i64>) -> Result<Option<i64>, ApiError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        self.to_integer(key, value, &range).map(Some)
    }

    fn to_integer(&self, key: &str, value: &Json<'_>, range: &RangeInclusive<i64>) -> Result<i64, ApiError> {
        // 5.0 is an integer to JavaScript clients. What no i64 holds is in no range.
        let float = value.as_f64().filter(|number| number.fract() == 0.0);
        let fits = |number: &f64| (-I64_END..I64_END).contains(number);
        let whole = value.as_i64().or_else(|| float.filter(fits).map(|number| number as i64));
        match whole {
            Some(number) if range.contains(&number) => Ok(number),
            _ => Err(wrong(self.name(key), &integer_words(range, float), value)),
        }
    }

    #[inline]
    pub(crate) fn number(&self, key: &str, range: RangeInclusive<f64>) -> Result<Option<f32>, ApiError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        self.to_number(key, value, &range).map(Some)
    }

    fn to_number(&self, key: &str, value: &Json<'_>, range: &RangeInclusive<f64>) -> Result<f32, ApiError> {
        match value.as_f64() {
            Some(number) if range.contains(&number) => Ok(number as f32),
            _ => Err(wrong(
                self.name(key),
                &format!("a number from {} to {}", range.start(), range.end()),
                value,
            )),
        }
    }

    #[inline]
    pub(crate) fn array(&self, key: &str) -> Result<Option<&'a [Json<'a>]>, ApiError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        self.to_array(key, value).map(Some)
    }

    fn to_array(&self, key: &str, value: &'a Json<'a>) -> Result<&'a [Json<'a>], ApiError> {
        value.as_array().ok_or_else(|| wrong(self.name(key), "an array", value))
    }

    #[inline]
    pub(crate) fn object(&self, key: &str) -> Result<Option<Fields<'a>>, ApiError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        Fields::at(value, self.name(key)).map(Some)
    }

    /// Each key once, in the order in which they first appear, with its last value.
    pub(crate) fn entries(&self) -> Vec<(&'a str, &'a Json<'a>)> {
        let mut places = HashMap::with_capacity(self.object.len());
        let mut entries = Vec::with_capacity(self.object.len());
        for (key, value) in self.object.iter() {
            let place = *places.entry(key).or_insert(entries.len());
            match entries.get_mut(place) {
                Some(entry) => *entry = (key, value),
                None => entries.push((key, value)),
            }
        }
        entries
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
pub(crate) fn wrong(path: impl Into<String>, expected: &str, found: &Json<'_>) -> ApiError {
    let path = path.into();
    let message = format!("{path} must be {expected}, but is {}", describe(found));
    ApiError::invalid(path, message)
}

/// A value in a person's words, never longer than a line.
pub(crate) fn describe(value: &Json<'_>) -> String {
    match value {
        Json::Null => "null".to_owned(),
        Json::Bool(flag) => flag.to_string(),
        Json::Number(number) => serde_json::Number::from(*number).to_string(),
        Json::Str(text) if text.is_empty() => "an empty string".to_owned(),
        Json::Str(text) => format!("the string \"{}\"", clip(text)),
        Json::Array(items) if items.is_empty() => "an empty array".to_owned(),
        Json::Array(_) => "an array".to_owned(),
        Json::Object(_) => "an object".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json::parse_json;

    #[test]
    fn the_last_of_equal_keys_counts_among_few_and_among_many() {
        let others: Vec<_> = (0..FEW).map(|index| format!(r#","other{index}":{index}"#)).collect();
        for others in [String::new(), others.concat()] {
            let text = format!(r#"{{"a":1,"":0,"b":1,"a":2,"b":null{others},"\u0061":3,"c":null,"c":4}}"#);
            let json = parse_json(text.as_bytes()).expect("JSON");
            let fields = Fields::root(&json).expect("an object");
            let integer = |key: &str| fields.integer(key, 0..=9).expect("an integer");
            assert_eq!(
                ["a", "b", "c", "", "d"].map(integer),
                [Some(3), None, Some(4), Some(0), None],
                "{text}"
            );
            let entries = fields.entries();
            assert_eq!(entries.iter().take(3).map(|(key, _)| *key).collect::<Vec<_>>(), ["a", "", "b"]);
            assert_eq!(entries[0].1.as_i64(), Some(3));
            assert!(entries[2].1.is_null());
        }
    }
}
