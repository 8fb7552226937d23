//! What clients may send, what pods get of it, and where it goes.

use serde_json::{Value, json};

use crate::harness::{Gateway, error_of, header, route, within};
use crate::worker::Worker;

#[tokio::test]
async fn pods_get_the_request_as_it_was_but_for_what_is_the_gateways() {
    let mut worker = Worker::start().await;
    let manifests = json!({"apiVersion": "fairlead.dev/v1alpha1", "kind": "ModelRoute", "metadata": {"name": "r"},
        "spec": {"model": "org/chat", "backends":
            [{"name": "v1", "modelDeployment": "llama-v1", "endpoints": [worker.url()]}]}});
    let gateway = Gateway::start(&manifests.to_string(), &[]).await;
    let sent = r#"{"x_unknown":{"n":1.50,"model":"org/chat"},"model":"org/chat","prompt":[[1,2]],"seed":9007199254740993}"#;
    let request = gateway
        .post("/v1/completions", sent)
        .header("x-request-id", "abc")
        .header("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
        .header("x-fairlead-model", "forged")
        .header("x-fairlead-tenant", "forged")
        .header("authorization", "Bearer secret");
    let (response, call) = tokio::join!(within("an answer", request.send()), async {
        let mut call = worker.call().await;
        let seen = (call.head.uri.path().to_owned(), call.body.take(), call.head.headers.clone());
        call.json(200, json!({"ok": true}));
        seen
    });
    let (path, body, headers) = call;
    let expected = sent.replacen("\"model\":\"org/chat\",\"prompt\"", "\"model\":\"llama-v1\",\"prompt\"", 1);
    assert_eq!(
        (path.as_str(), body),
        ("/v1/completions", serde_json::from_str::<Value>(&expected).expect("JSON"))
    );
    assert_eq!(headers["x-fairlead-model"], "org/chat");
    assert_eq!(headers["x-request-id"], "abc");
    assert_eq!(headers["traceparent"], "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    assert!(!headers.contains_key("x-fairlead-tenant") && !headers.contains_key("authorization"));
    let response = response.expect("an answer");
    assert_eq!(header(&response, "x-request-id"), "abc");
    assert_eq!(header(&response, "x-fairlead-route"), "default/r");
    assert_eq!(header(&response, "x-fairlead-backend"), "v1");
    assert_eq!(header(&response, "x-fairlead-endpoint"), worker.address.to_string());
}

#[tokio::test]
async fn tokens_are_asked_for_by_model_too() {
    let mut worker = Worker::start().await;
    let gateway = Gateway::start(&route("chat", &[("v1", 1, &[&worker.url()])]), &[]).await;
    for (path, sent) in [
        ("/tokenize", r#"{"model":"chat","prompt":"a"}"#),
        ("/detokenize", r#"{"model":"chat","tokens":[1,2]}"#),
    ] {
        let (response, seen) = tokio::join!(within("an answer", gateway.post(path, sent).send()), async {
            let call = worker.call().await;
            let seen = call.head.uri.path().to_owned();
            call.json(200, json!({"ok": true}));
            seen
        });
        assert_eq!((response.expect("an answer").status().as_u16(), seen.as_str()), (200, path));
    }
}

#[tokio::test]
async fn requests_split_by_weight() {
    const REQUESTS: u32 = 600;
    let (a, b) = (Worker::start().await.answer_all("a"), Worker::start().await.answer_all("b"));
    let gateway =
        Gateway::start(&route("chat", &[("a", 80, &[&a.url()]), ("b", 20, &[&b.url()])]), &[]).await;
    for _ in 0..REQUESTS {
        let response = gateway.chat("chat", false).await;
        let backend = header(&response, "x-fairlead-backend").to_owned();
        let body: Value = response.json().await.expect("JSON");
        assert_eq!(body["from"], backend.as_str());
    }
    assert_eq!(a.count() + b.count(), REQUESTS);
    // Binomial(600, 0.2): sigma is 9.8, so five sigma is 49.
    assert!(b.count().abs_diff(120) <= 49, "{} of {REQUESTS}", b.count());
}

#[tokio::test]
async fn bad_requests_are_4xx_in_openais_shape_naming_the_field() {
    let worker = Worker::start().await.answer_all("never");
    let manifests = route("chat", &[("v1", 1, &[&worker.url()])]);
    let gateway = Gateway::start(&manifests, &["--max-request-bytes", "1Ki"]).await;
    let messages = r#""messages":[{"role":"user","content":"x"}]"#;
    let cases = [
        ("{not json".to_owned(), 400, Value::Null, "JSON"),
        (String::new(), 400, Value::Null, "empty"),
        (format!("{{{messages}}}"), 400, json!("model"), "model"),
        (format!(r#"{{"model":"chat",{messages},"max_tokens":-5}}"#), 400, json!("max_tokens"), "max_tokens"),
        (r#"{"model":"chat","messages":"hi"}"#.to_owned(), 400, json!("messages"), "messages"),
        (format!(r#"{{"model":"nope",{messages}}}"#), 404, json!("model"), "GET /v1/models"),
        (
            format!(r#"{{"model":"chat",{messages},"x":"{}"}}"#, "y".repeat(2000)),
            413,
            Value::Null,
            "1024 bytes",
        ),
    ];
    for (body, status, param, words) in cases {
        let response = within("an answer", gateway.post("/v1/chat/completions", body.clone()).send())
            .await
            .expect("one");
        assert_eq!(response.status().as_u16(), status, "{body}");
        assert!(!header(&response, "x-request-id").is_empty());
        let error = error_of(response).await;
        assert_eq!(error["param"], param, "{error}");
        assert!(error["message"].as_str().expect("text").contains(words), "{error}");
    }
    // Without a content-length too: the limit counts what comes.
    let chunks = futures::stream::iter((0..100).map(|_| Ok::<_, std::io::Error>(vec![b' '; 100])));
    let response =
        gateway.post("/v1/chat/completions", reqwest::Body::wrap_stream(chunks)).send().await.expect("one");
    assert_eq!(response.status(), 413);
    let compressed =
        gateway.post("/v1/chat/completions", "x").header("content-encoding", "gzip").send().await;
    assert_eq!(compressed.expect("one").status(), 415);
    assert_eq!(worker.count(), 0, "no bad request reaches a pod");
    let refused = gateway.metric("fairlead_gateway_requests_total", "code=\"ClientError\"").await;
    assert_eq!(refused, 9.0);
}

#[tokio::test]
async fn other_paths_and_methods_are_refused_in_openais_shape() {
    let gateway = Gateway::start(&route("chat", &[("v1", 1, &["http://127.0.0.1:1"])]), &[]).await;
    let (status, body) = gateway.get("/v1/images").await;
    assert_eq!((status, &body["error"]["code"]), (404, &json!("not_found")));
    let (status, _) = gateway.get("/metrics").await;
    assert_eq!(status, 404, "metrics are not for clients");
    let response = gateway.client.get(gateway.url("/v1/chat/completions")).send().await.expect("an answer");
    assert_eq!((response.status().as_u16(), header(&response, "allow")), (405, "POST"));
    assert_eq!(error_of(response).await["code"], "method_not_allowed");
    let response = gateway.client.delete(gateway.url("/v1/models/chat")).send().await.expect("an answer");
    assert_eq!((response.status().as_u16(), header(&response, "allow")), (405, "GET"));
}

#[tokio::test]
async fn models_are_listed() {
    let backends: [(&str, u32, &[&str]); 1] = [("v1", 1, &["http://127.0.0.1:1"])];
    let with_slash = route("b", &backends).replace("\"spec\":{", "\"spec\":{\"model\":\"org/b\",");
    let gateway = Gateway::start(&format!("{}{with_slash}", route("a", &backends)), &[]).await;
    let (status, list) = gateway.get("/v1/models").await;
    assert_eq!((status, &list["object"]), (200, &json!("list")));
    let ids: Vec<_> =
        list["data"].as_array().expect("data").iter().map(|model| model["id"].as_str()).collect();
    assert_eq!(ids, [Some("a"), Some("org/b")]);
    for path in ["/v1/models/org/b", "/v1/models/org%2Fb"] {
        assert_eq!(gateway.get(path).await.1["id"], "org/b");
    }
    let (status, body) = gateway.get("/v1/models/zzz").await;
    assert_eq!((status, &body["error"]["code"]), (404, &json!("model_not_found")));
}

#[tokio::test]
async fn more_requests_than_allowed_are_told_to_come_back() {
    let mut worker = Worker::start().await;
    let gateway =
        Gateway::start(&route("chat", &[("v1", 1, &[&worker.url()])]), &["--max-in-flight", "1"]).await;
    let (first, ()) = tokio::join!(gateway.chat("chat", false), async {
        let call = worker.call().await;
        let second = gateway.chat("chat", false).await;
        assert_eq!((second.status().as_u16(), header(&second, "retry-after")), (503, "1"));
        assert_eq!(error_of(second).await["code"], "gateway_overloaded");
        call.json(200, json!({}));
    });
    assert_eq!(first.status(), 200);
}

#[tokio::test]
async fn bodies_are_held_within_a_budget() {
    let mut worker = Worker::start().await;
    let args = ["--max-request-bytes", "2Ki", "--max-held-bytes", "4Ki"];
    let gateway = Gateway::start(&route("chat", &[("v1", 1, &[&worker.url()])]), &args).await;
    let mut body = Gateway::chat_body("chat", false);
    body["messages"][0]["content"] = json!("x".repeat(1200));
    let send = || within("an answer", gateway.post("/v1/chat/completions", body.to_string()).send());
    // Larger than all that may be held: passed through.
    let long = json!({"text": "y".repeat(100_000)});
    let (first, ()) = tokio::join!(send(), async {
        let call = worker.call().await;
        let second = send().await.expect("an answer");
        assert_eq!((second.status().as_u16(), header(&second, "retry-after")), (503, "1"));
        let error = error_of(second).await;
        assert_eq!(error["code"], "gateway_overloaded");
        assert!(error["message"].as_str().expect("text").contains("--max-held-bytes"), "{error}");
        call.json(200, long.clone());
    });
    assert_eq!(first.expect("an answer").json::<Value>().await.expect("JSON"), long);
    let worker = worker.answer_all("v1");
    crate::harness::eventually("there is room again", || async {
        send().await.expect("one").status() == 200
    })
    .await;
    assert_eq!(worker.count(), 1);
}

#[tokio::test]
async fn a_large_request_arrives_whole() {
    let mut worker = Worker::start().await;
    let gateway = Gateway::start(&route("chat", &[("v1", 1, &[&worker.url()])]), &[]).await;
    let mut body = Gateway::chat_body("chat", false);
    body["messages"][0]["content"] = json!("é".repeat(1_000_000));
    let request = gateway.post("/v1/chat/completions", body.to_string());
    let (response, received) = tokio::join!(request.send(), async {
        let mut call = worker.call().await;
        let received = call.body.take();
        call.json(200, json!({}));
        received
    });
    assert_eq!(response.expect("an answer").status(), 200);
    assert!(received == body);
}

#[tokio::test]
async fn a_client_that_does_not_finish_its_request_is_let_go() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let worker = Worker::start().await;
    let manifests = route("chat", &[("v1", 1, &[&worker.url()])]);
    let args = ["--header-read-timeout", "200ms", "--body-read-timeout", "200ms"];
    let gateway = Gateway::start(&manifests, &args).await;
    let address = gateway.url("").replace("http://", "");
    for (sent, answer) in [
        ("POST /v1/chat/comp", ""),
        ("POST /v1/chat/completions HTTP/1.1\r\nhost: h\r\ncontent-length: 100\r\n\r\n{", "HTTP/1.1 408 "),
    ] {
        let mut client = tokio::net::TcpStream::connect(&address).await.expect("connected");
        client.write_all(sent.as_bytes()).await.expect("sent");
        let mut received = String::new();
        within("the connection is closed", client.read_to_string(&mut received)).await.expect("closed");
        assert!(received.starts_with(answer), "{received}");
    }
}

#[tokio::test]
async fn embeddings_and_reranking_reach_the_pod_by_the_models_own_name() {
    let mut worker = Worker::start().await;
    let manifests = route("vectors", &[("v1", 1, &[&worker.url()])]);
    let gateway = Gateway::start(&manifests, &[]).await;
    for (path, upstream, body) in [
        (
            "/v1/embeddings",
            "/v1/embeddings",
            json!({"model": "vectors", "input": ["a", "b"], "dimensions": 8}),
        ),
        ("/v1/rerank", "/v1/rerank", json!({"model": "vectors", "query": "q", "documents": [{"text": "d"}]})),
        ("/rerank", "/v1/rerank", json!({"model": "vectors", "query": "q", "documents": ["d"]})),
    ] {
        let sent = gateway.post(path, body.to_string());
        let (response, seen) = tokio::join!(within("an answer", sent.send()), async {
            let mut call = worker.call().await;
            let seen = (call.head.uri.path().to_owned(), call.body.take());
            call.json(200, json!({"data": [1, 2]}));
            seen
        });
        assert_eq!(seen.0, upstream);
        assert_eq!(
            (&seen.1["input"], &seen.1["documents"]),
            (&body["input"], &body["documents"]),
            "{path}: nothing but the model's name changes"
        );
        let response = response.expect("an answer");
        assert_eq!(response.status(), 200);
        assert_eq!(response.json::<Value>().await.expect("JSON"), json!({"data": [1, 2]}));
    }
    let wrong = gateway.post("/v1/embeddings", json!({"model": "vectors", "input": 5}).to_string());
    let wrong = within("an answer", wrong.send()).await.expect("an answer");
    assert_eq!(wrong.status(), 400);
    assert_eq!(error_of(wrong).await["param"], "input");
}
