//! A body's text as JSON that borrows from it: no text is copied but those with escapes.
//!
//! Owns how much of it is read and in which words it is refused. What it means is [`crate::fields`]' part. An object holds
//! each key as often as it was written; the last one counts, as it does for `serde_json`.

use serde_json::Value;
use serde_json_borrow::{Number, ObjectAsVec};

use crate::error::ApiError;

/// JSON that borrows its texts. A key that was written twice is there twice, and the last one counts.
pub type Json<'a> = serde_json_borrow::Value<'a>;

/// Most values in a request's body. Parsed, each takes up to a hundred bytes however short it was written, so that a body of
/// nothing but `{},{},…` would take many times its size.
const MAX_JSON_VALUES: usize = 1 << 20;

/// Reads a request body as JSON.
///
/// # Errors
/// 400 with line and column when it is not JSON, and when it holds more than 2^20 values.
pub fn parse_json(body: &[u8]) -> Result<Json<'_>, ApiError> {
    check_size(body)?;
    let read = match std::str::from_utf8(body) {
        Ok(text) => serde_json::from_str(text),
        // It knows the place.
        Err(_) => serde_json::from_slice(body),
    };
    read.map_err(|error| not_json(&error))
}

/// 400 when there is nothing to read, or too much.
fn check_size(body: &[u8]) -> Result<(), ApiError> {
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

/// The same as JSON that borrows from `value`.
pub(crate) fn json_of(value: &Value) -> Json<'_> {
    match value {
        Value::Null => Json::Null,
        Value::Bool(flag) => Json::Bool(*flag),
        Value::Number(number) => Json::Number(number_of(number)),
        Value::String(text) => Json::from(text.as_str()),
        Value::Array(items) => Json::Array(items.iter().map(json_of).collect()),
        Value::Object(object) => {
            let entries = object.iter().map(|(key, value)| (key.as_str(), json_of(value)));
            Json::Object(ObjectAsVec::from_iter(entries))
        }
    }
}

/// As it would be read: the library's own conversion takes what is positive for negative.
fn number_of(number: &serde_json::Number) -> Number {
    if let Some(number) = number.as_u64() {
        Number::from(number)
    } else if let Some(number) = number.as_i64() {
        Number::from(number)
    } else {
        // Only features that nothing here turns on have other numbers.
        Number::from(number.as_f64().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn both(text: &[u8]) -> (Result<Value, ApiError>, Result<Value, ApiError>) {
        let theirs = serde_json::from_slice(text).map_err(|error| not_json(&error));
        (parse_json(text).map(|json| Value::from(&json)), theirs)
    }

    #[test]
    fn of_a_key_written_twice_the_last_counts_in_the_place_of_the_first() {
        let text = br#"{"b": 1, "a": {"x": 1, "y": 2, "\u0078": 3}, "b": 2, "c": [{"k": 1, "k": {"z": 0}}]}"#;
        let (ours, theirs) = both(text);
        let expected = r#"{"b":2,"a":{"x":3,"y":2},"c":[{"k":{"z":0}}]}"#;
        assert_eq!(ours.expect("JSON").to_string(), expected);
        assert_eq!(theirs.expect("JSON").to_string(), expected);
    }

    #[test]
    fn numbers_are_the_same_by_both_ways() {
        let text = "[0, -0, 1, -1, 1.0, 1e3, 1.5e-7, -2.25, 18446744073709551615, 9223372036854775808, \
                    -9223372036854775808, 18446744073709551616, -9223372036854775809, 1e308, 5e-324]";
        let value: Value = serde_json::from_str(text).expect("JSON");
        let read = parse_json(text.as_bytes()).expect("JSON");
        assert_eq!(json_of(&value), read);
        assert_eq!(Value::from(&read).to_string(), value.to_string());
    }

    #[test]
    fn what_is_no_json_is_refused_in_the_same_words() {
        let deep = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels)).into_bytes();
        assert!(parse_json(&deep(127)).is_ok());
        let (deep, mixed) = (deep(128), format!("{}1", r#"{"a":["#.repeat(64)).into_bytes());
        for text in [
            &b" "[..],
            b"{",
            b"{\"model\":}",
            b"{\"model\":\"a\"} x",
            b"{\"a\":1e400}",
            b"{\"model\":\"a\" \"b\":1}",
            b"{]",
            b"{1:2}",
            b"\xff",
            b"{\"a\": \"\xc3\", \"b\": ]",
            b"{\"\xff\": 1}",
            b"{\n\"a\": \"\xed\xa0\x80\"}",
            b"{\"a\": 1,\n\"model\": \"\\ud800\"}",
            b"{\"\\ud800x\": 1}",
            b"{\"a\": \"\x01\"}",
            b"{\"a\": \"\\x\"}",
            b"[01]",
            b"{\"a\": tru}",
            &deep,
            &mixed,
        ] {
            let (ours, theirs) = both(text);
            assert_eq!(ours.expect_err("no JSON"), theirs.expect_err("no JSON"), "{}", text.escape_ascii());
        }
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_filter("JSON has no NaN", |x| x.is_finite()).prop_map(Value::from),
            ".*".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec((".{0,3}", inner), 0..5)
                    .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn it_reads_what_others_read(text in r#"[\[\]{}",:\\ a1]{0,24}"#, bytes in prop::collection::vec(any::<u8>(), 0..4)) {
            let plain = text.clone().into_bytes();
            for text in [plain, format!("{{\"model\":{text}}}").into_bytes(), [b"{\"a\":\"", &bytes[..], b"\"}"].concat()] {
                let (ours, theirs) = if text.is_empty() { continue } else { both(&text) };
                prop_assert_eq!(ours, theirs, "{}", text.escape_ascii());
            }
        }

        #[test]
        fn a_value_is_the_same_read_or_converted(value in any_json()) {
            let text = value.to_string();
            let (ours, theirs) = both(text.as_bytes());
            let theirs = theirs.expect("JSON");
            prop_assert_eq!(ours.expect("JSON").to_string(), theirs.to_string());
            prop_assert_eq!(&json_of(&theirs), &parse_json(text.as_bytes()).expect("JSON"));
        }

        #[test]
        fn keys_written_twice_are_read_as_others_read_them(
            pairs in prop::collection::vec(("[ab]", any::<u8>()), 0..8), depth in 0_usize..3,
        ) {
            let object: Vec<_> = pairs.iter().map(|(key, value)| format!("\"{key}\": {value}")).collect();
            let mut text = format!("{{{}}}", object.join(", "));
            for _ in 0..depth {
                text = format!("{{\"a\": {text}, \"b\": [{text}], \"a\": {text}}}");
            }
            let (ours, theirs) = both(text.as_bytes());
            prop_assert_eq!(ours.expect("JSON").to_string(), theirs.expect("JSON").to_string());
        }
    }

    #[test]
    fn texts_are_borrowed_but_for_those_with_escapes() {
        let read = parse_json(br#"{"a": "plain", "b": "with\n"}"#).expect("JSON");
        let borrowed = |key: &str| matches!(read.get(key), Json::Str(std::borrow::Cow::Borrowed(_)));
        assert_eq!((borrowed("a"), borrowed("b")), (true, false));
        assert_eq!(Value::from(&read), json!({"a": "plain", "b": "with\n"}));
    }
}
