//! Rules, stickiness, trusted identity and the answers' account of it, with the manifests of docs/examples.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use crate::harness::{Gateway, error_of, eventually, header, within};
use crate::worker::{Answering, Worker};

const TRUST: [&str; 4] = ["--trusted-tier-header", "x-tier", "--trusted-user-header", "x-user"];

/// An example of docs/examples/routing, with addresses in place of ModelDeployments.
fn example(name: &str, pods: &BTreeMap<&str, String>) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/examples/routing").join(name);
    let text = std::fs::read_to_string(path).expect("an example");
    let mut route: Value = serde_saphyr::from_str(&text).expect("YAML");
    for backend in route["spec"]["backends"].as_array_mut().expect("backends") {
        let url = pods[backend["name"].as_str().expect("a name")].clone();
        let backend = backend.as_object_mut().expect("an object");
        backend.remove("modelDeployment").expect("an example names deployments");
        backend.insert("endpoints".to_owned(), json!([url]));
    }
    route
}

async fn pods(names: &[&'static str]) -> (Vec<Answering>, BTreeMap<&'static str, String>) {
    let (mut running, mut urls) = (Vec::new(), BTreeMap::new());
    for &name in names {
        let pod = Worker::start().await.answer_all(name);
        urls.insert(name, pod.url());
        running.push(pod);
    }
    (running, urls)
}

/// Asks, and gives back who answered and the answer's own account.
async fn ask(
    gateway: &Gateway,
    model: &str,
    text: &str,
    headers: &[(&str, &str)],
) -> (String, reqwest::header::HeaderMap) {
    let body = json!({"model": model, "messages": [{"role": "user", "content": text}]}).to_string();
    let mut request = gateway.post("/v1/chat/completions", body);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = within("an answer", request.send()).await.expect("an answer");
    let account = response.headers().clone();
    assert_eq!(response.status(), 200, "{:?}", response.text().await);
    let body: Value = response.json().await.expect("JSON");
    let from = body["from"].as_str().expect("a name").to_owned();
    assert_eq!(account["x-fairlead-backend"], from.as_str());
    (from, account)
}

#[tokio::test]
async fn premium_urgent_and_the_rest_with_a_canary_that_comes_and_goes_while_it_runs() {
    let (_pods, urls) = pods(&["standard", "standard-next", "premium"]).await;
    let with_canary = example("premium-urgent-default.yaml", &urls);
    let mut before = with_canary.clone();
    before["spec"]["backends"][0]["weight"] = json!(100);
    before["spec"]["backends"][1]["weight"] = json!(0);
    let gateway = Gateway::start(&before.to_string(), &TRUST).await;
    let asked = async |headers: &[(&str, &str)]| {
        ask(&gateway, "assistant", "What is the capital of France?", headers).await
    };

    let (from, account) = asked(&[("x-user", "normal_user_456")]).await;
    assert_eq!((from.as_str(), account.get("x-fairlead-rule")), ("standard", None));
    assert_eq!(account["x-fairlead-split"], "standard=100");
    assert_eq!(account["x-fairlead-cost-per-million-tokens"], "500");
    let (from, account) = asked(&[("x-user", "premium_user_123"), ("x-tier", "premium")]).await;
    assert_eq!(
        (from.as_str(), &account["x-fairlead-rule"]),
        ("premium", &"premium".parse().expect("a value"))
    );
    assert_eq!(account["x-fairlead-split"], "premium=100");
    let (from, account) = asked(&[("x-priority", "urgent"), ("x-user", "normal_user_789")]).await;
    assert_eq!(
        (from.as_str(), &account["x-fairlead-rule"]),
        ("premium", &"urgent".parse().expect("a value"))
    );
    assert_eq!(asked(&[("x-source", "web_app")]).await.0, "standard");

    // What it may cost: 0.001 and 0.005 a token. Nothing is as cheap as 0.0001: then as without a cap.
    let cap = "x-fairlead-max-cost-per-million-tokens";
    for (most, backend, rule) in [
        ("1000", "standard", Some("within-cap")),
        ("5000", "premium", Some("within-cap")),
        ("100", "standard", None),
    ] {
        let (from, account) = asked(&[(cap, most)]).await;
        assert_eq!(from, backend, "{most}");
        assert_eq!(account.get("x-fairlead-rule").map(|it| it.to_str().expect("text")), rule, "{most}");
    }
    let response = gateway.post("/v1/chat/completions", Gateway::chat_body("assistant", false).to_string());
    let response = within("an answer", response.header(cap, "cheap").send()).await.expect("an answer");
    assert_eq!(response.status(), 400);
    assert!(error_of(response).await["message"].as_str().expect("text").contains(cap));

    // A canary of the rest, put in force in a running gateway and taken back by one write.
    gateway.edit(&with_canary.to_string());
    eventually("the edit is in force", || async {
        asked(&[]).await.1["x-fairlead-split"] == "standard=80 standard-next=20"
    })
    .await;
    const USERS: u32 = 400;
    let mut next = 0;
    for user in 0..USERS {
        let user = format!("user-{user}");
        let (from, account) = asked(&[("x-user", user.as_str())]).await;
        assert_eq!(account["x-fairlead-sticky"], "User");
        assert_eq!(asked(&[("x-user", user.as_str())]).await.0, from, "a user stays");
        next += u32::from(from == "standard-next");
        assert_ne!(from, "premium");
    }
    // Binomial(400, 0.2): sigma is 8, so five sigma is 40.
    assert!(next.abs_diff(80) <= 40, "{next} of {USERS}");
    for _ in 0..20 {
        assert_eq!(asked(&[("x-tier", "premium")]).await.0, "premium", "the canary is of the rest");
    }
    gateway.edit(&before.to_string());
    eventually("the write is taken back", || async {
        asked(&[]).await.1["x-fairlead-split"] == "standard=100"
    })
    .await;
}

#[tokio::test]
async fn a_rag_router_goes_by_role_and_by_what_is_asked() {
    let (_pods, urls) = pods(&["fast", "large"]).await;
    let gateway = Gateway::start(&example("rag-router.yaml", &urls).to_string(), &TRUST).await;
    for (role, question, backend, rule) in [
        ("guest", "What is LLMOps and RAG?", "fast", None),
        (
            "premium",
            "Provide a complex explanation of multi-level caching strategies for LLM inference in detail.",
            "large",
            Some("premium-role"),
        ),
        ("guest", "Tell me about LLMOps and RAG systems.", "fast", None),
        ("guest", "How does Kubernetes help with LLM deployment?", "fast", None),
        (
            "guest",
            "Explain in detail how dynamic model routing works in LLM deployments.",
            "large",
            Some("in-depth"),
        ),
        ("guest", "EXPLAIN IN DETAIL", "large", Some("in-depth")),
    ] {
        let (from, account) = ask(&gateway, "rag-answers", question, &[("x-tier", role)]).await;
        assert_eq!(from, backend, "{question}");
        assert_eq!(account.get("x-fairlead-rule").map(|it| it.to_str().expect("text")), rule, "{question}");
    }
}

fn split(weights: [u32; 2], urls: &BTreeMap<&str, String>, turned: bool) -> String {
    let mut backends = vec![
        json!({"name": "v1", "weight": weights[0], "endpoints": [urls["v1"]]}),
        json!({"name": "v2", "weight": weights[1], "endpoints": [urls["v2"]]}),
    ];
    if turned {
        backends.reverse();
    }
    json!({"apiVersion": "fairlead.dev/v1alpha1", "kind": "ModelRoute", "metadata": {"name": "chat", "namespace": "ns"},
        "spec": {"backends": backends, "stickiness": {"by": "User"}}})
    .to_string()
}

/// Two gateways, of which one is started anew at each step and has the backends in another order.
#[tokio::test]
async fn no_user_goes_back_while_a_weight_grows_whichever_gateway_they_ask() {
    const USERS: usize = 60;
    let (_pods, urls) = pods(&["v1", "v2"]).await;
    let lasting = Gateway::start(&split([100, 0], &urls, false), &[]).await;
    let mut moved = [false; USERS];
    for percent in [5, 25, 50, 100] {
        lasting.edit(&split([100 - percent, percent], &urls, false));
        let fresh = Gateway::start(&split([100 - percent, percent], &urls, true), &[]).await;
        let wanted =
            if percent == 100 { "v2=100".to_owned() } else { format!("v1={} v2={percent}", 100 - percent) };
        eventually("the edit is in force", || async {
            header(&lasting.chat("chat", false).await, "x-fairlead-split") == wanted
        })
        .await;
        for (user, moved) in moved.iter_mut().enumerate() {
            let mut answers = Vec::new();
            for gateway in [&lasting, &fresh] {
                // No header is trusted here, so the request's own user counts.
                let mut body = Gateway::chat_body("chat", false);
                body["user"] = json!(format!("user-{user}"));
                let response =
                    within("an answer", gateway.post("/v1/chat/completions", body.to_string()).send());
                answers.push(header(&response.await.expect("an answer"), "x-fairlead-backend").to_owned());
            }
            assert_eq!(answers[0], answers[1], "all gateways agree");
            let now = answers[0] == "v2";
            assert!(now || !*moved, "user {user} went back at {percent} %");
            *moved = now;
        }
    }
    assert!(moved.iter().all(|moved| *moved), "at 100 % all have moved");
}

#[tokio::test]
async fn pods_see_nothing_of_who_asks_and_a_second_voice_is_refused() {
    let mut pod = Worker::start().await;
    let gateway = Gateway::start(&crate::harness::route("chat", &[("v1", 1, &[&pod.url()])]), &TRUST).await;
    let body = Gateway::chat_body("chat", false).to_string();
    let request =
        gateway.post("/v1/chat/completions", body.clone()).header("x-tier", "gold").header("x-user", "ada");
    let request = request.header("x-other", "stays").header("x-fairlead-max-cost-per-million-tokens", "5");
    let (_, headers) = tokio::join!(within("an answer", request.send()), async {
        let call = pod.call().await;
        let headers = call.head.headers.clone();
        call.json(200, json!({}));
        headers
    });
    assert!(headers.contains_key("x-other"));
    for gone in ["x-tier", "x-user", "x-fairlead-max-cost-per-million-tokens"] {
        assert!(!headers.contains_key(gone), "{gone}");
    }
    let twice = gateway.post("/v1/chat/completions", body).header("x-user", "ada").header("x-user", "root");
    let response = within("an answer", twice.send()).await.expect("an answer");
    assert_eq!(response.status(), 400);
    assert!(error_of(response).await["message"].as_str().expect("text").contains("x-user"));
}

/// Answers of `/debug/explain`.
async fn explain(gateway: &Gateway, token: Option<&str>, body: Option<&Value>, query: &str) -> (u16, Value) {
    let url = gateway.admin_url(&format!("/debug/explain{query}"));
    let request = match body {
        Some(body) => gateway.client.post(url).body(body.to_string()),
        None => gateway.client.get(url),
    };
    let request = match token {
        Some(token) => request.header("authorization", format!("Bearer {token}")),
        None => request,
    };
    let response = within("an answer", request.send()).await.expect("an answer");
    (response.status().as_u16(), response.json().await.expect("JSON"))
}

#[tokio::test]
async fn explain_says_what_would_happen_and_sends_nothing() {
    let (pods, urls) = pods(&["standard", "standard-next", "premium"]).await;
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("token");
    std::fs::write(&file, "open-sesame\n").expect("written");
    let args = [&TRUST[..], &["--admin-token-file", file.to_str().expect("a path")][..]].concat();
    let manifest = example("premium-urgent-default.yaml", &urls).to_string();
    let gateway = Gateway::start(&manifest, &args).await;

    let asked = json!({"headers": {"x-priority": "urgent", "x-user": "ada"},
        "body": {"model": "assistant", "messages": [{"role": "user", "content": "twelve bytes"}]}});
    let (status, answer) = explain(&gateway, Some("open-sesame"), Some(&asked), "").await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!((&answer["route"], &answer["rule"]), (&json!("default/assistant"), &json!("urgent")));
    assert_eq!(answer["rules"][0]["name"], "premium");
    assert!(answer["rules"][0]["why"].as_str().expect("a reason").contains("match.tenantTiers"), "{answer}");
    assert_eq!(answer["rules"][1], json!({"name": "urgent", "holds": true}));
    assert_eq!(answer["rules"].as_array().map(Vec::len), Some(2), "the rules after it are not looked at");
    assert_eq!((&answer["split"]["of"], &answer["split"]["line"]), (&json!("Rule"), &json!("premium=100")));
    assert_eq!(
        (&answer["backend"]["name"], &answer["backend"]["chosenBy"]),
        (&json!("premium"), &json!("Subject"))
    );
    assert_eq!(answer["candidates"].as_array().map(Vec::len), Some(1));
    assert_eq!((&answer["identity"]["user"], &answer["promptTokens"]), (&json!("ada"), &json!(3)));

    // It says what then happens: for a sticky user that is certain.
    let query = "?model=assistant&user=bob&message=hi";
    let (_, answer) = explain(&gateway, Some("open-sesame"), None, query).await;
    assert_eq!((&answer["split"]["of"], &answer["rule"]), (&json!("Route"), &Value::Null));
    assert_eq!(pods.iter().map(Answering::count).sum::<u32>(), 0, "nothing was sent");
    assert_eq!(gateway.metric("fairlead_gateway_requests_total", "").await, 0.0);
    let (from, _) = ask(&gateway, "assistant", "hi", &[("x-user", "bob")]).await;
    assert_eq!(answer["backend"]["name"], from.as_str());

    let (status, answer) = explain(&gateway, Some("open-sesame"), None, "?model=nope").await;
    assert_eq!((status, &answer["error"]["code"]), (404, &json!("model_not_found")));
    let (status, answer) =
        explain(&gateway, Some("open-sesame"), Some(&json!({"body": {"model": "assistant"}})), "").await;
    assert_eq!((status, &answer["error"]["param"]), (400, &json!("messages")));
    for token in [None, Some("open"), Some("")] {
        let (status, answer) = explain(&gateway, token, Some(&asked), "").await;
        assert_eq!((status, &answer["error"]["code"]), (401, &json!("invalid_admin_token")));
    }
    let locked = Gateway::start(&manifest, &TRUST).await;
    let (status, answer) = explain(&locked, Some(""), Some(&asked), "").await;
    assert_eq!(status, 403);
    assert!(answer["error"]["message"].as_str().expect("text").contains("--admin-token-file"), "{answer}");
}
