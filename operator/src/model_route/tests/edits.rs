//! Edits, replacements and restores while a canary is under way or after it was promoted.

use super::judging::{ERRORS, judged, look, now};
use super::server::Server;
use super::*;

/// At the second of two steps, with the epoch of it.
async fn at_the_second_step() -> (Cluster, Vec<Server>, Value) {
    let (mut cluster, servers) = judged(ERRORS, 1).await;
    servers[0].counts(&now(&cluster), 2000, 2);
    let status = look(&mut cluster).await;
    assert_eq!(rollout(&status), ("Progressing", 50, "a=50 b=50"));
    let epoch = status["rollout"]["epoch"].clone();
    (cluster, servers, epoch)
}

/// Whoever edits a spec as Git would.
fn edit(cluster: &Cluster, edit: impl FnOnce(&mut Value)) {
    cluster.edit(&path("models", "chat"), |object| {
        object["metadata"]["generation"] = json!(object["metadata"]["generation"].as_i64().unwrap() + 1);
        edit(&mut object["spec"]);
    });
}

fn where_it_is(status: &Value) -> (&Value, &Value, &Value, &Value) {
    let rollout = &status["rollout"];
    (&rollout["phase"], &rollout["step"], &rollout["weight"], &rollout["epoch"])
}

#[tokio::test]
async fn a_pause_from_git_and_another_price_keep_the_step_and_what_was_counted() {
    let (mut cluster, _servers, epoch) = at_the_second_step().await;
    for (paused, phase) in [(true, "Paused"), (false, "Progressing")] {
        edit(&cluster, |spec| {
            spec["canary"]["paused"] = json!(paused);
            spec["backends"][1]["costPerMillionTokens"] = json!("0.5");
        });
        let status = step(&mut cluster, "models", "chat").await;
        assert_eq!(where_it_is(&status), (&json!(phase), &json!(1), &json!(50), &epoch));
    }
}

#[tokio::test]
async fn a_replaced_object_keeps_its_rollout() {
    let (mut cluster, _servers, epoch) = at_the_second_step().await;
    // `kubectl replace`: metadata and spec are what the file says, the status is not the file's to write.
    edit(&cluster, |_| {});
    cluster.edit(&path("models", "chat"), |object| {
        object["metadata"]["labels"] = json!({"from": "a file"});
        object["metadata"].as_object_mut().unwrap().remove("managedFields");
    });
    let status = step(&mut cluster, "models", "chat").await;
    assert_eq!(where_it_is(&status), (&json!("Progressing"), &json!(1), &json!(50), &epoch));
}

#[tokio::test]
async fn a_rollout_under_way_that_goes_and_comes_back_begins_anew_and_says_so() {
    let (mut cluster, _servers, epoch) = at_the_second_step().await;
    let first = cluster.get(&path("models", "chat")).unwrap()["spec"]["canary"]["steps"].clone();
    let other = json!([{"weight": 30, "hold": "1h"}]);
    // Nobody has looked in between: nothing has happened.
    edit(&cluster, |spec| spec["canary"]["steps"] = other.clone());
    edit(&cluster, |spec| spec["canary"]["steps"] = first.clone());
    let status = step(&mut cluster, "models", "chat").await;
    assert_eq!(where_it_is(&status), (&json!("Progressing"), &json!(1), &json!(50), &epoch));

    edit(&cluster, |spec| spec["canary"]["steps"] = other);
    assert_eq!(rollout(&step(&mut cluster, "models", "chat").await), ("Progressing", 30, "a=70 b=30"));
    edit(&cluster, |spec| spec["canary"]["steps"] = first);
    let status = step(&mut cluster, "models", "chat").await;
    assert_eq!(rollout(&status), ("Progressing", 5, "a=95 b=5"));
    assert!(status["rollout"]["epoch"].as_u64() > epoch.as_u64(), "and is judged by new requests");
    let history = status["rollout"]["history"].as_array().unwrap();
    let weights: Vec<_> = history.iter().map(|entry| entry["weight"].as_u64().unwrap()).collect();
    assert_eq!(weights, [5, 50, 30, 5]);
}

/// As a backup without the status brings it back: another object with the same spec.
fn restored_without_status(cluster: &Cluster) {
    cluster.edit(&path("models", "chat"), |object| {
        object.as_object_mut().unwrap().remove("status");
        object["metadata"]["uid"] = json!("restored");
        object["metadata"]["generation"] = json!(1);
    });
}

#[tokio::test]
async fn a_restore_without_the_status_begins_a_canary_anew_unless_git_has_its_promotion() {
    let mut cluster = cluster_with_canary("[{weight: 5, hold: 1h}]");
    step(&mut cluster, "models", "chat").await;
    ask(&cluster, "1", "Promote");
    let status = step(&mut cluster, "models", "chat").await;
    assert_eq!(rollout(&status), ("Promoted", 100, "b=100"));
    restored_without_status(&cluster);
    cluster.restarts();
    assert_eq!(rollout(&step(&mut cluster, "models", "chat").await), ("Progressing", 5, "a=95 b=5"));

    // With the status everything is where it was.
    cluster.edit(&path("models", "chat"), |object| {
        object["metadata"]["uid"] = json!("restored with it");
        object["status"] = status.clone();
    });
    cluster.restarts();
    assert_eq!(rollout(&step(&mut cluster, "models", "chat").await), ("Promoted", 100, "b=100"));

    // What Git has is in the spec.
    edit(&cluster, |spec| {
        spec["backends"][0]["weight"] = json!(0);
        spec["backends"][1]["weight"] = json!(100);
        spec.as_object_mut().unwrap().remove("canary");
    });
    restored_without_status(&cluster);
    cluster.restarts();
    let status = step(&mut cluster, "models", "chat").await;
    assert_eq!((&status["split"], &status["rollout"]), (&json!("b=100"), &Value::Null));
}
