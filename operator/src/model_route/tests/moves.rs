//! Every move has an Event of its own, and no end of an operator, at whatever write, makes a canary skip, repeat or forget one.

use super::judging::{ERRORS, judged, later, look, now, to_be_judged};
use super::*;

/// How a canary with two steps ends.
#[derive(Clone, Copy, PartialEq)]
enum End {
    Promoted,
    RolledBack,
    Aborted,
}

/// What a canary leaves.
#[derive(Debug, PartialEq)]
struct Left {
    /// The weights that gateways have followed, one after the other.
    weights: Vec<u64>,
    /// Without times.
    history: Vec<Value>,
    epoch: Value,
    handled: Value,
    /// Reasons of the Events of its moves.
    told: Vec<String>,
}

/// A canary from its beginning to its end, by an operator that ends at one of its writes and the one that takes over. Returns how many
/// writes it took besides.
async fn story(end: End, crash: Option<(usize, bool)>) -> (Left, usize) {
    let (mut cluster, servers) = to_be_judged(ERRORS, 1).await;
    if let Some((write, reaches)) = crash {
        cluster.crashes_at(write, reaches);
    }
    let mut weights = Vec::new();
    for _ in 0..8 {
        let status = now(&cluster);
        if status["rollout"]["fingerprint"].is_string() {
            let last = status["rollout"]["step"] == 1;
            servers[0].counts(&status, 2000, if last && end == End::RolledBack { 400 } else { 2 });
            if last && end == End::Aborted && status["request"].is_null() {
                ask(&cluster, "enough", "Abort");
            }
            later(&cluster);
        }
        cluster.sync();
        let object = get(&cluster.context.stores.model_routes, "models", "chat").unwrap();
        let done = reconcile(object, Arc::clone(&cluster.context)).await;
        assert!(cluster.taken_over() || done.is_ok());
        weights.extend(now(&cluster)["rollout"]["weight"].as_u64());
    }
    weights.dedup();
    let rollout = now(&cluster)["rollout"].clone();
    let mut history = rollout["history"].as_array().unwrap().clone();
    history.iter_mut().for_each(|entry| entry["at"] = Value::Null);
    let told = cluster.events().into_iter().filter(|reason| reason.starts_with("Canary")).collect();
    let (epoch, handled) = (rollout["epoch"].clone(), rollout["handled"].clone());
    (Left { weights, history, epoch, handled, told }, cluster.calls())
}

#[tokio::test]
async fn an_operator_that_ends_at_any_of_its_writes_changes_nothing_of_how_a_canary_goes() {
    for (end, weights, last) in [
        (End::Promoted, [5, 50, 100], "CanaryPromoted"),
        (End::RolledBack, [5, 50, 0], "CanaryRolledBack"),
        (End::Aborted, [5, 50, 0], "CanaryRolledBack"),
    ] {
        let (undisturbed, writes) = story(end, None).await;
        assert_eq!(undisturbed.weights, weights);
        assert_eq!(undisturbed.told, ["CanaryStep", "CanaryStep", last]);
        // A status and an Event for each of three moves, and the one that the route is ready.
        assert!(writes >= 7, "{writes}");
        for write in 0..writes {
            for reaches in [false, true] {
                let (left, _) = story(end, Some((write, reaches))).await;
                assert_eq!(left, undisturbed, "write {write}, which reaches the API server: {reaches}");
            }
        }
    }
}

#[tokio::test]
async fn each_move_has_an_event_with_its_own_words() {
    let (mut cluster, servers) = judged(ERRORS, 1).await;
    for _ in 0..2 {
        servers[0].counts(&now(&cluster), 2000, 2);
        look(&mut cluster).await;
    }
    let told: Vec<_> = cluster.told().into_iter().filter(|told| told.0.starts_with("Canary")).collect();
    let words = [
        "b has 5 % beside a for 1h and then the next step, unless a gate fails",
        "b has 50 % beside a for 1h and then everything, unless a gate fails",
        "b has everything, as every gate passed; give it the weight in spec.backends and remove spec.canary",
    ];
    let reasons = ["CanaryStep", "CanaryStep", "CanaryPromoted"];
    let expected: Vec<_> = reasons
        .into_iter()
        .zip(words)
        .map(|(reason, words)| (reason.to_owned(), words.to_owned(), 1))
        .collect();
    assert_eq!(told, expected);
}

#[tokio::test]
async fn an_event_that_the_api_server_did_not_take_is_told_at_the_next_look() {
    let mut cluster = cluster_with_canary("[{weight: 20, hold: 1h}]");
    cluster.fail_next("POST", 503);
    cluster.fail_next("POST", 503);
    step(&mut cluster, "models", "chat").await;
    assert_eq!(cluster.events(), Vec::<String>::new());
    step(&mut cluster, "models", "chat").await;
    step(&mut cluster, "models", "chat").await;
    assert_eq!(cluster.events(), ["CanaryStep"]);
}

#[tokio::test]
async fn an_event_that_is_refused_holds_up_none_that_comes_after_it() {
    let mut cluster = cluster_with_canary("[{weight: 20, hold: 1h}]");
    cluster.fail_next("POST", 403);
    cluster.fail_next("POST", 403);
    step(&mut cluster, "models", "chat").await;
    assert_eq!(cluster.events(), Vec::<String>::new());
    ask(&cluster, "enough", "Abort");
    cluster.fail_next("POST", 403);
    step(&mut cluster, "models", "chat").await;
    assert_eq!(cluster.events(), ["CanaryRolledBack"]);
    step(&mut cluster, "models", "chat").await;
    assert_eq!(cluster.events(), ["CanaryStep"], "tried again, and the other one not told twice");
}

#[tokio::test]
async fn what_happened_long_ago_is_not_told_by_a_new_operator() {
    let mut cluster = cluster_with_canary("[{weight: 20, hold: 1h}]");
    step(&mut cluster, "models", "chat").await;
    cluster.events();
    for (age, expected) in [("2026-01-01T00:00:00Z".to_owned(), 0), (now_text(), 1)] {
        cluster.events_are_forgotten();
        cluster.edit(&path("models", "chat"), |it| {
            it["status"]["rollout"]["history"][0]["at"] = json!(age);
        });
        cluster.restarts();
        step(&mut cluster, "models", "chat").await;
        assert_eq!(cluster.events().len(), expected, "{age}");
    }
}

fn now_text() -> String {
    jiff::Timestamp::now().to_string()
}
