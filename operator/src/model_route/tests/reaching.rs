//! Routes whose providers the gateways can call, or cannot: an API server in memory, and gateways that answer over HTTP.

use serde_json::{Value, json};

use super::server::{Server, are_gateways};
use super::*;
use crate::model_route::poll::Known;

const UID: &str = "\"models\"-\"chat\"";

/// A cluster with a route to a provider, and so many gateways.
async fn cluster(gateways: usize) -> (Cluster, Vec<Server>) {
    let mut cluster = Cluster::new();
    let spec = "{backends: [{name: cloud, provider: {url: 'https://api.example.com/v1', model: gpt-x}}]}";
    add(&cluster, &route("chat", spec, 1));
    let mut servers = Vec::new();
    for _ in 0..gateways {
        servers.push(Server::start().await);
    }
    are_gateways(&cluster, &servers);
    cluster.sync();
    (cluster, servers)
}

fn says(server: &Server, provider: &Value) {
    let route = json!({"route": "models/chat", "uid": UID, "backends": {"cloud": provider}});
    server.answers(200, json!({"synced": true, "routes": [route]}));
}

/// Of a spec.
fn says_of(server: &Server, generation: i64, provider: &Value) {
    let backends = json!({"cloud": provider});
    let route = json!({"route": "models/chat", "uid": UID, "generation": generation, "backends": backends});
    server.answers(200, json!({"synced": true, "routes": [route]}));
}

fn well() -> Value {
    json!({"reached": true})
}

fn untrusted() -> Value {
    json!({"reached": false, "trouble": {"kind": "NotTrusted", "since": "2026-01-01T00:00:00Z",
        "message": "the certificate of api.example.com is not accepted: it has expired"}})
}

/// Asks the gateways, and has the routes looked at for which something has changed.
async fn asked(cluster: &mut Cluster, known: &mut Known) -> usize {
    cluster.sync();
    let changed = known.look(&cluster.context).await;
    for changed in &changed {
        for route in concerned(changed, &cluster.context.stores.model_routes) {
            step(cluster, route.namespace.as_deref().unwrap(), &route.name).await;
        }
    }
    changed.len()
}

fn reachable(cluster: &Cluster) -> Option<(String, String, String)> {
    let status = cluster.get(&path("models", "chat")).unwrap()["status"].clone();
    let condition = status["conditions"].as_array()?.iter().find(|it| it["type"] == "ProvidersReachable")?;
    let text = |key: &str| condition[key].as_str().unwrap().to_owned();
    Some((text("status"), text("reason"), text("message")))
}

#[tokio::test]
async fn trouble_of_a_provider_is_a_condition_and_an_event_until_it_is_over() {
    let (mut cluster, gateways) = cluster(2).await;
    let mut known = Known::default();
    gateways.iter().for_each(|gateway| says(gateway, &well()));
    assert_eq!(asked(&mut cluster, &mut known).await, 1);
    let (status, reason, message) = reachable(&cluster).unwrap();
    assert_eq!((&*status, &*reason, &*message), ("True", "ProvidersReached", "the gateways reach cloud"));
    assert_eq!(cluster.events(), ["Routed"], "that all is well is no event");

    says(&gateways[1], &untrusted());
    assert_eq!(asked(&mut cluster, &mut known).await, 1);
    let (status, reason, message) = reachable(&cluster).unwrap();
    assert_eq!((&*status, &*reason), ("False", "ProviderNotTrusted"));
    assert!(
        message.starts_with("backend cloud at 1 of 2 gateways (gateway-1): the certificate"),
        "{message}"
    );
    assert!(message.contains("provider.caSecretRef"), "{message}");
    let status = step(&mut cluster, "models", "chat").await;
    assert_eq!(ready(&status).0, "True", "whether a provider answers is no matter of the route's spec");
    assert_eq!(cluster.events(), ["ProviderNotTrusted"]);

    // The same again changes nothing and writes nothing.
    cluster.writes();
    assert_eq!(asked(&mut cluster, &mut known).await, 0);
    step(&mut cluster, "models", "chat").await;
    assert_eq!(cluster.writes(), Vec::<String>::new());

    says(&gateways[1], &well());
    assert_eq!(asked(&mut cluster, &mut known).await, 1);
    assert_eq!(reachable(&cluster).unwrap().0, "True");
    assert_eq!(cluster.events(), ["ProvidersReached"]);
}

#[tokio::test]
async fn an_edited_route_has_no_condition_until_gateways_tell_of_that_spec() {
    let (mut cluster, gateways) = cluster(1).await;
    let mut known = Known::default();
    let generation = |cluster: &Cluster| {
        cluster.get(&path("models", "chat")).unwrap()["metadata"]["generation"].as_i64().unwrap()
    };
    let first = generation(&cluster);
    says_of(&gateways[0], first, &well());
    assert_eq!(asked(&mut cluster, &mut known).await, 1);
    assert_eq!(reachable(&cluster).unwrap().0, "True");

    let mut edited = cluster.get(&path("models", "chat")).unwrap();
    edited["spec"]["backends"][0]["provider"]["url"] = json!("https://other.example.com/v1");
    edited["metadata"]["generation"] = json!(first + 1);
    cluster.put(&path("models", "chat"), edited);
    assert_eq!(generation(&cluster), first + 1);
    step(&mut cluster, "models", "chat").await;
    assert_eq!(reachable(&cluster), None, "what was heard is of the spec before");
    // The gateway has not seen the edit yet.
    assert_eq!(asked(&mut cluster, &mut known).await, 0);
    assert_eq!(reachable(&cluster), None);

    // The same words of the new spec are news.
    says_of(&gateways[0], first + 1, &well());
    assert_eq!(asked(&mut cluster, &mut known).await, 1);
    assert_eq!(reachable(&cluster).unwrap().0, "True");
}

#[tokio::test]
async fn a_gateway_that_cannot_be_asked_changes_nothing_of_what_was_known() {
    let (mut cluster, gateways) = cluster(2).await;
    let mut known = Known::default();
    says(&gateways[0], &untrusted());
    says(&gateways[1], &well());
    asked(&mut cluster, &mut known).await;
    // Who has told of it is silent now, the other one says that all is well.
    gateways[0].answers(500, json!({}));
    assert_eq!(asked(&mut cluster, &mut known).await, 0);
    step(&mut cluster, "models", "chat").await;
    assert_eq!(reachable(&cluster).unwrap().0, "False");
    // An operator that starts knows it from the status.
    cluster.context.heard.keep(Vec::new());
    step(&mut cluster, "models", "chat").await;
    assert_eq!(reachable(&cluster).unwrap().0, "False");
}

#[tokio::test]
async fn older_gateways_say_nothing_and_nothing_is_said_of_them() {
    let (mut cluster, gateways) = cluster(1).await;
    let mut known = Known::default();
    gateways[0].answers(404, json!({"error": {}}));
    asked(&mut cluster, &mut known).await;
    step(&mut cluster, "models", "chat").await;
    assert_eq!(reachable(&cluster), None);
    assert_eq!(gateways[0].was_asked(), ["/providers"]);
}

#[tokio::test]
async fn nobody_is_asked_where_no_route_has_a_provider() {
    let (mut cluster, gateways) = cluster(1).await;
    deployment(&cluster, "one", true);
    add(&cluster, &route("chat", "{backends: [{name: a, modelDeployment: one}]}", 1));
    assert_eq!(asked(&mut cluster, &mut Known::default()).await, 0);
    assert_eq!(gateways[0].was_asked(), Vec::<String>::new());
}
