//! Top-level fields of a JSON object, set or removed without reading what is below them. Pure.
//!
//! Values that stay are copied as they were written, so numbers of any precision and unknown fields survive. The way most
//! requests take (`request::body_for`) does not come here: this is for those that go on elsewhere, to a provider or twice.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// What to do to a field: a JSON text to set, or `None` to remove it.
pub type Change<'a> = (&'a str, Option<String>);

/// The object with these changes; fields that are set and were not there come last.
///
/// # Errors
/// When it is no JSON object.
pub fn rewritten(object: &[u8], changes: &[Change<'_>]) -> Result<Vec<u8>, serde_json::Error> {
    let TopLevel(fields) = serde_json::from_slice(object)?;
    let mut text = Vec::with_capacity(object.len() + 64);
    let mut put = |key: &str, value: &str| -> Result<(), serde_json::Error> {
        text.push(if text.is_empty() { b'{' } else { b',' });
        serde_json::to_writer(&mut text, key)?;
        text.push(b':');
        text.extend_from_slice(value.as_bytes());
        Ok(())
    };
    for (key, value) in &fields {
        match changes.iter().find(|(changed, _)| changed == key) {
            None => put(key, value.get())?,
            Some((_, Some(new))) => put(key, new)?,
            Some((_, None)) => {}
        }
    }
    for (key, value) in changes {
        if let Some(value) = value.as_ref().filter(|_| fields.iter().all(|(known, _)| known != key)) {
            put(key, value)?;
        }
    }
    if text.is_empty() {
        text.push(b'{');
    }
    text.push(b'}');
    Ok(text)
}

/// The JSON text of one top-level field.
///
/// # Errors
/// When it is no JSON object.
pub fn field<'a>(object: &'a [u8], name: &str) -> Result<Option<&'a str>, serde_json::Error> {
    let TopLevel(fields) = serde_json::from_slice(object)?;
    Ok(fields.into_iter().find(|(key, _)| key == name).map(|(_, value)| value.get()))
}

/// The fields of an object, in order.
struct TopLevel<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de> Deserialize<'de> for TopLevel<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = TopLevel<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = Vec::with_capacity(map.size_hint().unwrap_or(16));
                while let Some(key) = map.next_key::<Key<'de>>()? {
                    fields.push((key.0, map.next_value()?));
                }
                Ok(TopLevel(fields))
            }
        }
        deserializer.deserialize_map(Object)
    }
}

/// An object key, borrowed unless it holds escapes.
#[derive(serde::Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(object: &str, changes: &[Change<'_>]) -> String {
        String::from_utf8(rewritten(object.as_bytes(), changes).expect("an object")).expect("UTF-8")
    }

    #[test]
    fn only_what_is_named_changes() {
        let object = r#"{ "a": 1e400, "m\u006fdel" : "x", "nested": {"model": [1, 2]}, "gone": {} }"#;
        let set = |text: &str| Some(text.to_owned());
        assert_eq!(
            changed(
                object,
                &[("model", set(r#""y""#)), ("gone", None), ("new", set("[1]")), ("absent", None)]
            ),
            r#"{"a":1e400,"model":"y","nested":{"model": [1, 2]},"new":[1]}"#
        );
        assert_eq!(changed("{}", &[]), "{}");
        assert_eq!(changed("{}", &[("a", set("1"))]), r#"{"a":1}"#);
        assert_eq!(changed(r#"{"a":1}"#, &[("a", None)]), "{}");
        assert!(rewritten(b"[1]", &[]).is_err() && rewritten(b"{", &[]).is_err());
    }

    #[test]
    fn a_field_is_found_at_the_top_only() {
        let object = br#"{"below": {"a": 1}, "b": [2, 3]}"#;
        assert_eq!(field(object, "a").expect("an object"), None);
        assert_eq!(field(object, "b").expect("an object"), Some("[2, 3]"));
    }
}
