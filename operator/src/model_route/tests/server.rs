//! Gateways and others that answer over HTTP, for tests.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::testing::Cluster;

/// What a server answers: a status and a body, for every path.
type Answer = Arc<Mutex<(u16, Value)>>;

/// Something that answers over HTTP and notes what it was asked.
pub struct Server {
    pub port: u16,
    answer: Answer,
    asked: Arc<Mutex<Vec<String>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    pub async fn start() -> Self {
        let answer: Answer = Arc::new(Mutex::new((200, Value::Null)));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = (Arc::clone(&answer), Arc::clone(&asked));
        let app = Router::new().fallback(respond).with_state(state);
        let task = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { port, answer, asked, task }
    }

    pub fn answers(&self, status: u16, body: Value) {
        *self.answer.lock().unwrap() = (status, body);
    }

    pub fn was_asked(&self) -> Vec<String> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

async fn respond(State((answer, asked)): State<(Answer, Arc<Mutex<Vec<String>>>)>, uri: Uri) -> Response {
    asked.lock().unwrap().push(uri.to_string());
    let (status, body) = answer.lock().unwrap().clone();
    (StatusCode::from_u16(status).unwrap(), axum::Json(body)).into_response()
}

/// Makes these the gateways of a cluster, `gateway-0` and so on.
pub fn are_gateways(cluster: &Cluster, servers: &[Server]) {
    for (index, server) in servers.iter().enumerate() {
        cluster.put(
            &format!("/apis/discovery.k8s.io/v1/namespaces/fairlead-system/endpointslices/{index}"),
            json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
                "metadata": {"name": index.to_string(), "namespace": "fairlead-system"},
                "ports": [{"name": "admin", "port": server.port}],
                "endpoints": [{"addresses": ["127.0.0.1"], "conditions": {"ready": true, "serving": true},
                    "targetRef": {"kind": "Pod", "name": format!("gateway-{index}")}}]}),
        );
    }
}
