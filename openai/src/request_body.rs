//! A request's body read once: its JSON, and where in its text the model's name stands, for who sends it on with another one.

use std::borrow::Cow;
use std::ops::Range;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::error::ApiError;
use crate::json::{Json, not_json, parse_json};

/// A body that is JSON.
#[derive(Clone, Debug, PartialEq)]
pub struct RequestBody<'a> {
    json: Json<'a>,
    text: &'a [u8],
}

impl<'a> RequestBody<'a> {
    /// Reads a body.
    ///
    /// # Errors
    /// As [`crate::parse_json`].
    pub fn parse(body: &'a [u8]) -> Result<Self, ApiError> {
        Ok(Self { json: parse_json(body)?, text: body })
    }

    /// The JSON.
    pub fn json(&self) -> &Json<'a> {
        &self.json
    }

    /// Where the value of the top-level key `model` stands in the text.
    ///
    /// # Errors
    /// 400 when it is not there, or more than once.
    pub fn model_span(&self) -> Result<Range<usize>, ApiError> {
        let object = self.json.as_object();
        let mut models =
            object.into_iter().flat_map(|object| object.iter()).filter(|(key, _)| *key == "model");
        match (models.next(), models.next()) {
            (Some((_, Json::Str(Cow::Borrowed(name)))), None) => Ok(self.span_of_quoted(name)),
            (Some(_), None) => self.span_of_raw(),
            (None, _) => Err(ApiError::invalid("model", "model is missing; name one of GET /v1/models")),
            // Readers disagree on which of the two counts, so what is checked here might not be what is served there.
            _ => Err(ApiError::invalid("model", "model appears more than once; send it once")),
        }
    }

    /// A string that is borrowed is a piece of the text, between its quotes.
    fn span_of_quoted(&self, name: &str) -> Range<usize> {
        let start = name.as_ptr() as usize - self.text.as_ptr() as usize;
        start - 1..start + name.len() + 1
    }

    /// What is not borrowed, for its escapes, is looked for in the text.
    fn span_of_raw(&self) -> Result<Range<usize>, ApiError> {
        #[derive(Deserialize)]
        struct Named<'a> {
            #[serde(borrow)]
            model: &'a RawValue,
        }
        let named: Named<'_> = serde_json::from_slice(self.text).map_err(|error| not_json(&error))?;
        let model = named.model.get();
        let start = model.as_ptr() as usize - self.text.as_ptr() as usize;
        Ok(start..start + model.len())
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
        assert_eq!(span(r#"{"x":"é", "model" :"" }"#).expect("a span"), r#""""#);
        for body in ["{}", r#"{"a":{"model":1}}"#, r#"{"model":"a","mode\u006c":"b"}"#, "[]", "7"] {
            assert_eq!(span(body).expect_err(body).param.as_deref(), Some("model"), "{body}");
        }
    }

    #[test]
    fn a_name_with_escapes_is_found_too() {
        let body = r#"{"a": {"model": "x\\"}, "b": ["model", "\u00e9"], "model" : "x\"y\u00e9\\" , "c": 1}"#;
        assert_eq!(span(body).expect("a span"), r#""x\"y\u00e9\\""#);
        assert_eq!(span("{\"mode\\u006c\":\t7\n}").expect("a span"), "7");
    }

    proptest! {
        #[test]
        fn the_span_is_the_model_as_it_was_written(
            name in any::<String>(), before in "\\PC{0,8}", gaps in "[ \n\t]{0,3}", escaped in any::<bool>(),
        ) {
            let mut quoted = serde_json::Value::from(name).to_string();
            if escaped {
                quoted.insert_str(1, r"\u0041");
            }
            let before = serde_json::Value::from(format!("x{before}"));
            let body = format!("{gaps}{{{before}:{before},{gaps}\"model\"{gaps}:{gaps}{quoted}{gaps},\"x\":[{before}]}}");
            prop_assert_eq!(span(&body).expect("a span"), quoted);
        }
    }
}
