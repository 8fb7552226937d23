//! Pods and a Deployment in, a verdict out.

use std::sync::Arc;

use fairlead_crds::model_deployment::StartupProgress;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use crate::conditions::Verdict;
use crate::model_deployment::observe::{Observation, Seen, observe, split_reason};

fn deployment(wanted: i32, available: i32) -> Deployment {
    serde_json::from_value(json!({
        "metadata": {"name": "a", "generation": 3},
        "spec": {"replicas": wanted, "selector": {"matchLabels": {"x": "y"}}, "template": {}},
        "status": {"observedGeneration": 3, "updatedReplicas": wanted, "availableReplicas": available},
    }))
    .unwrap()
}

fn pod(name: &str, revision: &str, ready: bool, extra: Value) -> Arc<Pod> {
    let mut pod = json!({
        "metadata": {"name": name, "labels": {"fairlead.dev/revision": revision}},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]},
    });
    for (key, value) in extra.as_object().cloned().unwrap_or_default() {
        let place = if key == "deletionTimestamp" { &mut pod["metadata"] } else { &mut pod["status"] };
        place[key] = value;
    }
    Arc::new(serde_json::from_value(pod).unwrap())
}

fn look(deployment: Deployment, pods: Vec<Arc<Pod>>) -> Observation {
    observe(&Seen {
        deployment: Some(deployment),
        revision: Some("new".into()),
        initial_replicas: 1,
        pods,
        ..Seen::default()
    })
}

fn container(state: Value, last: Value, restarts: i32) -> Value {
    json!({"containerStatuses": [{"name": "engine", "image": "i", "imageID": "", "ready": false, "restartCount": restarts,
        "state": state, "lastState": last}]})
}

fn reason(observation: &Observation) -> (&'static str, String) {
    match &observation.verdict {
        Verdict::Ready { reason, message }
        | Verdict::Reconciling { reason, message }
        | Verdict::Stalled { reason, message } => (reason, message.clone()),
    }
}

#[test]
fn ready_when_all_wanted_pods_serve_the_revision_and_none_of_an_older_one_is_left() {
    let both = vec![pod("a", "new", true, json!({})), pod("b", "new", true, json!({}))];
    let observation = look(deployment(2, 2), both.clone());
    assert_eq!(reason(&observation).0, "Available");
    assert_eq!((observation.replicas, observation.ready_replicas, observation.wanted), (2, 2, 2));
    assert_eq!(observation.selector.as_deref(), Some("x=y"));
    assert!(!observation.starting);

    let draining = pod("c", "old", true, json!({"deletionTimestamp": "2026-01-01T00:00:00Z"}));
    let observation = look(deployment(2, 2), [both, vec![draining]].concat());
    assert_eq!(reason(&observation).0, "RollingOut");
    assert!(reason(&observation).1.contains("older revision"), "{:?}", reason(&observation));
}

#[test]
fn ready_pods_of_an_older_revision_do_not_count() {
    let observation = look(deployment(1, 1), vec![pod("a", "old", true, json!({}))]);
    assert_eq!(reason(&observation).0, "RollingOut");
    assert_eq!((observation.replicas, observation.ready_replicas), (1, 0));
}

#[test]
fn a_deployment_that_its_controller_has_not_seen_is_rolling_out() {
    let mut unseen = deployment(1, 1);
    unseen.metadata.generation = Some(4);
    assert_eq!(reason(&look(unseen, vec![pod("a", "new", true, json!({}))])).0, "RollingOut");
}

#[test]
fn scaled_to_nothing_is_ready() {
    assert_eq!(reason(&look(deployment(0, 0), vec![])).0, "Available");
}

#[test]
fn what_the_engine_says_at_its_end_is_told() {
    let crash = json!({"terminated": {"exitCode": 1, "message": "log line\nModelInvalid: model.safetensors: is truncated\n"}});
    let back_off = json!({"waiting": {"reason": "CrashLoopBackOff"}});
    let observation = look(deployment(1, 0), vec![pod("a", "new", false, container(back_off, crash, 1))]);
    assert_eq!(reason(&observation), ("ModelInvalid", "model.safetensors: is truncated".to_owned()));
    assert!(matches!(observation.verdict, Verdict::Stalled { .. }));
}

#[test]
fn one_crash_is_bad_luck_and_two_are_a_failure() {
    let crash = json!({"terminated": {"exitCode": 139, "message": "segmentation fault"}});
    let at = |restarts| {
        look(
            deployment(1, 0),
            vec![pod("a", "new", false, container(json!({"running": {}}), crash.clone(), restarts))],
        )
    };
    assert_eq!(reason(&at(1)).0, "RollingOut");
    assert_eq!(reason(&at(2)).0, "PodFailed");
    assert!(reason(&at(2)).1.contains("segmentation fault"));
    let quiet = container(json!({"running": {}}), json!({"terminated": {"exitCode": 0}}), 2);
    assert_eq!(
        reason(&look(deployment(1, 0), vec![pod("a", "new", false, quiet)])).0,
        "PodFailed",
        "an engine must not end"
    );
    let out_of_memory = json!({"terminated": {"exitCode": 137, "reason": "OOMKilled"}});
    let observation = look(
        deployment(1, 0),
        vec![pod("a", "new", false, container(json!({"running": {}}), out_of_memory, 3))],
    );
    assert!(reason(&observation).1.contains("spec.resources.memory"));
}

#[test]
fn a_pod_that_has_recovered_is_no_failure() {
    let crash = json!({"terminated": {"exitCode": 139}});
    let observation =
        look(deployment(1, 1), vec![pod("a", "new", true, container(json!({"running": {}}), crash, 5))]);
    assert_eq!(reason(&observation).0, "Available");
}

#[test]
fn no_node_and_no_image_are_told_while_rolling_out() {
    let unschedulable = json!({"phase": "Pending", "conditions": [
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes: no nvidia.com/gpu"}]});
    let observation = look(deployment(1, 0), vec![pod("a", "new", false, unschedulable)]);
    assert!(reason(&observation).1.contains("no nvidia.com/gpu"));
    assert!(!observation.starting);
    let tell = |waiting: &str, message: &str| {
        let waiting = json!({"waiting": {"reason": waiting, "message": message}});
        reason(&look(deployment(1, 0), vec![pod("a", "new", false, container(waiting, json!({}), 0))])).1
    };
    let pulling = tell("ErrImagePull", "not found");
    assert_eq!(tell("ImagePullBackOff", "Back-off pulling image \"i\": ErrImagePull: not found"), pulling);
    assert!(pulling.contains("image i can't be pulled: not found"), "{pulling}");
}

#[test]
fn the_slowest_start_is_told() {
    let fetching = StartupProgress {
        phase: "Fetching".into(),
        bytes_done: Some(1),
        bytes_total: Some(1_288_490_189),
        percent: Some(35),
    };
    let loading = StartupProgress { phase: "Loading".into(), ..StartupProgress::default() };
    let observation = observe(&Seen {
        deployment: Some(deployment(2, 0)),
        revision: Some("new".into()),
        initial_replicas: 1,
        pods: vec![pod("a", "new", false, json!({})), pod("b", "new", false, json!({}))],
        startup: [("a".to_owned(), loading), ("b".to_owned(), fetching.clone())].into(),
    });
    assert!(observation.starting);
    assert_eq!(observation.startup, Some(fetching));
    assert!(
        reason(&observation).1.ends_with("fetching the model: 35 % of 1.2 GiB"),
        "{:?}",
        reason(&observation)
    );
}

#[test]
fn termination_messages_are_split() {
    assert_eq!(split_reason("DoesNotFit: needs 2 GiB: too much").1, "needs 2 GiB: too much");
    assert!(split_reason("DoesNotFit: x").0.is_some());
    assert_eq!(split_reason("thread main panicked: oh"), (None, "thread main panicked: oh".to_owned()));
}
