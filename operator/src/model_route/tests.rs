//! Whole reconciles of routes against an API server in memory.

use std::sync::Arc;

use fairlead_crds::model_route::ModelRoute;
use kube::ResourceExt;
use serde_json::{Value, json};

mod edits;
mod judging;
mod moves;
mod reaching;
mod server;
mod stale;

use super::reconcile;
use super::triggers::{Changed, concerned};
use crate::stores::get;
use crate::testing::{Cluster, model_route};

fn path(namespace: &str, name: &str) -> String {
    format!("/apis/fairlead.dev/v1alpha1/namespaces/{namespace}/modelroutes/{name}")
}

fn add(cluster: &Cluster, route: &ModelRoute) {
    cluster.put(&path(&route.namespace().unwrap(), &route.name_any()), serde_json::to_value(route).unwrap());
}

fn route(name: &str, spec: &str, age: u32) -> ModelRoute {
    model_route(
        &format!(
            "{{apiVersion: fairlead.dev/v1alpha1, kind: ModelRoute, metadata: {{name: {name}}}, spec: {spec}}}"
        ),
        age,
    )
}

fn deployment(cluster: &Cluster, name: &str, ready: bool) {
    let status = if ready { "True" } else { "False" };
    let path = format!("/apis/fairlead.dev/v1alpha1/namespaces/models/modeldeployments/{name}");
    cluster.put(
        &path,
        json!({"apiVersion": "fairlead.dev/v1alpha1", "kind": "ModelDeployment",
            "metadata": {"name": name, "namespace": "models", "uid": name, "generation": 1},
            "spec": {"model": {"uri": "hf://a/b"}},
            "status": {"observedGeneration": 1, "replicas": 0, "readyReplicas": 0, "conditions": [
                {"type": "Ready", "status": status, "reason": if ready { "Available" } else { "RollingOut" }, "message": "",
                 "lastTransitionTime": "2026-01-01T00:00:00Z"}]}}),
    );
}

async fn step(cluster: &mut Cluster, namespace: &str, name: &str) -> Value {
    cluster.sync();
    let object = get(&cluster.context.stores.model_routes, namespace, name).unwrap();
    reconcile(object, Arc::clone(&cluster.context)).await.unwrap();
    cluster.get(&path(namespace, name)).unwrap()["status"].clone()
}

fn ready(status: &Value) -> (&str, &str, &str) {
    let condition = status["conditions"].as_array().unwrap().iter().find(|it| it["type"] == "Ready").unwrap();
    let text = |key: &str| condition[key].as_str().unwrap();
    (text("status"), text("reason"), text("message"))
}

#[tokio::test]
async fn a_route_is_ready_when_every_backend_with_a_weight_is() {
    let mut cluster = Cluster::new();
    deployment(&cluster, "one", true);
    deployment(&cluster, "two", false);
    deployment(&cluster, "three", false);
    let spec = "{backends: [{name: a, modelDeployment: one, weight: 8}, {name: b, modelDeployment: two, weight: 2}, \
                {name: c, modelDeployment: three}]}";
    add(&cluster, &route("chat", spec, 1));
    let status = step(&mut cluster, "models", "chat").await;
    assert_eq!(ready(&status).0, "False");
    assert_eq!(ready(&status).1, "Waiting");
    assert!(ready(&status).2.contains("two is not ready (RollingOut)"), "{status}");
    assert_eq!(
        status["effectiveSplit"],
        json!([{"backend": "a", "percent": "80"}, {"backend": "b", "percent": "20"}])
    );
    assert_eq!(status["split"], "a=80 b=20");
    assert_eq!(status["model"], "chat");
    deployment(&cluster, "two", true);
    let status = step(&mut cluster, "models", "chat").await;
    assert_eq!((ready(&status).0, ready(&status).1), ("True", "Routed"));
    assert_eq!(cluster.events(), ["Waiting", "Routed"]);
    cluster.writes();
    step(&mut cluster, "models", "chat").await;
    assert_eq!(cluster.writes(), Vec::<String>::new());
}

#[tokio::test]
async fn thirds_are_rounded() {
    let mut cluster = Cluster::new();
    deployment(&cluster, "one", true);
    let backends: Vec<String> =
        ["a", "b", "c"].map(|it| format!("{{name: {it}, modelDeployment: one, weight: 1}}")).into();
    add(&cluster, &route("chat", &format!("{{backends: [{}]}}", backends.join(", ")), 1));
    assert_eq!(step(&mut cluster, "models", "chat").await["split"], "a=33.33 b=33.33 c=33.33");
}

#[tokio::test]
async fn a_missing_backend_is_told_and_heals() {
    let mut cluster = Cluster::new();
    add(&cluster, &route("chat", "{backends: [{name: a, modelDeployment: one}]}", 1));
    let status = step(&mut cluster, "models", "chat").await;
    assert_eq!(ready(&status).1, "BackendNotFound");
    assert!(ready(&status).2.contains("spec.backends[a].modelDeployment"), "{status}");
    deployment(&cluster, "one", true);
    assert_eq!(ready(&step(&mut cluster, "models", "chat").await).1, "Routed");
}

#[tokio::test]
async fn an_adapter_that_the_deployment_has_not_is_told() {
    let mut cluster = Cluster::new();
    deployment(&cluster, "one", true);
    add(&cluster, &route("chat", "{backends: [{name: a, modelDeployment: one, adapter: fr}]}", 1));
    let status = step(&mut cluster, "models", "chat").await;
    assert_eq!(ready(&status).1, "BackendNotFound");
    assert!(ready(&status).2.contains("spec.backends[a].adapter"), "{status}");
}

#[tokio::test]
async fn of_two_routes_with_one_name_the_older_has_it_until_it_goes() {
    let mut cluster = Cluster::new();
    deployment(&cluster, "one", true);
    let older = route("first", "{model: chat, backends: [{name: a, modelDeployment: one}]}", 9);
    let newer = route("chat", "{backends: [{name: a, modelDeployment: one}]}", 1);
    add(&cluster, &older);
    add(&cluster, &newer);
    assert_eq!(ready(&step(&mut cluster, "models", "first").await).1, "Routed");
    let status = step(&mut cluster, "models", "chat").await;
    assert_eq!(ready(&status).1, "ModelNameTaken");
    assert!(ready(&status).2.contains("models/first"), "{status}");

    cluster.remove(&path("models", "first"));
    cluster.sync();
    // What the watch of the older one's deletion leads to.
    let told = concerned(&Changed::Route("chat".into()), &cluster.context.stores.model_routes);
    assert_eq!(told.iter().map(|it| it.name.as_str()).collect::<Vec<_>>(), ["chat"]);
    assert_eq!(ready(&step(&mut cluster, "models", "chat").await).1, "Routed");
}

#[tokio::test]
async fn routes_of_one_age_are_ordered_by_namespace_and_name() {
    let mut cluster = Cluster::new();
    deployment(&cluster, "one", true);
    let spec = "{model: chat, backends: [{name: a, modelDeployment: one}]}";
    add(&cluster, &route("b", spec, 1));
    add(&cluster, &route("a", spec, 1));
    assert_eq!(ready(&step(&mut cluster, "models", "a").await).1, "Routed");
    assert_eq!(ready(&step(&mut cluster, "models", "b").await).1, "ModelNameTaken");
}

#[tokio::test]
async fn contradictions_are_refused_also_when_the_schema_let_them_through() {
    for (spec, part) in [
        ("{backends: []}", "spec.backends is empty"),
        ("{backends: [{name: a, modelDeployment: one, weight: 0}]}", "weights sum to zero"),
        (
            "{backends: [{name: a, modelDeployment: one}, {name: b, modelDeployment: one}]}",
            "weights sum to zero",
        ),
        (
            "{backends: [{name: a, modelDeployment: one, weight: 1}, {name: a, modelDeployment: one}]}",
            "two are named a",
        ),
        ("{backends: [{name: a, endpoints: ['http://10.0.0.1']}]}", "spec.backends[a].endpoints"),
        ("{backends: [{name: a}]}", "spec.backends[a].modelDeployment is missing"),
        (&canary("backend: c, steps: [{weight: 5, hold: 1m}]"), "spec.canary.backend: there is no backend c"),
        (&canary("backend: a, steps: [{weight: 5, hold: 1m}]"), "a has a weight of its own"),
        (&canary("backend: b, steps: []"), "spec.canary.steps is empty"),
        (
            &canary("backend: b, steps: [{weight: 5, hold: 1m}, {weight: 5, hold: 1m}]"),
            "spec.canary.steps[1].weight is 5",
        ),
        (&canary("backend: b, steps: [{weight: 100, hold: 1m}]"), "spec.canary.steps[0].weight is 100"),
        (&canary("backend: b, steps: [{weight: 5, hold: soon}]"), "spec.canary.steps[0].hold is \"soon\""),
        (
            &ruled("{name: r, match: {users: [x]}, split: [{backend: c}]}"),
            "spec.rules[r].split: there is no backend",
        ),
        (
            &ruled("{name: r, match: {headers: [{name: x, regex: '('}]}}"),
            "spec.rules[r].match.headers[0].regex",
        ),
        (
            "{stickiness: {by: Header}, backends: [{name: a, modelDeployment: one}]}",
            "spec.stickiness.header is missing",
        ),
        (
            "{backends: [{name: a, modelDeployment: one, costPerMillionTokens: free}]}",
            "spec.backends[a].costPerMillionTokens: \"free\"",
        ),
    ] {
        let mut cluster = Cluster::new();
        deployment(&cluster, "one", true);
        add(&cluster, &route("chat", spec, 1));
        let status = step(&mut cluster, "models", "chat").await;
        assert_eq!(ready(&status).1, "InvalidSpec", "{spec}");
        assert!(ready(&status).2.contains(part), "{spec}: {status}");
    }
}

#[tokio::test]
async fn a_changed_deployment_concerns_the_routes_that_name_it() {
    let mut cluster = Cluster::new();
    add(&cluster, &route("chat", "{backends: [{name: a, modelDeployment: one}]}", 1));
    add(&cluster, &route("other", "{backends: [{name: a, modelDeployment: two}]}", 1));
    cluster.sync();
    let told = |namespace: &str| {
        let changed = Changed::Deployment(namespace.to_owned(), "one".to_owned());
        concerned(&changed, &cluster.context.stores.model_routes).len()
    };
    assert_eq!((told("models"), told("elsewhere")), (1, 0));
}

fn ruled(rule: &str) -> String {
    format!(
        "{{backends: [{{name: a, modelDeployment: one, weight: 1}}, {{name: b, modelDeployment: two}}], rules: [{rule}]}}"
    )
}

#[tokio::test]
async fn a_rules_target_that_is_not_there_is_told_and_heals() {
    let mut cluster = Cluster::new();
    deployment(&cluster, "one", true);
    let spec = ruled("{name: premium, match: {tenantTiers: [gold]}, split: [{backend: b}]}");
    add(&cluster, &route("chat", &spec, 1));
    let status = step(&mut cluster, "models", "chat").await;
    assert_eq!(ready(&status).1, "BackendNotFound");
    assert!(ready(&status).2.contains("spec.backends[b].modelDeployment"), "{status}");
    assert_eq!(status["split"], "a=100", "a rule moves nothing of the route's own split");
    deployment(&cluster, "two", false);
    let status = step(&mut cluster, "models", "chat").await;
    assert_eq!(ready(&status).1, "Waiting");
    assert!(
        ready(&status).2.contains("rule premium, backend b: ModelDeployment two is not ready"),
        "{status}"
    );
    deployment(&cluster, "two", true);
    let status = step(&mut cluster, "models", "chat").await;
    assert_eq!((ready(&status).1, ready(&status).2), ("Routed", "requests go to a, but for those of a rule"));
    // It vanishes later.
    cluster.remove("/apis/fairlead.dev/v1alpha1/namespaces/models/modeldeployments/two");
    assert_eq!(ready(&step(&mut cluster, "models", "chat").await).1, "BackendNotFound");
}

fn canary(canary: &str) -> String {
    format!(
        "{{backends: [{{name: a, modelDeployment: one, weight: 1}}, {{name: b, modelDeployment: two}}], canary: {{{canary}}}}}"
    )
}

/// A route with a canary whose steps last no time, or very long.
fn cluster_with_canary(steps: &str) -> Cluster {
    let cluster = Cluster::new();
    deployment(&cluster, "one", true);
    deployment(&cluster, "two", true);
    add(&cluster, &route("chat", &canary(&format!("backend: b, steps: {steps}")), 1));
    cluster
}

fn ask(cluster: &Cluster, id: &str, action: &str) {
    let path = path("models", "chat");
    let mut object = cluster.get(&path).unwrap();
    object["status"]["request"] = json!({"id": id, "action": action, "canary": "b"});
    cluster.put(&path, object);
}

fn rollout(status: &Value) -> (&str, u64, &str) {
    let rollout = &status["rollout"];
    (
        rollout["phase"].as_str().unwrap(),
        rollout["weight"].as_u64().unwrap(),
        status["split"].as_str().unwrap(),
    )
}

#[tokio::test]
async fn a_canary_begins_with_its_first_step_and_obeys_requests() {
    let mut cluster = cluster_with_canary("[{weight: 5, hold: 1h}, {weight: 50, hold: 1h}]");
    let status = step(&mut cluster, "models", "chat").await;
    assert_eq!(rollout(&status), ("Progressing", 5, "a=95 b=5"));
    assert_eq!((ready(&status).0, &status["rollout"]["progress"]), ("True", &json!("1/2")));
    assert!(status["rollout"]["message"].as_str().unwrap().contains("b has 5 % beside a for 1h"), "{status}");

    ask(&cluster, "1", "Pause");
    let status = step(&mut cluster, "models", "chat").await;
    assert_eq!(rollout(&status), ("Paused", 5, "a=95 b=5"));
    ask(&cluster, "2", "Promote");
    let status = step(&mut cluster, "models", "chat").await;
    assert_eq!(rollout(&status), ("Promoted", 100, "b=100"));
    assert_eq!(cluster.events(), ["Routed", "CanaryStep", "CanaryPaused", "CanaryPromoted"]);

    // What has ended has nothing to abort; it is told so, and nothing moves. The same look again writes nothing.
    ask(&cluster, "3", "Abort");
    let status = step(&mut cluster, "models", "chat").await;
    assert_eq!(rollout(&status), ("Promoted", 100, "b=100"));
    assert!(
        status["rollout"]["message"].as_str().unwrap().starts_with("the last request was refused"),
        "{status}"
    );
    cluster.writes();
    step(&mut cluster, "models", "chat").await;
    assert_eq!(cluster.writes(), Vec::<String>::new());
}

#[tokio::test]
async fn a_canary_that_is_aborted_has_nothing_and_may_be_tried_again() {
    let mut cluster = cluster_with_canary("[{weight: 20, hold: 1h}]");
    step(&mut cluster, "models", "chat").await;
    ask(&cluster, "1", "Abort");
    assert_eq!(rollout(&step(&mut cluster, "models", "chat").await), ("RolledBack", 0, "a=100"));
    ask(&cluster, "2", "Retry");
    assert_eq!(rollout(&step(&mut cluster, "models", "chat").await), ("Progressing", 20, "a=80 b=20"));
}

#[tokio::test]
async fn a_canary_without_pods_waits_and_the_route_is_ready_all_the_same() {
    let mut cluster = cluster_with_canary("[{weight: 20, hold: 1s}]");
    deployment(&cluster, "two", false);
    let status = step(&mut cluster, "models", "chat").await;
    assert_eq!((ready(&status).0, status["rollout"]["reason"].as_str().unwrap()), ("True", "CanaryNotReady"));
    assert!(status["rollout"]["message"].as_str().unwrap().contains("waits for a pod of b"), "{status}");
}

#[tokio::test]
async fn a_promotion_that_git_takes_over_moves_nothing() {
    let mut cluster = cluster_with_canary("[{weight: 20, hold: 1h}]");
    step(&mut cluster, "models", "chat").await;
    ask(&cluster, "1", "Promote");
    step(&mut cluster, "models", "chat").await;
    let path = path("models", "chat");
    let mut object = cluster.get(&path).unwrap();
    object["spec"] = json!({"backends": [{"name": "a", "modelDeployment": "one", "weight": 0}, {"name": "b", "modelDeployment": "two", "weight": 100}]});
    cluster.put(&path, object);
    assert_eq!(rollout(&step(&mut cluster, "models", "chat").await), ("Idle", 0, "b=100"));
}

#[tokio::test]
async fn a_promoted_backend_that_is_removed_is_not_what_the_next_canary_is_compared_with() {
    let mut cluster = cluster_with_canary("[{weight: 20, hold: 1h}]");
    step(&mut cluster, "models", "chat").await;
    ask(&cluster, "1", "Promote");
    step(&mut cluster, "models", "chat").await;
    let path = path("models", "chat");
    let mut object = cluster.get(&path).unwrap();
    object["spec"] = json!({
        "backends": [{"name": "a", "modelDeployment": "one", "weight": 100}, {"name": "c", "modelDeployment": "two"}],
        "canary": {"backend": "c", "steps": [{"weight": 20, "hold": "1h"}]},
    });
    cluster.put(&path, object);
    let status = step(&mut cluster, "models", "chat").await;
    assert_eq!(rollout(&status), ("Progressing", 20, "a=80 c=20"));
    assert_eq!(status["rollout"]["stable"], "a", "{status}");
}

fn secret(cluster: &Cluster, name: &str, keys: &Value) {
    let object = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": "models"}, "data": keys});
    cluster.put(&format!("/api/v1/namespaces/models/secrets/{name}"), object);
}

fn bundle(cluster: &Cluster, data: &Value) {
    let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "bundle", "namespace": "models"}, "data": data});
    cluster.put("/api/v1/namespaces/models/configmaps/bundle", object);
}

#[tokio::test]
async fn a_provider_is_ready_when_its_secret_is_there() {
    let mut cluster = Cluster::new();
    let spec = "{backends: [{name: cloud, provider: {url: 'https://api.example.com/v1', model: gpt-x, apiKeySecretRef: {name: \
                keys, key: token}}}]}";
    add(&cluster, &route("chat", spec, 1));
    let status = step(&mut cluster, "models", "chat").await;
    assert_eq!((ready(&status).0, ready(&status).1), ("False", "Waiting"));
    assert!(ready(&status).2.contains("there is no Secret keys"), "{status}");
    secret(&cluster, "keys", &json!({"other": "c2VjcmV0"}));
    let status = step(&mut cluster, "models", "chat").await;
    assert!(ready(&status).2.contains("Secret keys has no key token"), "{status}");
    secret(&cluster, "keys", &json!({"token": "c2VjcmV0"}));
    let status = step(&mut cluster, "models", "chat").await;
    assert_eq!((ready(&status).0, ready(&status).1), ("True", "Routed"));
    assert_eq!(status["split"], "cloud=100");
    assert!(!status.to_string().contains("secret") && !status.to_string().contains("c2VjcmV0"));
}

#[tokio::test]
async fn a_providers_certificate_authorities_may_be_in_a_config_map() {
    let mut cluster = Cluster::new();
    let spec = "{backends: [{name: cloud, provider: {url: 'https://api.example.com/v1', model: gpt-x, caConfigMapRef: {name: \
                bundle, key: ca.crt}}}]}";
    add(&cluster, &route("chat", spec, 1));
    let status = step(&mut cluster, "models", "chat").await;
    assert_eq!(ready(&status).1, "Waiting");
    assert!(
        ready(&status)
            .2
            .contains("spec.backends[cloud].provider.caConfigMapRef: there is no ConfigMap bundle"),
        "{status}"
    );
    bundle(&cluster, &json!({"other": "pem"}));
    let status = step(&mut cluster, "models", "chat").await;
    assert!(ready(&status).2.contains("ConfigMap bundle has no key ca.crt"), "{status}");
    bundle(&cluster, &json!({"ca.crt": "pem"}));
    let status = step(&mut cluster, "models", "chat").await;
    assert_eq!((ready(&status).0, ready(&status).1), ("True", "Routed"));
}

#[tokio::test]
async fn what_a_route_says_of_failures_is_checked() {
    let mut cluster = Cluster::new();
    deployment(&cluster, "one", true);
    let backends = "backends: [{name: a, modelDeployment: one, weight: 1}]";
    for (extra, field) in [
        ("timeouts: {firstByte: soon}", "spec.timeouts.firstByte"),
        ("circuitBreaker: {openFor: 0s}", "spec.circuitBreaker.openFor"),
        ("hedging: {after: ''}", "spec.hedging.after"),
        ("fallbacks: [{backend: b}]", "spec.fallbacks[].backend"),
        ("shadow: {backend: b, percent: 1}", "spec.shadow.backend"),
        ("shadow: {backend: a, percent: 1, embedder: {modelDeployment: one}}", "spec.shadow.embedder"),
        ("shadow: {backend: a, percent: 1, embedder: {modelDeployment: gone}}", "spec.shadow.embedder"),
        (
            "shadow: {backend: a, percent: 1, embedder: {endpoint: 'http://h'}}",
            "spec.shadow.embedder.endpoint",
        ),
    ] {
        add(&cluster, &route("chat", &format!("{{{backends}, {extra}}}"), 1));
        let status = step(&mut cluster, "models", "chat").await;
        assert!(ready(&status).0 == "False" && ready(&status).2.contains(field), "{extra}: {status}");
    }
    for provider in [
        "{url: 'http://h/v1', model: m}",
        "{url: 'https://h/v1', model: m, apiKeyFile: /etc/passwd}",
        "{url: 'https://h/v1', model: m, apiKeyEnv: KUBECONFIG}",
        "{url: 'https://h/v1', model: m, caSecretRef: {name: a, key: b}, caConfigMapRef: {name: a, key: b}}",
    ] {
        add(&cluster, &route("chat", &format!("{{backends: [{{name: a, provider: {provider}}}]}}"), 1));
        let status = step(&mut cluster, "models", "chat").await;
        assert!(
            ready(&status).1 == "InvalidSpec" && ready(&status).2.contains("provider"),
            "{provider}: {status}"
        );
    }
}
