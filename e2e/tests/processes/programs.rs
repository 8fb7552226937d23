//! Starts the two programs by their documented commands, and talks to them.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use reqwest::Response;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};

use crate::model;

/// The public model name: what clients send, and the name of the route.
pub const MODEL: &str = "support-chat";
/// The name that pods serve the model by.
pub const SERVED: &str = "tiny-v1";
pub const CHAT: &str = "/v1/chat/completions";

/// No condition takes longer than this, however busy the machine is.
const DEADLINE: Duration = Duration::from_secs(90);

/// Waits for a future, but not for ever.
pub async fn within<F: Future>(what: &str, future: F) -> F::Output {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(output) => output,
        Err(_) => panic!("not within {DEADLINE:?}: {what}"),
    }
}

/// Waits until a condition holds.
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let looking = async {
        while !condition().await {
            // How often to look; the condition is what is waited for.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    within(what, looking).await;
}

/// A running program; killed when dropped.
pub struct Program {
    child: Child,
    log: Arc<Mutex<Vec<Value>>>,
}

impl Program {
    fn start(name: &str, arguments: &[&str]) -> Self {
        let mut child = Command::new(binary(name))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("{name} does not start: {error}"));
        let log = Arc::new(Mutex::new(Vec::new()));
        keep(child.stdout.take().expect("stdout"), Arc::clone(&log));
        keep(child.stderr.take().expect("stderr"), Arc::clone(&log));
        Self { child, log }
    }

    /// The first log line with this message.
    async fn logged(&mut self, message: &str) -> Value {
        let log = Arc::clone(&self.log);
        let found = || log.lock().expect("log").iter().find(|line| line["message"] == message).cloned();
        let waiting = async {
            loop {
                if let Some(line) = found() {
                    return line;
                }
                if let Some(status) = self.child.try_wait().expect("a status") {
                    panic!("it ended ({status}) before {message:?}: {:?}", log.lock().expect("log"));
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        within(message, waiting).await
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.child.id().expect("it runs")
    }

    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.id()).expect("a pid");
        nix::sys::signal::kill(Pid::from_raw(pid), signal).expect("signalled");
    }

    pub async fn ended(&mut self) -> ExitStatus {
        within("the process ends", self.child.wait()).await.expect("a status")
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("a status").is_none()
    }
}

/// Reads a log to its end, so that the pipe never fills. What is not JSON is kept as a string.
fn keep(output: impl AsyncRead + Unpin + Send + 'static, log: Arc<Mutex<Vec<Value>>>) {
    tokio::spawn(async move {
        let mut lines = BufReader::new(output).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            let mut parsed = serde_json::from_str(&line).unwrap_or(Value::String(line));
            if parsed["fields"].is_object() {
                parsed = parsed["fields"].take();
            }
            log.lock().expect("log").push(parsed);
        }
    });
}

/// A program of this checkout, built in the profile that this test was built in.
pub fn binary(name: &str) -> PathBuf {
    let profile = if cfg!(debug_assertions) { "debug" } else { "release" };
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"), PathBuf::from);
    let path = target.join(profile).join(name);
    assert!(path.is_file(), "{} is missing; run: cargo build --workspace --bins", path.display());
    path
}

fn client() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().build().expect("a client")
}

/// A running `fairlead-inference serve`.
pub struct Pod {
    pub program: Program,
    pub url: String,
    client: reqwest::Client,
    _model: Option<tempfile::TempDir>,
}

impl Pod {
    /// Starts one and waits until it is ready.
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// The same with further arguments.
    pub async fn start_with(arguments: &[&str]) -> Self {
        let model = model::make();
        let mut pod = Self::serve(model.path(), arguments).await;
        pod._model = Some(model);
        pod
    }

    /// Starts one with a tiny encoder, which is there already.
    pub async fn start_encoder(name: &str, task: &str) -> Self {
        let encoders =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../inference-pod/backend-torch/tests/encoders");
        Self::serve(&encoders.join(name), &["--task", task]).await
    }

    /// Starts one with the model in a folder.
    pub async fn start_model(model: &Path, arguments: &[&str]) -> Self {
        Self::serve(model, arguments).await
    }

    /// Posts JSON and returns the answer, which must be a success.
    pub async fn post(&self, path: &str, body: &Value) -> Value {
        let answer =
            self.client.post(format!("{}{path}", self.url)).json(body).send().await.expect("an answer");
        let (status, text) = (answer.status(), answer.text().await.expect("a body"));
        assert_eq!(status, 200, "{text}");
        serde_json::from_str(&text).expect("JSON")
    }

    async fn serve(model: &Path, arguments: &[&str]) -> Self {
        let dir = model.to_str().expect("UTF-8");
        let mut all = vec!["serve", "--model", dir, "--listen", "127.0.0.1:0", "--served-model-name", SERVED];
        all.extend(["--device", "cpu", "--dtype", "f32", "--threads", "1", "--log-format", "json"]);
        all.extend(arguments);
        let mut program = Program::start("fairlead-inference", &all);
        let ready = program.logged("ready").await;
        let url = format!("http://{}", ready["address"].as_str().expect("an address"));
        Self { program, url, client: client(), _model: None }
    }

    /// A metric's value; `None` where nobody answers.
    pub async fn metric(&self, name: &str) -> Option<f64> {
        let answer = self.client.get(format!("{}/metrics", self.url)).send().await.ok()?;
        let text = answer.text().await.ok()?;
        let line =
            text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name}: {text}"));
        line.rsplit(' ').next()?.parse().ok()
    }

    /// Waits until so many requests run on its engine.
    pub async fn until_running(&self, wanted: impl Fn(f64) -> bool) {
        let what = "the engine has as many requests as expected";
        eventually(what, || async { self.metric("vllm:num_requests_running").await.is_some_and(&wanted) })
            .await;
    }

    pub async fn readiness(&self) -> (u16, Value) {
        let answer = self.client.get(format!("{}/readyz", self.url)).send().await.expect("an answer");
        (answer.status().as_u16(), answer.json().await.expect("JSON"))
    }
}

/// A running `fairlead-gateway serve --manifests`.
#[derive(Clone)]
pub struct Gateway {
    program: Arc<Mutex<Program>>,
    dir: Arc<tempfile::TempDir>,
    api: String,
    admin: String,
    client: reqwest::Client,
}

impl Gateway {
    /// Serves one route: backends as (name, weight, pod).
    pub async fn start(backends: &[(&str, u32, &Pod)]) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        write_route(dir.path(), backends);
        Self::serve(dir).await
    }

    /// The same with several addresses for each backend.
    pub async fn start_with(backends: &[(&str, u32, &[&str])]) -> Self {
        let backends = backends.iter().map(|(name, weight, endpoints)| {
            json!({"name": name, "weight": weight, "modelDeployment": SERVED, "endpoints": endpoints})
        });
        Self::start_route(&json!({"backends": backends.collect::<Vec<_>>()})).await
    }

    /// Serves one route with this spec.
    pub async fn start_route(spec: &Value) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        write_spec(dir.path(), spec);
        Self::serve(dir).await
    }

    async fn serve(dir: tempfile::TempDir) -> Self {
        let manifests = dir.path().to_str().expect("UTF-8");
        let mut program = Program::start(
            "fairlead-gateway",
            &["serve", "--manifests", manifests, "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"],
        );
        let listening = program.logged("listening").await;
        let url = |field: &str| format!("http://{}", listening[field].as_str().expect(field));
        let (api, admin) = (url("api"), url("admin"));
        Self { program: Arc::new(Mutex::new(program)), dir: Arc::new(dir), api, admin, client: client() }
    }

    /// Edits the manifest while the gateway runs.
    pub fn edit(&self, backends: &[(&str, u32, &Pod)]) {
        write_route(self.dir.path(), backends);
    }

    /// Where its API is.
    pub fn url(&self) -> &str {
        &self.api
    }

    pub fn is_running(&self) -> bool {
        self.program.lock().expect("a program").is_running()
    }

    pub async fn post(&self, path: &str, body: impl Into<reqwest::Body>) -> Response {
        let request =
            self.client.post(format!("{}{path}", self.api)).header("content-type", "application/json");
        within("an answer", request.body(body).send()).await.expect("an answer")
    }

    pub async fn chat(&self, extra: Value) -> Response {
        self.post(CHAT, chat(extra).to_string()).await
    }

    pub async fn get(&self, path: &str) -> Value {
        let request = self.client.get(format!("{}{path}", self.api)).send();
        within(path, request).await.expect("an answer").json().await.expect("JSON")
    }

    /// A metric's value, summed over its labels.
    pub async fn metric(&self, name: &str) -> f64 {
        let answer = self.client.get(format!("{}/metrics", self.admin)).send().await.expect("an answer");
        let text = answer.text().await.expect("text");
        let lines = text.lines().filter(|line| line.starts_with(name));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }
}

fn write_route(dir: &Path, backends: &[(&str, u32, &Pod)]) {
    let backends: Vec<Value> = backends
        .iter()
        .map(|(name, weight, pod)| {
            json!({"name": name, "weight": weight, "modelDeployment": SERVED, "endpoints": [pod.url]})
        })
        .collect();
    write_spec(dir, &json!({"backends": backends}));
}

fn write_spec(dir: &Path, spec: &Value) {
    let route = json!({"apiVersion": "fairlead.dev/v1alpha1", "kind": "ModelRoute",
        "metadata": {"name": MODEL, "namespace": "default"}, "spec": spec});
    // JSON is YAML.
    std::fs::write(dir.join("route.yaml"), route.to_string()).expect("written");
}

/// A greedy chat of exactly 20 tokens, unless `extra` says otherwise.
pub fn chat(extra: Value) -> Value {
    let mut body = json!({"model": MODEL, "messages": [{"role": "user", "content": "What is a fairlead?"}],
        "temperature": 0, "max_tokens": 20, "ignore_eos": true});
    let fields = extra.as_object().expect("an object").clone();
    body.as_object_mut().expect("an object").extend(fields);
    body
}

pub fn header<'a>(answer: &'a Response, name: &str) -> &'a str {
    answer.headers().get(name).map_or("", |value| value.to_str().expect("text"))
}

/// The rest of a stream: its events, of which the last must be `[DONE]`, which is left out.
pub async fn events(mut received: Vec<u8>, mut answer: Response) -> Vec<Value> {
    while let Some(chunk) = within("the stream goes on", answer.chunk()).await.expect("an unbroken stream") {
        received.extend_from_slice(&chunk);
    }
    let text = String::from_utf8(received).expect("UTF-8");
    let mut data: Vec<&str> =
        text.split_terminator("\n\n").map(|event| event.strip_prefix("data: ").expect("an event")).collect();
    assert_eq!(data.pop(), Some("[DONE]"));
    data.into_iter().map(|json| serde_json::from_str(json).expect("JSON")).collect()
}

/// The text of a stream's events.
pub fn text_of(events: &[Value]) -> String {
    events.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str()).collect()
}
