//! A request's body read once: its JSON, and where in its text the model's name stands, for who sends it on with another one.

use std::fmt;
use std::ops::Range;

use serde::de::{Deserializer, Error, MapAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::error::ApiError;
use crate::fields::{check_size, not_json, parse_json};

/// A body that is JSON.
#[derive(Clone, Debug, PartialEq)]
pub struct RequestBody {
    /// The JSON.
    pub value: Value,
    models: Vec<Range<usize>>,
}

impl RequestBody {
    /// Reads a body.
    ///
    /// # Errors
    /// As [`crate::parse_json`].
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        check_size(body)?;
        if body.trim_ascii_start().first() != Some(&b'{') {
            // No object has a model; who reads the value says so.
            return Ok(Self { value: parse_json(body)?, models: Vec::new() });
        }
        let mut reader = serde_json::Deserializer::from_slice(body);
        let read = reader.deserialize_map(TopLevel(body)).and_then(|read| reader.end().map(|()| read));
        read.map_err(|error| not_json(&error))
    }

    /// Where the value of the top-level key `model` stands in the text.
    ///
    /// # Errors
    /// 400 when it is not there, or more than once.
    pub fn model_span(&self) -> Result<Range<usize>, ApiError> {
        match self.models.as_slice() {
            [span] => Ok(span.clone()),
            [] => Err(ApiError::invalid("model", "model is missing; name one of GET /v1/models")),
            // Readers disagree on which of the two counts, so what is checked here might not be what is served there.
            _ => Err(ApiError::invalid("model", "model appears more than once; send it once")),
        }
    }
}

/// The top level of the object that begins this text.
struct TopLevel<'a>(&'a [u8]);

impl<'de> Visitor<'de> for TopLevel<'de> {
    type Value = RequestBody;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RequestBody, A::Error> {
        let (mut object, mut models) = (Map::new(), Vec::with_capacity(1));
        while let Some(key) = map.next_key::<String>()? {
            let value = if key == "model" {
                let text = map.next_value::<&'de RawValue>()?.get();
                let start = text.as_ptr() as usize - self.0.as_ptr() as usize;
                models.push(start..start + text.len());
                serde_json::from_str(text).map_err(A::Error::custom)?
            } else {
                map.next_value()?
            };
            object.insert(key, value);
        }
        Ok(RequestBody { value: Value::Object(object), models })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn span(body: &str) -> Result<&str, ApiError> {
        Ok(&body[RequestBody::parse(body.as_bytes())?.model_span()?])
    }

    #[test]
    fn the_model_is_found_at_the_top_only() {
        let body = r#" {"nested":{"model":"no"}, "mod\u0065l" : "chat" ,"text":"\"model\":\"no\"","list":[{"model":1}]} "#;
        assert_eq!(span(body).expect("a span"), r#""chat""#);
        assert_eq!(span(r#"{"model":{"a": [1, "}"]}}"#).expect("a span"), r#"{"a": [1, "}"]}"#);
        for body in ["{}", r#"{"a":{"model":1}}"#, r#"{"model":"a","mode\u006c":"b"}"#, "[]", "7"] {
            assert_eq!(span(body).expect_err(body).param.as_deref(), Some("model"), "{body}");
        }
    }

    #[test]
    fn what_is_no_json_is_refused_in_the_same_words() {
        for body in [
            "",
            " ",
            "{",
            r#"{"model":}"#,
            r#"{"model":"a"} x"#,
            r#"{"a":1e400}"#,
            r#"{"model":"a" "b":1}"#,
            "{]",
        ] {
            let error = RequestBody::parse(body.as_bytes()).expect_err(body);
            assert_eq!(error, parse_json(body.as_bytes()).expect_err(body), "{body}");
        }
    }

    proptest! {
        #[test]
        fn it_reads_what_others_read(text in r#"[\[\]{}",:\\ a1]{0,24}"#, in_object in any::<bool>()) {
            let text = if in_object { format!("{{\"model\":{text}}}") } else { text };
            let (ours, theirs) = (RequestBody::parse(text.as_bytes()), parse_json(text.as_bytes()));
            prop_assert_eq!(ours.map(|body| body.value).ok(), theirs.ok(), "{}", text);
        }
    }
}
