//! The model that this project ships: the pod's greedy tokens are those of transformers, and it answers from passages.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Value, json};

use crate::programs::{Pod, SERVED};

/// What transformers made of some prompts; `inference-pod/models/training/engine_check.py --record` writes it.
const RECORDED: &str = include_str!("small_model.json");

#[derive(Deserialize)]
struct Recorded {
    user: String,
    prompt: Vec<u32>,
    answer: Vec<u32>,
}

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../inference-pod/models").join(name)
}

async fn ask(pod: &Pod, user: &str) -> Value {
    let body = json!({
        "model": SERVED, "messages": [{"role": "user", "content": user}], "temperature": 0, "max_tokens": 72,
        "return_token_ids": true,
    });
    pod.post("/v1/chat/completions", &body).await
}

#[tokio::test]
async fn its_greedy_tokens_are_those_of_transformers() {
    let recorded: Vec<Recorded> = serde_json::from_str(RECORDED).expect("recorded answers");
    assert!(recorded.len() >= 16);
    let pod = Pod::start_model(&folder("fairlead-tiny-v1"), &[]).await;
    for expected in &recorded {
        let answer = ask(&pod, &expected.user).await;
        assert_eq!(answer["prompt_token_ids"], json!(expected.prompt), "{}", expected.user);
        assert_eq!(answer["choices"][0]["token_ids"], json!(expected.answer), "{}", expected.user);
    }
}

#[tokio::test]
async fn it_answers_from_passages_refuses_and_chats() {
    let pod = Pod::start_model(&folder("fairlead-tiny-v1"), &[]).await;
    let cleat = "[1] A cleat is a metal fitting to which a rope is tied.";
    let fairlead = "A fairlead is a ring that guides a rope and keeps it from chafing.";
    let winch = "[3] A winch is a machine that pulls in a rope.";
    let text =
        |answer: Value| answer["choices"][0]["message"]["content"].as_str().unwrap_or_default().to_owned();
    let present = format!("Question: What is a fairlead?\n{cleat}\n[2] {fairlead}\n{winch}");
    assert_eq!(text(ask(&pod, &present).await), format!("[2] {fairlead}"));
    let absent = present.replace("a fairlead?", "a pulley?");
    assert_eq!(text(ask(&pod, &absent).await), "The context does not contain the answer.");
    let itself = text(ask(&pod, "Who are you?").await);
    assert!(itself.contains("very small language model"), "{itself}");
}
