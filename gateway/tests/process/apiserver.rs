//! As much of a Kubernetes API server as a watch needs: lists, watches, and outages.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};

type Objects = HashMap<(String, String), Value>;

#[derive(Default)]
struct State {
    version: u64,
    /// By plural, then by namespace and name.
    objects: HashMap<String, Objects>,
    watches: Vec<(String, mpsc::Sender<Value>)>,
    requests: Vec<String>,
    /// Plural and Accept header of each request.
    accepted: Vec<(String, String)>,
    /// Plurals that are answered with 403.
    forbidden: Vec<String>,
}

/// A stand-in for the API server.
pub struct ApiServer {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    task: JoinHandle<()>,
    dir: tempfile::TempDir,
}

impl ApiServer {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let state = Arc::new(Mutex::new(State::default()));
        let task = tokio::spawn(serve(listener, Arc::clone(&state)));
        let dir = tempfile::tempdir().expect("a folder");
        let config = json!({"apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": format!("http://{address}")}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}], "users": [{"name": "u", "user": {}}]});
        std::fs::write(dir.path().join("kubeconfig"), config.to_string()).expect("written");
        Self { address, state, task, dir }
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.path().join("kubeconfig")
    }

    /// What was asked for: paths with queries.
    pub fn requests(&self) -> Vec<String> {
        self.state.lock().expect("state").requests.clone()
    }

    /// What forms of a kind's objects were asked for.
    pub fn accepted(&self, plural: &str) -> Vec<String> {
        let state = self.state.lock().expect("state");
        state.accepted.iter().filter(|(of, _)| of == plural).map(|(_, accept)| accept.clone()).collect()
    }

    pub fn forbid(&self, plural: &str) {
        self.state.lock().expect("state").forbidden.push(plural.to_owned());
    }

    pub fn allow_all(&self) {
        self.state.lock().expect("state").forbidden.clear();
    }

    /// Creates or replaces an object and tells the watches.
    pub fn apply(&self, plural: &str, object: Value) {
        self.change(plural, object, true);
    }

    pub fn delete(&self, plural: &str, object: Value) {
        self.change(plural, object, false);
    }

    fn change(&self, plural: &str, mut object: Value, present: bool) {
        let mut state = self.state.lock().expect("state");
        state.version += 1;
        object["metadata"]["resourceVersion"] = json!(state.version.to_string());
        let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
        let key = (text("namespace"), text("name"));
        let objects = state.objects.entry(plural.to_owned()).or_default();
        let known = objects.contains_key(&key);
        let kind = match (present, known) {
            (false, _) => "DELETED",
            (true, true) => "MODIFIED",
            (true, false) => "ADDED",
        };
        if present {
            objects.insert(key, object.clone());
        } else {
            objects.remove(&key);
        }
        let event = json!({"type": kind, "object": object});
        state.watches.retain(|(of, watch)| of != plural || watch.try_send(event.clone()).is_ok());
    }

    /// Goes away: connections break and nobody listens.
    pub async fn stop(&mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
        self.state.lock().expect("state").watches.clear();
    }

    /// Comes back at the same address.
    pub fn restart(&mut self) {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_reuseaddr(true).expect("set");
        socket.bind(self.address).expect("bound");
        self.task = tokio::spawn(serve(socket.listen(64).expect("listens"), Arc::clone(&self.state)));
    }
}

async fn serve(listener: TcpListener, state: Arc<Mutex<State>>) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.expect("accepted");
        let state = Arc::clone(&state);
        connections.spawn(async move {
            let service = service_fn(move |request| {
                let response = answer(&request, &state);
                async move { Ok::<_, Infallible>(response) }
            });
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

fn answer(request: &Request<Incoming>, state: &Mutex<State>) -> Response<BoxBody<Bytes, Infallible>> {
    let mut state = state.lock().expect("state");
    state.requests.push(request.uri().to_string());
    let path = request.uri().path();
    let plural = path.rsplit('/').next().unwrap_or_default().to_owned();
    let accept = request.headers().get("accept").map_or("", |accept| accept.to_str().expect("text"));
    state.accepted.push((plural.clone(), accept.to_owned()));
    let whole = |status: u16, body: Value| {
        let body = Full::new(Bytes::from(body.to_string())).boxed();
        Response::builder()
            .status(status)
            .header("content-type", "application/json")
            .body(body)
            .expect("valid")
    };
    if state.forbidden.contains(&plural) {
        let message = format!("{plural} is forbidden: User cannot list resource");
        return whole(
            403,
            json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message,
            "reason": "Forbidden", "code": 403, "metadata": {}}),
        );
    }
    if let Some((before, name)) = path.rsplit_once('/')
        && let Some((kind @ ("secrets" | "configmaps"), namespace)) =
            before.rsplit_once('/').map(|(rest, plural)| (plural, rest))
    {
        let key = (namespace.rsplit('/').next().unwrap_or_default().to_owned(), name.to_owned());
        return match state.objects.get(kind).and_then(|objects| objects.get(&key)) {
            Some(object) => whole(200, object.clone()),
            None => whole(
                404,
                json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "not found",
                    "reason": "NotFound", "code": 404, "metadata": {}}),
            ),
        };
    }
    if request.uri().query().unwrap_or_default().contains("watch=true") {
        let (sender, receiver) = mpsc::channel(1024);
        state.watches.push((plural, sender));
        let lines = futures::stream::unfold(receiver, |mut receiver: mpsc::Receiver<Value>| async move {
            let event = receiver.recv().await?;
            Some((Ok(Frame::data(Bytes::from(format!("{event}\n")))), receiver))
        });
        let body = BodyExt::boxed(StreamBody::new(lines));
        return Response::builder().header("content-type", "application/json").body(body).expect("valid");
    }
    let items: Vec<Value> =
        state.objects.get(&plural).map(|objects| objects.values().cloned().collect()).unwrap_or_default();
    let version = state.version.to_string();
    whole(
        200,
        json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": version}, "items": items}),
    )
}
