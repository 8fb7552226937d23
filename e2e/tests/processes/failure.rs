//! Pods that leave or die, and clients that leave: what was accepted is answered, what is unwanted is not computed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::programs::{Gateway, Pod, events, eventually, text_of, within};

#[tokio::test]
async fn a_pod_told_to_stop_finishes_its_streams() {
    let (mut pod, other) = tokio::join!(Pod::start(), Pod::start());
    let gateway = Gateway::start(&[("v1", 1, &pod)]).await;
    let mut answer = gateway.chat(json!({"stream": true, "max_tokens": 2000})).await;
    let first = answer.chunk().await.expect("a chunk").expect("a beginning").to_vec();
    pod.program.signal(Signal::SIGTERM);
    eventually("it drains", || async { pod.readiness().await.1["reason"] == "draining" }).await;

    // New requests go elsewhere, although the gateway has not been told.
    gateway.edit(&[("v1", 1_000_000, &pod), ("v2", 1, &other)]);
    eventually("another pod answers", || async { gateway.chat(json!({})).await.status() == 200 }).await;

    let events = events(first, answer).await;
    assert!(!text_of(&events).is_empty());
    assert_eq!(events.last().expect("events")["choices"][0]["finish_reason"], "length");
    assert_eq!(pod.program.ended().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_is_killed_under_load_loses_no_whole_answer() {
    let (mut doomed, other) = tokio::join!(Pod::start(), Pod::start());
    let gateway = Gateway::start(&[("v1", 1, &doomed), ("v2", 1, &other)]).await;
    let (answered, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let clients: Vec<_> = (0..16)
        .map(|_| {
            let (gateway, answered, stop) = (gateway.clone(), Arc::clone(&answered), Arc::clone(&stop));
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let answer = gateway.chat(json!({"max_tokens": 100})).await;
                    let status = answer.status();
                    let body: Value = answer.json().await.expect("JSON");
                    assert_eq!(status, 200, "{body}");
                    assert_eq!(body["usage"]["completion_tokens"], 100);
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    eventually("both pods have answered", || async { answered.load(Ordering::Relaxed) > 32 }).await;
    doomed.until_running(|running| running >= 3.0).await;
    doomed.program.signal(Signal::SIGKILL);
    doomed.program.ended().await;
    let before = answered.load(Ordering::Relaxed);
    eventually("the other pod has taken over", || async { answered.load(Ordering::Relaxed) > before + 64 })
        .await;
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        within("a client ends", client).await.expect("every request was answered");
    }
    assert!(gateway.metric("fairlead_gateway_retries_total").await >= 1.0, "requests ran when it was killed");
}

#[tokio::test]
async fn a_stream_that_waits_on_a_killed_pod_is_begun_on_another() {
    let (mut doomed, other) = tokio::join!(Pod::start_with(&["--max-sequences", "1"]), Pod::start());
    let gateway = Gateway::start(&[("v1", 1, &doomed)]).await;
    let mut running = gateway.chat(json!({"stream": true, "max_tokens": 16000})).await;
    let mut seen = running.chunk().await.expect("a chunk").expect("a beginning").to_vec();
    let waiting = tokio::spawn({
        let gateway = gateway.clone();
        async move { gateway.chat(json!({"stream": true})).await }
    });
    eventually("one waits", || async { doomed.metric("vllm:num_requests_waiting").await == Some(1.0) }).await;
    gateway.edit(&[("v1", 1, &doomed), ("v2", 1, &other)]);
    eventually("the edit is in force", || async {
        gateway.metric("fairlead_gateway_endpoints").await == 2.0
    })
    .await;
    doomed.program.signal(Signal::SIGKILL);
    doomed.program.ended().await;

    let answer = waiting.await.expect("an answer");
    assert_eq!(crate::programs::header(&answer, "x-fairlead-backend"), "v2");
    let events = events(Vec::new(), answer).await;
    assert_eq!(events.last().expect("events")["choices"][0]["finish_reason"], "length");
    // The other one had begun: its client is told that the answer is incomplete.
    while let Some(chunk) = within("the end", running.chunk()).await.expect("a clean end") {
        seen.extend_from_slice(&chunk);
    }
    let seen = String::from_utf8(seen).expect("UTF-8");
    assert!(!seen.contains("[DONE]"));
    let last = seen.trim_end().rsplit("\n\n").next().expect("an event");
    assert!(last.starts_with("data: {\"error\"") && last.contains("upstream_broken"), "{last}");
}

#[tokio::test]
async fn a_client_that_leaves_frees_the_engine() {
    let pod = Pod::start().await;
    let gateway = Gateway::start(&[("v1", 1, &pod)]).await;
    let mut stream = gateway.chat(json!({"stream": true, "max_tokens": 16000})).await;
    stream.chunk().await.expect("a chunk").expect("a beginning");
    let whole = tokio::spawn({
        let gateway = gateway.clone();
        async move { gateway.chat(json!({"max_tokens": 16000})).await }
    });
    pod.until_running(|running| running == 2.0).await;
    drop(stream);
    pod.until_running(|running| running == 1.0).await;
    whole.abort();
    pod.until_running(|running| running == 0.0).await;
    assert_eq!(pod.metric("vllm:kv_cache_usage_perc").await, Some(0.0));
    let made = pod.metric("vllm:generation_tokens_total").await.expect("a metric");
    assert!(made < 30_000.0, "the answers were made all the same");
    assert_eq!(gateway.chat(json!({})).await.status(), 200);
}
