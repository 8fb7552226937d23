use super::*;
use serde_json::{Value, json};

fn route(namespace: &str, name: &str, created: &str, spec: Value) -> Arc<ModelRoute> {
    let mut metadata = json!({"namespace": namespace, "name": name});
    if !created.is_empty() {
        metadata["creationTimestamp"] = json!(created);
    }
    let object = json!({"apiVersion": "fairlead.dev/v1alpha1", "kind": "ModelRoute", "metadata": metadata, "spec": spec});
    Arc::new(serde_json::from_value(object).expect("a ModelRoute"))
}

fn deployment(namespace: &str, name: &str, status: Value) -> Arc<ModelDeployment> {
    let object = json!({
        "apiVersion": "fairlead.dev/v1alpha1", "kind": "ModelDeployment",
        "metadata": {"namespace": namespace, "name": name, "generation": 2},
        "spec": {"model": {"uri": "hf://a/b"}}, "status": status,
    });
    Arc::new(serde_json::from_value(object).expect("a ModelDeployment"))
}

fn slice(namespace: &str, deployment: &str, addresses: &[&str]) -> Arc<EndpointSlice> {
    let endpoints: Vec<Value> = addresses.iter().map(|address| json!({"addresses": [address]})).collect();
    let object = json!({
        "addressType": "IPv4", "ports": [{"name": "http", "port": 8000}], "endpoints": endpoints,
        "metadata": {"namespace": namespace, "name": format!("{deployment}-x"),
            "labels": {"fairlead.dev/model-deployment": deployment}},
    });
    Arc::new(serde_json::from_value(object).expect("an EndpointSlice"))
}

fn cluster(
    routes: Vec<Arc<ModelRoute>>,
    deployments: Vec<Arc<ModelDeployment>>,
    slices: Vec<Arc<EndpointSlice>>,
) -> Objects {
    Objects {
        origin: Origin::Cluster,
        routes,
        deployments,
        slices,
        revisions: HashMap::new(),
        credentials: Credentials::default(),
        provider_hosts: Some(Arc::from(vec!["api.example.com".to_owned()])),
    }
}

fn build(objects: &Objects) -> RoutingSnapshot {
    RoutingSnapshot::build(objects, &RoutingSnapshot::default())
}

const T1: &str = "2026-01-01T00:00:00Z";
const T2: &str = "2026-01-02T00:00:00Z";

#[test]
fn a_route_reaches_the_ready_pods_of_its_deployment_in_its_own_namespace() {
    let spec = json!({"model": "chat", "backends": [{"name": "v1", "modelDeployment": "llama"}]});
    let snapshot = build(&cluster(
        vec![route("a", "r", T1, spec)],
        vec![deployment("a", "llama", json!({})), deployment("b", "llama", json!({}))],
        vec![slice("a", "llama", &["10.0.0.1"]), slice("b", "llama", &["10.0.0.9"])],
    ));
    let route = snapshot.route("chat").expect("a route");
    assert_eq!((route.id.as_str(), route.created), ("a/r", 1_767_225_600));
    let backend = &route.backends[0];
    assert_eq!((backend.weight, backend.served_model.as_deref()), (1, Some("llama")));
    let addresses: Vec<_> = backend.endpoints.iter().map(|endpoint| endpoint.address()).collect();
    assert_eq!(addresses, ["10.0.0.1:8000"]);
    assert_eq!(snapshot.problems(), [] as [&str; 0]);
}

#[test]
fn an_adapter_is_asked_for_by_its_name_at_the_pods_of_its_deployment() {
    let backend = |adapter: &str| json!({"name": "v1", "modelDeployment": "llama", "adapter": adapter});
    let with = json!({"model": {"uri": "hf://a/b"}, "adapters": [{"name": "fr", "uri": "hf://a/fr"}]});
    let mut object = (*deployment("a", "llama", json!({}))).clone();
    object.spec = serde_json::from_value(with).expect("a spec");
    let snapshot = build(&cluster(
        vec![
            route("a", "french", T1, json!({"backends": [backend("fr")]})),
            route("a", "german", T1, json!({"backends": [backend("de")]})),
        ],
        vec![Arc::new(object)],
        vec![slice("a", "llama", &["10.0.0.1"])],
    ));
    let french = &snapshot.route("french").expect("a route").backends[0];
    assert_eq!((french.served_model.as_deref(), french.endpoints.len()), (Some("fr"), 1));
    assert_eq!(snapshot.route("german").expect("a route").backends[0].endpoints.len(), 0);
    let [problem] = snapshot.problems() else { panic!("one problem") };
    assert!(
        problem.contains("a/german: spec.backends[0].adapter") && problem.contains("no adapter de"),
        "{problem}"
    );
}

#[test]
fn of_two_routes_with_one_model_name_the_older_wins_in_any_order_of_arrival() {
    let spec =
        |backend: &str| json!({"model": "chat", "backends": [{"name": backend, "modelDeployment": "llama"}]});
    let older = route("z", "old", T1, spec("old"));
    let newer = route("a", "new", T2, spec("new"));
    for routes in [vec![older.clone(), newer.clone()], vec![newer.clone(), older.clone()]] {
        let snapshot = build(&cluster(routes, vec![], vec![]));
        assert_eq!(snapshot.route("chat").expect("a route").id, "z/old");
        let problem =
            snapshot.problems().iter().find(|problem| problem.contains("a/new")).expect("a problem");
        assert!(problem.contains("spec.model") && problem.contains("z/old"), "{problem}");
    }
    let snapshot = build(&cluster(vec![newer], vec![], vec![]));
    assert_eq!(snapshot.route("chat").expect("a route").id, "a/new", "the newer takes over");
}

#[test]
fn of_equal_age_the_namespace_and_then_the_name_decide_and_unknown_age_comes_last() {
    let spec = json!({"model": "chat", "backends": [{"name": "b", "modelDeployment": "llama"}]});
    let winner = |routes: Vec<Arc<ModelRoute>>| {
        build(&cluster(routes, vec![], vec![])).route("chat").map(|r| r.id.clone())
    };
    let r = |namespace: &str, name: &str, created: &str| route(namespace, name, created, spec.clone());
    assert_eq!(winner(vec![r("b", "a", T1), r("a", "b", T1)]).as_deref(), Some("a/b"));
    assert_eq!(winner(vec![r("a", "b", T1), r("a", "a", T1)]).as_deref(), Some("a/a"));
    assert_eq!(winner(vec![r("a", "a", ""), r("b", "b", T2)]).as_deref(), Some("b/b"));
}

#[test]
fn a_missing_deployment_is_named_and_heals_when_it_comes() {
    let spec = json!({"backends": [{"name": "v1", "modelDeployment": "llama"}]});
    let route = route("a", "chat", T1, spec);
    let without = build(&cluster(vec![route.clone()], vec![], vec![slice("a", "llama", &["10.0.0.1"])]));
    assert!(without.problems()[0].contains("spec.backends[0].modelDeployment"), "{:?}", without.problems());
    assert!(without.route("chat").expect("still a model").backends[0].endpoints.is_empty());
    let with = build(&cluster(
        vec![route],
        vec![deployment("a", "llama", json!({}))],
        vec![slice("a", "llama", &["10.0.0.1"])],
    ));
    assert!(with.problems().is_empty());
    assert_eq!(with.endpoint_count(), 1);
}

#[test]
fn literal_addresses_are_for_manifests_only() {
    let spec = json!({"backends": [{"name": "v1", "endpoints": ["http://127.0.0.1:8001"]}]});
    let mut objects = cluster(vec![route("a", "chat", T1, spec)], vec![], vec![]);
    let snapshot = build(&objects);
    assert!(snapshot.problems()[0].contains("spec.backends[0].endpoints"), "{:?}", snapshot.problems());
    assert_eq!(snapshot.endpoint_count(), 0);
    objects.origin = Origin::Manifests;
    let snapshot = build(&objects);
    assert_eq!((snapshot.problems().len(), snapshot.endpoint_count()), (0, 1));
    assert_eq!(snapshot.route("chat").expect("a route").backends[0].served_model, None);
}

#[test]
fn weights_that_sum_to_zero_are_said() {
    let spec =
        json!({"backends": [{"name": "a", "modelDeployment": "x"}, {"name": "b", "modelDeployment": "x"}]});
    let snapshot =
        build(&cluster(vec![route("a", "chat", T1, spec)], vec![deployment("a", "x", json!({}))], vec![]));
    assert!(snapshot.problems()[0].contains("sum to zero"), "{:?}", snapshot.problems());
}

#[test]
fn an_endpoint_keeps_its_record_across_rebuilds_and_routes() {
    let spec = |model: &str| json!({"model": model, "backends": [{"name": "b", "modelDeployment": "llama"}]});
    let objects = cluster(
        vec![route("a", "one", T1, spec("one")), route("a", "two", T2, spec("two"))],
        vec![deployment("a", "llama", json!({}))],
        vec![slice("a", "llama", &["10.0.0.1", "10.0.0.1"])],
    );
    let first = build(&objects);
    let endpoint = &first.route("one").expect("one").backends[0].endpoints;
    assert_eq!(endpoint.len(), 1, "an address counts once");
    let running = endpoint[0].begin();
    let second = RoutingSnapshot::build(&objects, &first);
    for model in ["one", "two"] {
        let same = &second.route(model).expect(model).backends[0].endpoints[0];
        assert!(Arc::ptr_eq(same, running.endpoint()));
        assert_eq!(same.in_flight(), 1);
    }
}

#[test]
fn the_revision_is_told_only_when_every_pod_serves_it() {
    let spec = json!({"backends": [{"name": "v1", "modelDeployment": "llama"}]});
    let condition = |status: &str| json!([{"type": "Ready", "status": status, "reason": "x", "message": "", "lastTransitionTime": T1}]);
    let revision = |status: Value| {
        let objects = cluster(
            vec![route("a", "chat", T1, spec.clone())],
            vec![deployment("a", "llama", status)],
            vec![],
        );
        build(&objects).route("chat").expect("a route").backends[0].revision.clone()
    };
    let status = |generation: i64, ready: &str| json!({"observedGeneration": generation, "revision": "abc", "conditions": condition(ready)});
    assert_eq!(revision(status(2, "True")).as_deref(), Some("abc"));
    assert_eq!(revision(status(2, "False")), None, "rolling out");
    assert_eq!(revision(status(1, "True")), None, "the status speaks of an older spec");
    assert_eq!(revision(json!({})), None);
}

#[test]
fn while_pods_are_replaced_each_is_of_the_revision_on_its_label() {
    let spec = json!({"backends": [{"name": "v1", "modelDeployment": "llama"}]});
    let mut slice = (*slice("a", "llama", &["10.0.0.1", "10.0.0.2", "10.0.0.3"])).clone();
    for (endpoint, pod) in slice.endpoints.iter_mut().flatten().zip(["old", "new", "unknown"]) {
        endpoint.target_ref =
            serde_json::from_value(json!({"kind": "Pod", "name": pod})).expect("a reference");
    }
    let mut objects = cluster(
        vec![route("a", "chat", T1, spec)],
        vec![deployment("a", "llama", json!({}))],
        vec![Arc::new(slice)],
    );
    let key = |pod: &str| ("a".to_owned(), pod.to_owned());
    objects.revisions = HashMap::from([(key("old"), "r1".to_owned()), (key("new"), "r2".to_owned())]);
    let first = build(&objects);
    let backend = |snapshot: &RoutingSnapshot| {
        let endpoints = snapshot.route("chat").expect("a route").backends[0].endpoints.clone();
        endpoints
            .into_iter()
            .map(|it| (it.address().to_owned(), it))
            .collect::<std::collections::BTreeMap<_, _>>()
    };
    let revisions: Vec<_> = backend(&first).values().map(|it| it.revision().map(Name::to_string)).collect();
    assert_eq!(revisions, [Some("r1".to_owned()), Some("r2".to_owned()), None]);

    // Another pod has got the address of one that is gone: it is another endpoint, with nothing of the other's record.
    let running = backend(&first)["10.0.0.1:8000"].begin();
    let same = RoutingSnapshot::build(&objects, &first);
    assert_eq!(backend(&same)["10.0.0.1:8000"].in_flight(), 1);
    objects.revisions.insert(key("old"), "r2".to_owned());
    let next = RoutingSnapshot::build(&objects, &same);
    assert_eq!(backend(&next)["10.0.0.1:8000"].in_flight(), 0);
    assert_eq!(running.endpoint().revision().map(Name::as_str), Some("r1"));
}

#[test]
fn what_is_said_of_slow_backends_and_cannot_be_used_is_told() {
    let spec = json!({"backends": [{"name": "v1", "modelDeployment": "llama"}], "timeouts": {"request": "soon"},
        "fallbacks": [{"backend": "cloud"}], "shadow": {"backend": "v2", "percent": 5}});
    let snapshot = build(&cluster(
        vec![route("a", "chat", T1, spec)],
        vec![deployment("a", "llama", json!({}))],
        vec![slice("a", "llama", &["10.0.0.1"])],
    ));
    let [fallback, shadow, time] = snapshot.problems() else { panic!("{:?}", snapshot.problems()) };
    assert!(fallback.contains("spec.fallbacks[].backend") && fallback.contains("cloud"), "{fallback}");
    assert!(shadow.contains("spec.shadow.backend") && shadow.contains("v2"), "{shadow}");
    assert!(time.starts_with("ModelRoute a/chat: spec.timeouts.request") && time.contains("30s"), "{time}");
    // All else is in force.
    let route = snapshot.route("chat").expect("a route");
    assert!(
        route.backends[0].endpoints.len() == 1
            && route.resilience.request.is_none()
            && route.shadow.is_none()
    );
}
