//! An OpenAI-compatible server that answers as it is told, and that takes patches of ConfigMaps as an API server would.

use std::collections::{BTreeMap, VecDeque};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::{patch, post};
use serde_json::{Value, json};
use tokio::sync::watch;

/// What one request gets.
#[derive(Clone, Copy)]
pub enum Turn {
    Answer(&'static str),
    Status(u16),
    /// The connection ends within the answer.
    BreakOff,
}

struct Inner {
    /// By a part of the last message; the last turn is repeated.
    turns: Mutex<BTreeMap<String, VecDeque<Turn>>>,
    asked: Mutex<Vec<Value>>,
    keys: Mutex<Vec<String>>,
    patched: Mutex<Vec<(String, Value)>>,
    /// Requests that are here now, and the most that were.
    here: watch::Sender<(usize, usize)>,
    /// So many must have been here before one is answered.
    gate: Mutex<usize>,
}

pub struct Server {
    pub url: String,
    inner: Arc<Inner>,
}

impl Server {
    pub fn start() -> Self {
        let inner = Arc::new(Inner {
            turns: Mutex::default(),
            asked: Mutex::default(),
            keys: Mutex::default(),
            patched: Mutex::default(),
            here: watch::channel((0, 0)).0,
            gate: Mutex::new(0),
        });
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new()
            .route("/v1/chat/completions", post(chat))
            .route("/api/v1/namespaces/models/configmaps/{name}", patch(config_map))
            .with_state(Arc::clone(&inner));
        // Ends with the test's process.
        std::thread::spawn(move || {
            tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
                axum::serve(tokio::net::TcpListener::from_std(listener).unwrap(), router).await.unwrap();
            });
        });
        Self { url, inner }
    }

    /// What questions with `part` in them get, one turn after another; the last is repeated.
    pub fn says(&self, part: &str, turns: &[Turn]) {
        self.inner.turns.lock().unwrap().insert(part.to_owned(), turns.iter().copied().collect());
    }

    pub fn waits_for(&self, requests: usize) {
        *self.inner.gate.lock().unwrap() = requests;
    }

    pub fn asked(&self) -> Vec<Value> {
        self.inner.asked.lock().unwrap().clone()
    }

    pub fn keys(&self) -> Vec<String> {
        self.inner.keys.lock().unwrap().clone()
    }

    pub fn patched(&self) -> Vec<(String, Value)> {
        self.inner.patched.lock().unwrap().clone()
    }

    pub fn most_at_once(&self) -> usize {
        self.inner.here.borrow().1
    }
}

async fn chat(State(inner): State<Arc<Inner>>, headers: HeaderMap, body: String) -> Response {
    let gate = *inner.gate.lock().unwrap();
    inner.here.send_modify(|(here, most)| {
        *here += 1;
        *most = (*most).max(*here);
    });
    let mut here = inner.here.subscribe();
    here.wait_for(|(_, most)| *most >= gate).await.unwrap();
    let answer = answer(&inner, &headers, &body);
    inner.here.send_modify(|(here, _)| *here -= 1);
    answer
}

fn answer(inner: &Inner, headers: &HeaderMap, body: &str) -> Response {
    let body: Value = serde_json::from_str(body).unwrap();
    let last = body["messages"].as_array().unwrap().last().unwrap()["content"].as_str().unwrap().to_owned();
    inner.asked.lock().unwrap().push(body);
    if let Some(key) = headers.get("authorization") {
        inner.keys.lock().unwrap().push(key.to_str().unwrap().to_owned());
    }
    let mut turns = inner.turns.lock().unwrap();
    let turn = turns
        .iter_mut()
        .find(|(part, _)| last.contains(part.as_str()))
        .map(|(_, turns)| if turns.len() > 1 { turns.pop_front().unwrap() } else { turns[0] });
    match turn.unwrap_or(Turn::Status(503)) {
        Turn::Answer(text) => {
            let answer = json!({"choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 9, "completion_tokens": 5}});
            ([("x-fairlead-revision", "rev-1")], answer.to_string()).into_response()
        }
        Turn::Status(status) => {
            let error = json!({"error": {"message": "as I was told"}}).to_string();
            (StatusCode::from_u16(status).unwrap(), [("retry-after", "0")], error).into_response()
        }
        Turn::BreakOff => {
            let parts = [Ok("{\"choices\": ["), Err(std::io::Error::other("cut"))];
            Body::from_stream(futures::stream::iter(parts)).into_response()
        }
    }
}

async fn config_map(State(inner): State<Arc<Inner>>, uri: Uri, body: String) -> Response {
    if uri.path().ends_with("/refused") {
        let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "may not", "reason": "Forbidden", "code": 403});
        return (StatusCode::FORBIDDEN, status.to_string()).into_response();
    }
    let body: Value = serde_json::from_str(&body).unwrap();
    inner.patched.lock().unwrap().push((uri.to_string(), body.clone()));
    axum::Json(body).into_response()
}
