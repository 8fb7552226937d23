//! Compares two answers: their length and, by embeddings, their meaning. Pure.

use bytes::Bytes;
use serde_json::Value;

/// The first answer's text in an answer's bytes, of any of the APIs; empty where there is none.
pub fn text(pieces: &[Bytes], events: bool) -> String {
    let whole = pieces.concat();
    if !events {
        return serde_json::from_slice(&whole).map(|answer| choice_text(&answer)).unwrap_or_default();
    }
    let lines = whole.split(|byte| *byte == b'\n');
    let data = lines.filter_map(|line| line.strip_prefix(b"data:"));
    data.filter_map(|data| serde_json::from_slice::<Value>(data).ok())
        .map(|event| choice_text(&event))
        .collect()
}

/// What a choice says, or adds.
fn choice_text(answer: &Value) -> String {
    let choices = answer["choices"].as_array().map(Vec::as_slice).unwrap_or_default();
    let first = choices.iter().find(|choice| choice["index"].as_u64().unwrap_or(0) == 0);
    let Some(choice) = first else { return String::new() };
    let said = [&choice["message"], &choice["delta"]];
    let content = said.iter().find_map(|said| said["content"].as_str()).or(choice["text"].as_str());
    let calls = said.iter().find_map(|said| said["tool_calls"].as_array());
    let mut text = content.unwrap_or_default().to_owned();
    for call in calls.into_iter().flatten() {
        for part in ["name", "arguments"] {
            text.push_str(call["function"][part].as_str().unwrap_or_default());
        }
    }
    text
}

/// One number by another; `None` where that is none.
pub fn ratio(one: f64, other: f64) -> Option<f64> {
    (other > 0.0).then(|| one / other).filter(|ratio| ratio.is_finite())
}

/// The cosine of the angle between two embeddings in an answer of `/v1/embeddings`.
pub fn similarity(answer: &[u8]) -> Option<f64> {
    let answer: Value = serde_json::from_slice(answer).ok()?;
    let vector = |index: usize| -> Option<Vec<f64>> {
        answer["data"].get(index)?["embedding"].as_array()?.iter().map(Value::as_f64).collect()
    };
    let (one, other) = (vector(0)?, vector(1)?);
    if one.len() != other.len() {
        return None;
    }
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    ratio(dot(&one, &other), (dot(&one, &one) * dot(&other, &other)).sqrt())
        .map(|cosine| cosine.clamp(-1.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn texts_are_found_in_answers_of_all_kinds() {
        let whole = |answer: Value| text(&[Bytes::from(answer.to_string())], false);
        assert_eq!(whole(json!({"choices": [{"index": 0, "message": {"content": "yes"}}]})), "yes");
        assert_eq!(whole(json!({"choices": [{"text": "and"}]})), "and");
        let call = json!({"function": {"name": "f", "arguments": "{}"}});
        assert_eq!(whole(json!({"choices": [{"message": {"content": null, "tool_calls": [call]}}]})), "f{}");
        assert_eq!(whole(json!({"data": []})), "");
        assert_eq!(text(&[Bytes::from_static(b"<html>")], false), "");
        let events = concat!(
            "data: {\"choices\":[{\"index\":1,\"delta\":{\"content\":\"no\"}}]}\n\n",
            "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"yes\"}}]}\n\n",
            ": x\n\ndata: {\"choices\":[]}\n\ndata: [DONE]\n\n"
        );
        let (one, two) = events.split_at(90);
        assert_eq!(text(&[Bytes::from(one), Bytes::from(two)], true), "yes");
    }

    #[test]
    fn similar_is_similar() {
        let answer = |a: Value, b: Value| json!({"data": [{"embedding": a}, {"embedding": b}]}).to_string();
        let cosine = |a, b| similarity(answer(a, b).as_bytes());
        assert_eq!(cosine(json!([3, 0]), json!([5, 0])), Some(1.0));
        assert_eq!(cosine(json!([1, 0]), json!([0, 2])), Some(0.0));
        assert_eq!(cosine(json!([1]), json!([-1])), Some(-1.0));
        for (a, b) in
            [(json!([0, 0]), json!([1, 0])), (json!([1]), json!([1, 2])), (json!(["x"]), json!([1]))]
        {
            assert_eq!(cosine(a, b), None);
        }
        assert_eq!(similarity(b"{}"), None);
    }
}
