//! Canaries that are judged: an API server in memory, and gateways and a Prometheus that answer over HTTP.

use fairlead_rollout::Counts;
use fairlead_rollout::report::{BackendReport, FORMAT, Report, RouteReport};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::server::{Server, are_gateways};
use super::*;

impl Server {
    /// Tells counts of the route's epoch as it is in the status: so many requests and errors of the canary, and good ones of stable.
    pub(super) fn counts(&self, status: &Value, requests: u64, errors: u64) {
        self.answers(200, serde_json::to_value(report(status, requests, errors)).unwrap());
    }
}

pub(super) fn report(status: &Value, requests: u64, errors: u64) -> Report {
    let counts = |requests, errors| Counts { requests, errors, ..Counts::default() };
    let backend = |counts: Counts| BackendReport { step: counts, ..BackendReport::default() };
    let rollout = &status["rollout"];
    let route = RouteReport {
        route: "models/chat".into(),
        uid: "\"models\"-\"chat\"".into(),
        fingerprint: rollout["fingerprint"].as_str().unwrap().into(),
        epoch: rollout["epoch"].as_u64().unwrap(),
        backends: [("a".into(), backend(counts(5000, 5))), ("b".into(), backend(counts(requests, errors)))]
            .into(),
    };
    Report { format: FORMAT, instance: "i".into(), synced: true, routes: vec![route] }
}

/// A cluster with a canary that is judged, and so many gateways.
pub(super) async fn judged(analysis: &str, gateways: usize) -> (Cluster, Vec<Server>) {
    let (mut cluster, servers) = to_be_judged(analysis, gateways).await;
    step(&mut cluster, "models", "chat").await;
    (cluster, servers)
}

/// The same before anybody has looked at it.
pub(super) async fn to_be_judged(analysis: &str, gateways: usize) -> (Cluster, Vec<Server>) {
    let cluster = cluster_with_canary(&format!(
        "[{{weight: 5, hold: 1h}}, {{weight: 50, hold: 1h}}], analysis: {analysis}"
    ));
    let mut servers = Vec::new();
    for _ in 0..gateways {
        servers.push(Server::start().await);
    }
    are_gateways(&cluster, &servers);
    (cluster, servers)
}

pub(super) const ERRORS: &str = "{gates: [{metric: ErrorRate, max: 5%}]}";

/// Two hours pass, as far as the rollout knows.
pub(super) fn later(cluster: &Cluster) {
    cluster.edit(&path("models", "chat"), |object| {
        for field in ["stepBegan", "looked", "unreadySince"] {
            let value = &mut object["status"]["rollout"][field];
            if let Some(time) = value.as_str() {
                let earlier = time.parse::<Timestamp>().unwrap() - SignedDuration::from_hours(2);
                *value = json!(earlier.to_string());
            }
        }
    });
}

pub(super) async fn look(cluster: &mut Cluster) -> Value {
    later(cluster);
    step(cluster, "models", "chat").await
}

pub(super) fn now(cluster: &Cluster) -> Value {
    cluster.get(&path("models", "chat")).unwrap()["status"].clone()
}

pub(super) fn is(status: &Value) -> (&str, &str, u64) {
    let rollout = &status["rollout"];
    let text = |key: &str| rollout[key].as_str().unwrap();
    (text("phase"), text("reason"), rollout["weight"].as_u64().unwrap())
}

pub(super) fn message(status: &Value) -> &str {
    status["rollout"]["message"].as_str().unwrap()
}

#[tokio::test]
async fn a_good_canary_is_promoted_by_what_all_gateways_counted() {
    let (mut cluster, servers) = judged(ERRORS, 2).await;
    assert!(servers.iter().all(|server| server.was_asked().is_empty()), "before a look nobody is asked");
    for weight in [50, 100] {
        let status = now(&cluster);
        // Neither of the two has enough by itself.
        servers.iter().for_each(|server| server.counts(&status, 200, 1));
        let status = look(&mut cluster).await;
        assert_eq!(status["rollout"]["weight"], weight, "{status}");
    }
    let status = now(&cluster);
    assert_eq!(is(&status), ("Promoted", "GatesPassed", 100));
    let analysis = &status["rollout"]["analysis"][0];
    assert_eq!((&analysis["metric"], &analysis["verdict"]), (&json!("ErrorRate"), &json!("Pass")));
    assert_eq!((&analysis["requests"], &analysis["canary"]), (&json!(400), &json!("0.005")));
    assert_eq!((&analysis["bound"], &analysis["limit"]), (&json!("max"), &json!("0.05")));
    assert!(analysis["high"].as_str().unwrap().parse::<f64>().unwrap() <= 0.05, "{analysis}");
    assert!(message(&status).contains("as every gate passed"), "{status}");
    assert_eq!(status["stable"], "a", "what it was over; Git has not taken the promotion over");
    let asked = servers[1].was_asked();
    assert_eq!(asked.len(), 2);
    assert!(asked[0].contains("part=1&of=2"), "{asked:?}");
}

#[tokio::test]
async fn a_bad_canary_is_taken_back_and_the_history_says_why() {
    let (mut cluster, servers) = judged(ERRORS, 1).await;
    cluster.events();
    servers[0].counts(&now(&cluster), 300, 60);
    let status = look(&mut cluster).await;
    assert_eq!((is(&status), &status["split"]), (("RolledBack", "GateFailed", 0), &json!("a=100")));
    let entry = status["rollout"]["history"].as_array().unwrap().last().unwrap().clone();
    assert!(
        entry["detail"].as_str().unwrap().starts_with("ErrorRate is 20 % (at most 5 %; it is 1"),
        "{entry}"
    );
    assert!(message(&status).contains("a gate failed: ErrorRate is 20 %"), "{status}");
    assert_eq!(cluster.events(), ["CanaryRolledBack"]);
    // The same after everything was read anew, and without asking.
    servers[0].was_asked();
    assert_eq!(is(&look(&mut cluster).await), ("RolledBack", "GateFailed", 0));
    assert!(servers[0].was_asked().is_empty());
}

#[tokio::test]
async fn too_little_traffic_is_told_and_a_gateway_that_lost_its_counts_decides_nothing() {
    let (mut cluster, servers) = judged(ERRORS, 1).await;
    cluster.events();
    for (requests, errors) in [(20, 0), (0, 0), (30, 10)] {
        servers[0].counts(&now(&cluster), requests, errors);
        let status = look(&mut cluster).await;
        assert_eq!(is(&status), ("Progressing", "TooFewRequests", 5));
        assert!(message(&status).contains("too little traffic"), "{status}");
        assert!(message(&status).contains(&format!("{requests} requests")), "{status}");
    }
    assert_eq!(cluster.events(), ["CanaryWaiting"], "once");
}

#[tokio::test]
async fn a_gateway_that_cannot_be_read_keeps_the_canary_where_it_is_and_says_so() {
    let (mut cluster, servers) = judged(ERRORS, 2).await;
    for (answer, part) in [
        ((404, json!({})), "gateway-1 has no /rollouts: it is of an older version"),
        ((500, json!({})), "gateway-1 answers 500"),
        ((200, json!({"newer": true})), "gateway-1 tells its counts in another form"),
    ] {
        servers[0].counts(&now(&cluster), 2000, 0);
        servers[1].answers(answer.0, answer.1);
        let status = look(&mut cluster).await;
        assert_eq!(is(&status), ("Progressing", "GatewaysNotRead", 5));
        assert!(message(&status).contains(part), "{part}: {status}");
    }
    let mut behind = report(&now(&cluster), 2000, 2000);
    behind.routes[0].epoch -= 1;
    servers[1].answers(200, serde_json::to_value(behind).unwrap());
    let status = look(&mut cluster).await;
    assert_eq!(
        is(&status),
        ("Progressing", "GatewaysNotRead", 5),
        "and what it counted before counts no more"
    );
    assert!(message(&status).contains("gateway-1 has not taken over the last step"), "{status}");
    // What the others saw is enough to take it back.
    servers[0].counts(&now(&cluster), 2000, 500);
    assert_eq!(is(&look(&mut cluster).await).0, "RolledBack");
}

#[tokio::test]
async fn without_any_gateway_a_judged_canary_waits() {
    let (mut cluster, _) = judged(ERRORS, 0).await;
    let status = look(&mut cluster).await;
    assert_eq!(is(&status), ("Progressing", "GatewaysNotRead", 5));
    assert!(
        message(&status).contains("no gateway serves behind Service fairlead-system/fairlead-gateway-admin"),
        "{status}"
    );
}

#[tokio::test]
async fn a_query_of_prometheus_is_a_gate_and_its_failure_is_none() {
    let prometheus = Server::start().await;
    let analysis = "{failureLimit: 2, onUndecided: Promote, gates: [{metric: Prometheus, max: '3', prometheus: \
                    {query: 'sum(q{b=\"{{canary}}\"})'}}]}";
    let (mut cluster, _) = judged(analysis, 0).await;
    let url = format!("http://127.0.0.1:{}", prometheus.port);
    Arc::get_mut(&mut cluster.context).unwrap().settings.prometheus_urls = vec![url];
    let vector = |values: &[&str]| {
        let result: Vec<Value> =
            values.iter().map(|value| json!({"metric": {}, "value": [1, value]})).collect();
        json!({"status": "success", "data": {"resultType": "vector", "result": result}})
    };
    for (status, body) in [(200, vector(&[])), (503, json!("down")), (200, vector(&["NaN"]))] {
        prometheus.answers(status, body);
        let status = look(&mut cluster).await;
        assert_eq!(is(&status), ("Progressing", "GateNotMeasured", 5), "nothing is promoted by it");
    }
    assert!(message(&now(&cluster)).contains("Prometheus: the query gives no number"), "{}", now(&cluster));
    assert!(prometheus.was_asked()[0].contains("query=sum%28q%7Bb%3D%22b%22%7D%29"));
    prometheus.answers(200, vector(&["2.5"]));
    assert_eq!(look(&mut cluster).await["rollout"]["weight"], 50);
    prometheus.answers(200, vector(&["7"]));
    assert_eq!(is(&look(&mut cluster).await), ("Progressing", "GateFailing", 50));
    let status = look(&mut cluster).await;
    assert_eq!(is(&status), ("RolledBack", "GateFailed", 0));
    assert!(message(&status).contains("Prometheus is 7 (at most 3)"), "{status}");
}

#[tokio::test]
async fn an_evaluation_that_is_not_there_keeps_the_canary_where_it_is() {
    let analysis = "{gates: [{metric: Evaluation, evaluation: faq, score: exactMatch, min: 80%}]}";
    let (mut cluster, _) = judged(analysis, 0).await;
    let status = look(&mut cluster).await;
    assert_eq!(is(&status), ("Progressing", "GateNotMeasured", 5));
    assert!(message(&status).contains("Evaluation faq/exactMatch: there is no Evaluation faq"), "{status}");
}

#[tokio::test]
async fn another_revision_of_the_canary_begins_again() {
    let (mut cluster, servers) = judged(ERRORS, 1).await;
    revision(&cluster, "two", "r1");
    servers[0].counts(&now(&cluster), 2000, 0);
    assert_eq!(look(&mut cluster).await["rollout"]["weight"], 50);
    let epoch = now(&cluster)["rollout"]["epoch"].as_u64().unwrap();
    revision(&cluster, "two", "r2");
    let status = step(&mut cluster, "models", "chat").await;
    assert_eq!(is(&status), ("Progressing", "Holding", 5));
    assert!(status["rollout"]["epoch"].as_u64().unwrap() > epoch);
}

#[tokio::test]
async fn a_canary_that_never_serves_ends() {
    let mut cluster = cluster_with_canary("[{weight: 5, hold: 1h}], progressDeadline: 90m");
    deployment(&cluster, "two", false);
    assert_eq!(is(&step(&mut cluster, "models", "chat").await), ("Progressing", "CanaryNotReady", 5));
    let status = look(&mut cluster).await;
    assert_eq!(is(&status), ("RolledBack", "NotReadyInTime", 0));
    assert!(message(&status).contains("no pod that serves for 1h30m"), "{status}");
}

fn revision(cluster: &Cluster, deployment: &str, revision: &str) {
    let path = format!("/apis/fairlead.dev/v1alpha1/namespaces/models/modeldeployments/{deployment}");
    cluster.edit(&path, |object| object["status"]["revision"] = json!(revision));
}
