//! Spans of a real pod, as a collector gets them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod pod;

use axum::Router;
use axum::routing::post;
use bytes::Bytes;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::trace::v1::Span;
use pod::{PATIENCE, Pod, make_model};
use prost::Message;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::timeout;

/// A collector on loopback; what it gets comes out of the receiver.
async fn collector() -> (String, mpsc::Receiver<ExportTraceServiceRequest>) {
    let (sender, received) = mpsc::channel(64);
    let take = move |body: Bytes| {
        let sender = sender.clone();
        async move {
            sender.send(ExportTraceServiceRequest::decode(body).unwrap()).await.unwrap();
        }
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let router = Router::new().route("/v1/traces", post(take));
    tokio::spawn(async move { axum::serve(listener, router).await });
    (url, received)
}

fn attribute(span: &Span, key: &str) -> Option<Any> {
    span.attributes.iter().find(|attribute| attribute.key == key)?.value.clone()?.value
}

#[tokio::test(flavor = "multi_thread")]
async fn each_request_is_a_span_under_its_callers() {
    let (url, mut received) = collector().await;
    let environment = [("OTEL_EXPORTER_OTLP_ENDPOINT", url.as_str()), ("OTEL_SERVICE_NAME", "a-pod")];
    let mut pod = Pod::start_with(make_model(), &[], &environment).await;
    let secret = "do not tell";
    let chat = json!({"model": "tiny", "messages": [{"role": "user", "content": secret}], "temperature": 0.5,
        "max_tokens": 7, "ignore_eos": true, "stream": true});
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let answer = pod.post("/v1/chat/completions", &chat).header("traceparent", parent).send().await.unwrap();
    answer.text().await.unwrap();
    let (status, _) =
        pod.ask("/v1/completions", json!({"model": "tiny", "prompt": secret, "max_tokens": 3})).await;
    assert_eq!(status, 200);
    let (status, _) =
        pod.ask("/v1/completions", json!({"model": "tiny", "prompt": secret, "max_tokens": 1_000_000})).await;
    assert_eq!(status, 400);
    // What has not been sent yet is sent at the end.
    pod.terminate();
    assert_eq!(pod.wait().code(), Some(0));
    let (mut spans, mut resources) = (Vec::new(), Vec::new());
    while spans.len() < 3 {
        let request = timeout(PATIENCE, received.recv()).await.expect("no spans in time").unwrap();
        for of_resource in request.resource_spans {
            resources.extend(of_resource.resource);
            spans.extend(of_resource.scope_spans.into_iter().flat_map(|scope| scope.spans));
        }
    }
    let names: Vec<&str> = spans.iter().map(|span| span.name.as_str()).collect();
    assert_eq!(names, ["chat tiny", "text_completion tiny", "text_completion tiny"]);
    let service = resources[0].attributes.iter().find(|attribute| attribute.key == "service.name").unwrap();
    assert_eq!(service.value.clone().unwrap().value, Some(Any::StringValue("a-pod".into())));

    let [chat, text, failed] = &spans[..] else { panic!("{spans:?}") };
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    assert_eq!(hex(&chat.trace_id), "0af7651916cd43dd8448eb211c80319c");
    assert_eq!(hex(&chat.parent_span_id), "b7ad6b7169203331");
    assert!(text.parent_span_id.is_empty() && text.trace_id != chat.trace_id);
    assert!(chat.start_time_unix_nano < chat.end_time_unix_nano);
    for (key, value) in [
        ("gen_ai.operation.name", Any::StringValue("chat".into())),
        ("gen_ai.request.model", Any::StringValue("tiny".into())),
        ("gen_ai.request.max_tokens", Any::IntValue(7)),
        ("gen_ai.request.temperature", Any::DoubleValue(0.5)),
        ("gen_ai.usage.output_tokens", Any::IntValue(7)),
    ] {
        assert_eq!(attribute(chat, key), Some(value), "{key}");
    }
    let Some(Any::ArrayValue(reasons)) = attribute(chat, "gen_ai.response.finish_reasons") else {
        panic!("{chat:?}")
    };
    assert_eq!(reasons.values[0].value, Some(Any::StringValue("length".into())));
    let Some(Any::DoubleValue(first)) = attribute(chat, "gen_ai.server.time_to_first_token") else {
        panic!("{chat:?}")
    };
    assert!(first > 0.0);
    assert_eq!(attribute(failed, "error.type"), Some(Any::StringValue("context_length_exceeded".into())));
    assert!(!format!("{spans:?}").contains(secret), "a span holds what a client wrote");
}
