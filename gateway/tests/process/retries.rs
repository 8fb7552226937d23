//! What happens when pods fail: nobody notices as long as another can answer, and otherwise the answer says what is wrong.

use serde_json::{Value, json};

use crate::harness::{Gateway, error_of, header, route, within};
use crate::worker::{Worker, nobody};

async fn body(response: reqwest::Response) -> Value {
    within("a body", response.json()).await.expect("JSON")
}

#[tokio::test]
async fn a_refused_connection_is_tried_elsewhere_and_then_left_alone() {
    let worker = Worker::start().await.answer_all("alive");
    let dead = nobody().await;
    let gateway = Gateway::start(&route("chat", &[("v1", 1, &[&dead, &worker.url()])]), &[]).await;
    for _ in 0..20 {
        let response = gateway.chat("chat", false).await;
        assert_eq!(response.status(), 200);
        assert_eq!(header(&response, "x-fairlead-endpoint"), worker.address.to_string());
    }
    assert!(gateway.metric("fairlead_gateway_ejections_total", "").await >= 1.0);
    // Half of twenty requests would have met the dead pod, had it not been ejected for a second and more.
    let retries = gateway.metric("fairlead_gateway_retries_total", "reason=\"Connect\"").await;
    assert!((1.0..=8.0).contains(&retries), "{retries}");
}

#[tokio::test]
async fn a_pod_that_dies_over_an_answer_costs_time_and_not_the_request() {
    let (mut one, mut two) = (Worker::start().await, Worker::start().await);
    let gateway = Gateway::start(&route("chat", &[("v1", 1, &[&one.url(), &two.url()])]), &[]).await;
    let (response, ()) = tokio::join!(gateway.chat("chat", false), async {
        let (first, second) = tokio::select! {
            call = one.call() => (call, &mut two),
            call = two.call() => (call, &mut one),
        };
        let sending = first.begin("application/json");
        sending.send("{\"half\":").await;
        sending.die().await;
        second.call().await.json(200, json!({"whole": true}));
    });
    assert_eq!(response.status(), 200);
    assert_eq!(body(response).await, json!({"whole": true}));
    assert_eq!(gateway.metric("fairlead_gateway_retries_total", "reason=\"Reset\"").await, 1.0);
}

#[tokio::test]
async fn killing_a_pod_under_load_loses_no_request() {
    const REQUESTS: usize = 200;
    let (mut doomed, survivor) = (Worker::start().await, Worker::start().await.answer_all("survivor"));
    let gateway = Gateway::start(&route("chat", &[("v1", 1, &[&doomed.url(), &survivor.url()])]), &[]).await;
    let body = Gateway::chat_body("chat", false).to_string();
    let mut requests = tokio::task::JoinSet::new();
    for _ in 0..REQUESTS {
        requests.spawn(gateway.post("/v1/chat/completions", body.clone()).send());
    }
    // It holds several requests, answered not at all, when it dies; more are on their way to it.
    let mut held = Vec::new();
    for _ in 0..10 {
        held.push(doomed.call().await);
    }
    doomed.kill().await;
    let mut answered = 0;
    while let Some(response) = within("all answers", requests.join_next()).await {
        let response = response.expect("joined").expect("an answer");
        assert_eq!(response.status(), 200);
        answered += 1;
    }
    assert_eq!(answered, REQUESTS);
    assert!(gateway.metric("fairlead_gateway_retries_total", "").await >= 10.0);
    assert_eq!(gateway.metric("fairlead_gateway_requests_total", "outcome=\"Ok\"").await, REQUESTS as f64);
}

#[tokio::test]
async fn busy_and_draining_pods_are_passed_over() {
    for status in [503, 429] {
        let (mut one, mut two) = (Worker::start().await, Worker::start().await);
        let gateway = Gateway::start(&route("chat", &[("v1", 1, &[&one.url(), &two.url()])]), &[]).await;
        let (response, ()) = tokio::join!(gateway.chat("chat", true), async {
            let (first, second) = tokio::select! {
                call = one.call() => (call, &mut two),
                call = two.call() => (call, &mut one),
            };
            first.json(status, json!({"error": {"message": "not now"}}));
            second.call().await.json(200, json!({"ok": true}));
        });
        assert_eq!(response.status(), 200, "after {status}");
    }
}

#[tokio::test]
async fn the_last_pods_own_refusal_is_passed_on() {
    let mut worker = Worker::start().await;
    let gateway = Gateway::start(&route("chat", &[("v1", 1, &[&worker.url()])]), &[]).await;
    let refusal =
        json!({"error": {"message": "the queue is full", "type": "t", "param": null, "code": "queue_full"}});
    let (response, ()) = tokio::join!(gateway.chat("chat", false), async {
        worker.call().await.json(429, refusal.clone());
    });
    assert_eq!(response.status(), 429);
    assert_eq!(body(response).await, refusal);
}

#[tokio::test]
async fn a_pods_400_and_500_are_answers_and_not_repeated() {
    for status in [400, 500] {
        let (mut one, mut two) = (Worker::start().await, Worker::start().await);
        let gateway = Gateway::start(&route("chat", &[("v1", 1, &[&one.url(), &two.url()])]), &[]).await;
        let (response, ()) = tokio::join!(gateway.chat("chat", false), async {
            let call = tokio::select! { call = one.call() => call, call = two.call() => call };
            call.json(status, json!({"error": {"message": "no"}}));
        });
        assert_eq!(response.status().as_u16(), status);
        assert_eq!(gateway.metric("fairlead_gateway_retries_total", "").await, 0.0);
    }
}

#[tokio::test]
async fn with_nobody_left_the_answer_says_so_in_openais_shape() {
    let gateway = Gateway::start(&route("chat", &[("v1", 1, &[&nobody().await])]), &[]).await;
    let response = gateway.chat("chat", true).await;
    assert_eq!((response.status().as_u16(), header(&response, "retry-after")), (503, "1"));
    assert_eq!(header(&response, "x-fairlead-route"), "ns/chat");
    assert_eq!(error_of(response).await["code"], "upstream_unreachable");
}

#[tokio::test]
async fn a_pod_that_does_not_answer_in_time_is_a_504() {
    let mut worker = Worker::start().await;
    let args = ["--first-byte-timeout", "200ms"];
    let gateway = Gateway::start(&route("chat", &[("v1", 1, &[&worker.url()])]), &args).await;
    let (response, call) = tokio::join!(gateway.chat("chat", false), worker.call());
    assert_eq!(response.status(), 504);
    assert_eq!(error_of(response).await["code"], "upstream_timeout");
    call.abandoned().await;
}

#[tokio::test]
async fn an_answer_too_large_to_hold_passes_through() {
    let mut worker = Worker::start().await;
    let args = ["--max-held-response-bytes", "1Ki"];
    let gateway = Gateway::start(&route("chat", &[("v1", 1, &[&worker.url()])]), &args).await;
    let (text, ()) =
        tokio::join!(async { gateway.chat("chat", false).await.text().await.expect("text") }, async {
            let sending = worker.call().await.begin("application/json");
            for _ in 0..100 {
                sending.send(vec![b'x'; 100]).await;
            }
        });
    assert_eq!(text.len(), 10_000);
}
