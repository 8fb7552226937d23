//! What a gateway counts of a canary's answers, as the operator reads it at /rollouts, and as people read it at /metrics.

use std::time::Duration;

use fairlead_crds::model_route::ModelRoute;
use fairlead_rollout::Counts;
use fairlead_rollout::report::{BackendReport, Report};
use serde_json::{Value, json};

use crate::apiserver::ApiServer;
use crate::harness::{Gateway, eventually, within};
use crate::worker::{Call, Worker, nobody};

/// A route with two backends.
fn route() -> Value {
    json!({"apiVersion": "fairlead.dev/v1alpha1", "kind": "ModelRoute",
        "metadata": {"name": "chat", "namespace": "ns", "uid": "the-uid"},
        "spec": {"backends": [{"name": "v1", "weight": 1, "modelDeployment": "m1"}, {"name": "v2", "modelDeployment": "m2"}]}})
}

/// The same with v2 as a canary, which has so many percent of the requests, in an epoch.
fn canary(percent: u32, epoch: u64) -> Value {
    let mut object = route();
    object["spec"]["canary"] = json!({"backend": "v2", "steps": [{"weight": 50, "hold": "1h"}],
        "analysis": {"interval": "1h", "gates": [{"metric": "ErrorRate", "max": "1%"}]}});
    let read: ModelRoute = serde_json::from_value(object.clone()).expect("a route");
    object["status"] = json!({"rollout": {"fingerprint": read.rollout_fingerprint(), "phase": "Progressing", "reason": "Holding",
        "canary": "v2", "stable": "v1", "weight": percent, "epoch": epoch}});
    object
}

/// A gateway in a cluster in which v1 and v2 are at these URLs.
async fn gateway(object: Value, v1: &str, v2: &str) -> (ApiServer, Gateway) {
    let api = ApiServer::start().await;
    for (name, url) in [("m1", v1), ("m2", v2)] {
        let port: u16 = url.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
        api.apply(
            "modeldeployments",
            json!({"apiVersion": "fairlead.dev/v1alpha1", "kind": "ModelDeployment",
                "metadata": {"namespace": "ns", "name": name, "uid": name, "generation": 1}, "spec": {"model": {"uri": "hf://a/b"}}}),
        );
        api.apply(
            "endpointslices",
            json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
                "metadata": {"namespace": "ns", "name": format!("{name}-x"), "uid": name, "labels": {"fairlead.dev/model-deployment": name}},
                "ports": [{"name": "http", "port": port}],
                "endpoints": [{"addresses": ["127.0.0.1"], "conditions": {"ready": true}}]}),
        );
    }
    api.apply("modelroutes", object);
    let gateway = Gateway::start_in_cluster(&api.kubeconfig(), &[]).await;
    eventually("it is ready", || async { gateway.admin("/readyz").await.0 == 200 }).await;
    (api, gateway)
}

/// A gateway that sends everything to a canary.
async fn all_to_canary() -> (ApiServer, Gateway, Worker) {
    let worker = Worker::start().await;
    let (api, gateway) = gateway(canary(100, 1), &nobody().await, &worker.url()).await;
    (api, gateway, worker)
}

async fn report(gateway: &Gateway) -> Report {
    let (status, text) = gateway.admin("/rollouts?uid=the-uid").await;
    assert_eq!(status, 200, "{text}");
    serde_json::from_str(&text).expect("a report")
}

async fn counted(gateway: &Gateway, backend: &str) -> Counts {
    let BackendReport { step, stretches } = report(gateway).await.routes[0].backends[backend].clone();
    assert!(stretches.len() <= 1, "the interval is an hour: {stretches:?}");
    step
}

async fn requests(gateway: &Gateway, backend: &str, requests: u64) -> Counts {
    eventually("the request is counted", || async { counted(gateway, backend).await.requests == requests })
        .await;
    counted(gateway, backend).await
}

fn piece(text: &str) -> String {
    format!("data: {}\n\n", json!({"choices": [{"index": 0, "delta": {"content": text}}]}))
}

const ROLE: &str =
    "data: {\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n";

#[tokio::test]
async fn whole_answers_are_counted_with_their_length_and_without_a_first_token() {
    let (_api, gateway, mut worker) = all_to_canary().await;
    for _ in 0..3 {
        let answer = async {
            let usage = json!({"prompt_tokens": 5, "completion_tokens": 40, "total_tokens": 45});
            worker.call().await.json(200, json!({"choices": [], "usage": usage}));
        };
        let (response, ()) = tokio::join!(gateway.chat("chat", false), answer);
        assert_eq!(response.status(), 200);
    }
    let counts = requests(&gateway, "v2", 3).await;
    assert_eq!((counts.errors, counts.end_to_end_latency.count()), (0, 3));
    assert_eq!((counts.time_to_first_token.count(), counts.inter_token_latency.count()), (0, 0));
    let length = counts.tokens_per_answer.quantile(0.5).expect("a length");
    assert!((39.0..=41.0).contains(&length), "{length}");
    assert_eq!((counts.unfinished.count(), counts.unanswered.count()), (0, 0));
}

#[tokio::test]
async fn server_errors_are_the_variants_and_bad_requests_are_not() {
    let (_api, gateway, mut worker) = all_to_canary().await;
    for status in [500, 400, 404, 502] {
        let (response, ()) = tokio::join!(gateway.chat("chat", false), async {
            worker.call().await.json(status, json!({"error": {"message": "no"}}));
        });
        assert_eq!(response.status(), status);
    }
    let counts = requests(&gateway, "v2", 2).await;
    assert_eq!((counts.errors, counts.end_to_end_latency.at_least(10_000.0)), (2, 2));
    let ended = |result: &str| format!("route=\"ns/chat\",backend=\"v2\",result=\"{result}\"");
    assert_eq!(gateway.metric("fairlead_gateway_variant_requests_total", &ended("Failed")).await, 2.0);
    assert_eq!(gateway.metric("fairlead_gateway_variant_requests_total", &ended("Refused")).await, 2.0);
}

#[tokio::test]
async fn a_pod_without_room_fails_its_variant_when_nobody_else_takes_the_request() {
    let (_api, gateway, mut worker) = all_to_canary().await;
    for status in [429, 503] {
        let (response, ()) = tokio::join!(gateway.chat("chat", false), async {
            worker.call().await.json(status, json!({"error": {"message": "full"}}));
        });
        assert_eq!(response.status(), status);
    }
    assert_eq!(requests(&gateway, "v2", 2).await.errors, 2);
}

#[tokio::test]
async fn a_slow_first_token_and_a_slow_stream_are_measured_where_they_are_felt() {
    let (_api, gateway, mut worker) = all_to_canary().await;
    let slow = Duration::from_millis(300);
    let (response, ()) = tokio::join!(gateway.chat("chat", true), async {
        let sending = worker.call().await.stream();
        // A keep-alive and the role are no token.
        sending.send(": keep-alive\n\n").await;
        sending.send(ROLE).await;
        tokio::time::sleep(slow).await;
        for text in ["a", "b", "c"] {
            sending.send(piece(text)).await;
            tokio::time::sleep(slow / 2).await;
        }
        sending.send("data: [DONE]\n\n").await;
    });
    within("the answer", response.bytes()).await.expect("all of it");
    let counts = requests(&gateway, "v2", 1).await;
    assert_eq!(counts.errors, 0);
    assert_eq!((counts.time_to_first_token.at_least(0.28), counts.time_to_first_token.count()), (1, 1));
    assert_eq!((counts.inter_token_latency.at_least(0.14), counts.inter_token_latency.count()), (1, 1));
    assert_eq!((counts.end_to_end_latency.at_least(0.7), counts.end_to_end_latency.count()), (1, 1));
    let length = counts.tokens_per_answer.quantile(0.5).expect("a length");
    assert!((2.9..=3.1).contains(&length), "without usage the pieces count: {length}");
    let variant = "route=\"ns/chat\",backend=\"v2\"";
    let first = gateway.metric("fairlead_gateway_variant_time_to_first_token_seconds_count", variant).await;
    assert_eq!(first, 1.0);
}

#[tokio::test]
async fn a_stream_that_breaks_or_tells_of_an_error_failed() {
    let (_api, gateway, mut worker) = all_to_canary().await;
    for broken in [true, false] {
        let (response, ()) = tokio::join!(gateway.chat("chat", true), async {
            let sending = worker.call().await.stream();
            sending.send(piece("a")).await;
            if broken {
                sending.die().await;
            } else {
                sending.send("data: {\"error\":{\"message\":\"out of memory\"}}\n\n").await;
            }
        });
        within("the answer", response.bytes()).await.expect("an end");
    }
    let counts = requests(&gateway, "v2", 2).await;
    assert_eq!((counts.errors, counts.end_to_end_latency.at_least(10_000.0)), (2, 2));
    assert_eq!(counts.time_to_first_token.at_least(10_000.0), 0, "the first token was there");
    assert_eq!(counts.inter_token_latency.at_least(10_000.0), 2, "the second never was");
}

#[tokio::test]
async fn a_request_that_hangs_is_told_while_it_hangs_and_when_its_client_has_left() {
    let (_api, gateway, mut worker) = all_to_canary().await;
    let body = Gateway::chat_body("chat", true).to_string();
    let asked = tokio::spawn(gateway.post("/v1/chat/completions", body).send());
    let held: Call = worker.call().await;
    let waiting = || async {
        let counts = counted(&gateway, "v2").await;
        counts.unanswered.at_least(0.3) == 1 && counts.unfinished.at_least(0.3) == 1 && counts.requests == 0
    };
    eventually("its age is told", waiting).await;
    asked.abort();
    held.abandoned().await;
    let left = "route=\"ns/chat\",backend=\"v2\",result=\"Left\"";
    eventually("it is noticed", || async {
        gateway.metric("fairlead_gateway_variant_requests_total", left).await == 1.0
    })
    .await;
    assert!(waiting().await, "it has waited for so long, and in vain");
}

#[tokio::test]
async fn a_request_that_another_variant_saved_counts_against_the_one_that_failed_it() {
    let stable = Worker::start().await.answer_all("v1");
    let (_api, gateway) = gateway(canary(50, 1), &stable.url(), &nobody().await).await;
    // Until a draw has been for the canary.
    eventually("the canary is drawn", || async {
        assert_eq!(gateway.chat("chat", false).await.status(), 200);
        counted(&gateway, "v2").await.requests == 1
    })
    .await;
    let (mine, theirs) = (counted(&gateway, "v2").await, counted(&gateway, "v1").await);
    assert_eq!((mine.errors, theirs.errors, theirs.requests), (1, 0, stable.count().into()));
}

#[tokio::test]
async fn what_a_rule_sends_somewhere_is_seen_there_and_says_nothing_of_a_canary() {
    let worker = Worker::start().await.answer_all("v2");
    let mut object = canary(100, 1);
    let when = |header: &str| json!({"headers": [{"name": header, "present": true}]});
    object["spec"]["rules"] = json!([
        {"name": "elsewhere", "match": when("x-elsewhere"), "split": [{"backend": "v2"}]},
        {"name": "as-the-rest", "match": when("x-as-the-rest")},
    ]);
    let (_api, gateway) = gateway(object, &nobody().await, &worker.url()).await;
    for (header, rule) in [("x-elsewhere", "elsewhere"), ("x-as-the-rest", "as-the-rest"), ("x-none", "")] {
        for _ in 0..3 {
            let request = gateway.post("/v1/chat/completions", Gateway::chat_body("chat", false).to_string());
            let response =
                within("an answer", request.header(header, "yes").send()).await.expect("an answer");
            let said = |name: &str| response.headers().get(name).map_or("", |it| it.to_str().expect("text"));
            assert_eq!((said("x-fairlead-backend"), said("x-fairlead-rule")), ("v2", rule));
        }
    }
    // A rule without a split leaves its requests to the canary.
    assert_eq!(requests(&gateway, "v2", 6).await.errors, 0);
    let answered = "route=\"ns/chat\",backend=\"v2\",result=\"Answered\"";
    assert_eq!(gateway.metric("fairlead_gateway_variant_requests_total", answered).await, 9.0);
    assert_eq!(counted(&gateway, "v2").await.requests, 6);
}

#[tokio::test]
async fn another_epoch_begins_with_nothing_and_what_is_over_is_gone() {
    let worker = Worker::start().await.answer_all("v2");
    let (api, gateway) = gateway(canary(100, 1), &nobody().await, &worker.url()).await;
    gateway.chat("chat", false).await;
    requests(&gateway, "v2", 1).await;
    assert_eq!(report(&gateway).await.routes[0].epoch, 1);
    let instance = report(&gateway).await.instance;

    api.apply("modelroutes", canary(100, 2));
    eventually("the next epoch", || async { report(&gateway).await.routes[0].epoch == 2 }).await;
    assert_eq!(counted(&gateway, "v2").await, Counts::default());
    assert_eq!(report(&gateway).await.instance, instance);

    // Without a canary nothing is counted for one, and metrics of a backend that is gone go.
    let variant = "route=\"ns/chat\",backend=\"v2\"";
    assert_eq!(gateway.metric("fairlead_gateway_variant_requests_total", variant).await, 1.0);
    let mut without = route();
    without["spec"]["backends"] = json!([{"name": "v1", "modelDeployment": "m1"}]);
    api.apply("modelroutes", without);
    eventually("the canary is gone", || async {
        let (_, text) = gateway.admin("/rollouts").await;
        let report: Report = serde_json::from_str(&text).expect("a report");
        report.routes[0].epoch == 0 && report.routes[0].backends.is_empty()
    })
    .await;
    let (_, text) = gateway.admin("/metrics").await;
    assert!(!text.contains("backend=\"v2\""), "{text}");
}
