//! Streams whose pod dies in the middle: they go on at another pod, and the client sees one answer.

use serde_json::{Value, json};

use crate::harness::{Gateway, header, route, within};
use crate::worker::{Call, Sending, Worker};

const BEGUN: &str = ": answer chatcmpl-1 7 3\n";

/// An event with one token's text.
fn event(text: &str) -> String {
    let chunk = json!({"id": "chatcmpl-1", "choices": [{"index": 0, "delta": {"content": text}}]});
    format!("data: {chunk}\n\n")
}

struct Begun {
    gateway: Gateway,
    other: Worker,
    sending: Sending,
    response: reqwest::Response,
}

/// A stream that has begun on one of two workers.
async fn begun(body: Value, args: &[&str]) -> Begun {
    let (mut one, mut two) = (Worker::start().await, Worker::start().await);
    let gateway = Gateway::start(&route("chat", &[("v1", 1, &[&one.url(), &two.url()])]), args).await;
    let request =
        gateway.post("/v1/chat/completions", body.to_string()).header("x-request-timeout-ms", "50000");
    let (response, (sending, first)) = tokio::join!(within("an answer", request.send()), async {
        let (call, first) =
            tokio::select! { call = one.call() => (call, true), call = two.call() => (call, false) };
        let sending = call.noted_stream("r1");
        sending.send(format!("{BEGUN}: tokens 0 11\n{}", event("a"))).await;
        (sending, first)
    });
    let response = response.expect("an answer");
    assert_eq!(header(&response, "x-fairlead-resumable"), "", "it is between gateway and pods");
    Begun { gateway, other: if first { two } else { one }, sending, response }
}

fn chat(extra: Value) -> Value {
    let mut body = Gateway::chat_body("chat", true);
    body.as_object_mut().expect("an object").extend(extra.as_object().expect("an object").clone());
    body
}

/// What the second pod is asked with: all that the first one has told.
fn check(call: &Call, tokens: &[u32]) {
    assert_eq!(call.body["resume_token_ids"], json!(tokens));
    assert_eq!(call.header("x-fairlead-continues"), "chatcmpl-1 7");
    assert_eq!(call.header("x-fairlead-if-revision"), "r1");
    let left: u64 = call.header("x-request-timeout-ms").parse().expect("a number");
    assert!(left < 50_000, "no more time than the client gave");
}

#[tokio::test]
async fn another_pod_goes_on_after_the_last_whole_event() {
    let Begun { gateway, mut other, sending, response } =
        begun(chat(json!({"seed": 5, "x": 1e30})), &[]).await;
    // Tokens without text of their own count, and half an event does not.
    sending.send(": tokens 0 12\n\n: tokens 0 13\n").await;
    sending.send(format!("{}: tokens 0 14\ndata: {{\"half", event("b"))).await;
    let (text, ()) = tokio::join!(within("the end", response.text()), async {
        sending.die().await;
        let call = other.call().await;
        check(&call, &[11, 12, 13]);
        assert_eq!((&call.body["seed"], &call.body["x"]), (&json!(5), &json!(1e30)));
        let sending = call.noted_stream("r1");
        sending.send(format!("{BEGUN}: ended 0 14 15\n{}", event("c"))).await;
        sending.send("data: [DONE]\n\n").await;
    });
    let expected = format!("{}{}{}data: [DONE]\n\n", event("a"), event("b"), event("c"));
    assert_eq!(text.expect("a clean end"), expected);
    let continued = gateway.metric("fairlead_gateway_stream_failovers_total", "result=\"Continued\"").await;
    assert_eq!(continued, 1.0);
    assert_eq!(gateway.metric("fairlead_gateway_requests_total", "outcome=\"Ok\"").await, 1.0);
}

#[tokio::test]
async fn a_pod_that_falls_silent_or_says_that_its_engine_died_is_replaced_too() {
    for silent in [true, false] {
        let args: &[&str] = if silent { &["--idle-timeout", "300ms"] } else { &[] };
        let Begun { gateway, mut other, sending, response } = begun(chat(json!({})), args).await;
        if !silent {
            let error = json!({"error": {"message": "the engine has stopped", "type": "service_unavailable_error",
                "param": null, "code": "engine_dead"}});
            sending.send(format!("data: {error}\n\ndata: [DONE]\n\n")).await;
        }
        let (text, ()) = tokio::join!(within("the end", response.text()), async {
            let call = other.call().await;
            check(&call, &[11]);
            let sending = call.noted_stream("r1");
            sending.send(format!("{BEGUN}: ended 0 12\n{}data: [DONE]\n\n", event("b"))).await;
        });
        assert_eq!(text.expect("a clean end"), format!("{}{}data: [DONE]\n\n", event("a"), event("b")));
        assert_eq!(gateway.metric("fairlead_gateway_stream_failovers_total", "").await, 1.0);
    }
}

#[tokio::test]
async fn an_engines_error_is_passed_on_when_nobody_can_go_on() {
    let Begun { gateway, mut other, sending, response } = begun(chat(json!({})), &[]).await;
    let error = "data: {\"error\":{\"message\":\"m\",\"type\":\"internal_server_error\",\"param\":null,\"code\":null}}\n\n";
    sending.send(error).await;
    let (text, ()) = tokio::join!(within("the end", response.text()), async {
        let refusal = json!({"error": {"message": "no", "type": "t", "param": null, "code": null}});
        other.call().await.json(400, refusal);
    });
    assert_eq!(text.expect("a clean end"), format!("{}{error}", event("a")));
    assert_eq!(gateway.metric("fairlead_gateway_stream_failovers_total", "result=\"Refused\"").await, 1.0);
    assert_eq!(gateway.metric("fairlead_gateway_requests_total", "outcome=\"Broken\"").await, 1.0);
}

#[tokio::test]
async fn a_stream_survives_several_deaths_but_not_any_number() {
    let Begun { gateway, mut other, sending, response } =
        begun(chat(json!({})), &["--max-attempts", "1"]).await;
    // The first worker breaks off whatever it is asked from now on, and is asked when nobody else is left.
    let dying = tokio::spawn(async move {
        sending.die().await;
        for token in 12.. {
            let sending = other.call().await.noted_stream("r1");
            sending.send(format!("{BEGUN}: tokens 0 {token}\n{}", event(&token.to_string()))).await;
            sending.die().await;
        }
    });
    let text = within("the end", response.text()).await.expect("a clean end");
    dying.abort();
    assert!(text.contains("upstream_broken") && !text.contains("[DONE]"), "{text}");
    let continued = gateway.metric("fairlead_gateway_stream_failovers_total", "result=\"Continued\"").await;
    assert!((1.0..=4.0).contains(&continued), "{continued}");
}

#[tokio::test]
async fn pods_of_another_revision_do_not_go_on() {
    let Begun { gateway, mut other, sending, response } = begun(chat(json!({})), &[]).await;
    let (text, ()) = tokio::join!(within("the end", response.text()), async {
        // The first pod is gone for good.
        sending.die().await;
        let call = other.call().await;
        let refusal =
            json!({"error": {"message": "m", "type": "t", "param": null, "code": "revision_mismatch"}});
        call.json(412, refusal);
    });
    // It is not asked again; the first one is, in vain.
    let text = text.expect("a clean end");
    assert!(text.contains("upstream_broken") && !text.contains("[DONE]"), "{text}");
    assert_eq!(gateway.metric("fairlead_gateway_stream_failovers_total", "result=\"Failed\"").await, 1.0);
}

#[tokio::test]
async fn last_words_that_a_pod_did_not_live_to_say_are_said_by_the_gateway() {
    let options = json!({"stream_options": {"include_usage": true}});
    let Begun { gateway, sending, response, other: _other } = begun(chat(options), &[]).await;
    sending.send(format!(": ended 0 12 13\n{}", event("b"))).await;
    let (text, ()) = tokio::join!(within("the end", response.text()), sending.die());
    let text = text.expect("a clean end");
    let events: Vec<&str> = text.split_terminator("\n\n").collect();
    assert_eq!((events.len(), events[3]), (4, "data: [DONE]"), "{text}");
    let usage: Value = serde_json::from_str(events[2].strip_prefix("data: ").expect("data")).expect("JSON");
    assert_eq!((&usage["id"], &usage["created"]), (&json!("chatcmpl-1"), &json!(7)));
    assert_eq!((&usage["object"], &usage["choices"]), (&json!("chat.completion.chunk"), &json!([])));
    assert_eq!((&usage["model"], &usage["usage"]["prompt_tokens"]), (&json!("chat"), &json!(3)));
    assert_eq!(usage["usage"]["completion_tokens"], 3);
    assert_eq!(gateway.metric("fairlead_gateway_stream_failovers_total", "result=\"Completed\"").await, 1.0);
}

#[tokio::test]
async fn without_room_a_stream_runs_and_is_not_continued() {
    let Begun { gateway, sending, response, other: _other } =
        begun(chat(json!({})), &["--max-failover-bytes", "0"]).await;
    let (text, ()) = tokio::join!(within("the end", response.text()), async {
        sending.send(format!(": tokens 0 12\n{}", event("b"))).await;
        sending.die().await;
    });
    let text = text.expect("a clean end");
    assert!(text.starts_with(&format!("{}{}", event("a"), event("b"))), "notes are taken out all the same");
    assert!(text.contains("upstream_broken"), "{text}");
    assert_eq!(gateway.metric("fairlead_gateway_stream_failovers_total", "result=\"NoRoom\"").await, 1.0);
}

/// What cannot be continued never looks like the whole: it ends with an error event, and nobody else is asked.
#[tokio::test]
async fn what_cannot_be_continued_ends_with_an_error_event() {
    let call =
        r#"{"index":0,"id":"call_1","type":"function","function":{"name":"pay","arguments":"{\"sum\": 1"}}"#;
    let cases = [
        ("/v1/chat/completions", chat(json!({"n": 2})), r#"{"index":1,"delta":{"content":"a"}}"#.to_owned()),
        (
            "/v1/completions",
            json!({"model": "chat", "prompt": ["a", "b"], "stream": true}),
            r#"{"index":1,"text":"a"}"#.to_owned(),
        ),
        (
            "/v1/completions",
            json!({"model": "chat", "prompt": "a", "echo": true, "stream": true}),
            r#"{"index":0,"text":"aa"}"#.to_owned(),
        ),
        // A pod of another engine, which writes no notes: half of a call of a tool.
        (
            "/v1/chat/completions",
            chat(json!({"tools": [{"type": "function", "function": {"name": "pay"}}]})),
            format!(r#"{{"index":0,"delta":{{"tool_calls":[{call}]}}}}"#),
        ),
    ];
    for (path, body, choice) in cases {
        for half in ["", r#"data: {"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"func"#] {
            let (mut one, mut two) = (Worker::start().await, Worker::start().await);
            let gateway = Gateway::start(&route("chat", &[("v1", 1, &[&one.url(), &two.url()])]), &[]).await;
            let request = gateway.post(path, body.to_string());
            let event = format!("data: {{\"choices\":[{choice}]}}\n\n");
            let (response, (sending, first)) = tokio::join!(within("an answer", request.send()), async {
                let (call, first) =
                    tokio::select! { call = one.call() => (call, true), call = two.call() => (call, false) };
                let sending = call.stream();
                sending.send(event.clone()).await;
                (sending, first)
            });
            if !half.is_empty() {
                sending.send(half).await;
            }
            let (text, ()) =
                tokio::join!(within("the end", response.expect("an answer").text()), sending.die());
            let text = text.expect("a clean end, which clients can read");
            let last = text.strip_prefix(&event).unwrap_or_else(|| panic!("{body}: {text}"));
            let last =
                last.strip_prefix("data: ").and_then(|last| last.strip_suffix("\n\n")).expect("an event");
            let error: Value = serde_json::from_str(last).expect("nothing of half an event");
            assert_eq!(error["error"]["code"], "upstream_broken", "{body}: {text}");
            let message = error["error"]["message"].as_str().expect("words");
            assert!(message.contains("the answer is incomplete, send the request again"), "{message}");
            assert!(if first { two.is_idle() } else { one.is_idle() }, "nobody else is asked: {body}");
            let impossible =
                gateway.metric("fairlead_gateway_stream_failovers_total", "result=\"Impossible\"").await;
            assert_eq!(impossible, 1.0, "{body}");
            assert_eq!(gateway.metric("fairlead_gateway_requests_total", "outcome=\"Broken\"").await, 1.0);
        }
    }
}

#[tokio::test]
async fn half_a_call_of_a_tool_is_gone_on_with_where_it_was_cut() {
    let tools = json!({"tools": [{"type": "function", "function": {"name": "pay"}}]});
    let Begun { gateway, mut other, sending, response } = begun(chat(tools), &[]).await;
    let part = |function: Value| {
        let chunk = json!({"id": "chatcmpl-1", "choices": [{"index": 0, "delta": {"tool_calls": [
            {"index": 0, "function": function}]}}]});
        format!("data: {chunk}\n\n")
    };
    let (begin, middle, end) = (
        part(json!({"name": "pay", "arguments": ""})),
        part(json!({"arguments": "{\"sum\": 1"})),
        part(json!({"arguments": "00}"})),
    );
    // Tokens within the call's tag have no event; of an event that comes in half the client sees nothing.
    sending.send(format!(": tokens 0 12\n\n: tokens 0 13\n{begin}: tokens 0 14\n{}", &middle[..40])).await;
    let (text, ()) = tokio::join!(within("the end", response.text()), async {
        sending.die().await;
        let call = other.call().await;
        check(&call, &[11, 12, 13]);
        let sending = call.noted_stream("r1");
        sending.send(format!("{BEGUN}: tokens 0 14\n{middle}: ended 0 15\n{end}data: [DONE]\n\n")).await;
    });
    let expected = format!("{}{begin}{middle}{end}data: [DONE]\n\n", event("a"));
    assert_eq!(text.expect("a clean end"), expected);
    assert_eq!(gateway.metric("fairlead_gateway_stream_failovers_total", "result=\"Continued\"").await, 1.0);
}

/// Nobody can go on with half a call: the client is told, and gets nothing that looks like a whole one.
#[tokio::test]
async fn half_a_call_of_a_tool_that_nobody_goes_on_with_ends_with_an_error() {
    let tools = json!({"tools": [{"type": "function", "function": {"name": "pay"}}]});
    let Begun { gateway: _gateway, mut other, sending, response } = begun(chat(tools), &[]).await;
    let chunk = json!({"choices": [{"index": 0, "delta": {"tool_calls": [
        {"index": 0, "id": "call_1", "function": {"name": "pay", "arguments": "{\"sum\": 1"}}]}}]});
    let call = format!("data: {chunk}\n\n");
    sending.send(format!(": tokens 0 12\n{call}")).await;
    let (text, ()) = tokio::join!(within("the end", response.text()), async {
        sending.die().await;
        let refusal = json!({"error": {"message": "no", "type": "t", "param": null, "code": null}});
        other.call().await.json(400, refusal);
    });
    let text = text.expect("a clean end");
    let last = text.strip_prefix(&format!("{}{call}", event("a"))).unwrap_or_else(|| panic!("{text}"));
    assert!(
        last.contains("upstream_broken") && last.contains("incomplete") && !last.contains("[DONE]"),
        "{last}"
    );
}

#[tokio::test]
async fn several_answers_are_not_asked_to_be_resumable() {
    let mut worker = Worker::start().await;
    let gateway = Gateway::start(&route("chat", &[("v1", 1, &[&worker.url()])]), &[]).await;
    for (path, body) in [
        ("/v1/chat/completions", chat(json!({"n": 2}))),
        ("/v1/completions", json!({"model": "chat", "prompt": ["a", "b"], "stream": true})),
        ("/v1/completions", json!({"model": "chat", "prompt": "a", "echo": true, "stream": true})),
        ("/v1/completions", json!({"model": "chat", "prompt": "a"})),
    ] {
        let request = gateway.post(path, body.to_string()).header("x-fairlead-resumable", "forged");
        let (response, asked) = tokio::join!(within("an answer", request.send()), async {
            let call = worker.call().await;
            let asked = call.header("x-fairlead-resumable").to_owned();
            call.json(200, json!({}));
            asked
        });
        assert_eq!((response.expect("an answer").status().as_u16(), asked.as_str()), (200, ""), "{body}");
    }
}
