//! `fairlead-rag evaluate` by hand: a good version of the example model and one that was trained too briefly answer the example's
//! questions on real pods.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::Value;
use tokio::process::Command;

use crate::programs::{Pod, SERVED, binary, within};

/// A path of the checkout.
fn checkout(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// The scores and items of one model.
async fn evaluate(model: &str) -> Value {
    let pod = Pod::start_model(&checkout("inference-pod/models").join(model), &[]).await;
    let text =
        std::fs::read_to_string(checkout("docs/examples/evaluation/questions.yaml")).expect("the example");
    let config_map: Value = serde_saphyr::from_str(&text).expect("YAML");
    let folder = tempfile::tempdir().expect("a folder");
    let questions = folder.path().join("questions.yaml");
    std::fs::write(&questions, config_map["data"]["questions.yaml"].as_str().expect("text"))
        .expect("written");
    let running = Command::new(binary("fairlead-rag"))
        .args(["evaluate", "--base-url", &pod.url, "--model", SERVED, "--max-tokens", "64", "-o", "json"])
        .args(["--ignore", "Case,Punctuation,Articles,Citations", "--request-timeout", "600", "--questions"])
        .arg(&questions)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = within("the questions are answered", running).await.expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn hits(result: &Value, name: &str) -> u64 {
    let scores = result["summary"]["scores"].as_array().expect("scores");
    let score = scores.iter().find(|score| score["name"] == name);
    score.unwrap_or_else(|| panic!("no {name}: {scores:?}"))["hits"].as_u64().expect("a share")
}

#[tokio::test]
async fn a_good_version_and_a_bad_one_are_told_apart() {
    let good = evaluate("fairlead-tiny-v1").await;
    let bad = evaluate("fairlead-tiny-undertrained").await;
    for result in [&good, &bad] {
        assert_eq!((result["summary"]["asked"].as_u64(), hits(result, "errors")), (Some(29), 0));
    }
    let (found, missed) = (hits(&good, "contains"), hits(&bad, "contains"));
    assert!(found >= 14, "of 21 questions with an answer {found} were answered: {}", good["items"]);
    assert!(missed + 5 <= found, "{missed} and {found} of 21: {}", bad["items"]);
}
