//! Streams: never buffered, aborted with the client, ended honestly.

use bytes::Bytes;
use futures::{Stream, StreamExt};

use crate::harness::{Gateway, header, route, within};
use crate::worker::{Sending, Worker};

async fn next(stream: &mut (impl Stream<Item = reqwest::Result<Bytes>> + Unpin)) -> String {
    let chunk = within("a chunk", stream.next()).await.expect("the stream goes on").expect("no error");
    String::from_utf8(chunk.to_vec()).expect("UTF-8")
}

/// A gateway with one worker, a running stream and its first event.
async fn begun() -> (Gateway, Worker, Sending, reqwest::Response) {
    let mut worker = Worker::start().await;
    let gateway = Gateway::start(&route("chat", &[("v1", 1, &[&worker.url()])]), &[]).await;
    let (response, sending) = tokio::join!(gateway.chat("chat", true), async {
        let sending = worker.call().await.stream();
        sending.send("data: {\"n\":1}\n\n").await;
        sending
    });
    assert_eq!((response.status().as_u16(), header(&response, "x-fairlead-backend")), (200, "v1"));
    assert!(header(&response, "content-type").starts_with("text/event-stream"));
    (gateway, worker, sending, response)
}

#[tokio::test]
async fn each_event_reaches_the_client_before_the_next_is_sent() {
    let (gateway, _worker, sending, response) = begun().await;
    let mut stream = response.bytes_stream();
    assert_eq!(next(&mut stream).await, "data: {\"n\":1}\n\n");
    for n in 2..5 {
        sending.send(format!("data: {{\"n\":{n}}}\n\n")).await;
        assert_eq!(next(&mut stream).await, format!("data: {{\"n\":{n}}}\n\n"));
    }
    sending.send("data: [DONE]\n\n").await;
    assert_eq!(next(&mut stream).await, "data: [DONE]\n\n");
    drop(sending);
    assert!(within("the end", stream.next()).await.is_none());
    let ok = "api=\"ChatCompletions\",code=\"Success\",outcome=\"Ok\"";
    assert_eq!(gateway.metric("fairlead_gateway_requests_total", ok).await, 1.0);
    assert!(!gateway.log().contains("secret"), "prompts do not belong in logs");
}

#[tokio::test]
async fn a_client_that_leaves_aborts_the_generation() {
    let (gateway, _worker, sending, response) = begun().await;
    drop(response);
    sending.abandoned().await;
    crate::harness::eventually("it is counted", || async {
        gateway.metric("fairlead_gateway_requests_total", "outcome=\"ClientGone\"").await == 1.0
    })
    .await;
    assert_eq!(gateway.metric("fairlead_gateway_requests_in_flight", "").await, 0.0);
}

#[tokio::test]
async fn a_client_that_leaves_before_the_answer_aborts_it_too() {
    for stream in [true, false] {
        let mut worker = Worker::start().await;
        let gateway = Gateway::start(&route("chat", &[("v1", 1, &[&worker.url()])]), &[]).await;
        let request = gateway.post("/v1/chat/completions", Gateway::chat_body("chat", stream).to_string());
        let client = tokio::spawn(request.send());
        let call = worker.call().await;
        client.abort();
        call.abandoned().await;
    }
}

#[tokio::test]
async fn a_pod_that_dies_in_a_stream_ends_it_with_an_error_event_and_no_done() {
    let (gateway, _worker, sending, response) = begun().await;
    // In the middle of an event, so that the half must not be glued to the error.
    sending.send("data: {\"n\":2}\n\ndata: {\"n\":").await;
    sending.die().await;
    let text = within("the end", response.text()).await.expect("the stream ends cleanly");
    let events: Vec<&str> = text.split_terminator("\n\n").collect();
    assert_eq!(events[..2], ["data: {\"n\":1}", "data: {\"n\":2}"]);
    assert_eq!(events.len(), 3, "{text}");
    let error: serde_json::Value =
        serde_json::from_str(events[2].strip_prefix("data: ").expect("data")).expect("JSON");
    assert_eq!(error["error"]["code"], "upstream_broken", "{error}");
    assert!(!text.contains("[DONE]"));
    assert_eq!(gateway.metric("fairlead_gateway_requests_total", "outcome=\"Broken\"").await, 1.0);
}

#[tokio::test]
async fn a_stream_that_ends_without_its_last_word_is_not_passed_off_as_complete() {
    let (_gateway, _worker, sending, response) = begun().await;
    drop(sending);
    let text = within("the end", response.text()).await.expect("the stream ends cleanly");
    assert!(text.contains("ended its answer early") && !text.contains("[DONE]"), "{text}");
}

#[tokio::test]
async fn an_error_that_the_pod_itself_streams_is_passed_on_alone() {
    let (_gateway, _worker, sending, response) = begun().await;
    sending.send("data: {\"error\":{\"message\":\"x\"}}\n\n").await;
    drop(sending);
    let text = within("the end", response.text()).await.expect("text");
    assert_eq!(text, "data: {\"n\":1}\n\ndata: {\"error\":{\"message\":\"x\"}}\n\n");
}

#[tokio::test]
async fn a_pod_that_dies_before_the_first_event_is_not_noticed() {
    let (mut one, mut two) = (Worker::start().await, Worker::start().await);
    let gateway = Gateway::start(&route("chat", &[("v1", 1, &[&one.url(), &two.url()])]), &[]).await;
    let (response, ()) = tokio::join!(gateway.chat("chat", true), async {
        let (first, second) = tokio::select! {
            call = one.call() => (call, &mut two),
            call = two.call() => (call, &mut one),
        };
        // The head is out already, as that of an engine which answers before it has computed anything.
        first.stream().die().await;
        let sending = second.call().await.stream();
        sending.send("data: {}\n\ndata: [DONE]\n\n").await;
    });
    assert_eq!(response.status(), 200);
    assert_eq!(within("the end", response.text()).await.expect("text"), "data: {}\n\ndata: [DONE]\n\n");
}

#[tokio::test]
async fn a_pod_that_falls_silent_ends_the_stream_with_an_error_event() {
    let mut worker = Worker::start().await;
    let gateway =
        Gateway::start(&route("chat", &[("v1", 1, &[&worker.url()])]), &["--idle-timeout", "200ms"]).await;
    let (response, sending) = tokio::join!(gateway.chat("chat", true), async {
        let sending = worker.call().await.stream();
        sending.send("data: {}\n\n").await;
        sending
    });
    let text = within("the end", response.text()).await.expect("text");
    assert!(text.contains("was silent for 0.2 seconds"), "{text}");
    sending.abandoned().await;
}

#[tokio::test]
async fn many_streams_run_side_by_side() {
    const STREAMS: usize = 300;
    let mut worker = Worker::start().await;
    let gateway = Gateway::start(&route("chat", &[("v1", 1, &[&worker.url()])]), &[]).await;
    let body = Gateway::chat_body("chat", true).to_string();
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..STREAMS {
        let request = gateway.post("/v1/chat/completions", body.clone());
        clients.spawn(async move { request.send().await.expect("an answer").text().await.expect("text") });
    }
    let mut streams = Vec::new();
    for _ in 0..STREAMS {
        let sending = worker.call().await.stream();
        sending.send("data: 1\n\n").await;
        streams.push(sending);
    }
    assert_eq!(gateway.metric("fairlead_gateway_requests_in_flight", "").await, STREAMS as f64);
    for sending in streams {
        sending.send("data: [DONE]\n\n").await;
    }
    while let Some(text) = within("all streams end", clients.join_next()).await {
        assert_eq!(text.expect("joined"), "data: 1\n\ndata: [DONE]\n\n");
    }
}
