//! An API server in memory, for reconcile scenarios: it stores objects, applies server-side, counts writes and fails on
//! demand. Only what the operator uses of the protocol is there.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

use clap::Parser;
use fairlead_crds::EVALUATION_LABEL;
use fairlead_crds::model_deployment::ModelDeployment;
use fairlead_crds::model_route::ModelRoute;
use fairlead_fetch::Inspection;
use fairlead_model::{EncoderFiles, ModelConfig, ModelShape, WeightsSummary};
use futures::future::BoxFuture;
use http::{Method, Request, Response};
use http_body_util::BodyExt;
use kube::client::Body;
use kube::runtime::reflector::store::Writer;
use kube::runtime::watcher;
use kube::{Client, Resource};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::config::Settings;
use crate::context::Context;
use crate::inspector::{HubModel, InspectError, Inspector};
use crate::metrics::Metrics;
use crate::model_deployment::inspection::Inspected;
use crate::stores::{Stores, Writers};

/// The API server's state.
#[derive(Default)]
pub struct ApiServer {
    /// Objects by path.
    objects: Mutex<BTreeMap<String, Value>>,
    /// Writes so far, as `METHOD path`; events apart.
    writes: Mutex<Vec<String>>,
    /// What was told of events so far, repeats apart.
    told: Mutex<Vec<Value>>,
    /// Every event, by path.
    events: Mutex<BTreeMap<String, Value>>,
    /// Requests that are refused: a part of `METHOD path`, and the status code.
    failures: Mutex<VecDeque<(String, u16)>>,
    crash: Mutex<Crash>,
    version: Mutex<u64>,
}

/// The end of an operator, at one of its writes.
#[derive(Default)]
struct Crash {
    /// At which write, and whether that still reaches the API server.
    at: Option<(usize, bool)>,
    /// Writes so far, events among them.
    writes: usize,
    /// It has ended: nothing it says is heard.
    down: bool,
}

impl Crash {
    /// Whether a call is done, and whether its answer is read.
    fn call(&mut self, is_write: bool) -> (bool, bool) {
        if self.down {
            return (false, false);
        }
        if !is_write {
            return (true, true);
        }
        let here = self.at.filter(|(at, _)| *at == self.writes);
        self.writes += 1;
        self.down = here.is_some();
        (here.is_none_or(|(_, reaches)| reaches), here.is_none())
    }
}

impl ApiServer {
    fn next_version(&self) -> Value {
        let mut version = self.version.lock().unwrap();
        *version += 1;
        json!(version.to_string())
    }

    fn event(&self, method: &Method, path: &str, body: Value) -> (u16, Value) {
        let (mut events, mut told) = (self.events.lock().unwrap(), self.told.lock().unwrap());
        if *method == Method::POST {
            let path = format!("{path}/{}", body["metadata"]["name"].as_str().unwrap());
            if events.contains_key(&path) {
                return status(409);
            }
            events.insert(path, body.clone());
            told.push(body.clone());
            return (201, body);
        }
        let Some(event) = events.get_mut(path) else { return status(404) };
        event["series"] = body["series"].clone();
        match told.iter_mut().find(|it| it["metadata"]["name"] == event["metadata"]["name"]) {
            Some(told) => told["series"] = body["series"].clone(),
            None => told.push(event.clone()),
        }
        (200, event.clone())
    }

    fn answer(&self, method: &Method, path: &str, manager: &str, body: Value) -> (u16, Value) {
        let (done, answered) = self.crash.lock().unwrap().call(*method != Method::GET);
        let answer = if done { self.do_it(method, path, manager, body) } else { status(500) };
        if answered { answer } else { status(500) }
    }

    fn do_it(&self, method: &Method, path: &str, manager: &str, body: Value) -> (u16, Value) {
        let call = format!("{method} {path}");
        let mut failures = self.failures.lock().unwrap();
        if failures.front().is_some_and(|(part, _)| call.contains(part)) {
            let (_, code) = failures.pop_front().unwrap();
            return status(code);
        }
        drop(failures);
        if path.contains("/events") {
            return self.event(method, path, body);
        }
        if *method != Method::GET {
            self.writes.lock().unwrap().push(call);
        }
        let mut objects = self.objects.lock().unwrap();
        match *method {
            Method::GET => objects.get(path).map_or_else(|| status(404), |object| (200, object.clone())),
            Method::DELETE => objects.remove(path).map_or_else(|| status(404), |object| (200, object)),
            _ => {
                let version = self.next_version();
                if let Some(path) = path.strip_suffix("/status") {
                    let Some(object) = objects.get_mut(path) else { return status(404) };
                    let differs = |field: &str| {
                        let wanted = &body["metadata"][field];
                        !wanted.is_null() && *wanted != object["metadata"][field]
                    };
                    if differs("uid") || differs("resourceVersion") {
                        return status(409);
                    }
                    // A person's: the operator's apply does not own it.
                    let request = object["status"]["request"].take();
                    object["status"] = body["status"].clone();
                    if !request.is_null() {
                        object["status"]["request"] = request;
                    }
                    object["metadata"]["resourceVersion"] = version;
                    return (200, object.clone());
                }
                let object = applied(objects.get(path), body, manager, &version);
                objects.insert(path.to_owned(), object.clone());
                (200, object)
            }
        }
    }
}

fn field_manager(uri: &http::Uri) -> String {
    let parameters = uri.query().unwrap_or_default().split('&');
    let manager = parameters.into_iter().find_map(|it| it.strip_prefix("fieldManager="));
    manager.unwrap_or_default().replace("%2F", "/")
}

fn applied(before: Option<&Value>, mut body: Value, manager: &str, version: &Value) -> Value {
    let mut managed = body.clone();
    managed.as_object_mut().unwrap().retain(|key, _| key != "apiVersion" && key != "kind");
    managed["metadata"].as_object_mut().unwrap().retain(|key, _| key != "name" && key != "namespace");
    let others: Vec<Value> = before
        .and_then(|before| before["metadata"]["managedFields"].as_array())
        .map(|entries| entries.iter().filter(|entry| entry["manager"] != manager).cloned().collect())
        .unwrap_or_default();
    for (other, before) in others.iter().zip(before.into_iter().cycle()) {
        carry(before, &other["fieldsV1"], &mut body);
    }
    let metadata = &mut body["metadata"];
    let old = before.map_or(Value::Null, |before| before["metadata"].clone());
    metadata["uid"] =
        old.get("uid").cloned().unwrap_or_else(|| json!(format!("uid-{}", version.as_str().unwrap())));
    metadata["generation"] = json!(old["generation"].as_i64().unwrap_or_default() + 1);
    metadata["resourceVersion"] = version.clone();
    let ours = json!({
        "manager": manager, "operation": "Apply", "fieldsType": "FieldsV1", "fieldsV1": fields(&managed),
    });
    metadata["managedFields"] = others.into_iter().chain([ours]).collect();
    if let Some(status) = before.and_then(|before| before.get("status")) {
        body["status"] = status.clone();
    }
    body
}

/// Brings what others own into what is applied, where that does not name it.
fn carry(before: &Value, owned: &Value, into: &mut Value) {
    for (name, below) in owned.as_object().unwrap() {
        let name = name.trim_start_matches("f:");
        match into.get_mut(name) {
            Some(into) if into.is_object() => carry(&before[name], below, into),
            Some(_) => {}
            None => into[name] = before[name].clone(),
        }
    }
}

/// The fields of an object as managedFields names them, all lists taken as a whole.
fn fields(value: &Value) -> Value {
    match value {
        Value::Object(object) => {
            let below: Map<_, _> =
                object.iter().map(|(key, value)| (format!("f:{key}"), fields(value))).collect();
            below.into()
        }
        _ => json!({}),
    }
}

fn status(code: u16) -> (u16, Value) {
    let reason = match code {
        404 => "NotFound",
        409 => "Conflict",
        _ => "InternalError",
    };
    (
        code,
        json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "on demand", "reason": reason, "code": code}),
    )
}

/// A hub that says what it is told to, and counts.
pub struct FakeHub {
    answers: Mutex<BTreeMap<String, Result<Inspection, InspectError>>>,
    asked: Mutex<Vec<String>>,
}

impl Inspector for FakeHub {
    fn inspect(&self, model: HubModel) -> BoxFuture<'_, Result<Inspection, InspectError>> {
        let uri = model.source.to_string();
        self.asked.lock().unwrap().push(uri.clone());
        let unknown = || Err(InspectError::Unreachable(format!("{uri} is not there")));
        let answer = self.answers.lock().unwrap().get(&uri).cloned().unwrap_or_else(unknown);
        Box::pin(std::future::ready(answer))
    }

    fn resolve(&self, model: HubModel) -> BoxFuture<'_, Result<String, InspectError>> {
        let inspected = self.inspect(model);
        Box::pin(async move { Ok(inspected.await?.revision.unwrap_or_default()) })
    }
}

/// A cluster with an operator's context on it.
pub struct Cluster {
    pub context: Arc<Context>,
    api: Arc<ApiServer>,
    hub: Arc<FakeHub>,
    writers: Writers,
}

impl Cluster {
    pub fn new() -> Self {
        let api = Arc::new(ApiServer::default());
        let server = api.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let server = server.clone();
            async move {
                let (parts, body) = request.into_parts();
                let body = body.collect().await?.to_bytes();
                let body = if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).unwrap() };
                let (code, answer) =
                    server.answer(&parts.method, parts.uri.path(), &field_manager(&parts.uri), body);
                let answer = Body::from(serde_json::to_vec(&answer).unwrap());
                Ok::<_, kube::Error>(Response::builder().status(code).body(answer).unwrap())
            }
        });
        let (stores, writers) = Stores::detached();
        let hub = Arc::new(FakeHub { answers: Mutex::default(), asked: Mutex::default() });
        let context = Arc::new(Context::new(
            Client::new(service, "default"),
            settings(),
            stores,
            Metrics::default(),
            hub.clone(),
            reqwest::Client::new(),
        ));
        Self { context, api, hub, writers }
    }

    /// What the hub says of a model.
    pub fn hub_has(&self, uri: &str, answer: Result<Inspection, InspectError>) {
        self.hub.answers.lock().unwrap().insert(uri.to_owned(), answer);
    }

    /// What the hub was asked since the last call.
    pub fn hub_was_asked(&self) -> Vec<String> {
        std::mem::take(&mut self.hub.asked.lock().unwrap())
    }

    /// Puts an object as a user or another controller would.
    pub fn put(&self, path: &str, mut object: Value) {
        object["metadata"]["resourceVersion"] = self.api.next_version();
        self.api.objects.lock().unwrap().insert(path.to_owned(), object);
    }

    /// Changes an object as a user or another controller would.
    pub fn edit(&self, path: &str, edit: impl FnOnce(&mut Value)) {
        let version = self.api.next_version();
        let mut objects = self.api.objects.lock().unwrap();
        let object = objects.get_mut(path).unwrap();
        edit(object);
        object["metadata"]["resourceVersion"] = version;
    }

    /// Removes an object.
    pub fn remove(&self, path: &str) {
        self.api.objects.lock().unwrap().remove(path).unwrap();
    }

    /// An object as it is now.
    pub fn get(&self, path: &str) -> Option<Value> {
        self.api.objects.lock().unwrap().get(path).cloned()
    }

    /// The paths of the objects that are there, below one.
    pub fn paths(&self, below: &str) -> Vec<String> {
        self.api.objects.lock().unwrap().keys().filter(|path| path.starts_with(below)).cloned().collect()
    }

    /// The writes since the last call.
    pub fn writes(&self) -> Vec<String> {
        std::mem::take(&mut self.api.writes.lock().unwrap())
    }

    /// The reasons of the events since the last call.
    pub fn events(&self) -> Vec<String> {
        self.told().into_iter().map(|(reason, ..)| reason).collect()
    }

    /// Reason, note and number of times of the events since the last call; one that repeats is told where it was told first.
    pub fn told(&self) -> Vec<(String, String, i64)> {
        let told = std::mem::take(&mut *self.api.told.lock().unwrap());
        let text = |event: &Value, field: &str| event[field].as_str().unwrap_or_default().to_owned();
        let times = |event: &Value| event["series"]["count"].as_i64().unwrap_or(1);
        told.iter().map(|event| (text(event, "reason"), text(event, "note"), times(event))).collect()
    }

    /// Forgets every event, as an API server does after a while.
    pub fn events_are_forgotten(&self) {
        self.api.events.lock().unwrap().clear();
    }

    /// Refuses the next request that matches.
    pub fn fail_next(&self, part: &str, code: u16) {
        self.api.failures.lock().unwrap().push_back((part.to_owned(), code));
    }

    /// The operator ends at this one of its writes, counted from zero; `reaches`: whether the API server still does it.
    pub fn crashes_at(&self, write: usize, reaches: bool) {
        self.api.crash.lock().unwrap().at = Some((write, reaches));
    }

    /// How many writes there were, events among them.
    pub fn calls(&self) -> usize {
        self.api.crash.lock().unwrap().writes
    }

    /// Another operator takes over, who knows nothing but what is in the API server, if this one has ended. Returns whether it has.
    pub fn taken_over(&mut self) -> bool {
        let crashed = std::mem::take(&mut self.api.crash.lock().unwrap().down);
        if crashed {
            self.restarts();
        }
        crashed
    }

    /// The operator begins anew: it knows nothing but what is in the API server.
    pub fn restarts(&mut self) {
        let (stores, writers) = Stores::detached();
        self.writers = writers;
        self.context = Arc::new(Context::new(
            self.context.client.clone(),
            self.context.settings.clone(),
            stores,
            Metrics::default(),
            self.hub.clone(),
            reqwest::Client::new(),
        ));
    }

    /// Brings the stores up to date, as the watches would.
    pub fn sync(&mut self) {
        let objects = self.api.objects.lock().unwrap().clone();
        fill(&mut self.writers.model_deployments, &objects, "/modeldeployments/");
        fill(&mut self.writers.model_routes, &objects, "/modelroutes/");
        fill(&mut self.writers.deployments, &objects, "/deployments/");
        fill(&mut self.writers.services, &objects, "/services/");
        fill(&mut self.writers.config_maps, &objects, "/configmaps/");
        fill(&mut self.writers.service_accounts, &objects, "/serviceaccounts/");
        fill(&mut self.writers.pod_disruption_budgets, &objects, "/poddisruptionbudgets/");
        let (of_evaluations, others): (BTreeMap<_, _>, BTreeMap<_, _>) = objects
            .clone()
            .into_iter()
            .partition(|(_, object)| !object["metadata"]["labels"][EVALUATION_LABEL].is_null());
        fill(&mut self.writers.jobs, &others, "/jobs/");
        fill(&mut self.writers.pods, &others, "/pods/");
        fill(&mut self.writers.evaluations, &objects, "/evaluations/");
        fill(&mut self.writers.evaluation_jobs, &of_evaluations, "/jobs/");
        fill(&mut self.writers.evaluation_pods, &of_evaluations, "/pods/");
        fill(&mut self.writers.nodes, &objects, "/nodes/");
        fill(&mut self.writers.gateways, &objects, "/endpointslices/");
    }
}

fn fill<K>(writer: &mut Writer<K>, objects: &BTreeMap<String, Value>, part: &str)
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + 'static,
{
    writer.apply_watcher_event(&watcher::Event::Init);
    for object in objects.iter().filter(|(path, _)| path.contains(part)).map(|(_, object)| object) {
        writer
            .apply_watcher_event(&watcher::Event::InitApply(serde_json::from_value(object.clone()).unwrap()));
    }
    writer.apply_watcher_event(&watcher::Event::InitDone);
}

/// A model that was looked at, with nothing beside it.
pub fn inspected(model: Inspection) -> Inspected {
    Inspected { model, draft: None, resolved: BTreeMap::new() }
}

/// Settings as they are without any flag.
pub fn settings() -> Settings {
    let mut settings = Settings::parse_from(["fairlead-operator"]);
    settings.hf_endpoint = "http://hub.test".to_owned();
    settings.inference_image = "registry.test/fairlead-inference:1".to_owned();
    settings.rag_image = "registry.test/fairlead-rag:1".to_owned();
    settings
}

/// A ModelDeployment from YAML, as an API server would have it.
pub fn model_deployment(yaml: &str) -> ModelDeployment {
    let mut object: ModelDeployment = serde_saphyr::from_str(yaml).unwrap();
    object.metadata.namespace = Some("models".to_owned());
    object.metadata.uid = Some("the-uid".to_owned());
    object.metadata.generation = Some(1);
    object
}

/// A ModelRoute from YAML, as an API server would have it: `age` orders those of one test.
pub fn model_route(yaml: &str, age: u32) -> ModelRoute {
    let mut object: Value = serde_saphyr::from_str(yaml).unwrap();
    let metadata = &mut object["metadata"];
    if metadata.get("namespace").is_none() {
        metadata["namespace"] = json!("models");
    }
    metadata["uid"] = json!(format!("{}-{}", metadata["namespace"], metadata["name"]));
    metadata["generation"] = json!(1);
    metadata["creationTimestamp"] = json!(format!("2026-01-01T00:00:{:02}Z", 59 - age));
    serde_json::from_value(object).unwrap()
}

/// What is known of all-MiniLM-L6-v2.
pub fn encoder_inspection() -> Inspection {
    let config = json!({
        "architectures": ["BertModel"], "hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6,
        "num_attention_heads": 12, "vocab_size": 30522, "max_position_embeddings": 512, "pad_token_id": 0,
    });
    let config = config.to_string();
    let files = EncoderFiles { config: config.as_bytes(), ..EncoderFiles::default() };
    Inspection { config: ModelShape::parse(&files).unwrap(), ..inspection(22_565_376) }
}

/// What is known of a small Llama with this many parameters.
pub fn inspection(parameters: u64) -> Inspection {
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192,
        "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128_256,
        "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 500_000.0, "tie_word_embeddings": true,
        "torch_dtype": "bfloat16", "hidden_act": "silu",
    });
    Inspection {
        config: ModelConfig::parse(config.to_string().as_bytes()).unwrap().into(),
        weights: WeightsSummary { parameters, tensors: 146, stored_bytes: BTreeMap::new() },
        weight_files: 1,
        weight_file_bytes: parameters * 2,
        revision: Some("c0ffee".to_owned()),
        fingerprint: "f".to_owned(),
    }
}
