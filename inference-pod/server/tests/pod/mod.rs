//! A model's folder and a running `fairlead-inference`, for tests.
#![allow(dead_code)] // each test program uses its own share

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// No test waits longer than this for anything.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Makes a model's folder: the weights of a reference model, and a tokenizer that writes ASCII letter by letter.
pub fn make_model() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let reference = Path::new(env!("CARGO_MANIFEST_DIR")).join("../backend-torch/tests/reference/gqa_untied");
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(reference.join(file), dir.path().join(file)).unwrap();
    }
    let mut vocabulary = serde_json::Map::new();
    for (id, word) in ["<|begin|>", "<|end|>"].iter().enumerate() {
        vocabulary.insert((*word).to_owned(), json!(id));
    }
    // GPT-2's writing: a space is Ġ, a line break Ċ, and the other letters stand for themselves or for a byte above 127.
    let letters = ('!'..='~').chain(['Ġ', 'Ċ']).chain(('¡'..='¬').chain('®'..='ÿ'));
    for (index, letter) in letters.take(158).enumerate() {
        vocabulary.insert(letter.to_string(), json!(index + 2));
    }
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "special": true, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false})
    };
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "added_tokens": [special(0, "<|begin|>"), special(1, "<|end|>")],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<|begin|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<|begin|>": {"id": "<|begin|>", "ids": [0], "tokens": ["<|begin|>"]}}},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    });
    let config = json!({"bos_token": "<|begin|>", "eos_token": "<|end|>"});
    let template = "{{ bos_token }}{% for message in messages %}{% if message.role == 'tool' %}\
        {{ raise_exception('no tools') }}{% endif %}{{ message.role }}: {{ message.content }}\n{% endfor %}";
    std::fs::write(dir.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    std::fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    std::fs::write(dir.path().join("chat_template.jinja"), template).unwrap();
    dir
}

/// A running `fairlead-inference serve`; killed when dropped.
pub struct Pod {
    child: Child,
    pub url: String,
    /// Of the admin port, where it was asked for.
    pub admin: Option<String>,
    pub client: reqwest::Client,
    /// What it has logged since it listens.
    log: Arc<Mutex<Vec<String>>>,
    _model: Option<tempfile::TempDir>,
}

impl Drop for Pod {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn command(model: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fairlead-inference"));
    command
        .args([
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--device",
            "cpu",
            "--dtype",
            "f32",
            "--served-model-name",
            "tiny",
        ])
        .args(["--threads", "1", "--log-format", "json", "--model"])
        .arg(model)
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
}

impl Pod {
    /// Starts one and waits until it is ready.
    pub async fn start(arguments: &[&str]) -> Self {
        Self::start_with(make_model(), arguments, &[]).await
    }

    /// The same with a model of the test's own, and variables in its environment.
    pub async fn start_with(
        model: tempfile::TempDir,
        arguments: &[&str],
        environment: &[(&str, &str)],
    ) -> Self {
        let mut pod = Self::spawned(command(model.path(), arguments).envs(environment.iter().copied())).await;
        pod._model = Some(model);
        pod
    }

    /// The same with a model's folder that is there already.
    pub async fn serve(model: &Path, arguments: &[&str]) -> Self {
        Self::spawned(&mut command(model, arguments)).await
    }

    async fn spawned(command: &mut Command) -> Self {
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut admin = None;
        let url = loop {
            let line = lines.next().expect("it ended before it listened").unwrap();
            let fields =
                serde_json::from_str::<Value>(&line).map(|line| line["fields"].clone()).unwrap_or_default();
            if fields["message"] == "the admin API listens" {
                admin = Some(format!("http://{}", fields["address"].as_str().unwrap()));
            }
            if fields["message"] == "listening" {
                break format!("http://{}", fields["address"].as_str().unwrap());
            }
        };
        // The pipe must not fill.
        let log = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&log);
        std::thread::spawn(move || {
            lines.map_while(Result::ok).for_each(|line| kept.lock().unwrap().push(line));
        });
        let pod = Self { child, url, admin, client: reqwest::Client::new(), log, _model: None };
        pod.until("/readyz", |status, _| status == 200).await;
        pod
    }

    /// Asks until the answer is as wanted.
    pub async fn until(&self, path: &str, wanted: impl Fn(u16, &str) -> bool) {
        let begun = Instant::now();
        loop {
            let answer = self.client.get(format!("{}{path}", self.url)).send().await.unwrap();
            let (status, text) = (answer.status().as_u16(), answer.text().await.unwrap());
            if wanted(status, &text) {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "{path} still answers {status} {text}");
            tokio::task::yield_now().await;
        }
    }

    /// The line of the log with this message about the request of this name; waits for it.
    pub async fn logged(&self, request_id: &str, message: &str) -> Value {
        let begun = Instant::now();
        let is_wanted =
            |line: &Value| line["fields"]["request_id"] == request_id && line["fields"]["message"] == message;
        loop {
            let lines = self.log.lock().unwrap().clone();
            let mut lines = lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            if let Some(line) = lines.find(is_wanted) {
                return line;
            }
            assert!(begun.elapsed() < PATIENCE, "no line about {request_id}: {message}");
            tokio::task::yield_now().await;
        }
    }

    pub async fn get(&self, path: &str) -> Value {
        self.client.get(format!("{}{path}", self.url)).send().await.unwrap().json().await.unwrap()
    }

    pub fn post(&self, path: &str, body: &Value) -> reqwest::RequestBuilder {
        self.client.post(format!("{}{path}", self.url)).json(body)
    }

    pub async fn ask(&self, path: &str, body: Value) -> (u16, Value) {
        let answer = self.post(path, &body).send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    }

    /// The events of a stream, the last one's `[DONE]` checked and left out.
    pub async fn stream(&self, path: &str, body: Value) -> Vec<Value> {
        let answer = self.post(path, &body).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        assert!(answer.headers()["content-type"].to_str().unwrap().starts_with("text/event-stream"));
        events(&answer.text().await.unwrap())
    }

    pub fn terminate(&self) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    }

    pub fn wait(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }
}

/// Token counts of a request none of whose prompt was in the cache.
pub fn usage(prompt: u64, completion: u64) -> Value {
    cached_usage(prompt, completion, 0)
}

/// The same with so many tokens from the cache.
pub fn cached_usage(prompt: u64, completion: u64, cached: u64) -> Value {
    json!({"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached}})
}

/// Reads a whole stream.
pub fn events(text: &str) -> Vec<Value> {
    let mut data: Vec<&str> = text.split("\n\n").filter_map(|event| event.strip_prefix("data: ")).collect();
    assert_eq!(data.pop(), Some("[DONE]"));
    data.into_iter().map(|json| serde_json::from_str(json).unwrap()).collect()
}

/// Runs a pod that cannot start; returns its exit code and what it left in the termination log.
pub fn run_to_failure(model: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let log: PathBuf = model.join("termination-log");
    std::fs::write(&log, "").unwrap();
    let output = command(model, arguments).env("FAIRLEAD_TERMINATION_LOG", &log).output().unwrap();
    let reason = std::fs::read_to_string(&log).unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains(&reason), "stderr says it too");
    (output.status.code(), reason)
}
