//! A real pod on loopback: its API, its errors, its end.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod pod;

use pod::{Pod, events, make_model, run_to_failure, usage};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

fn chat(extra: Value) -> Value {
    let mut body = json!({"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "temperature": 0,
        "max_tokens": 20, "ignore_eos": true});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

fn text(extra: Value) -> Value {
    let mut body =
        json!({"model": "tiny", "prompt": "hello", "temperature": 0, "max_tokens": 20, "ignore_eos": true});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_in_openais_shapes() {
    let pod = Pod::start(&["--max-batched-tokens", "65", "--max-sequences", "4"]).await;
    assert_eq!(pod.get("/startup").await["phase"], "Ready");
    assert_eq!(pod.get("/v1/models").await["data"][0]["id"], "tiny");

    // A chat, whole and in a stream.
    let (status, whole) = pod.ask(CHAT, chat(json!({}))).await;
    assert_eq!(status, 200, "{whole}");
    let content = whole["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    assert_eq!(whole["choices"][0]["finish_reason"], "length");
    assert_eq!(whole["usage"], usage(13, 20));
    let chunks =
        pod.stream(CHAT, chat(json!({"stream": true, "stream_options": {"include_usage": true}}))).await;
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    let streamed: String =
        chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(streamed, content);
    let [.., last, usage] = &chunks[..] else { panic!("{chunks:?}") };
    assert_eq!(last["choices"][0]["finish_reason"], "length");
    assert_eq!((&usage["usage"], &usage["choices"]), (&whole["usage"], &json!([])));

    // The gateway's name for the model is echoed.
    let answer = pod.post(CHAT, &chat(json!({}))).header("x-fairlead-model", "public").send().await.unwrap();
    assert_eq!(answer.json::<Value>().await.unwrap()["model"], "public");

    // Stop strings end an answer and are not part of it.
    let stop: String = content.chars().skip(4).take(3).collect();
    let (_, stopped) = pod.ask(CHAT, chat(json!({ "stop": [stop] }))).await;
    assert_eq!(stopped["choices"][0]["finish_reason"], "stop");
    assert_eq!(stopped["choices"][0]["message"]["content"], content[..content.find(&stop).unwrap()]);

    // A seed fixes what is drawn, whatever else runs at the time.
    let drawn = text(json!({"temperature": 1.5, "seed": 7}));
    let (_, first) = pod.ask(TEXT, drawn.clone()).await;
    let crowd = json!({"prompt": ["a", "bb", "ccc", "dddd", "eeeee"], "temperature": 1.5, "max_tokens": 40});
    let ((_, again), (status, many)) = tokio::join!(pod.ask(TEXT, drawn), pod.ask(TEXT, text(crowd)));
    assert_eq!(first["choices"], again["choices"]);
    assert_eq!(status, 200);
    let indices: Vec<_> =
        many["choices"].as_array().unwrap().iter().map(|choice| choice["index"].clone()).collect();
    assert_eq!(indices, [0, 1, 2, 3, 4]);

    let metrics = pod.client.get(format!("{}/metrics", pod.url)).send().await.unwrap().text().await.unwrap();
    assert!(
        metrics.contains("vllm:request_success_total{model_name=\"tiny\",finished_reason=\"stop\"} 1"),
        "{metrics}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn scores_prompts_the_same_however_they_come() {
    // Steps so small that a prompt is read in several.
    let pod = Pod::start(&["--max-batched-tokens", "9", "--max-sequences", "2"]).await;
    let words = "the quick brown fox jumps over the lazy dog";
    let scored = json!({"prompt": words, "echo": true, "logprobs": 3, "max_tokens": 4});
    let (status, answer) = pod.ask(TEXT, text(scored.clone())).await;
    assert_eq!(status, 200, "{answer}");
    let choice = &answer["choices"][0];
    let spoken = choice["text"].as_str().unwrap();
    assert!(spoken.starts_with(words));
    let logprobs = &choice["logprobs"];
    let (tokens, values) =
        (logprobs["tokens"].as_array().unwrap(), logprobs["token_logprobs"].as_array().unwrap());
    assert_eq!(tokens.len(), 1 + words.len() + 4);
    assert_eq!(tokens[0], "<|begin|>");
    assert!(
        values[0].is_null()
            && values[1..].iter().all(|value| value.as_f64().is_some_and(|value| value <= 0.0))
    );

    // Token ids instead of text, and in a stream.
    let ids: Vec<u32> = std::iter::once(0)
        .chain(words.bytes().map(|byte| if byte == b' ' { 96 } else { u32::from(byte) - 31 }))
        .collect();
    let (_, by_ids) =
        pod.ask(TEXT, text(json!({"prompt": ids, "echo": true, "logprobs": 3, "max_tokens": 4}))).await;
    assert_eq!(by_ids["choices"][0]["text"], choice["text"]);
    assert_eq!(by_ids["choices"][0]["logprobs"], *logprobs);
    let mut streaming = scored;
    streaming["stream"] = json!(true);
    let chunks = pod.stream(TEXT, text(streaming)).await;
    let streamed: String = chunks.iter().map(|chunk| chunk["choices"][0]["text"].as_str().unwrap()).collect();
    assert_eq!(streamed, spoken);

    // A beginning scores the same alone as within the whole, though it is read in other steps.
    let alone = json!({"prompt": words[..22], "echo": true, "logprobs": 0, "max_tokens": 0});
    let (_, alone) = pod.ask(TEXT, text(alone)).await;
    assert_eq!(alone["choices"][0]["text"], words[..22]);
    assert_eq!(alone["usage"]["completion_tokens"], 0);
    let alone = alone["choices"][0]["logprobs"]["token_logprobs"].as_array().unwrap();
    assert_eq!(alone.len(), 23);
    for (one, other) in values.iter().zip(alone).skip(1) {
        assert!((one.as_f64().unwrap() - other.as_f64().unwrap()).abs() < 1e-4, "{one} and {other}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn says_what_is_wrong_with_a_request() {
    let pod = Pod::start(&["--max-model-len", "64"]).await;
    let cases = [
        (CHAT, chat(json!({"model": "other"})), 404, "model", "model_not_found"),
        (CHAT, chat(json!({"max_tokens": -1})), 400, "max_tokens", ""),
        (CHAT, chat(json!({"messages": []})), 400, "messages", ""),
        (CHAT, chat(json!({"messages": [{"role": "tool", "content": "x"}]})), 400, "messages", ""),
        (CHAT, chat(json!({"functions": [{}]})), 400, "functions", "unsupported_parameter"),
        (CHAT, chat(json!({"tools": [{"type": "function", "function": {"name": "f"}}]})), 400, "tools", ""),
        (CHAT, chat(json!({"logit_bias": {"160": 1}})), 400, "logit_bias", ""),
        (CHAT, chat(json!({"resume_token_ids": [160]})), 400, "resume_token_ids", ""),
        (CHAT, chat(json!({"stop_token_ids": [1, 160]})), 400, "stop_token_ids[1]", ""),
        (CHAT, chat(json!({"bad_words": ["x"]})), 400, "bad_words", "unsupported_parameter"),
        (CHAT, chat(json!({"max_tokens": 60})), 400, "max_tokens", "context_length_exceeded"),
        (
            CHAT,
            chat(json!({"max_completion_tokens": 60})),
            400,
            "max_completion_tokens",
            "context_length_exceeded",
        ),
        (
            CHAT,
            chat(json!({"max_tokens": null, "min_tokens": 60})),
            400,
            "min_tokens",
            "context_length_exceeded",
        ),
        (
            CHAT,
            chat(json!({"messages": [{"role": "user", "content": "x".repeat(60)}]})),
            400,
            "messages",
            "context_length_exceeded",
        ),
        (TEXT, text(json!({"max_tokens": 60})), 400, "max_tokens", "context_length_exceeded"),
        (TEXT, text(json!({"prompt": "x".repeat(64)})), 400, "prompt", "context_length_exceeded"),
        (TEXT, text(json!({"prompt": [1, 160]})), 400, "prompt", ""),
    ];
    for (path, body, status, param, code) in cases {
        let (found, answer) = pod.ask(path, body.clone()).await;
        assert_eq!(found, status, "{body} {answer}");
        let error = &answer["error"];
        assert_eq!(
            (error["param"].as_str(), error["code"].as_str().unwrap_or("")),
            (Some(param), code),
            "{answer}"
        );
        assert!(error["message"].as_str().unwrap().contains(param), "{answer}");
    }
    // What would fit is said, and does.
    let (_, long) = pod.ask(CHAT, chat(json!({"max_tokens": 60}))).await;
    let message = long["error"]["message"].as_str().unwrap();
    assert!(message.contains("lower max_tokens to 51"), "{message}");
    assert_eq!(pod.ask(CHAT, chat(json!({"max_tokens": 51}))).await.0, 200);
    assert_eq!(pod.ask(CHAT, chat(json!({"max_tokens": 52}))).await.0, 400);
    let (_, biased) = pod.ask(CHAT, chat(json!({"logit_bias": {"99999": 1}}))).await;
    let message = biased["error"]["message"].as_str().unwrap();
    assert!(message.contains("logit_bias.99999 is no token of this model (0 to 159)"), "{message}");
    // So long that it is not even tokenized.
    for (path, body) in [
        (CHAT, chat(json!({"messages": [{"role": "user", "content": "x".repeat(10_000_000)}]}))),
        (TEXT, text(json!({"prompt": "x".repeat(10_000_000)}))),
    ] {
        let (found, answer) = pod.ask(path, body).await;
        assert_eq!((found, &answer["error"]["code"]), (400, &json!("context_length_exceeded")), "{answer}");
        assert!(answer["error"]["message"].as_str().unwrap().contains("bytes"), "{answer}");
    }
    assert_eq!(pod.get("/v1/models/tiny").await["id"], "tiny");
    assert_eq!(pod.get("/v1/models/a/b").await["error"]["code"], "model_not_found");
    let answer = pod.client.post(format!("{}{CHAT}", pod.url)).body("{\"model\": ").send().await.unwrap();
    assert_eq!(answer.status(), 400);
    assert!(answer.text().await.unwrap().contains("line 1 column 10"));
    let (status, nothing) = pod.ask("/v1/nothing", json!({})).await;
    assert_eq!(status, 404);
    let message = nothing["error"]["message"].as_str().unwrap();
    for path in [CHAT, TEXT, "/tokenize", "/detokenize", "/v1/models", "/healthz", "/readyz", "/metrics"] {
        assert!(message.contains(path), "{message}");
    }
    assert!(!message.contains("/v1/embeddings") && !message.contains("rerank"), "{message}");
    assert_eq!(pod.get("/health").await, pod.get("/healthz").await);
    assert_eq!(pod.get("/version").await, json!({"version": env!("CARGO_PKG_VERSION")}));
    let compressed =
        pod.post(CHAT, &chat(json!({}))).header("content-encoding", "gzip").send().await.unwrap();
    assert_eq!(compressed.status(), 415);
    let refused: Value = compressed.json().await.unwrap();
    assert_eq!(refused["error"]["code"], "unsupported_encoding");
    assert!(refused["error"]["message"].as_str().unwrap().contains("content-encoding"), "{refused}");
    assert_eq!(pod.client.get(format!("{}{CHAT}", pod.url)).send().await.unwrap().status(), 405);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_keeps_its_name_and_one_that_failed_is_told_of() {
    let pod = Pod::start_with(make_model(), &[], &[("FAIRLEAD_LOG", "fairlead_inference=debug")]).await;
    let named = async |body: Value, name: &str| {
        let answer = pod.post(CHAT, &body).header("x-request-id", name).send().await.unwrap();
        (answer.status().as_u16(), answer.headers()["x-request-id"].to_str().unwrap().to_owned())
    };
    assert_eq!(named(chat(json!({})), "good-1").await, (200, "good-1".to_owned()));
    assert_eq!(named(chat(json!({"stream": true})), "good-2").await, (200, "good-2".to_owned()));
    assert_eq!(named(chat(json!({"max_tokens": -1})), "bad-1").await, (400, "bad-1".to_owned()));
    for unfit in ["a b", &"x".repeat(129)] {
        assert_eq!(named(chat(json!({})), unfit).await.1.len(), 36);
    }
    let missing =
        pod.client.get(format!("{}/nowhere", pod.url)).header("x-request-id", "gone").send().await.unwrap();
    assert_eq!(missing.headers()["x-request-id"], "gone");
    let probed = pod.client.get(format!("{}/healthz", pod.url)).send().await.unwrap();
    assert_eq!(probed.headers()["x-request-id"].len(), 36);

    let line = pod.logged("bad-1", "a request was refused").await;
    assert_eq!((&line["level"], &line["fields"]["path"]), (&json!("DEBUG"), &json!(CHAT)), "{line}");
    assert!(line["fields"]["status"] == 400 && line["fields"]["milliseconds"].is_u64(), "{line}");
    let late = chat(json!({"max_tokens": 400}));
    let late = pod.post(CHAT, &late).header("x-request-timeout-ms", "1").header("x-request-id", "late");
    assert_eq!(late.send().await.unwrap().status(), 504);
    let line = pod.logged("late", "a request failed").await;
    assert_eq!((&line["level"], &line["fields"]["status"]), (&json!("WARN"), &json!(504)), "{line}");
    // A stream that has begun breaks off: too short a time for all of it, and long enough for its first token.
    for (path, body) in [(CHAT, chat(json!({}))), (TEXT, text(json!({})))] {
        let mut body = body;
        for (key, value) in [("stream", json!(true)), ("n", json!(64)), ("max_tokens", json!(450))] {
            body[key] = value;
        }
        let mut milliseconds = 50;
        let text = loop {
            let asked = pod.post(path, &body).header("x-request-timeout-ms", milliseconds.to_string());
            let answer = asked.header("x-request-id", path).send().await.unwrap();
            if answer.status() == 200 {
                break answer.text().await.unwrap();
            }
            milliseconds *= 2;
        };
        assert!(text.contains("deadline_passed"), "{text}");
        let line = pod.logged(path, "a stream broke off").await;
        let fields = &line["fields"];
        assert_eq!((&fields["path"], &fields["status"]), (&json!(path), &json!(504)), "{fields}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_answers_429_and_a_client_that_leaves_is_forgotten() {
    let pod = Pod::start(&["--max-sequences", "1", "--max-queued-requests", "2"]).await;
    let long = text(json!({"prompt": ["a", "b"], "max_tokens": 500, "stream": true}));
    let mut answer = pod.post(TEXT, &long).send().await.unwrap();
    answer.chunk().await.unwrap().expect("a first chunk");
    // More than could ever wait: no use in trying again.
    let (status, never) = pod.ask(TEXT, text(json!({"prompt": ["a", "b", "c"]}))).await;
    assert_eq!((status, &never["error"]["param"]), (400, &json!("prompt")), "{never}");
    let crowd = pod.post(TEXT, &text(json!({"prompt": ["a", "b"]}))).send().await.unwrap();
    assert_eq!(crowd.status(), 429);
    assert!(crowd.headers().contains_key("retry-after"));
    assert_eq!(crowd.json::<Value>().await.unwrap()["error"]["code"], "queue_full");
    drop(answer);
    pod.until("/metrics", |_, metrics| {
        metrics.contains("vllm:num_requests_running{model_name=\"tiny\"} 0")
            && metrics.contains("vllm:num_requests_waiting{model_name=\"tiny\"} 0")
            && metrics.contains("vllm:kv_cache_usage_perc{model_name=\"tiny\"} 0.0")
    })
    .await;
    assert_eq!(pod.ask(TEXT, text(json!({}))).await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_cuts_no_stream() {
    let mut pod = Pod::start(&[]).await;
    let prompts: Vec<String> = (0..16).map(|index| format!("number {index}")).collect();
    let long = text(json!({"prompt": prompts, "max_tokens": 450, "stream": true}));
    let mut answer = pod.post(TEXT, &long).send().await.unwrap();
    let mut received = answer.chunk().await.unwrap().expect("a first chunk").to_vec();
    pod.terminate();
    pod.until("/readyz", |status, text| status == 503 && text.contains("draining")).await;
    let refused = pod.post(CHAT, &chat(json!({}))).send().await.unwrap();
    assert_eq!(refused.status(), 503);
    assert!(refused.headers().contains_key("retry-after"));
    while let Some(chunk) = answer.chunk().await.unwrap() {
        received.extend_from_slice(&chunk);
    }
    let chunks = events(std::str::from_utf8(&received).unwrap());
    let ended = chunks.iter().filter(|chunk| chunk["choices"][0]["finish_reason"] == "length").count();
    assert_eq!(ended, 16);
    assert_eq!(pod.wait().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leaving_pod_takes_requests_while_others_learn_of_it() {
    let mut pod = Pod::start(&["--drain-delay-seconds", "3600", "--revision", "abc"]).await;
    pod.terminate();
    pod.until("/readyz", |status, text| status == 503 && text.contains("draining")).await;
    let answer = pod.post(CHAT, &chat(json!({}))).send().await.unwrap();
    assert_eq!(
        (answer.status().as_u16(), answer.headers()["x-fairlead-revision"].as_bytes()),
        (200, &b"abc"[..])
    );
    // A second signal cuts the wait short.
    pod.terminate();
    assert_eq!(pod.wait().code(), Some(0));
}

#[test]
fn a_model_that_cannot_be_served_is_named_with_its_reason() {
    let cut = make_model();
    let weights = cut.path().join("model.safetensors");
    let bytes = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &bytes[..bytes.len() / 2]).unwrap();
    let (code, reason) = run_to_failure(cut.path(), &[]);
    assert_eq!(code, Some(1));
    assert!(reason.starts_with("ModelInvalid: ") && reason.contains("model.safetensors"), "{reason}");

    std::fs::remove_file(&weights).unwrap();
    let (code, reason) = run_to_failure(cut.path(), &[]);
    assert_eq!(code, Some(1));
    assert!(reason.starts_with("ModelNotFound: "), "{reason}");

    let unknown = make_model();
    let config = unknown.path().join("config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("LlamaForCausalLM", "OtherForCausalLM")).unwrap();
    let (code, reason) = run_to_failure(unknown.path(), &[]);
    assert_eq!(code, Some(1));
    assert!(reason.starts_with("UnsupportedArchitecture: "), "{reason}");

    let small = make_model();
    let (code, reason) = run_to_failure(small.path(), &["--kv-cache-bytes", "20000"]);
    assert_eq!(code, Some(1));
    assert!(reason.starts_with("DoesNotFit: "), "{reason}");
    std::fs::remove_file(small.path().join("tokenizer.json")).unwrap();
    let (_, reason) = run_to_failure(small.path(), &[]);
    assert!(reason.starts_with("ModelNotFound: ") && reason.contains("tokenizer.json"), "{reason}");
}
