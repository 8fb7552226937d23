//! Puts the route's name for the model into a provider's answer, whole or event by event. Pure.

use bytes::{Bytes, BytesMut};

use crate::rewrite::{field, rewritten};

/// The answer with this name for the model; as it was where it has none.
pub fn whole(answer: &Bytes, model: &str) -> Bytes {
    renamed(answer, model).map_or_else(|| answer.clone(), Bytes::from)
}

/// Complete events with this name for the model.
pub fn events(events: &Bytes, model: &str) -> Bytes {
    let mut written = BytesMut::with_capacity(events.len() + 32);
    for line in events.split_inclusive(|byte| *byte == b'\n') {
        let end = line.trim_ascii_end().len();
        let data = line[..end].strip_prefix(b"data:").map(<[u8]>::trim_ascii_start);
        match data.filter(|data| data.starts_with(b"{")).and_then(|data| renamed(data, model)) {
            Some(data) => {
                written.extend_from_slice(b"data: ");
                written.extend_from_slice(&data);
                written.extend_from_slice(&line[end..]);
            }
            None => written.extend_from_slice(line),
        }
    }
    written.freeze()
}

fn renamed(object: &[u8], model: &str) -> Option<Vec<u8>> {
    field(object, "model").ok().flatten()?;
    rewritten(object, &[("model", Some(serde_json::Value::from(model).to_string()))]).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_models_name_changes() {
        let answer = Bytes::from_static(br#"{"id":"1","model":"gpt-x-2026","choices":[{"model":"y"}]}"#);
        assert_eq!(whole(&answer, "chat"), r#"{"id":"1","model":"chat","choices":[{"model":"y"}]}"#);
        for same in [&br#"{"id":1}"#[..], b"<html>", b""] {
            assert_eq!(whole(&Bytes::from_static(same), "chat"), same);
        }
        let stream = Bytes::from_static(
            b": hi\n\ndata: {\"model\":\"x\",\"n\":1}\r\n\r\ndata:{\"model\":\"x\"}\n\ndata: [DONE]\n\n",
        );
        assert_eq!(
            events(&stream, "chat"),
            ": hi\n\ndata: {\"model\":\"chat\",\"n\":1}\r\n\r\ndata: {\"model\":\"chat\"}\n\ndata: [DONE]\n\n"
        );
    }
}
