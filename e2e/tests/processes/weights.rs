//! Traffic follows the manifest while both programs run on.

use serde_json::json;

use crate::programs::{Gateway, Pod, eventually, header};

#[tokio::test]
async fn an_edit_of_the_weights_moves_traffic_without_a_restart() {
    let (mut old, mut new) = tokio::join!(Pod::start(), Pod::start());
    let gateway = Gateway::start(&[("v1", 100, &old), ("v2", 0, &new)]).await;
    let backend =
        async || header(&gateway.chat(json!({"max_tokens": 1})).await, "x-fairlead-backend").to_owned();
    for _ in 0..10 {
        assert_eq!(backend().await, "v1");
    }
    let stream = gateway.chat(json!({"stream": true, "max_tokens": 1000})).await;

    gateway.edit(&[("v1", 50, &old), ("v2", 50, &new)]);
    eventually("the new backend has a share", || async { backend().await == "v2" }).await;
    eventually("and the old one too", || async { backend().await == "v1" }).await;
    gateway.edit(&[("v1", 0, &old), ("v2", 100, &new)]);
    let answers = |pod| async move { Pod::metric(pod, "vllm:e2e_request_latency_seconds_count").await };
    eventually("the old backend has no share", || async {
        let mut all = Vec::new();
        for _ in 0..10 {
            all.push(backend().await);
        }
        all.iter().all(|name| name == "v2")
    })
    .await;
    for _ in 0..10 {
        assert_eq!(backend().await, "v2");
    }
    assert!(answers(&new).await > Some(20.0));
    let events = crate::programs::events(Vec::new(), stream).await;
    assert_eq!(
        events.last().expect("events")["choices"][0]["finish_reason"],
        "length",
        "it stayed where it was"
    );
    assert!(old.program.is_running() && new.program.is_running() && gateway.is_running());
}
