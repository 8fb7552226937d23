//! Streams whose pod dies in the middle: the client sees the answer of one pod that lived.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::programs::{CHAT, Gateway, MODEL, Pod, chat, events, header, text_of, within};

const TEXT: &str = "/v1/completions";

/// A connection to a pod that can be cut after so many bytes of an answer.
struct Scissors {
    url: String,
    /// Bytes after which the next answer is cut.
    after: Arc<AtomicUsize>,
}

impl Scissors {
    async fn before(pod: &Pod) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let pod: SocketAddr = pod.url.strip_prefix("http://").expect("http").parse().expect("an address");
        let after = Arc::new(AtomicUsize::new(usize::MAX));
        let armed = Arc::clone(&after);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(pass(client, pod, Arc::clone(&armed)));
            }
        });
        Self { url, after }
    }
}

async fn pass(client: TcpStream, pod: SocketAddr, after: Arc<AtomicUsize>) {
    let Ok(pod) = TcpStream::connect(pod).await else { return };
    let ((mut from_client, mut to_client), (mut from_pod, mut to_pod)) =
        (client.into_split(), pod.into_split());
    let there = tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_pod).await });
    let mut buffer = [0; 4096];
    while let Ok(read @ 1..) = from_pod.read(&mut buffer).await {
        let left = after.load(Ordering::SeqCst);
        let cut = left < read;
        if to_client.write_all(&buffer[..read.min(left)]).await.is_err() || cut {
            if cut {
                after.store(usize::MAX, Ordering::SeqCst);
            }
            break;
        }
        if left != usize::MAX {
            after.store(left - read, Ordering::SeqCst);
        }
    }
    there.abort();
}

fn text(extra: Value) -> Value {
    let mut body = json!({"model": MODEL, "prompt": "the rope", "max_tokens": 40, "ignore_eos": true});
    body.as_object_mut().expect("an object").extend(extra.as_object().expect("an object").clone());
    body
}

/// All that a client can see of a stream but its id and its time, with what is cut into pieces put together.
fn seen(events: &[Value]) -> Value {
    let mut whole =
        json!({"text": "", "roles": 0, "finish": [], "tokens": [], "ids": [], "usage": null, "calls": {}});
    let text = |event: &Value| {
        let choice = &event["choices"][0];
        choice["delta"]["content"].as_str().or(choice["text"].as_str()).unwrap_or_default().to_owned()
    };
    whole["text"] = json!(events.iter().map(text).collect::<String>());
    for event in events {
        let choice = &event["choices"][0];
        if choice["delta"]["role"].is_string() {
            whole["roles"] = json!(whole["roles"].as_u64().expect("a number") + 1);
        }
        for (list, values) in [
            ("finish", vec![choice["finish_reason"].clone()]),
            ("tokens", choice["logprobs"]["content"].as_array().cloned().unwrap_or_default()),
            ("tokens", choice["logprobs"]["tokens"].as_array().cloned().unwrap_or_default()),
            ("tokens", choice["logprobs"]["text_offset"].as_array().cloned().unwrap_or_default()),
            ("ids", choice["token_ids"].as_array().cloned().unwrap_or_default()),
        ] {
            let list = whole[list].as_array_mut().expect("a list");
            list.extend(values.into_iter().filter(|value| !value.is_null()));
        }
        for call in choice["delta"]["tool_calls"].as_array().into_iter().flatten() {
            let known = &mut whole["calls"][call["index"].to_string()];
            let add = |known: &mut Value, text: &Value| {
                let before = known.as_str().unwrap_or_default();
                *known = json!(before.to_owned() + text.as_str().unwrap_or_default());
            };
            add(&mut known["name"], &call["function"]["name"]);
            add(&mut known["arguments"], &call["function"]["arguments"]);
            // Ids are drawn: a call has one, however many pods wrote it.
            known["ids"] =
                json!(known["ids"].as_u64().unwrap_or_default() + u64::from(call["id"].is_string()));
        }
        if event["choices"] == json!([]) {
            assert!(whole["usage"].is_null(), "the counts come once");
            whole["usage"] = event["usage"].clone();
            // What is in another pod's cache is another matter.
            whole["usage"]["prompt_tokens_details"] = Value::Null;
        }
    }
    whole
}

/// Whether two are the same but for what other batches do to the last digits of a number.
fn same(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Number(one), Value::Number(other)) => match (one.as_f64(), other.as_f64()) {
            (Some(one), Some(other)) => (one - other).abs() < 1e-3,
            _ => false,
        },
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| same(one, other))
        }
        (Value::Object(one), Value::Object(other)) => {
            one.len() == other.len()
                && one.iter().all(|(key, value)| other.get(key).is_some_and(|other| same(value, other)))
        }
        _ => one == other,
    }
}

/// Every chunk has the same name and time.
fn is_one_answer(events: &[Value]) -> bool {
    events.iter().all(|event| (&event["id"], &event["created"]) == (&events[0]["id"], &events[0]["created"]))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_cut_anywhere_is_the_answer_of_one_pod() {
    let (one, two) = tokio::join!(Pod::start(), Pod::start());
    let (first, second) = (Scissors::before(&one).await, Scissors::before(&two).await);
    let gateway = Gateway::start_with(&[("v1", 1, &[&first.url, &second.url])]).await;
    // Biased towards letters that are halves of characters, so that a cut may fall within one.
    let halves: serde_json::Map<String, Value> =
        (97..160).step_by(3).map(|token: u32| (token.to_string(), json!(3))).collect();
    let counted = json!({"include_usage": true});
    let always = json!({"include_usage": true, "continuous_usage_stats": true});
    let weather = json!({"name": "get_weather", "parameters": {"type": "object", "properties": {
        "city": {"type": "string", "pattern": "^[a-z]{24}$"}, "days": {"enum": [3, 14, 159]}},
        "required": ["city", "days"], "additionalProperties": false}});
    let kinds = [
        (CHAT, chat(json!({"max_tokens": 40, "stream_options": counted}))),
        (
            CHAT,
            chat(json!({"max_tokens": 300, "ignore_eos": false, "temperature": 1.1, "seed": 9,
            "tools": [{"type": "function", "function": weather}],
            "tool_choice": {"type": "function", "function": {"name": "get_weather"}}})),
        ),
        (
            CHAT,
            chat(json!({"max_tokens": 40, "temperature": 1.0, "seed": 5, "logit_bias": halves,
            "presence_penalty": 0.5, "stream_options": always, "logprobs": true, "top_logprobs": 1})),
        ),
        (
            CHAT,
            chat(json!({"max_tokens": 40, "ignore_eos": false, "temperature": 1.2, "seed": 3,
            "structured_outputs": {"regex": "[a-z]{4}(, [a-z]{4}){5}"}, "return_token_ids": true})),
        ),
        (
            TEXT,
            text(json!({"temperature": 1.3, "seed": 7, "logprobs": 2, "stop": ["e~~~~"],
            "stream_options": counted})),
        ),
    ];
    let mut continued = 0;
    for (path, mut body) in kinds {
        body["stream"] = json!(true);
        let unbroken = gateway.post(path, body.to_string()).await;
        assert_eq!(unbroken.status(), 200);
        let unbroken = events(Vec::new(), unbroken).await;
        let (wanted, size) =
            (seen(&unbroken), unbroken.iter().map(|event| event.to_string().len() + 60).sum());
        if body["tools"].is_null() {
            assert!(wanted["text"].as_str().is_some_and(|text| text.chars().count() >= 10), "{wanted}");
        } else {
            let call = &wanted["calls"]["0"];
            assert_eq!((&call["name"], &call["ids"]), (&json!("get_weather"), &json!(1)), "{wanted}");
            let arguments: Value =
                serde_json::from_str(call["arguments"].as_str().expect("text")).expect("whole arguments");
            assert_eq!(arguments["city"].as_str().map(str::len), Some(24), "{wanted}");
            assert_eq!((&wanted["finish"], &wanted["text"]), (&json!(["tool_calls"]), &json!("")));
        }
        let mut cut = 0;
        for after in (100..size).step_by(347) {
            cut += 1;
            first.after.store(after, Ordering::SeqCst);
            second.after.store(after, Ordering::SeqCst);
            let broken = events(Vec::new(), gateway.post(path, body.to_string()).await).await;
            let broken_seen = seen(&broken);
            assert!(
                same(&broken_seen, &wanted),
                "{path} cut after {after} bytes: {body}\n{broken_seen}\n{wanted}"
            );
            assert!(is_one_answer(&broken), "{path} cut after {after} bytes");
            for scissors in [&first, &second] {
                scissors.after.store(usize::MAX, Ordering::SeqCst);
            }
        }
        assert!(cut >= 10, "{cut} cuts");
        continued += cut;
    }
    let metric = gateway.metric("fairlead_gateway_stream_failovers_total{result=\"Continued\"").await;
    assert!(metric >= f64::from(continued) / 2.0, "{metric} of {continued} cuts fell into the streams");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_survives_the_death_of_pod_after_pod() {
    let (mut one, mut two, mut three) = tokio::join!(Pod::start(), Pod::start(), Pod::start());
    let gateway = Gateway::start_with(&[("v1", 1, &[&one.url, &two.url, &three.url])]).await;
    for seed in [json!({}), json!({"temperature": 1.1, "seed": 11})] {
        let mut body =
            chat(json!({"max_tokens": 1500, "stream": true, "stream_options": {"include_usage": true}}));
        body.as_object_mut().expect("an object").extend(seed.as_object().expect("an object").clone());
        let unbroken = events(Vec::new(), gateway.post(CHAT, body.to_string()).await).await;
        let mut answer = gateway.post(CHAT, body.to_string()).await;
        let address = header(&answer, "x-fairlead-endpoint").to_owned();
        let mut received = Vec::new();
        while received.len() < 4000 {
            let chunk = within("a chunk", answer.chunk()).await.expect("unbroken").expect("more");
            received.extend_from_slice(&chunk);
        }
        let serving = [&mut one, &mut two, &mut three].into_iter().find(|pod| pod.url.ends_with(&address));
        let serving = serving.expect("one of the pods");
        serving.program.signal(Signal::SIGKILL);
        serving.program.ended().await;
        let broken = events(received, answer).await;
        assert_eq!(text_of(&broken), text_of(&unbroken));
        assert!(is_one_answer(&broken));
        let counts = |events: &[Value]| events.last().expect("events")["usage"]["completion_tokens"].clone();
        assert_eq!((counts(&broken), counts(&unbroken)), (json!(1500), json!(1500)));
    }
    assert_eq!(gateway.metric("fairlead_gateway_stream_failovers_total").await, 2.0);
    assert_eq!(gateway.metric("fairlead_gateway_requests_total").await, 4.0);
}
