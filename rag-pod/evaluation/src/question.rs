//! What a question is, and how a question set is read.

use std::collections::BTreeSet;

use fairlead_crds::evaluation::Score;
use fairlead_openai::ChatCompletionRequest;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

/// Most questions in one set.
pub const MOST_QUESTIONS: usize = 10_000;
/// Longest `id`, in characters.
const LONGEST_ID: usize = 128;

/// One question.
#[derive(Clone, Debug, PartialEq)]
pub struct Question {
    /// Its name within the set.
    pub id: String,
    /// The messages of the request, the last of them a user's.
    pub messages: Vec<Value>,
    /// Whether `messages` were made from a `question`, so that a system message may be put in front.
    pub plain: bool,
    /// What it should get.
    pub wanted: Wanted,
    /// For people and tools; kept with the result.
    pub tags: Vec<String>,
}

/// What a question should get.
#[derive(Clone, Debug, PartialEq)]
pub enum Wanted {
    /// One of these.
    Answer {
        /// Each as good as the others; at least one.
        expected: Vec<String>,
        /// Of exactMatch, contains and f1 those that it has a part in.
        scores: BTreeSet<Score>,
    },
    /// No answer, but to be told so.
    Refusal,
}

/// What is wrong with a question set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}{message}")]
pub struct QuestionError {
    /// Which question, such as `line 3: ` or `question 3: `; empty where it is about the whole.
    pub place: String,
    /// What to change.
    pub message: String,
}

/// A question as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default)]
    id: Option<Value>,
    #[serde(default)]
    question: Option<String>,
    #[serde(default)]
    contexts: Vec<String>,
    #[serde(default)]
    messages: Option<Vec<Value>>,
    #[serde(default)]
    expected: Option<Value>,
    #[serde(default)]
    refusal: bool,
    #[serde(default, rename = "match")]
    scores: Option<Vec<Score>>,
    #[serde(default)]
    tags: Vec<String>,
    // For whoever wrote the set.
    #[serde(default, rename = "metadata")]
    _metadata: Map<String, Value>,
}

/// Changes with every byte of a question set: the first 16 hexadecimal digits of its SHA-256.
pub fn digest(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// Reads a question set: one JSON object a line, or a list in JSON or YAML.
///
/// # Errors
/// The first thing that is wrong with it.
pub fn parse(text: &str) -> Result<Vec<Question>, QuestionError> {
    let written = match text.trim_start().chars().next() {
        Some('{') => lines(text)?,
        Some('[') => listed(
            serde_json::from_str(text).map_err(|error| whole(format!("is not a list in JSON: {error}")))?,
        ),
        Some(_) => listed(serde_saphyr::from_str(text).map_err(|error| {
            whole(format!("is neither one JSON object a line nor a list in YAML: {error}"))
        })?),
        None => Vec::new(),
    };
    if written.is_empty() {
        return Err(whole("there is no question; write at least one"));
    }
    if written.len() > MOST_QUESTIONS {
        return Err(whole(format!(
            "{} questions are more than {MOST_QUESTIONS}; split them into several sets",
            written.len()
        )));
    }
    let mut ids = BTreeSet::new();
    let mut questions = Vec::with_capacity(written.len());
    for (index, (place, value)) in written.into_iter().enumerate() {
        let question =
            read(value, index).map_err(|message| QuestionError { place: place.clone(), message })?;
        if !ids.insert(question.id.clone()) {
            let message = format!("id {:?} is another question's already; give each its own", question.id);
            return Err(QuestionError { place, message });
        }
        questions.push(question);
    }
    Ok(questions)
}

fn whole(message: impl Into<String>) -> QuestionError {
    QuestionError { place: String::new(), message: message.into() }
}

fn lines(text: &str) -> Result<Vec<(String, Value)>, QuestionError> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(index, line)| {
            let place = format!("line {}: ", index + 1);
            match serde_json::from_str(line) {
                Ok(value) => Ok((place, value)),
                Err(error) => Err(QuestionError { place, message: format!("is not a JSON object: {error}") }),
            }
        })
        .collect()
}

fn listed(values: Vec<Value>) -> Vec<(String, Value)> {
    values
        .into_iter()
        .enumerate()
        .map(|(index, value)| (format!("question {}: ", index + 1), value))
        .collect()
}

fn read(value: Value, index: usize) -> Result<Question, String> {
    if !value.is_object() {
        return Err("must be an object with question or messages".to_owned());
    }
    let Written { id, question, contexts, messages, expected, refusal, scores, tags, _metadata } =
        serde_json::from_value(value).map_err(|error| error.to_string())?;
    let id = identity(id, index)?;
    let (messages, plain) = match (question, messages) {
        (Some(question), None) => (vec![asked(&question, &contexts)?], true),
        (None, Some(messages)) if contexts.is_empty() => (conversation(messages)?, false),
        (None, Some(_)) => {
            return Err("contexts belong to a question; put them into the messages".to_owned());
        }
        (Some(_), Some(_)) => return Err("has both question and messages; leave one out".to_owned()),
        (None, None) => return Err("has neither question nor messages; give one of them".to_owned()),
    };
    let wanted = match (expected, refusal) {
        (Some(_), true) => {
            return Err("has both expected and refusal: true; leave one out".to_owned());
        }
        (None, true) if scores.is_some() => {
            return Err(
                "match says how an expected answer is compared; leave it out beside refusal".to_owned()
            );
        }
        (None, true) => Wanted::Refusal,
        (None, false) => {
            return Err("has neither expected nor refusal: true; give one of them".to_owned());
        }
        (Some(expected), false) => {
            Wanted::Answer { expected: alternatives(expected)?, scores: text_scores(scores)? }
        }
    };
    Ok(Question { id, messages, plain, wanted, tags })
}

fn identity(id: Option<Value>, index: usize) -> Result<String, String> {
    let id = match id {
        None => return Ok((index + 1).to_string()),
        Some(Value::String(id)) => id,
        Some(Value::Number(id)) => id.to_string(),
        Some(_) => return Err("id must be a string".to_owned()),
    };
    let length = id.chars().count();
    if length == 0 || length > LONGEST_ID || id.chars().any(char::is_control) {
        return Err(format!("id must have 1 to {LONGEST_ID} characters, none of them a control character"));
    }
    Ok(id)
}

/// The one user message that holds a question and its passages, in the form that Fairlead's small models are trained on.
fn asked(question: &str, contexts: &[String]) -> Result<Value, String> {
    if question.trim().is_empty() {
        return Err("question is empty".to_owned());
    }
    let content = if contexts.is_empty() {
        question.to_owned()
    } else {
        let passages = contexts.iter().enumerate().map(|(index, text)| format!("[{}] {text}", index + 1));
        std::iter::once(format!("Question: {question}")).chain(passages).collect::<Vec<_>>().join("\n")
    };
    Ok(json!({"role": "user", "content": content}))
}

fn conversation(messages: Vec<Value>) -> Result<Vec<Value>, String> {
    // What no server would take is said before any is asked.
    ChatCompletionRequest::from_value(&json!({"model": "any", "messages": messages}))
        .map_err(|error| error.message.clone())?;
    if messages.last().is_some_and(|last| last["role"] == "assistant") {
        return Err("messages must end with a user's: the answer to it is what is compared".to_owned());
    }
    Ok(messages)
}

fn alternatives(expected: Value) -> Result<Vec<String>, String> {
    let wrong = || {
        "expected must be a string, or a list of strings that are each right; write numbers in quotes"
            .to_owned()
    };
    let expected = match expected {
        Value::String(one) => vec![one],
        Value::Array(several) => several
            .into_iter()
            .map(|one| match one {
                Value::String(one) => Ok(one),
                _ => Err(wrong()),
            })
            .collect::<Result<_, _>>()?,
        _ => return Err(wrong()),
    };
    if expected.is_empty() || expected.iter().any(|one| one.trim().is_empty()) {
        return Err("expected is empty; write what is right, or refusal: true".to_owned());
    }
    Ok(expected)
}

fn text_scores(written: Option<Vec<Score>>) -> Result<BTreeSet<Score>, String> {
    let known = [Score::ExactMatch, Score::Contains, Score::F1];
    let Some(written) = written else { return Ok(known.into()) };
    if written.is_empty() || written.iter().any(|score| !known.contains(score)) {
        return Err("match must be a list of some of exactMatch, contains and f1".to_owned());
    }
    Ok(written.into_iter().collect())
}
