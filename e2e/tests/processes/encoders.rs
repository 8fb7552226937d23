//! Embeddings and reranking through both programs: the OpenAI SDK, and plain HTTP.

use std::path::Path;

use serde_json::{Value, json};
use tokio::process::Command;

use crate::programs::{Gateway, MODEL, Pod, header, within};

#[tokio::test]
async fn the_openai_sdk_embeds_through_the_gateway() {
    let pod = Pod::start_encoder("bert_mean", "Embed").await;
    let gateway = Gateway::start(&[("v1", 1, &pod)]).await;
    let seen = sdk(&format!("{}/v1", gateway.url()), MODEL).await;
    assert_eq!(
        (&seen["model"], &seen["indices"], &seen["numbers"]),
        (&json!(MODEL), &json!([0, 1]), &json!([32, 32]))
    );
    // Letters and the special tokens around them.
    assert_eq!(seen["tokens"], 7 + 10);
    assert!(seen["difference"].as_f64().expect("a number") < 1e-6, "base64 and floats differ: {seen}");
    assert_eq!(seen["chat"], json!({"status": 400, "code": "unsupported_task"}));
}

#[tokio::test]
async fn documents_are_reranked_through_the_gateway() {
    let pod = Pod::start_encoder("bert_score", "Rerank").await;
    let gateway = Gateway::start(&[("v1", 1, &pod)]).await;
    let body =
        json!({"model": MODEL, "query": "what is this?", "documents": ["this", {"text": "it is that"}, ""]});
    for path in ["/v1/rerank", "/rerank"] {
        let answer = gateway.post(path, body.to_string()).await;
        assert_eq!(answer.status(), 200);
        assert_eq!(header(&answer, "x-fairlead-backend"), "v1");
        let answer: Value = answer.json().await.expect("JSON");
        assert_eq!(answer["model"], MODEL);
        let order: Vec<_> =
            answer["results"].as_array().expect("results").iter().map(|it| it["index"].clone()).collect();
        assert_eq!(order, [2, 0, 1], "{answer}");
    }
    assert!(gateway.metric("fairlead_gateway_requests_total{api=\"Rerank\"").await >= 2.0);
}

/// Runs the SDK in its own environment and reads what it saw.
async fn sdk(base_url: &str, model: &str) -> Value {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let python = root.join("e2e/tests/python");
    let mut setup = Command::new(root.join("scripts/setup.sh"));
    let setup = setup.arg("python").arg(python.join("requirements.txt")).arg("e2e");
    let made = setup.output().await.expect("it runs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let environment = String::from_utf8(made.stdout).expect("UTF-8").trim().to_owned();
    let mut program = Command::new(format!("{environment}/bin/python"));
    let program = program.arg(python.join("sdk_encode.py")).args([base_url, model]).env("NO_PROXY", "*");
    let ran = within("the SDK is done", program.output()).await.expect("it runs");
    assert!(ran.status.success(), "the SDK failed:\n{}", String::from_utf8_lossy(&ran.stderr));
    serde_json::from_slice(&ran.stdout).expect("JSON")
}
