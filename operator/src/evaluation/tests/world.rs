//! A cluster in memory with a route, its two models and a question set, and what Kubernetes' own controllers would do in it.

use std::sync::Arc;

use fairlead_crds::condition::READY;
use fairlead_crds::evaluation::Evaluation;
use kube::runtime::controller::Action;
use serde_json::{Value, json};

use crate::error::Error;
use crate::evaluation::reconcile;
use crate::metrics::Outcome;
use crate::stores::get;
use crate::testing::Cluster;

pub const OBJECT: &str = "/apis/fairlead.dev/v1alpha1/namespaces/models/evaluations/quality";
pub const ROUTE: &str = "/apis/fairlead.dev/v1alpha1/namespaces/models/modelroutes/chat";
pub const QUESTIONS: &str = "/api/v1/namespaces/models/configmaps/questions";
pub const JOBS: &str = "/apis/batch/v1/namespaces/models/jobs/";

pub fn deployment_path(name: &str) -> String {
    format!("/apis/fairlead.dev/v1alpha1/namespaces/models/modeldeployments/{name}")
}

/// An Evaluation as an API server has it.
pub fn evaluation(spec: &Value) -> Value {
    let mut object = json!({
        "apiVersion": "fairlead.dev/v1alpha1", "kind": "Evaluation",
        "metadata": {"name": "quality", "namespace": "models", "uid": "ev-uid", "generation": 1},
        "spec": {"questions": {"configMapRef": {"name": "questions", "key": "all.jsonl"}}, "target": {"route": "chat"}},
    });
    for (field, value) in spec.as_object().unwrap() {
        object["spec"][field] = value.clone();
    }
    let typed: Evaluation = serde_json::from_value(object.clone()).unwrap();
    assert_eq!(typed.metadata.uid.as_deref(), Some("ev-uid"));
    object
}

pub struct World {
    pub cluster: Cluster,
}

impl World {
    /// v1 is stable at revision r1, v2 the canary at revision r2; both serve.
    pub fn new(spec: &Value) -> Self {
        let cluster = Cluster::new();
        cluster.put(OBJECT, evaluation(spec));
        cluster.put(
            ROUTE,
            json!({"apiVersion": "fairlead.dev/v1alpha1", "kind": "ModelRoute",
                "metadata": {"name": "chat", "namespace": "models", "uid": "route-uid", "generation": 1},
                "spec": {
                    "backends": [
                        {"name": "v1", "modelDeployment": "m1", "weight": 100}, {"name": "v2", "modelDeployment": "m2"},
                        {"name": "spare", "modelDeployment": "m3", "weight": 0},
                    ],
                    "canary": {"backend": "v2", "steps": [{"weight": 5, "hold": "1m"}]},
                }}),
        );
        let world = Self { cluster };
        world.ask(&["one", "two", "three"]);
        for (name, revision) in [("m1", "r1"), ("m2", "r2"), ("m3", "r3")] {
            world.serves(name, revision);
        }
        world
    }

    /// Sets the questions.
    pub fn ask(&self, answers: &[&str]) {
        let lines: Vec<String> = answers
            .iter()
            .map(|answer| json!({"question": format!("Which? {answer}"), "expected": answer}).to_string())
            .collect();
        self.cluster.put(
            QUESTIONS,
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "questions", "namespace": "models"},
                "data": {"all.jsonl": lines.join("\n")}}),
        );
    }

    /// A ModelDeployment serves a revision.
    pub fn serves(&self, name: &str, revision: &str) {
        self.put_deployment(name, revision, "True", 1);
    }

    /// It rolls out to a revision.
    pub fn rolls_out(&self, name: &str, revision: &str) {
        self.put_deployment(name, revision, "False", 0);
    }

    pub fn put_deployment(&self, name: &str, revision: &str, ready: &str, replicas: i32) {
        self.cluster.put(
            &deployment_path(name),
            json!({"apiVersion": "fairlead.dev/v1alpha1", "kind": "ModelDeployment",
                "metadata": {"name": name, "namespace": "models", "uid": format!("{name}-uid"), "generation": 1},
                "spec": {"model": {"uri": "hf://a/b"}},
                "status": {"observedGeneration": 1, "revision": revision, "replicas": replicas, "readyReplicas": replicas,
                    "conditions": [{"type": READY, "status": ready, "reason": "RollingOut", "message": "",
                        "lastTransitionTime": "2026-01-01T00:00:00Z"}]}}),
        );
    }

    pub async fn step(&mut self) -> Result<(Action, Outcome), Error> {
        self.cluster.sync();
        let object = get(&self.cluster.context.stores.evaluations, "models", "quality").unwrap();
        reconcile(object, Arc::clone(&self.cluster.context)).await
    }

    pub fn status(&self) -> Value {
        self.cluster.get(OBJECT).unwrap()["status"].clone()
    }

    /// Status, reason and message of `Ready`.
    pub fn ready(&self) -> (String, String, String) {
        let status = self.status();
        let condition =
            status["conditions"].as_array().unwrap().iter().find(|it| it["type"] == READY).unwrap().clone();
        let text = |key: &str| condition[key].as_str().unwrap().to_owned();
        (text("status"), text("reason"), text("message"))
    }

    /// The Jobs that are there, with the backends that they ask.
    pub fn jobs(&self) -> Vec<(String, String)> {
        let paths = self.cluster.paths(JOBS);
        let backend = |path: &String| {
            let job = self.cluster.get(path).unwrap();
            let arguments =
                job["spec"]["template"]["spec"]["containers"][0]["args"].as_array().unwrap().clone();
            let into = arguments.iter().find_map(|it| it.as_str()?.strip_prefix("--result-config-map="));
            into.unwrap().strip_prefix("quality-items-").unwrap().to_owned()
        };
        paths.iter().map(|path| (path.strip_prefix(JOBS).unwrap().to_owned(), backend(path))).collect()
    }

    /// The only Job that has not ended.
    pub fn running(&self) -> (String, String) {
        let running: Vec<_> = self
            .jobs()
            .into_iter()
            .filter(|(name, _)| self.cluster.get(&format!("{JOBS}{name}")).unwrap()["status"].is_null())
            .collect();
        assert_eq!(running.len(), 1, "{running:?}");
        running.into_iter().next().unwrap()
    }

    /// A pod of the Job ends as the kubelet would tell.
    pub fn pod_ends(&self, job: &str, code: i32, message: &str) {
        let uid = self.cluster.get(&format!("{JOBS}{job}")).unwrap()["metadata"]["uid"].clone();
        self.cluster.put(
            &format!("/api/v1/namespaces/models/pods/{job}-x"),
            json!({"metadata": {"name": format!("{job}-x"), "namespace": "models",
                    "labels": {"fairlead.dev/evaluation": "quality"},
                    "ownerReferences": [{"apiVersion": "batch/v1", "kind": "Job", "name": job, "uid": uid}]},
                "status": {"phase": if code == 0 { "Succeeded" } else { "Failed" }, "containerStatuses": [{
                    "name": "evaluate", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
                    "state": {"terminated": {"exitCode": code, "message": message}}}]}}),
        );
    }

    /// The Job ends as the Job controller would tell.
    pub fn job_ends(&self, job: &str, type_: &str, reason: &str) {
        self.cluster.edit(&format!("{JOBS}{job}"), |it| {
            it["status"] = json!({"startTime": "2026-01-01T00:00:00Z", "conditions": [
                {"type": type_, "status": "True", "reason": reason, "message": "as the Job controller says",
                    "lastTransitionTime": "2026-01-01T00:01:00Z"}]});
        });
    }

    /// What the runner leaves: `hits` of three questions right.
    pub fn summary(&self, hits: u32, revision: &str) -> Value {
        let text = self.cluster.get(QUESTIONS).unwrap()["data"]["all.jsonl"].as_str().unwrap().to_owned();
        json!({"questions": fairlead_evaluation::digest(&text), "asked": 3,
            "scores": [
                {"name": "exactMatch", "n": 3, "hits": hits, "mean": (f64::from(hits) / 3.0).to_string()},
                {"name": "f1", "n": 3, "mean": "0.7", "variance": "0.01"},
                {"name": "errors", "n": 3, "hits": 0, "mean": "0"},
            ],
            "latency": {"p50": "0.1", "p90": "0.2", "p99": "0.3", "max": "0.3"},
            "items": {"configMap": "quality-items-v1", "key": "items.jsonl", "truncated": false},
            "revisions": {revision: 3},
            "startedAt": "2026-01-01T00:00:10Z", "finishedAt": "2026-01-01T00:00:50Z"})
    }

    /// The running Job ends well with `hits` of three right.
    pub fn answers(&self, hits: u32, revision: &str) -> String {
        let (job, backend) = self.running();
        let mut summary = self.summary(hits, revision);
        summary["items"]["configMap"] = json!(format!("quality-items-{backend}"));
        self.pod_ends(&job, 0, &summary.to_string());
        self.job_ends(&job, "Complete", "CompletionsReached");
        backend
    }

    pub fn edit(&self, edit: impl FnOnce(&mut Value)) {
        self.cluster.edit(OBJECT, |it| {
            edit(it);
            it["metadata"]["generation"] = json!(it["metadata"]["generation"].as_i64().unwrap() + 1);
        });
    }

    /// Asks for a run as a person would.
    pub fn request(&self, id: &str, backend: Option<&str>) {
        self.cluster.edit(OBJECT, |it| {
            it["status"]["request"] = json!({"id": id, "action": "Run"});
            if let Some(backend) = backend {
                it["status"]["request"]["backend"] = json!(backend);
            }
        });
    }
}
