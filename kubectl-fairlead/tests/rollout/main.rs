//! The `rollout` commands against an API server in memory.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod api;

use std::time::Duration;

use api::{ApiServer, denied};
use fairlead_crds::model_route::canary::REFUSED;
use fairlead_rollout::machine::Action;
use kubectl_fairlead::cli::{Ask, Status};
use kubectl_fairlead::rollout::{ask, status};
use serde_json::{Value, json};

fn route(phase: &str, weight: u32) -> Value {
    json!({
        "apiVersion": "fairlead.dev/v1alpha1", "kind": "ModelRoute",
        "metadata": {"namespace": "shop", "name": "chat", "generation": 1, "uid": "u"},
        "spec": {
            "backends": [{"name": "v1", "modelDeployment": "m1", "weight": 1}, {"name": "v2", "modelDeployment": "m2"}],
            "canary": {"backend": "v2", "steps": [{"weight": 5, "hold": "10m"}, {"weight": 50, "hold": "1h"}]},
        },
        "status": {"observedGeneration": 1, "rollout": {
            "phase": phase, "reason": "Holding", "canary": "v2", "stable": "v1", "step": 0, "weight": weight,
            "stepBegan": "2026-11-29T06:00:00Z", "served": true, "message": "v2 has its part",
        }},
    })
}

fn asking(timeout: u64) -> Ask {
    Ask { route: "chat".to_owned(), no_wait: false, timeout: Duration::from_secs(timeout), output: None }
}

fn watching(timeout: Option<u64>) -> Status {
    Status { route: "chat".to_owned(), watch: true, timeout: timeout.map(Duration::from_secs), output: None }
}

/// An operator that follows, or refuses, every request.
fn operator(refusal: Option<&'static str>) -> impl Fn(&mut Value) + Send + Sync + 'static {
    move |route| {
        let id = route["status"]["request"]["id"].clone();
        route["status"]["rollout"]["handled"] = id;
        route["status"]["rollout"]["message"] = match refusal {
            Some(why) => json!(format!("{REFUSED}{why}")),
            None => json!("v2 has everything"),
        };
    }
}

#[tokio::test]
async fn a_request_is_written_as_the_operator_reads_it_and_its_answer_awaited() {
    let server = ApiServer::with(route("Progressing", 5)).operator(operator(None));
    assert_eq!(ask::run(&server.session(), Action::Promote, &asking(30)).await, Ok(0));
    let [patch] = server.patches().try_into().expect("one patch");
    assert_eq!(patch.path, "/apis/fairlead.dev/v1alpha1/namespaces/shop/modelroutes/chat/status");
    assert_eq!(patch.content_type, "application/apply-patch+yaml");
    assert!(
        patch.query.contains("fieldManager=fairlead-cli") && patch.query.contains("force=true"),
        "{}",
        patch.query
    );
    let request = &patch.body["status"]["request"];
    assert_eq!((&request["action"], &request["canary"]), (&json!("Promote"), &json!("v2")));
    assert!(request["id"].as_str().is_some_and(|id| (1..=64).contains(&id.len())), "{request}");
    // Nothing else of the status, which is the operator's.
    assert_eq!(patch.body["status"].as_object().map(serde_json::Map::len), Some(1));
    assert_eq!(ask::run(&server.session(), Action::Pause, &asking(30)).await, Ok(0));
    let ids: Vec<Value> =
        server.patches().iter().map(|patch| patch.body["status"]["request"]["id"].clone()).collect();
    assert_ne!(ids[0], ids[1], "one is acted on once");
}

#[tokio::test]
async fn a_refusal_is_exit_code_one() {
    let server =
        ApiServer::with(route("Progressing", 5)).operator(operator(Some("nobody has paused the rollout")));
    assert_eq!(ask::run(&server.session(), Action::Resume, &asking(30)).await, Ok(1));
}

#[tokio::test]
async fn nobody_waits_for_ever_for_an_operator_that_is_not_there() {
    let server = ApiServer::with(route("Progressing", 5));
    let fault = ask::run(&server.session(), Action::Abort, &asking(1)).await.unwrap_err().to_string();
    assert!(fault.contains("has not looked at it in 1s") && fault.contains("get pods -l"), "{fault}");
    let no_wait = Ask { no_wait: true, ..asking(1) };
    assert_eq!(ask::run(&server.session(), Action::Abort, &no_wait).await, Ok(0));

    let mut stalled = route("Progressing", 5);
    stalled["status"]["conditions"] = json!([{"type": "Stalled", "status": "True", "reason": "InvalidSpec",
        "message": "spec.canary.steps is empty", "lastTransitionTime": "2026-11-29T06:00:00Z"}]);
    let fault = ask::run(&ApiServer::with(stalled).session(), Action::Abort, &asking(1))
        .await
        .unwrap_err()
        .to_string();
    assert!(fault.contains("cannot act on chat: spec.canary.steps is empty"), "{fault}");
}

#[tokio::test]
async fn without_a_canary_nothing_is_asked() {
    let mut plain = route("Idle", 0);
    plain["spec"].as_object_mut().expect("a spec").remove("canary");
    let server = ApiServer::with(plain);
    let fault = ask::run(&server.session(), Action::Promote, &asking(30)).await.unwrap_err().to_string();
    assert_eq!(fault, "chat has no canary, so there is nothing to promote; a canary begins with spec.canary");
    assert!(server.patches().is_empty());
}

#[tokio::test]
async fn who_may_not_hears_what_is_missing() {
    let server =
        ApiServer::with(route("Progressing", 5)).refusing("PATCH", denied("patch", "modelroutes/status"));
    let fault = ask::run(&server.session(), Action::Promote, &asking(30)).await.unwrap_err().to_string();
    assert!(
        fault.starts_with("you may not patch modelroutes.fairlead.dev/status in namespace shop."),
        "{fault}"
    );
    assert!(fault.contains("kubectl create rolebinding NAME --clusterrole=edit --namespace=shop"), "{fault}");

    let server = ApiServer::with(route("Progressing", 5)).refusing("GET", denied("get", "modelroutes"));
    let fault = status::run(&server.session(), watching(None)).await.unwrap_err().to_string();
    assert!(fault.starts_with("you may not get modelroutes.fairlead.dev in namespace shop."), "{fault}");
}

#[tokio::test]
async fn a_watch_ends_with_the_rollout() {
    for (end, code) in [("Promoted", 0), ("RolledBack", 1)] {
        let server = ApiServer::with(route("Progressing", 5));
        let session = server.session();
        let (code_seen, ()) = tokio::join!(status::run(&session, watching(Some(60))), async {
            server.watched().await;
            server.change(|route| route["status"]["rollout"]["weight"] = json!(50));
            server.change(|route| route["status"]["rollout"]["phase"] = json!(end));
        });
        assert_eq!(code_seen, Ok(code), "{end}");
    }
}

#[tokio::test]
async fn an_end_that_was_decided_on_an_older_spec_is_none() {
    let mut newer = route("Promoted", 100);
    newer["metadata"]["generation"] = json!(2);
    let server = ApiServer::with(newer);
    let session = server.session();
    let (code, ()) = tokio::join!(status::run(&session, watching(Some(60))), async {
        server.watched().await;
        server.change(|route| {
            route["status"]["observedGeneration"] = json!(2);
            route["status"]["rollout"]["phase"] = json!("RolledBack");
        });
    });
    assert_eq!(code, Ok(1));
}

#[tokio::test]
async fn a_watch_gives_up_in_time_and_says_where_it_was() {
    let server = ApiServer::with(route("Paused", 5));
    let fault = status::run(&server.session(), watching(Some(1))).await.unwrap_err().to_string();
    assert!(
        fault.starts_with("chat has not ended after 1s. It is: chat Paused step 1/2, v2 has 5 %"),
        "{fault}"
    );
}

#[tokio::test]
async fn a_deleted_route_ends_the_watch() {
    let server = ApiServer::with(route("Paused", 5));
    let session = server.session();
    let (fault, ()) = tokio::join!(status::run(&session, watching(Some(60))), async {
        server.watched().await;
        server.delete();
    });
    assert!(fault.unwrap_err().to_string().contains("was deleted in the meantime"));
    let fault = status::run(&session, watching(Some(60))).await.unwrap_err().to_string();
    assert_eq!(
        fault,
        "there is no ModelRoute chat in namespace shop; there is none at all: choose another with -n"
    );
}
