//! Reconciles of what has changed meanwhile: the watch is behind, or somebody writes between a look and its decision.

use super::judging::{ERRORS, is, judged, later, look, now};
use super::server::Server;
use super::*;
use crate::error::Error;

/// Reconciles a route as the store has it, however old that is.
async fn again(cluster: &Cluster) -> Result<(), Error> {
    let object = get(&cluster.context.stores.model_routes, "models", "chat").unwrap();
    reconcile(object, Arc::clone(&cluster.context)).await.map(drop)
}

/// It was decided anew on what the store has, and that was seen to be too old.
async fn is_too_late(cluster: &Cluster) {
    let before = cluster.get(&path("models", "chat"));
    cluster.events();
    let late = again(cluster).await;
    assert!(matches!(late, Err(Error::Outdated)), "{late:?}");
    assert_eq!(cluster.get(&path("models", "chat")), before, "nothing of it is written over");
    assert_eq!(cluster.events(), Vec::<String>::new());
}

/// A canary that has just been taken back, by an operator whose store still has it at its step.
async fn taken_back_behind_the_watch() -> (Cluster, Vec<Server>) {
    let (mut cluster, servers) = judged(ERRORS, 1).await;
    servers[0].counts(&now(&cluster), 300, 60);
    later(&cluster);
    cluster.sync();
    again(&cluster).await.unwrap();
    assert_eq!(is(&now(&cluster)), ("RolledBack", "GateFailed", 0));
    (cluster, servers)
}

#[tokio::test]
async fn a_rollback_is_not_undone_by_a_store_that_is_behind() {
    let (mut cluster, servers) = taken_back_behind_the_watch().await;
    // A Deployment changes at that moment, and the gateways have forgotten the canary already.
    servers[0].answers(200, json!({"format": 1, "instance": "i", "synced": true, "routes": []}));
    is_too_late(&cluster).await;
    // Nor by counts that would let it go on.
    servers[0].counts(&now(&cluster), 5000, 0);
    is_too_late(&cluster).await;
    assert_eq!(is(&look(&mut cluster).await), ("RolledBack", "GateFailed", 0), "the watch has caught up");
}

#[tokio::test]
async fn a_promotion_is_not_undone_by_a_store_that_is_behind() {
    let (mut cluster, servers) = judged(ERRORS, 1).await;
    servers[0].counts(&now(&cluster), 2000, 2);
    look(&mut cluster).await;
    servers[0].counts(&now(&cluster), 2000, 2);
    later(&cluster);
    cluster.sync();
    again(&cluster).await.unwrap();
    assert_eq!(is(&now(&cluster)), ("Promoted", "GatesPassed", 100));
    servers[0].counts(&now(&cluster), 2000, 400);
    is_too_late(&cluster).await;
    assert_eq!(is(&look(&mut cluster).await), ("Promoted", "GatesPassed", 100));
}

#[tokio::test]
async fn a_request_is_acted_on_once_also_when_the_store_is_behind() {
    let (mut cluster, _servers) = taken_back_behind_the_watch().await;
    ask(&cluster, "1", "Retry");
    cluster.sync();
    again(&cluster).await.unwrap();
    let epoch = now(&cluster)["rollout"]["epoch"].clone();
    assert_eq!(is(&now(&cluster)), ("Progressing", "Holding", 5));
    is_too_late(&cluster).await;
    cluster.sync();
    again(&cluster).await.unwrap();
    assert_eq!(now(&cluster)["rollout"]["epoch"], epoch);
}

#[tokio::test]
async fn a_request_that_comes_while_gates_are_looked_at_is_not_lost() {
    let (mut cluster, servers) = judged(ERRORS, 1).await;
    servers[0].counts(&now(&cluster), 2000, 2);
    later(&cluster);
    cluster.sync();
    ask(&cluster, "1", "Abort");
    is_too_late(&cluster).await;
    cluster.sync();
    again(&cluster).await.unwrap();
    assert_eq!(is(&now(&cluster)), ("RolledBack", "Requested", 0));
}

#[tokio::test]
async fn an_edit_that_comes_while_gates_are_looked_at_is_what_is_followed() {
    let (mut cluster, servers) = judged(ERRORS, 1).await;
    servers[0].counts(&now(&cluster), 2000, 2);
    later(&cluster);
    cluster.sync();
    cluster.edit(&path("models", "chat"), |it| {
        it["metadata"]["generation"] = json!(2);
        it["spec"]["canary"]["paused"] = json!(true);
    });
    is_too_late(&cluster).await;
    cluster.sync();
    again(&cluster).await.unwrap();
    assert_eq!(is(&now(&cluster)), ("Paused", "PausedInSpec", 5));
}

#[tokio::test]
async fn labels_that_others_write_all_the_time_keep_nobody_from_taking_a_canary_back() {
    let (mut cluster, servers) = judged(ERRORS, 1).await;
    servers[0].counts(&now(&cluster), 300, 60);
    later(&cluster);
    cluster.sync();
    cluster.edit(&path("models", "chat"), |it| it["metadata"]["labels"] = json!({"seen": "now"}));
    again(&cluster).await.unwrap();
    assert_eq!(is(&now(&cluster)), ("RolledBack", "GateFailed", 0));
    // The API server may say so several times; not for ever.
    ask(&cluster, "1", "Retry");
    cluster.sync();
    (0..3).for_each(|_| cluster.fail_next("PATCH", 409));
    is_too_late(&cluster).await;
    cluster.fail_next("PATCH", 409);
    again(&cluster).await.unwrap();
    assert_eq!(is(&now(&cluster)), ("Progressing", "Holding", 5));
}

#[tokio::test]
async fn a_route_that_was_made_anew_begins_anew() {
    let (mut cluster, _servers) = taken_back_behind_the_watch().await;
    ask(&cluster, "1", "Retry");
    cluster.sync();
    let mut object = cluster.get(&path("models", "chat")).unwrap();
    object["metadata"]["uid"] = json!("another");
    object["status"] = Value::Null;
    cluster.put(&path("models", "chat"), object);
    is_too_late(&cluster).await;
    cluster.remove(&path("models", "chat"));
    is_too_late(&cluster).await;
}
