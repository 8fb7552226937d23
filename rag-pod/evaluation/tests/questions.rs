//! Reading question sets, good and bad.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use fairlead_evaluation::question::Wanted;
use fairlead_evaluation::{digest, parse};
use proptest::prelude::*;
use serde_json::json;

#[test]
fn all_three_forms_say_the_same() {
    let lines = r#"{"id": "a", "question": "What?", "contexts": ["One.", "Two."], "expected": "this", "tags": ["t"]}

{"question": "Who?", "refusal": true, "metadata": {"source": 7}}
"#;
    let list = r#"[{"id": "a", "question": "What?", "contexts": ["One.", "Two."], "expected": ["this"], "tags": ["t"]},
        {"question": "Who?", "refusal": true}]"#;
    let yaml = r"
# Comments are fine here.
- id: a
  question: What?
  contexts: [One., Two.]
  expected: this
  tags: [t]
- question: Who?
  refusal: true
";
    let questions = parse(lines).unwrap();
    assert_eq!(parse(list).unwrap(), questions);
    assert_eq!(parse(yaml).unwrap(), questions);
    assert_eq!(
        questions[0].messages,
        [json!({"role": "user", "content": "Question: What?\n[1] One.\n[2] Two."})]
    );
    assert!(matches!(&questions[0].wanted, Wanted::Answer { expected, .. } if expected == &["this"]));
    assert_eq!((questions[1].id.as_str(), &questions[1].wanted), ("2", &Wanted::Refusal));
    assert_eq!(questions[1].messages, [json!({"role": "user", "content": "Who?"})]);
    assert!(questions[0].plain);
}

#[test]
fn a_conversation_is_asked_as_it_is() {
    let text = r#"{"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}], "expected": "Hello"}"#;
    let question = parse(text).unwrap().remove(0);
    assert_eq!(question.messages.len(), 2);
    assert!(!question.plain);
}

#[test]
fn what_is_wrong_names_its_place_and_the_remedy() {
    let long = "x".repeat(200);
    for (text, part) in [
        (String::new(), "there is no question"),
        ("  \n".to_owned(), "there is no question"),
        ("[]".to_owned(), "there is no question"),
        ("[{]".to_owned(), "is not a list in JSON"),
        ("just words".to_owned(), "a list in YAML"),
        ("- 7".to_owned(), "question 1: must be an object"),
        ("{\"question\": \"a\", \"expected\": \"b\"}\n{\"question\"".to_owned(), "line 2: is not a JSON object"),
        (r#"{"question": "a", "anser": "b"}"#.to_owned(), "line 1: unknown field `anser`"),
        (r#"{"expected": "b"}"#.to_owned(), "neither question nor messages"),
        (r#"{"question": "a", "messages": [], "expected": "b"}"#.to_owned(), "both question and messages"),
        (r#"{"question": "a"}"#.to_owned(), "neither expected nor refusal"),
        (r#"{"question": "a", "expected": "b", "refusal": true}"#.to_owned(), "both expected and refusal"),
        (r#"{"question": "a", "refusal": true, "match": ["f1"]}"#.to_owned(), "leave it out beside refusal"),
        (r#"{"question": " ", "expected": "b"}"#.to_owned(), "question is empty"),
        (r#"{"question": "a", "expected": ""}"#.to_owned(), "expected is empty"),
        (r#"{"question": "a", "expected": []}"#.to_owned(), "expected is empty"),
        ("- {question: a, expected: 12}".to_owned(), "write numbers in quotes"),
        (r#"{"question": "a", "expected": "b", "match": ["latency"]}"#.to_owned(), "some of exactMatch, contains and f1"),
        (r#"{"messages": [], "expected": "b"}"#.to_owned(), "messages is empty"),
        (r#"{"messages": [{"role": "robot", "content": "x"}], "expected": "b"}"#.to_owned(), "messages[0].role"),
        (
            r#"{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}], "expected": "b"}"#
                .to_owned(),
            "must end with a user's",
        ),
        (
            r#"{"messages": [{"role": "user", "content": "x"}], "contexts": ["y"], "expected": "b"}"#.to_owned(),
            "contexts belong to a question",
        ),
        (format!(r#"{{"id": "{long}", "question": "a", "expected": "b"}}"#), "1 to 128 characters"),
        (
            "{\"id\": \"a\", \"question\": \"a\", \"expected\": \"b\"}\n{\"id\": \"a\", \"question\": \"b\", \"expected\": \"b\"}"
                .to_owned(),
            "line 2: id \"a\" is another question's",
        ),
        ("{\"question\": \"a\", \"expected\": \"b\"}\n".repeat(10_001), "split them into several sets"),
    ] {
        let error = parse(&text).unwrap_err().to_string();
        assert!(error.contains(part), "{part:?} is not in {error:?}");
    }
}

#[test]
fn a_digest_changes_with_every_byte() {
    assert_eq!(digest("abc"), "ba7816bf8f01cfea", "the first 16 digits of its SHA-256");
    assert_ne!(digest("abc"), digest("abc\n"));
}

proptest! {
    #[test]
    fn whatever_is_read_is_read_or_refused(text in any::<String>()) {
        let _ = parse(&text);
        let _ = parse(&format!("[{text}]"));
        let _ = parse(&format!("{{{text}}}"));
        let _ = parse(&format!("- {text}"));
    }
}

/// The example is read as the operator reads it; its YAML has anchors.
#[test]
fn the_example_is_a_question_set() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/examples/evaluation/questions.yaml");
    let config_map: serde_json::Value =
        serde_saphyr::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    let questions = parse(config_map["data"]["questions.yaml"].as_str().unwrap()).unwrap();
    let refusals = questions.iter().filter(|question| question.wanted == Wanted::Refusal).count();
    assert_eq!((questions.len(), refusals), (29, 8));
    assert!(
        questions[0].messages[0]["content"]
            .as_str()
            .unwrap()
            .starts_with("Question: When is the help desk staffed?\n[1] If")
    );
}
