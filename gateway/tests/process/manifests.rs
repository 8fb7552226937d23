//! Routes from files: precedence, edits while it runs, and mistakes.

use serde_json::Value;

use crate::harness::{Gateway, eventually, route, within};
use crate::worker::Worker;

async fn answered_by(gateway: &Gateway, model: &str) -> String {
    let body: Value = gateway.chat(model, false).await.json().await.expect("JSON");
    body["from"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn of_two_routes_with_one_model_name_the_older_answers() {
    let (old, new) = (Worker::start().await.answer_all("old"), Worker::start().await.answer_all("new"));
    let named = |name: &str, created: &str, url: &str| {
        route(name, &[("b", 1, &[url])])
            .replace("\"spec\":{", "\"spec\":{\"model\":\"chat\",")
            .replace("\"metadata\":{", &format!("\"metadata\":{{\"creationTimestamp\":\"{created}\","))
    };
    let newer = named("a-new", "2026-02-01T00:00:00Z", &new.url());
    let older = named("z-old", "2026-01-01T00:00:00Z", &old.url());
    let gateway = Gateway::start(&format!("{newer}{older}"), &[]).await;
    for _ in 0..10 {
        assert_eq!(answered_by(&gateway, "chat").await, "old");
    }
    assert_eq!(gateway.metric("fairlead_gateway_snapshot_problems", "").await, 1.0);
    // When the older goes away the newer takes over by itself.
    gateway.edit(&newer);
    eventually("the newer takes over", || async { answered_by(&gateway, "chat").await == "new" }).await;
}

#[tokio::test]
async fn an_edit_takes_effect_and_a_wrong_one_does_not() {
    let (one, two) = (Worker::start().await.answer_all("one"), Worker::start().await.answer_all("two"));
    let good = |url: &str| route("chat", &[("v1", 1, &[url])]);
    let gateway = Gateway::start(&good(&one.url()), &[]).await;
    assert_eq!(answered_by(&gateway, "chat").await, "one");

    gateway.edit(&good(&two.url()).replace("endpoints", "endpoint"));
    eventually("the mistake is told", || async {
        gateway.metric("fairlead_gateway_source_failing", "").await == 1.0
    })
    .await;
    eventually("the log names the place", || async {
        let log = gateway.log();
        log.contains("routes.yaml, document 1: spec.backends[0]") && log.contains("endpoint")
    })
    .await;
    assert_eq!(answered_by(&gateway, "chat").await, "one", "what was in force stays in force");
    assert_eq!(gateway.admin("/readyz").await.0, 200);

    gateway.edit(&good(&two.url()));
    eventually("the corrected edit is in force", || async { answered_by(&gateway, "chat").await == "two" })
        .await;
    eventually("the mistake is forgotten", || async {
        gateway.metric("fairlead_gateway_source_failing", "").await == 0.0
    })
    .await;
}

#[tokio::test]
async fn wrong_manifests_stop_the_start_with_one_clear_line() {
    let dir = tempfile::tempdir().expect("a folder");
    std::fs::write(dir.path().join("r.yaml"), route("chat", &[("v1", 0, &["http://127.0.0.1:1"])]))
        .expect("written");
    let mut command = Gateway::command(&[]);
    command.arg("--manifests").arg(dir.path()).stderr(std::process::Stdio::piped());
    let output = within("it ends", command.output()).await.expect("output");
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8(output.stderr).expect("UTF-8");
    assert!(error.contains("r.yaml, document 1: spec.backends: the weights sum to zero"), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
}
