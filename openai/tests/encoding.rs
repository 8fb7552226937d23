//! What clients may send to /v1/embeddings and /v1/rerank, and what they are told when it is wrong.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use fairlead_openai::embedding::{Embedding, EmbeddingRequest, EncodingFormat, MAX_INPUTS, Truncation};
use fairlead_openai::rerank::{MAX_DOCUMENTS, RerankRequest};
use fairlead_openai::{ApiError, Prompt};
use proptest::prelude::*;
use serde_json::{Value, json};

fn embedding(extra: Value) -> Result<EmbeddingRequest, ApiError> {
    let mut body = json!({"model": "m", "input": "hi"});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    EmbeddingRequest::from_value(&body)
}

fn rerank(extra: Value) -> Result<RerankRequest, ApiError> {
    let mut body = json!({"model": "m", "query": "q", "documents": ["a"]});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    RerankRequest::from_value(&body)
}

#[test]
fn reads_every_kind_of_input() {
    let inputs = |input: Value| embedding(json!({ "input": input })).unwrap().inputs;
    assert_eq!(inputs(json!("a")), [Prompt::Text("a".into())]);
    assert_eq!(inputs(json!("")), [Prompt::Text(String::new())]);
    assert_eq!(inputs(json!(["a", ""])), [Prompt::Text("a".into()), Prompt::Text(String::new())]);
    assert_eq!(inputs(json!([1, 2])), [Prompt::Tokens(vec![1, 2])]);
    assert_eq!(inputs(json!([[1], [2, 3]])), [Prompt::Tokens(vec![1]), Prompt::Tokens(vec![2, 3])]);
}

#[test]
fn reads_a_full_embedding_request() {
    let request =
        embedding(json!({"encoding_format": "base64", "dimensions": 64, "user": "u", "truncate": true,
        "unknown": 1}))
        .unwrap();
    assert_eq!(request.encoding_format, EncodingFormat::Base64);
    assert_eq!((request.dimensions, request.truncation), (Some(64), Truncation::ToModel));
    assert_eq!(embedding(json!({})).unwrap().truncation, Truncation::Refuse);
    assert_eq!(embedding(json!({"truncate_prompt_tokens": -1})).unwrap().truncation, Truncation::ToModel);
    assert_eq!(embedding(json!({"truncate_prompt_tokens": 9})).unwrap().truncation, Truncation::To(9));
}

#[test]
fn reads_a_full_rerank_request() {
    let request = rerank(json!({"documents": ["a", {"text": "b", "title": "t"}], "top_n": 1,
        "return_documents": true, "truncate": true}))
    .unwrap();
    assert_eq!(request.documents, ["a", "b"]);
    assert_eq!((request.top_n, request.return_documents), (Some(1), true));
    assert_eq!(request.truncation, Truncation::ToModel);
}

#[test]
fn names_the_wrong_field_and_the_remedy() {
    let many: Vec<&str> = vec!["x"; MAX_INPUTS + 1];
    let cases: Vec<(Value, &str, &str)> = vec![
        (json!({"input": null}), "input", "input is required"),
        (json!({"input": 5}), "input", "but is 5"),
        (json!({"input": []}), "input", "empty array"),
        (json!({"input": [[]]}), "input[0]", "at least one token id"),
        (json!({"input": ["a", 7]}), "input[1]", "a string or an array of token ids, but is 7"),
        (json!({"input": [1, "a"]}), "input[1]", "a token id"),
        (json!({"input": many}), "input", "at most 2048"),
        (json!({"encoding_format": "int8"}), "encoding_format", "\"float\" or \"base64\""),
        (json!({"dimensions": 0}), "dimensions", "at least 1"),
        (json!({"truncate": "END"}), "truncate", "true or false"),
        (json!({"truncate_prompt_tokens": 0}), "truncate_prompt_tokens", "at least 1, or -1"),
        (json!({"user": 1}), "user", "a string"),
        (json!({"model": ""}), "model", "model is required"),
    ];
    for (extra, param, words) in cases {
        let error = embedding(extra.clone()).expect_err(&extra.to_string());
        assert_eq!((error.status, error.param.as_deref()), (400, Some(param)), "{extra}: {error}");
        assert!(error.message.contains(words), "{extra}: {error}");
    }
    let many: Vec<&str> = vec!["x"; MAX_DOCUMENTS + 1];
    let cases: Vec<(Value, &str, &str)> = vec![
        (json!({"query": null}), "query", "query is required"),
        (json!({"query": ["q"]}), "query", "a string"),
        (json!({"documents": null}), "documents", "documents is required"),
        (json!({"documents": []}), "documents", "empty array"),
        (json!({"documents": "a"}), "documents", "an array"),
        (json!({"documents": [1]}), "documents[0]", "a string or an object with a text, but is 1"),
        (json!({"documents": ["a", {"image": "x"}]}), "documents[1].text", "is required"),
        (json!({"documents": [{"text": 5}]}), "documents[0].text", "a string, but is 5"),
        (json!({"documents": many}), "documents", "at most 2048"),
        (json!({"top_n": 0}), "top_n", "at least 1"),
        (json!({"return_documents": 1}), "return_documents", "true or false"),
    ];
    for (extra, param, words) in cases {
        let error = rerank(extra.clone()).expect_err(&extra.to_string());
        assert_eq!((error.status, error.param.as_deref()), (400, Some(param)), "{extra}: {error}");
        assert!(error.message.contains(words), "{extra}: {error}");
    }
}

#[test]
fn both_forms_of_an_embedding_are_read_back() {
    for (embedding, json) in [
        (Embedding::Float(vec![0.5, -1.0]), "[0.5,-1.0]"),
        (Embedding::Base64("AAA=".to_owned()), "\"AAA=\""),
    ] {
        assert_eq!(serde_json::to_string(&embedding).unwrap(), json);
        assert_eq!(serde_json::from_str::<Embedding>(json).unwrap(), embedding);
    }
}

proptest! {
    #[test]
    fn no_body_makes_it_panic(body in prop::collection::vec(any::<u8>(), 0..300), text in ".{0,80}") {
        let _ = EmbeddingRequest::from_slice(&body);
        let _ = RerankRequest::from_slice(&body);
        let _ = embedding(json!({"input": text}));
        let _ = rerank(json!({"query": text, "documents": [text]}));
    }
}
