//! Routes from a Kubernetes API: readiness, changes, objects that cannot be read, outages.

use serde_json::{Value, json};

use crate::apiserver::ApiServer;
use crate::harness::{Gateway, error_of, eventually, header};
use crate::worker::{Answering, Worker};

fn route(name: &str, created: &str, backends: Value) -> Value {
    json!({"apiVersion": "fairlead.dev/v1alpha1", "kind": "ModelRoute",
        "metadata": {"namespace": "ns", "name": name, "creationTimestamp": created, "uid": name},
        "spec": {"model": "chat", "backends": backends}})
}

fn deployment(name: &str) -> Value {
    json!({"apiVersion": "fairlead.dev/v1alpha1", "kind": "ModelDeployment",
        "metadata": {"namespace": "ns", "name": name, "uid": name, "generation": 1},
        "spec": {"model": {"uri": "hf://a/b"}},
        "status": {"observedGeneration": 1, "revision": format!("{name}-r1"), "conditions": [{"type": "Ready",
            "status": "True", "reason": "Available", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}})
}

fn slice(deployment: &str, pods: &[&Answering]) -> Value {
    let port = pods.first().map(|pod| pod.address.port());
    let endpoints: Vec<Value> = pods
        .iter()
        .map(|pod| json!({"addresses": [pod.address.ip()], "conditions": {"ready": true}}))
        .collect();
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"namespace": "ns", "name": format!("{deployment}-x"), "uid": deployment,
            "labels": {"fairlead.dev/model-deployment": deployment}},
        "ports": [{"name": "http", "port": port}], "endpoints": endpoints})
}

async fn answered_by(gateway: &Gateway) -> String {
    let body: Value = gateway.chat("chat", false).await.json().await.expect("JSON");
    body["from"].as_str().unwrap_or_default().to_owned()
}

const T1: &str = "2026-01-01T00:00:00Z";

#[tokio::test]
async fn it_is_ready_only_when_it_has_seen_everything_and_says_what_it_waits_for() {
    let api = ApiServer::start().await;
    api.forbid("endpointslices");
    let gateway = Gateway::start_in_cluster(&api.kubeconfig(), &[]).await;
    eventually("it says what is missing", || async {
        let (status, text) = gateway.admin("/readyz").await;
        status == 503
            && text.contains("endpointslices")
            && text.contains("forbidden")
            && !text.contains("modelroutes")
    })
    .await;
    let response = gateway.chat("chat", false).await;
    assert_eq!(response.status(), 503, "not a 404 as long as routes are not known");
    assert_eq!(error_of(response).await["code"], "starting");
    api.allow_all();
    eventually("it is ready", || async { gateway.admin("/readyz").await.0 == 200 }).await;
    let slices: Vec<_> =
        api.requests().into_iter().filter(|request| request.contains("endpointslices")).collect();
    assert!(
        slices.iter().all(|request| request.contains("labelSelector=fairlead.dev%2Fmodel-deployment")),
        "{slices:?}"
    );
}

#[tokio::test]
async fn changes_are_in_force_without_a_restart() {
    let api = ApiServer::start().await;
    let (v1, v2) = (Worker::start().await.answer_all("v1"), Worker::start().await.answer_all("v2"));
    let gateway = Gateway::start_in_cluster(&api.kubeconfig(), &[]).await;
    eventually("it is ready", || async { gateway.admin("/readyz").await.0 == 200 }).await;
    assert_eq!(gateway.chat("chat", false).await.status(), 404);

    let backends = |one: u32, two: u32| json!([{"name": "one", "modelDeployment": "llama-v1", "weight": one}, {"name": "two", "modelDeployment": "llama-v2", "weight": two}]);
    api.apply("modelroutes", route("r", T1, backends(1, 0)));
    eventually("the route is known", || async { gateway.chat("chat", false).await.status() == 503 }).await;
    let response = gateway.chat("chat", false).await;
    assert!(!header(&response, "retry-after").is_empty());
    assert_eq!(error_of(response).await["code"], "no_endpoint");
    assert_eq!(
        gateway.get("/v1/models").await.1["data"][0]["id"],
        "chat",
        "a model without pods stays listed"
    );

    api.apply("modeldeployments", deployment("llama-v1"));
    api.apply("modeldeployments", deployment("llama-v2"));
    api.apply("endpointslices", slice("llama-v1", &[&v1]));
    eventually("the pod is reached", || async { answered_by(&gateway).await == "v1" }).await;
    let response = gateway.chat("chat", false).await;
    assert_eq!(header(&response, "x-fairlead-revision"), "llama-v1-r1");
    assert_eq!(header(&response, "x-fairlead-route"), "ns/r");

    // A backend without pods: its share goes to the other, and the answer says so.
    api.apply("modelroutes", route("r", T1, backends(1, 1_000_000)));
    eventually("the share is diverted", || async {
        header(&gateway.chat("chat", false).await, "x-fairlead-diverted-from") == "two"
    })
    .await;
    api.apply("endpointslices", slice("llama-v2", &[&v2]));
    eventually("the weights hold", || async { answered_by(&gateway).await == "v2" }).await;

    api.delete("modelroutes", route("r", T1, backends(1, 0)));
    eventually("the route is gone", || async { gateway.chat("chat", false).await.status() == 404 }).await;
}

#[tokio::test]
async fn an_object_that_cannot_be_read_harms_no_other_and_keeps_its_last_form() {
    let api = ApiServer::start().await;
    let pod = Worker::start().await.answer_all("pod");
    let backends = json!([{"name": "b", "modelDeployment": "llama"}]);
    api.apply("modeldeployments", deployment("llama"));
    api.apply("endpointslices", slice("llama", &[&pod]));
    let mut good = route("good", T1, backends.clone());
    good["spec"]["fieldOfTheFuture"] = json!(true);
    api.apply("modelroutes", good);
    let mut bad = route("bad", T1, backends.clone());
    bad["spec"]["backends"] = json!("a form of the future");
    api.apply("modelroutes", bad);
    let gateway = Gateway::start_in_cluster(&api.kubeconfig(), &[]).await;
    eventually("the good route works", || async { answered_by(&gateway).await == "pod" }).await;
    let mut future = route("good", T1, backends);
    future["spec"]["backends"] = json!("a form of the future");
    let errors = gateway.metric("fairlead_gateway_source_errors_total", "").await;
    api.apply("modelroutes", future);
    eventually("it is told", || async {
        gateway.metric("fairlead_gateway_source_errors_total", "").await > errors
    })
    .await;
    assert_eq!(answered_by(&gateway).await, "pod");
    eventually("the log says why", || async { gateway.log().contains("a form of the future") }).await;
}

#[tokio::test]
async fn without_an_api_server_the_last_routes_stay_and_changes_are_caught_up_with() {
    let mut api = ApiServer::start().await;
    let (v1, v2) = (Worker::start().await.answer_all("v1"), Worker::start().await.answer_all("v2"));
    let backend = |deployment: &str| json!([{"name": "b", "modelDeployment": deployment}]);
    for (name, pod) in [("llama-v1", &v1), ("llama-v2", &v2)] {
        api.apply("modeldeployments", deployment(name));
        api.apply("endpointslices", slice(name, &[pod]));
    }
    api.apply("modelroutes", route("r", T1, backend("llama-v1")));
    let gateway = Gateway::start_in_cluster(&api.kubeconfig(), &[]).await;
    eventually("it works", || async { answered_by(&gateway).await == "v1" }).await;

    api.stop().await;
    let errors = gateway.metric("fairlead_gateway_source_errors_total", "").await;
    eventually("the outage is noticed", || async {
        gateway.metric("fairlead_gateway_source_errors_total", "").await > errors
    })
    .await;
    assert_eq!(answered_by(&gateway).await, "v1");
    assert_eq!(gateway.admin("/readyz").await.0, 200, "still ready: it can still route");

    api.restart();
    // The mock, unlike the real thing, does not replay what a resumed watch has missed; so the change comes after the
    // watches are back.
    let resumed = || async {
        let requests = api.requests();
        requests.iter().filter(|request| request.contains("watch=true")).count() >= 8
    };
    eventually("the watches come back", resumed).await;
    api.apply("modelroutes", route("r", T1, backend("llama-v2")));
    eventually("the change is in force", || async { answered_by(&gateway).await == "v2" }).await;
}

#[tokio::test]
async fn in_a_roll_out_each_answer_is_of_the_revision_of_its_own_pod() {
    let api = ApiServer::start().await;
    let pods =
        [("old", Worker::start().await.answer_all("r1")), ("new", Worker::start().await.answer_all("r2"))];
    let mut rolling = deployment("llama");
    rolling["status"]["conditions"][0]["status"] = json!("False");
    api.apply("modeldeployments", rolling);
    for (name, pod) in &pods {
        let mut slice = slice("llama", &[pod]);
        slice["metadata"]["name"] = json!(format!("llama-{name}"));
        slice["endpoints"][0]["targetRef"] = json!({"kind": "Pod", "namespace": "ns", "name": name});
        api.apply("endpointslices", slice);
        let revision = if *name == "old" { "r1" } else { "r2" };
        let labels = json!({"fairlead.dev/model-deployment": "llama", "fairlead.dev/revision": revision});
        api.apply(
            "pods",
            json!({"metadata": {"namespace": "ns", "name": name, "uid": name, "labels": labels}}),
        );
    }
    let mut sticky = route("r", T1, json!([{"name": "b", "modelDeployment": "llama"}]));
    sticky["spec"]["stickiness"] = json!({"by": "User"});
    api.apply("modelroutes", sticky);
    let gateway = Gateway::start_in_cluster(&api.kubeconfig(), &[]).await;
    eventually("it is ready", || async { gateway.admin("/readyz").await.0 == 200 }).await;
    let mut seen = std::collections::BTreeSet::new();
    for user in 0..40 {
        let mut revisions = std::collections::BTreeSet::new();
        for _ in 0..3 {
            let mut body = Gateway::chat_body("chat", false);
            body["user"] = json!(format!("user-{user}"));
            let response =
                gateway.post("/v1/chat/completions", body.to_string()).send().await.expect("an answer");
            let revision = header(&response, "x-fairlead-revision").to_owned();
            let body: Value = response.json().await.expect("JSON");
            assert_eq!(body["from"], revision.as_str());
            revisions.insert(revision);
        }
        assert_eq!(revisions.len(), 1, "a user sees one revision: {revisions:?}");
        seen.append(&mut revisions);
    }
    assert_eq!(seen.len(), 2, "{seen:?}");
    let requests = api.requests();
    let of_pods: Vec<_> = requests.iter().filter(|request| request.contains("/pods?")).collect();
    assert!(
        of_pods.iter().all(|request| request.contains("labelSelector=fairlead.dev%2Fmodel-deployment")),
        "{of_pods:?}"
    );
    let forms = api.accepted("pods");
    assert!(
        forms.iter().all(|form| form.contains("PartialObjectMetadata")),
        "no more than the metadata: {forms:?}"
    );
}

/// Two gateways, a hundred writes. It prints how long a write takes to be in force in both, seen by requests.
#[tokio::test]
async fn rules_change_while_gateways_run_and_one_write_takes_them_back() {
    const WRITES: usize = 100;
    let api = ApiServer::start().await;
    let pod = Worker::start().await.answer_all("pod");
    for name in ["llama-v1", "llama-v2"] {
        api.apply("modeldeployments", deployment(name));
        api.apply("endpointslices", slice(name, &[&pod]));
    }
    let backends = json!([{"name": "one", "modelDeployment": "llama-v1", "weight": 1}, {"name": "two", "modelDeployment": "llama-v2"}]);
    let ruled = |number: usize| {
        let mut route = route("r", T1, backends.clone());
        let rule = json!({"name": format!("rule-{number}"), "match": {"headers": [{"name": "x-priority", "regex": "urgent|now"}]},
            "split": [{"backend": "two"}]});
        if number % 2 == 1 {
            route["spec"]["rules"] = json!([rule]);
        }
        route
    };
    api.apply("modelroutes", ruled(0));
    let gateways = [
        Gateway::start_in_cluster(&api.kubeconfig(), &[]).await,
        Gateway::start_in_cluster(&api.kubeconfig(), &[]).await,
    ];
    let goes = async |gateway: &Gateway| {
        let request = gateway.post("/v1/chat/completions", Gateway::chat_body("chat", false).to_string());
        let response = request.header("x-priority", "urgent").send().await.expect("an answer");
        (header(&response, "x-fairlead-backend").to_owned(), header(&response, "x-fairlead-rule").to_owned())
    };
    let mut times = Vec::new();
    for number in 0..WRITES {
        let wanted = if number % 2 == 1 {
            ("two".to_owned(), format!("rule-{number}"))
        } else {
            ("one".to_owned(), String::new())
        };
        let written = std::time::Instant::now();
        api.apply("modelroutes", ruled(number));
        for gateway in &gateways {
            eventually("the write is in force", || async { goes(gateway).await == wanted }).await;
        }
        times.push(written.elapsed());
    }
    times.sort_unstable();
    let [middle, most] = [times[WRITES / 2], times[WRITES - 2]];
    eprintln!("{WRITES} writes to effect in 2 gateways: median {middle:?}, 99th percentile {most:?}");
}
