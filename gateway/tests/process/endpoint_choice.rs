//! Which of a backend's pods answers, by the route's policy.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::harness::{Gateway, header, within};
use crate::worker::{Answering, Worker};

fn route(policy: &Value, workers: &[Answering]) -> String {
    let endpoints: Vec<String> = workers.iter().map(Answering::url).collect();
    let route = json!({"apiVersion": "fairlead.dev/v1alpha1", "kind": "ModelRoute",
        "metadata": {"name": "chat", "namespace": "ns"},
        "spec": {"backends": [{"name": "v1", "endpoints": endpoints}], "endpointPolicy": policy}});
    format!("---\n{route}\n")
}

async fn workers() -> Vec<Answering> {
    let mut workers = Vec::new();
    for _ in 0..4 {
        workers.push(Worker::start().await.answer_all("worker"));
    }
    workers
}

/// Endpoint and reason.
async fn ask(gateway: &Gateway, body: &Value, session: &str) -> (String, String) {
    let request = gateway.post("/v1/chat/completions", body.to_string()).header("x-session-id", session);
    let response = within("an answer", request.send()).await.expect("an answer");
    assert_eq!(response.status(), 200);
    (
        header(&response, "x-fairlead-endpoint").to_owned(),
        header(&response, "x-fairlead-endpoint-choice").to_owned(),
    )
}

fn chat(messages: &[(&str, String)]) -> Value {
    let messages: Vec<_> =
        messages.iter().map(|(role, content)| json!({"role": role, "content": content})).collect();
    json!({"model": "chat", "messages": messages})
}

#[tokio::test]
async fn the_turns_of_a_conversation_stay_together_and_conversations_spread() {
    let workers = workers().await;
    let gateway = Gateway::start(&route(&json!({}), &workers), &[]).await;
    let mut used = BTreeSet::new();
    for conversation in 0..24 {
        let mut messages = vec![("user", format!("question {conversation} ").repeat(100))];
        let (endpoint, why) = ask(&gateway, &chat(&messages), "").await;
        assert_eq!(why, "no-prefix-match");
        for turn in 0..3 {
            messages.push(("assistant", format!("answer {turn}")));
            messages.push(("user", format!("and {turn}?")));
            let next = ask(&gateway, &chat(&messages), "").await;
            assert_eq!(next, (endpoint.clone(), "prefix-match".to_owned()));
        }
        used.insert(endpoint);
    }
    // Four pods, 24 conversations: that one pod has none has a probability of 0.4 %, that two have none 10^-6.
    assert!(used.len() >= 3, "{used:?}");
    let matches = gateway.metric("fairlead_gateway_endpoint_choices_total", "reason=\"PrefixMatch\"").await;
    assert_eq!(matches, 72.0);
    let part = gateway.metric("fairlead_gateway_prefix_match_bytes_total", "").await
        / gateway.metric("fairlead_gateway_prefix_lookup_bytes_total", "").await;
    assert!((0.6..0.75).contains(&part), "{part}");
}

#[tokio::test]
async fn sessions_stay_by_header_and_an_edit_of_the_policy_is_in_force() {
    let workers = workers().await;
    let policy = json!({"kind": "SessionAffinity", "session": {"by": "Header", "header": "x-session-id"}});
    let gateway = Gateway::start(&route(&policy, &workers), &[]).await;
    let body = chat(&[("user", "the same for all ".repeat(100))]);
    let mut used = BTreeSet::new();
    for session in 0..24 {
        let session = format!("s{session}");
        let first = ask(&gateway, &body, &session).await;
        assert_eq!(first.1, "session");
        assert_eq!(ask(&gateway, &body, &session).await, first);
        used.insert(first.0);
    }
    assert!(used.len() >= 3, "{used:?}");
    assert_eq!(ask(&gateway, &body, "").await.1, "least-load");
    gateway.edit(&route(&json!({"kind": "LeastLoad"}), &workers));
    crate::harness::eventually("the edit is in force", || async {
        ask(&gateway, &body, "s1").await.1 == "least-load"
    })
    .await;
}

#[tokio::test]
async fn a_client_cannot_choose_its_pod_by_naming_itself_anew_where_a_header_vouches_for_users() {
    let workers = workers().await;
    let policy = json!({"kind": "SessionAffinity", "session": {"by": "User"}});
    // The helper's header, here as one that the proxy in front sets.
    let trust = ["--trusted-user-header", "x-session-id"];
    let gateway = Gateway::start(&route(&policy, &workers), &trust).await;
    let named = |name: String| {
        let mut body = chat(&[("user", "hello".to_owned())]);
        body["user"] = name.into();
        body
    };
    let mut used = BTreeSet::new();
    for user in 0..24 {
        let at = ask(&gateway, &named("somebody".into()), &format!("u{user}")).await;
        assert_eq!(at.1, "session");
        assert_eq!(ask(&gateway, &named(format!("another-{user}")), &format!("u{user}")).await, at);
        used.insert(at.0);
    }
    // As above: 24 users on one or two of four pods has a probability of 10^-6.
    assert!(used.len() >= 3, "{used:?}");
    assert_eq!(ask(&gateway, &named("somebody".into()), "").await.1, "least-load");
}
