//! The hub's HTTP server.
//!
//! `/api/models/{org}/{name}[/revision/{revision}]` and `…/tree/{revision}` list a revision, `/{org}/{name}/resolve/{revision}/{file}` serves a file,
//! `/_hub/requests` (GET, DELETE) is the request log, `/_hub/faults` (POST one, DELETE all) the faults,
//! `/healthz` says that it lives.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Context;
use axum::Router;
use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use axum::http::request::Parts;
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use futures::stream::{Stream, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::faults::{Fault, FaultKind, Faults};
use crate::file_answer::serve_file;
use crate::log::{RequestLog, RequestRecord};
use crate::repository::{Missing, Repositories, RepositoryFile, Revision};

/// How a hub runs.
#[derive(Clone, Debug)]
pub struct HubOptions {
    /// Folder with `org/name/` folders.
    pub root: PathBuf,
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Bearer token that every request must carry.
    pub token: Option<String>,
    /// Serve weights from a second port, to which requests are redirected, as large hubs do.
    pub redirect_weights: bool,
    /// List names only, as some mirrors do: no sizes, no hashes.
    pub plain_lists: bool,
}

impl HubOptions {
    /// A hub on a free loopback port, open to all.
    #[must_use]
    pub fn local(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            token: None,
            redirect_weights: false,
            plain_lists: false,
        }
    }
}

/// A running hub; it stops when dropped.
pub struct TestHub {
    address: SocketAddr,
    log: RequestLog,
    faults: Faults,
    servers: Vec<JoinHandle<std::io::Result<()>>>,
}

struct Hub {
    repositories: Repositories,
    token: Option<String>,
    content_host: Option<SocketAddr>,
    plain_lists: bool,
    log: RequestLog,
    faults: Faults,
}

impl TestHub {
    /// Starts a hub.
    ///
    /// # Errors
    /// When the root is no folder or the address is taken.
    pub async fn start(options: HubOptions) -> anyhow::Result<Self> {
        anyhow::ensure!(options.root.is_dir(), "--root {}: there is no such folder", options.root.display());
        let bind = async |address: SocketAddr| {
            TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))
        };
        let listener = bind(options.listen).await?;
        let address = listener.local_addr()?;
        let content_listener = match options.redirect_weights {
            true => Some(bind(SocketAddr::new(options.listen.ip(), 0)).await?),
            false => None,
        };
        let content_host = content_listener.as_ref().map(TcpListener::local_addr).transpose()?;
        let (log, faults) = (RequestLog::default(), Faults::default());
        let hub = Arc::new(Hub {
            repositories: Repositories::new(options.root),
            token: options.token,
            content_host,
            plain_lists: options.plain_lists,
            log: log.clone(),
            faults: faults.clone(),
        });
        let mut servers = vec![tokio::spawn(axum::serve(listener, router(hub.clone())).into_future())];
        if let Some(listener) = content_listener {
            let router =
                Router::new().route("/content/{org}/{name}/{revision}/{*file}", get(content)).with_state(hub);
            servers.push(tokio::spawn(axum::serve(listener, router).into_future()));
        }
        Ok(Self { address, log, faults, servers })
    }

    /// Base URL, for HF_ENDPOINT.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What was asked so far.
    #[must_use]
    pub fn log(&self) -> &RequestLog {
        &self.log
    }

    /// Faults to come.
    #[must_use]
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    /// Waits until the server ends, which it does only on failure.
    ///
    /// # Errors
    /// The server's failure.
    pub async fn wait(mut self) -> anyhow::Result<()> {
        match self.servers.pop() {
            Some(server) => Ok(server.await??),
            None => Ok(()),
        }
    }
}

impl Drop for TestHub {
    fn drop(&mut self) {
        self.servers.iter().for_each(JoinHandle::abort);
    }
}

fn router(hub: Arc<Hub>) -> Router {
    Router::new()
        .route("/healthz", get(async || "ok"))
        .route("/_hub/requests", get(requests).delete(clear_requests))
        .route("/_hub/faults", post(add_fault).delete(clear_faults))
        .route("/api/models/{org}/{name}", get(model_info_main))
        .route("/api/models/{org}/{name}/revision/{*revision}", get(model_info))
        .route("/api/models/{org}/{name}/tree/{revision}", get(tree))
        .route("/{org}/{name}/resolve/{revision}/{*file}", get(resolve))
        .with_state(hub)
}

async fn requests(State(hub): State<Arc<Hub>>) -> Json<Vec<RequestRecord>> {
    Json(hub.log.records())
}

async fn clear_requests(State(hub): State<Arc<Hub>>) -> StatusCode {
    hub.log.clear();
    StatusCode::NO_CONTENT
}

async fn add_fault(State(hub): State<Arc<Hub>>, body: Bytes) -> Response {
    // Whatever the content type: `kubectl create --raw` sends none.
    match serde_json::from_slice::<Fault>(&body) {
        Ok(fault) => {
            hub.faults.add(fault);
            StatusCode::NO_CONTENT.into_response()
        }
        Err(error) => (StatusCode::BAD_REQUEST, format!("not a fault: {error}\n")).into_response(),
    }
}

async fn clear_faults(State(hub): State<Arc<Hub>>) -> StatusCode {
    hub.faults.clear();
    StatusCode::NO_CONTENT
}

async fn model_info_main(
    state: State<Arc<Hub>>,
    Path((org, name)): Path<(String, String)>,
    query: RawQuery,
    request: Parts,
) -> Response {
    model_info(state, Path((org, name, "main".to_owned())), query, request).await
}

async fn model_info(
    State(hub): State<Arc<Hub>>,
    Path((org, name, revision)): Path<(String, String, String)>,
    RawQuery(query): RawQuery,
    request: Parts,
) -> Response {
    let answer = async {
        refuse_if_asked(hub.faults.take_status(request.uri.path()).as_ref())?;
        let found = admit(&hub, &request, &org, &name, &revision).await?;
        let with_blobs = !hub.plain_lists
            && query
                .is_some_and(|query| query.split('&').any(|pair| pair.eq_ignore_ascii_case("blobs=true")));
        let siblings: Vec<Value> = found.files.iter().map(|file| sibling(file, with_blobs)).collect();
        let id = format!("{org}/{name}");
        Ok(Json(json!({
            "_id": id, "id": id, "modelId": id, "sha": found.commit, "private": false, "gated": false, "disabled": false,
            "tags": ["safetensors", "llama"], "downloads": 0, "likes": 0, "siblings": siblings,
        }))
        .into_response())
    };
    let response = answer.await.unwrap_or_else(|refusal: Refusal| refusal.into_response());
    logged(&hub, &request, response, false)
}

fn sibling(file: &RepositoryFile, with_blobs: bool) -> Value {
    if !with_blobs {
        return json!({"rfilename": file.path});
    }
    let mut sibling = json!({"rfilename": file.path, "size": file.size, "blobId": file.sha256.get(..40)});
    if file.is_large() {
        sibling["lfs"] = json!({"sha256": file.sha256, "size": file.size, "pointerSize": 134});
    }
    sibling
}

/// All files of a revision, as a recursive tree listing gives them; `huggingface_hub` takes snapshots by it.
async fn tree(
    State(hub): State<Arc<Hub>>,
    Path((org, name, revision)): Path<(String, String, String)>,
    request: Parts,
) -> Response {
    let answer = async {
        refuse_if_asked(hub.faults.take_status(request.uri.path()).as_ref())?;
        let found = admit(&hub, &request, &org, &name, &revision).await?;
        Ok(Json(found.files.iter().map(tree_entry).collect::<Vec<_>>()).into_response())
    };
    let response = answer.await.unwrap_or_else(|refusal: Refusal| refusal.into_response());
    logged(&hub, &request, response, false)
}

fn tree_entry(file: &RepositoryFile) -> Value {
    let mut entry =
        json!({"type": "file", "path": file.path, "size": file.size, "oid": file.sha256.get(..40)});
    if file.is_large() {
        entry["lfs"] = json!({"oid": file.sha256, "size": file.size, "pointerSize": 134});
    }
    entry
}

async fn resolve(
    State(hub): State<Arc<Hub>>,
    Path((org, name, revision, file)): Path<(String, String, String, String)>,
    request: Parts,
) -> Response {
    let answer = async {
        let found = admit(&hub, &request, &org, &name, &revision).await?;
        let file = entry(&found, &file)?;
        let mut response = match hub.content_host {
            Some(host) if file.is_large() => {
                let location = format!("http://{host}/content/{org}/{name}/{}/{}", found.commit, file.path);
                (StatusCode::FOUND, [(header::LOCATION, location)]).into_response()
            }
            _ => serve_file(file, &request, strike(&hub, &request)).await?,
        };
        let headers = response.headers_mut();
        insert(headers, "x-repo-commit", &found.commit);
        if file.is_large() {
            insert(headers, "x-linked-etag", &format!("\"{}\"", file.etag()));
            insert(headers, "x-linked-size", &file.size.to_string());
        }
        Ok(response)
    };
    let response = answer.await.unwrap_or_else(|refusal: Refusal| refusal.into_response());
    logged(&hub, &request, response, false)
}

/// The host that weights are redirected to. It knows nothing of tokens, as signed URLs need none.
async fn content(
    State(hub): State<Arc<Hub>>,
    Path((org, name, revision, file)): Path<(String, String, String, String)>,
    request: Parts,
) -> Response {
    let answer = async {
        let found = find(&hub, &org, &name, &revision).await?;
        serve_file(entry(&found, &file)?, &request, strike(&hub, &request)).await
    };
    let response = answer.await.unwrap_or_else(|refusal: Refusal| refusal.into_response());
    logged(&hub, &request, response, true)
}

/// The fault that strikes a file request; those of the body spare a HEAD.
fn strike(hub: &Hub, request: &Parts) -> Option<FaultKind> {
    let path = request.uri.path();
    if request.method == Method::HEAD { hub.faults.take_status(path) } else { hub.faults.take(path) }
}

/// An answer that is not what was asked for, in the form hubs use.
pub(crate) struct Refusal {
    status: StatusCode,
    code: &'static str,
    message: String,
    retry_after: Option<u64>,
}

impl Refusal {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), retry_after: None }
    }
}

impl From<std::io::Error> for Refusal {
    fn from(error: std::io::Error) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "", error.to_string())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(json!({"error": self.message}))).into_response();
        insert(response.headers_mut(), "x-error-message", &self.message);
        if !self.code.is_empty() {
            insert(response.headers_mut(), "x-error-code", self.code);
        }
        if let Some(seconds) = self.retry_after {
            insert(response.headers_mut(), "retry-after", &seconds.to_string());
        }
        response
    }
}

pub(crate) fn refuse_if_asked(fault: Option<&FaultKind>) -> Result<(), Refusal> {
    let Some(FaultKind::Status { status, retry_after }) = fault else { return Ok(()) };
    let status = StatusCode::from_u16(*status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
    Err(Refusal { retry_after: *retry_after, ..Refusal::new(status, "", "a fault that was asked for") })
}

/// Checks the token and finds the revision.
async fn admit(
    hub: &Arc<Hub>,
    request: &Parts,
    org: &str,
    name: &str,
    revision: &str,
) -> Result<Revision, Refusal> {
    if let Some(token) = &hub.token {
        let given = request.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        if given.and_then(|value| value.strip_prefix("Bearer ")) != Some(token) {
            return Err(Refusal::new(
                StatusCode::UNAUTHORIZED,
                "RepoNotFound",
                "Invalid username or password.",
            ));
        }
    }
    find(hub, org, name, revision).await
}

async fn find(hub: &Arc<Hub>, org: &str, name: &str, revision: &str) -> Result<Revision, Refusal> {
    let (shared, org, name, revision) = (hub.clone(), org.to_owned(), name.to_owned(), revision.to_owned());
    let found = tokio::task::spawn_blocking(move || shared.repositories.revision(&org, &name, &revision))
        .await
        .map_err(std::io::Error::other)??;
    found.map_err(|missing| match missing {
        Missing::Repository => Refusal::new(StatusCode::NOT_FOUND, "RepoNotFound", "Repository not found"),
        Missing::Revision => Refusal::new(StatusCode::NOT_FOUND, "RevisionNotFound", "Invalid rev id"),
    })
}

fn entry<'a>(revision: &'a Revision, path: &str) -> Result<&'a RepositoryFile, Refusal> {
    let file = revision.files.iter().find(|file| file.path == path);
    file.ok_or_else(|| Refusal::new(StatusCode::NOT_FOUND, "EntryNotFound", "Entry not found"))
}

/// Puts the request into the log and counts the body's bytes as they go out.
fn logged(hub: &Hub, request: &Parts, response: Response, content_host: bool) -> Response {
    let header = |name: HeaderName| {
        request.headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok()).map(str::to_owned)
    };
    let sent = hub.log.add(RequestRecord {
        method: request.method.to_string(),
        path: request.uri.to_string(),
        range: header(header::RANGE),
        if_range: header(header::IF_RANGE),
        authorized: request.headers.contains_key(header::AUTHORIZATION),
        content_host,
        status: response.status().as_u16(),
        body_bytes: 0,
    });
    response.map(|body| Body::from_stream(counted(body, sent)))
}

fn counted(body: Body, sent: Arc<AtomicU64>) -> impl Stream<Item = Result<Bytes, axum::Error>> {
    body.into_data_stream().inspect(move |chunk| {
        if let Ok(chunk) = chunk {
            sent.fetch_add(chunk.len() as u64, Ordering::Relaxed);
        }
    })
}

pub(crate) fn insert(headers: &mut HeaderMap, name: &'static str, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(HeaderName::from_static(name), value);
    }
}
