//! One ModelRoute in memory, as the API server would serve it: get, list, watch and patches of the status.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use futures::StreamExt;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame};
use kube::Client;
use kube::client::Body;
use kubectl_fairlead::Session;
use serde_json::{Value, json};
use tokio::sync::{Notify, broadcast};

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;
type Operator = Box<dyn Fn(&mut Value) + Send + Sync>;

/// A patch that was made.
#[derive(Clone, Debug)]
pub struct Patch {
    pub path: String,
    pub query: String,
    pub content_type: String,
    pub body: Value,
}

struct State {
    object: Mutex<Option<Value>>,
    events: broadcast::Sender<String>,
    patches: Mutex<Vec<Patch>>,
    watched: Notify,
    operator: Mutex<Option<Operator>>,
    refusal: Mutex<Option<(Method, Value)>>,
}

#[derive(Clone)]
pub struct ApiServer(Arc<State>);

/// What an API server says to who may not.
pub fn denied(verb: &str, resource: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Forbidden", "code": 403,
        "message": format!("{resource} is forbidden: User \"eve\" cannot {verb} resource")})
}

impl ApiServer {
    pub fn with(object: Value) -> Self {
        Self(Arc::new(State {
            object: Mutex::new(Some(object)),
            events: broadcast::channel(64).0,
            patches: Mutex::default(),
            watched: Notify::new(),
            operator: Mutex::default(),
            refusal: Mutex::default(),
        }))
    }

    /// Does this to the object after every patch.
    pub fn operator(self, operator: impl Fn(&mut Value) + Send + Sync + 'static) -> Self {
        *self.0.operator.lock().unwrap() = Some(Box::new(operator));
        self
    }

    /// Answers a method with a refusal.
    pub fn refusing(self, method: &str, status: Value) -> Self {
        *self.0.refusal.lock().unwrap() = Some((method.parse().unwrap(), status));
        self
    }

    pub fn session(&self) -> Session {
        let server = self.clone();
        let service = tower::service_fn(move |request| {
            let server = server.clone();
            async move { Ok::<_, Infallible>(server.answer(request).await) }
        });
        Session {
            client: Client::new(service, "shop"),
            namespace: "shop".to_owned(),
            system_namespace: "fairlead-system".to_owned(),
            server: "https://api".to_owned(),
        }
    }

    pub fn patches(&self) -> Vec<Patch> {
        self.0.patches.lock().unwrap().clone()
    }

    /// Returns when a watch has begun.
    pub async fn watched(&self) {
        self.0.watched.notified().await;
    }

    /// Changes the object; watches see it.
    pub fn change(&self, change: impl FnOnce(&mut Value)) {
        let mut object = self.0.object.lock().unwrap();
        let object = object.as_mut().expect("an object");
        change(object);
        self.tell("MODIFIED", object);
    }

    pub fn delete(&self) {
        let object = self.0.object.lock().unwrap().take().expect("an object");
        self.tell("DELETED", &object);
    }

    fn tell(&self, kind: &str, object: &Value) {
        // Without a watch nobody listens.
        let _ = self.0.events.send(format!("{}\n", json!({"type": kind, "object": versioned(object)})));
    }

    async fn answer(&self, request: Request<Body>) -> Answer {
        let (head, body) = request.into_parts();
        let refusal = self.0.refusal.lock().unwrap().clone().filter(|(method, _)| *method == head.method);
        if let Some((_, status)) = refusal {
            return whole(StatusCode::FORBIDDEN, &status);
        }
        let query = head.uri.query().unwrap_or_default();
        if head.method == Method::PATCH {
            let body = body.collect().await.unwrap().to_bytes();
            let body: Value = serde_json::from_slice(&body).unwrap();
            self.0.patches.lock().unwrap().push(Patch {
                path: head.uri.path().to_owned(),
                query: query.to_owned(),
                content_type: head.headers["content-type"].to_str().unwrap().to_owned(),
                body: body.clone(),
            });
            self.change(|object| {
                object["status"]["request"] = body["status"]["request"].clone();
                if let Some(operator) = self.0.operator.lock().unwrap().as_ref() {
                    operator(object);
                }
            });
        }
        if query.contains("watch=true") {
            return self.watch();
        }
        let object = self.0.object.lock().unwrap().clone().map(|object| versioned(&object));
        if head.uri.path().ends_with("/modelroutes") {
            let items: Vec<Value> = object.into_iter().collect();
            return whole(
                StatusCode::OK,
                &json!({"apiVersion": "fairlead.dev/v1alpha1", "kind": "ModelRouteList", "metadata": {"resourceVersion": "1"}, "items": items}),
            );
        }
        match object {
            Some(object) => whole(StatusCode::OK, &object),
            None => whole(
                StatusCode::NOT_FOUND,
                &json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404, "message": "not found"}),
            ),
        }
    }

    /// As a watch begins: what happened since the list is in it, too.
    fn watch(&self) -> Answer {
        let events = self.0.events.subscribe();
        let now = self.0.object.lock().unwrap().clone();
        let first =
            now.map(|object| format!("{}\n", json!({"type": "MODIFIED", "object": versioned(&object)})));
        let later =
            futures::stream::unfold(
                events,
                |mut events| async move { Some((events.recv().await.ok()?, events)) },
            );
        let frames = futures::stream::iter(first).chain(later).map(|line| Ok(Frame::data(Bytes::from(line))));
        self.0.watched.notify_one();
        Response::new(StreamBody::new(frames).boxed_unsync())
    }
}

fn versioned(object: &Value) -> Value {
    let mut object = object.clone();
    object["metadata"]["resourceVersion"] = json!("2");
    object
}

fn whole(status: StatusCode, body: &Value) -> Answer {
    let mut response = Response::new(Full::new(Bytes::from(body.to_string())).boxed_unsync());
    *response.status_mut() = status;
    response
}
