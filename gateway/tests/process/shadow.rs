//! Mirrored requests: asked of another backend, compared, and never felt by the live one.

use serde_json::{Value, json};

use crate::harness::{Gateway, eventually, header, route_of, within};
use crate::worker::Worker;

struct Mirrored {
    gateway: Gateway,
    live: Worker,
    shadow: Worker,
    embedder: Worker,
}

async fn mirrored(extra: Value) -> Mirrored {
    let (live, shadow, embedder) = (Worker::start().await, Worker::start().await, Worker::start().await);
    let mut rule =
        json!({"backend": "v2", "percent": 100, "embedder": {"endpoint": embedder.url(), "model": "minilm"}});
    rule.as_object_mut().expect("an object").extend(extra.as_object().expect("an object").clone());
    let spec = json!({"backends": [
        {"name": "v1", "weight": 1, "modelDeployment": "served-1", "endpoints": [live.url()]},
        {"name": "v2", "modelDeployment": "served-2", "endpoints": [shadow.url()]},
    ], "shadow": rule});
    let gateway = Gateway::start(&route_of("chat", &spec), &[]).await;
    Mirrored { gateway, live, shadow, embedder }
}

fn answer(text: &str) -> Value {
    json!({"choices": [{"index": 0, "message": {"content": text}}]})
}

async fn shadowed(gateway: &Gateway, result: &str) -> f64 {
    gateway.metric("fairlead_gateway_shadow_requests_total", &format!("result=\"{result}\"")).await
}

#[tokio::test]
async fn a_mirrored_request_is_compared_and_nobody_gets_its_answer() {
    let Mirrored { gateway, mut live, mut shadow, mut embedder } = mirrored(json!({})).await;
    let (response, ()) = tokio::join!(gateway.chat("chat", false), async {
        let (call, mirror) = tokio::join!(live.call(), shadow.call());
        assert_eq!((&call.body["model"], call.header("x-fairlead-shadow")), (&json!("served-1"), ""));
        assert_eq!((&mirror.body["model"], mirror.header("x-fairlead-shadow")), (&json!("served-2"), "true"));
        assert_eq!(mirror.body["messages"], call.body["messages"]);
        mirror.json(200, answer("a longer answer"));
        call.json(200, answer("short"));
    });
    assert_eq!(header(&response, "x-fairlead-backend"), "v1");
    assert!(within("a body", response.text()).await.expect("text").contains("short"));
    let call = embedder.call().await;
    assert_eq!(
        (&call.body["model"], &call.body["input"]),
        (&json!("minilm"), &json!(["short", "a longer answer"]))
    );
    call.json(200, json!({"data": [{"embedding": [1.0, 0.0]}, {"embedding": [1.0, 0.0]}]}));
    eventually("it is compared", || async {
        gateway.metric("fairlead_gateway_shadow_similarity_sum", "backend=\"v2\"").await == 1.0
    })
    .await;
    assert_eq!(gateway.metric("fairlead_gateway_shadow_length_ratio_sum", "route=\"ns/chat\"").await, 3.0);
    assert_eq!(gateway.metric("fairlead_gateway_shadow_latency_ratio_count", "").await, 1.0);
    assert_eq!(shadowed(&gateway, "Answered").await, 1.0);
    assert_eq!(
        gateway.metric("fairlead_gateway_requests_total", "").await,
        1.0,
        "the mirrored leg is no request"
    );
    assert!(!gateway.log().contains("longer answer") && !gateway.log().contains("secret prompt"));
}

#[tokio::test]
async fn streams_are_mirrored_too() {
    let Mirrored { gateway, mut live, mut shadow, mut embedder } = mirrored(json!({})).await;
    let event = |text: &str| {
        let chunk = json!({"choices": [{"index": 0, "delta": {"content": text}}]});
        format!("data: {chunk}\n\n")
    };
    let (response, (sending, mirror)) = tokio::join!(gateway.chat("chat", true), async {
        let sending = live.call().await.stream();
        sending.send(event("ab")).await;
        (sending, shadow.call().await.stream())
    });
    let (text, ()) = tokio::join!(within("the end", response.text()), async {
        sending.send(format!("{}data: [DONE]\n\n", event("cd"))).await;
        drop(sending);
        mirror.send(format!("{}{}data: [DONE]\n\n", event("a"), event("b"))).await;
        drop(mirror);
    });
    assert_eq!(text.expect("text"), format!("{}{}data: [DONE]\n\n", event("ab"), event("cd")));
    assert_eq!(embedder.call().await.body["input"], json!(["abcd", "ab"]));
    eventually("it is compared", || async {
        gateway.metric("fairlead_gateway_shadow_length_ratio_sum", "").await == 0.5
    })
    .await;
}

#[tokio::test]
async fn a_shadow_that_fails_stalls_or_has_no_room_is_not_felt() {
    let Mirrored { gateway, mut live, mut shadow, embedder: _ } =
        mirrored(json!({"maxInFlight": 1, "timeout": "400ms"})).await;
    let mut held = None;
    for _ in 0..3 {
        let (response, ()) = tokio::join!(gateway.chat("chat", false), async {
            live.call().await.json(200, answer("yes"));
        });
        assert_eq!(response.status(), 200);
        // The first one stalls, and takes the only place.
        if held.is_none() {
            held = Some(shadow.call().await);
        }
    }
    assert!(shadow.is_idle());
    assert!(shadowed(&gateway, "Dropped").await >= 1.0);
    held.expect("the first").abandoned().await;
    eventually("it is given up", || async { shadowed(&gateway, "Failed").await == 1.0 }).await;
    let (response, ()) = tokio::join!(gateway.chat("chat", false), async {
        shadow.call().await.json(500, json!({"error": {}}));
        live.call().await.json(200, answer("yes"));
    });
    assert_eq!(response.status(), 200);
    eventually("it is counted", || async { shadowed(&gateway, "Failed").await == 2.0 }).await;
    assert_eq!(gateway.metric("fairlead_gateway_requests_total", "outcome=\"Ok\"").await, 4.0);
}

#[tokio::test]
async fn what_the_live_one_did_not_answer_is_not_compared() {
    let Mirrored { gateway, mut live, mut shadow, mut embedder } = mirrored(json!({})).await;
    let (response, ()) = tokio::join!(gateway.chat("chat", false), async {
        shadow.call().await.json(200, answer("yes"));
        live.call().await.json(400, json!({"error": {}}));
    });
    assert_eq!(response.status(), 400);
    eventually("it is counted", || async { shadowed(&gateway, "Incomparable").await == 1.0 }).await;
    assert!(embedder.is_idle());
}
