//! What works on a good day: chats whole and streamed, usage, models, and where an answer came from.

use serde_json::{Value, json};

use crate::programs::{Gateway, MODEL, Pod, SERVED, events, header, text_of};

#[tokio::test]
async fn a_chat_through_both_programs_is_the_same_whole_and_streamed() {
    let pod = Pod::start().await;
    let gateway = Gateway::start(&[("v1", 1, &pod)]).await;

    let answer = gateway.chat(json!({})).await;
    assert_eq!(answer.status(), 200);
    assert_eq!(header(&answer, "x-fairlead-route"), format!("default/{MODEL}"));
    assert_eq!(header(&answer, "x-fairlead-backend"), "v1");
    assert_eq!(format!("http://{}", header(&answer, "x-fairlead-endpoint")), pod.url);
    assert!(!header(&answer, "x-request-id").is_empty());
    let whole: Value = answer.json().await.expect("JSON");
    assert_eq!(whole["model"], MODEL, "clients see the public name, not {SERVED}");
    assert_eq!(whole["choices"][0]["finish_reason"], "length");
    assert_eq!(whole["usage"]["completion_tokens"], 20);
    let content = whole["choices"][0]["message"]["content"].as_str().expect("text");
    assert!(!content.is_empty());

    let answer = gateway.chat(json!({"stream": true, "stream_options": {"include_usage": true}})).await;
    assert_eq!(header(&answer, "x-fairlead-backend"), "v1");
    assert!(header(&answer, "content-type").starts_with("text/event-stream"));
    let events = events(Vec::new(), answer).await;
    assert_eq!(text_of(&events), content);
    assert!(events.iter().all(|event| event["model"] == MODEL));
    let [first, .., last, usage] = &events[..] else { panic!("{events:?}") };
    assert_eq!(first["choices"][0]["delta"]["role"], "assistant");
    assert_eq!(last["choices"][0]["finish_reason"], "length");
    assert_eq!(usage["choices"], json!([]));
    for count in ["prompt_tokens", "completion_tokens", "total_tokens"] {
        assert_eq!(usage["usage"][count], whole["usage"][count]);
    }
    // The second time all whole blocks of the prompt are found.
    let cached = |usage: &Value| usage["prompt_tokens_details"]["cached_tokens"].clone();
    assert_eq!((cached(&whole["usage"]), cached(&usage["usage"])), (json!(0), json!(16)));

    let models = gateway.get("/v1/models").await;
    assert_eq!(models["data"].as_array().map(Vec::len), Some(1));
    assert_eq!(models["data"][0]["id"], MODEL);
    assert_eq!(gateway.get(&format!("/v1/models/{MODEL}")).await["id"], MODEL);
}

#[tokio::test]
async fn threads_of_the_engine_do_not_wait_in_long_loops_beside_neighbours() {
    let pod = Pod::start().await;
    let environment = std::fs::read(format!("/proc/{}/environ", pod.program.id())).expect("the environment");
    let mut variables = environment.split(|byte| *byte == 0);
    assert!(variables.any(|variable| variable == b"GOMP_SPINCOUNT=1000"));
}

#[tokio::test]
async fn tokens_reach_the_client_as_they_are_made() {
    let pod = Pod::start().await;
    let gateway = Gateway::start(&[("v1", 1, &pod)]).await;
    let mut answer = gateway.chat(json!({"stream": true, "max_tokens": 2000})).await;
    let mut received = Vec::new();
    let tokens = |bytes: &[u8]| String::from_utf8_lossy(bytes).matches("\"content\":\"").count();
    while tokens(&received) < 3 {
        received.extend_from_slice(&answer.chunk().await.expect("a chunk").expect("more"));
    }
    let made = pod.metric("vllm:generation_tokens_total").await.expect("a metric");
    assert!(made < 2000.0, "the client had nothing before the whole answer was made");
    let mut chunks = 0;
    while let Some(chunk) = answer.chunk().await.expect("a chunk") {
        received.extend_from_slice(&chunk);
        chunks += 1;
    }
    assert!(chunks > 100, "2000 tokens came in {chunks} chunks");
    assert!(received.ends_with(b"data: [DONE]\n\n"));
}
