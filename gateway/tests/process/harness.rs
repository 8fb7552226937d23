//! Starts the gateway's binary and talks to it.

use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

/// No condition takes longer than this, however busy the machine is.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Waits for a future, but not for ever.
pub async fn within<F: Future>(what: &str, future: F) -> F::Output {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(output) => output,
        Err(_) => panic!("timed out: {what}"),
    }
}

/// Waits until a condition holds.
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    within(what, async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

/// A running gateway; killed when dropped.
pub struct Gateway {
    pub child: Child,
    pub dir: tempfile::TempDir,
    pub client: reqwest::Client,
    api: String,
    admin: String,
    log: Arc<Mutex<Vec<String>>>,
}

impl Gateway {
    /// Serves manifests: one file, `routes.yaml`.
    pub async fn start(manifests: &str, args: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        std::fs::write(dir.path().join("routes.yaml"), manifests).expect("written");
        let mut command = Self::command(args);
        command.arg("--manifests").arg(dir.path());
        Self::spawn(command, dir).await
    }

    /// Serves what a Kubernetes API has.
    pub async fn start_in_cluster(kubeconfig: &Path, args: &[&str]) -> Self {
        let mut command = Self::command(args);
        command.env("KUBECONFIG", kubeconfig);
        Self::spawn(command, tempfile::tempdir().expect("a folder")).await
    }

    pub fn command(args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fairlead-gateway"));
        command
            .args(["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--log", "debug"])
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    async fn spawn(mut command: Command, dir: tempfile::TempDir) -> Self {
        let mut child = command.spawn().expect("the gateway starts");
        let mut lines = BufReader::new(child.stdout.take().expect("stdout")).lines();
        let log = Arc::new(Mutex::new(Vec::new()));
        let (api, admin) = within("the gateway listens", async {
            loop {
                let line = lines.next_line().await.expect("a log").expect("the gateway goes on");
                let event: Value = serde_json::from_str(&line).expect("logs are JSON");
                if event["message"] == "listening" {
                    let url = |field: &str| format!("http://{}", event[field].as_str().expect(field));
                    return (url("api"), url("admin"));
                }
            }
        })
        .await;
        let kept = Arc::clone(&log);
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                kept.lock().expect("log").push(line);
            }
        });
        let client = reqwest::Client::builder().no_proxy().build().expect("a client");
        Self { child, dir, client, api, admin, log }
    }

    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.api)
    }

    /// The URL of an admin path.
    pub fn admin_url(&self, path: &str) -> String {
        format!("{}{path}", self.admin)
    }

    /// A chat request's body.
    pub fn chat_body(model: &str, stream: bool) -> Value {
        json!({"model": model, "messages": [{"role": "user", "content": "a secret prompt"}], "stream": stream})
    }

    pub fn post(&self, path: &str, body: impl Into<reqwest::Body>) -> reqwest::RequestBuilder {
        self.client.post(self.url(path)).header("content-type", "application/json").body(body)
    }

    pub async fn chat(&self, model: &str, stream: bool) -> reqwest::Response {
        let request = self.post("/v1/chat/completions", Self::chat_body(model, stream).to_string());
        within("an answer", request.send()).await.expect("an answer")
    }

    pub async fn get(&self, path: &str) -> (u16, Value) {
        let response = within(path, self.client.get(self.url(path)).send()).await.expect(path);
        (response.status().as_u16(), response.json().await.expect("JSON"))
    }

    /// Status and text of an admin path; 0 once the listener is gone.
    pub async fn admin(&self, path: &str) -> (u16, String) {
        match within(path, self.client.get(format!("{}{path}", self.admin)).send()).await {
            Ok(response) => (response.status().as_u16(), response.text().await.unwrap_or_default()),
            Err(error) => (0, error.to_string()),
        }
    }

    /// A metric's value, summed over the label sets that contain `labels`.
    pub async fn metric(&self, name: &str, labels: &str) -> f64 {
        let (_, text) = self.admin("/metrics").await;
        text.lines()
            .filter(|line| line.starts_with(name) && line.contains(labels))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    pub fn log(&self) -> String {
        self.log.lock().expect("log").join("\n")
    }

    pub fn edit(&self, manifests: &str) {
        std::fs::write(self.dir.path().join("routes.yaml"), manifests).expect("written");
    }

    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = i32::try_from(self.child.id().expect("a pid")).expect("a pid");
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).expect("signalled");
    }
}

/// A ModelRoute whose backends are `(name, weight, endpoints)`.
pub fn route(name: &str, backends: &[(&str, u32, &[&str])]) -> String {
    let backends: Vec<Value> = backends
        .iter()
        .map(|(name, weight, endpoints)| json!({"name": name, "weight": weight, "endpoints": endpoints}))
        .collect();
    route_of(name, &json!({"backends": backends}))
}

/// A ModelRoute with this spec.
pub fn route_of(name: &str, spec: &Value) -> String {
    let route = json!({"apiVersion": "fairlead.dev/v1alpha1", "kind": "ModelRoute",
        "metadata": {"name": name, "namespace": "ns"}, "spec": spec});
    // JSON is YAML.
    format!("---\n{route}\n")
}

/// The error object of an answer in OpenAI's shape.
pub async fn error_of(response: reqwest::Response) -> Value {
    let body: Value = response.json().await.expect("JSON");
    let error = body["error"].clone();
    for field in ["message", "type", "param", "code"] {
        assert!(error.get(field).is_some(), "{field} is missing in {body}");
    }
    error
}

pub fn header<'a>(response: &'a reqwest::Response, name: &str) -> &'a str {
    response.headers().get(name).map_or("", |value| value.to_str().expect("text"))
}
