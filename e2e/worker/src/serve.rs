//! The server. Takes the command line that the operator gives to inference pods (`serve --config FILE`) too, so that it can stand in
//! for the engine in a ModelDeployment whose `podTemplate.image` names it.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Context;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use clap::Args;
use fairlead_inference_config::InferenceConfig;
use jiff::Timestamp;
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep_until};

use crate::answer::{Answer, Form};
use crate::behaviour::{Behaviour, Fate};
use crate::tls::{TlsListener, TlsOptions};

/// How to serve.
#[derive(Args, Clone, Debug)]
pub struct ServeOptions {
    /// Address to listen on.
    #[arg(long, env = "FAIRLEAD_WORKER_LISTEN", default_value = "0.0.0.0:8000")]
    listen: SocketAddr,
    /// Names of the model, besides those of --config; any name is answered when there are none.
    #[arg(long = "model")]
    models: Vec<String>,
    /// An inference pod's settings: their model names are taken over, the rest is not looked at.
    #[arg(long)]
    config: Option<PathBuf>,
    /// Sent as x-fairlead-revision with every answer, and as system_fingerprint in every part of it.
    #[arg(long, env = "FAIRLEAD_REVISION")]
    revision: Option<String>,
    /// Seed of the dice; the same requests in the same order have the same fates.
    #[arg(long, env = "FAIRLEAD_WORKER_SEED", default_value_t = 0)]
    seed: u64,
    /// Refuse who does not send this key (`Authorization: Bearer KEY`).
    #[arg(long)]
    api_key: Option<String>,
    #[command(flatten)]
    tls: TlsOptions,
    #[command(flatten)]
    behaviour: Behaviour,
}

struct Worker {
    models: Vec<String>,
    revision: Option<HeaderValue>,
    seed: u64,
    api_key: Option<String>,
    behaviour: Behaviour,
    asked: AtomicU64,
}

#[derive(Deserialize)]
struct Asked {
    model: String,
    #[serde(default)]
    stream: bool,
    max_tokens: Option<u32>,
    max_completion_tokens: Option<u32>,
    stream_options: Option<StreamOptions>,
    #[serde(default)]
    return_token_ids: bool,
    #[serde(default)]
    resume_token_ids: Vec<u32>,
}

impl Asked {
    /// How many tokens the client has of an answer that broke off elsewhere.
    ///
    /// # Errors
    /// When they are not the first ones of every answer of a worker.
    fn resumed(&self) -> Result<u32, String> {
        let mut expected = 0..;
        for (place, id) in self.resume_token_ids.iter().enumerate() {
            if expected.next() != Some(*id) {
                return Err(format!("resume_token_ids[{place}] is {id}, where the answer had {place}"));
            }
        }
        Ok(expected.start)
    }
}

#[derive(Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: bool,
}

/// Serves until told to stop.
///
/// # Errors
/// When the address is taken or the settings cannot be read.
pub async fn run(options: ServeOptions) -> anyhow::Result<()> {
    let ServeOptions { listen, mut models, config, revision, seed, api_key, tls, behaviour } = options;
    if let Some(path) = config {
        let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let config: InferenceConfig =
            serde_json::from_str(&text).with_context(|| format!("reading {}", path.display()))?;
        models.extend(config.served_model_names);
    }
    let revision = revision.map(|text| HeaderValue::from_str(&text)).transpose().context("--revision")?;
    let worker = Arc::new(Worker { models, revision, seed, api_key, behaviour, asked: AtomicU64::new(0) });
    let app = Router::new()
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(text))
        .route("/v1/models", get(list))
        .route("/healthz", get(async || Json(json!({"status": "ok"}))))
        .route("/readyz", get(async || Json(json!({"status": "ready"}))))
        .layer(axum::extract::DefaultBodyLimit::max(64 << 20))
        .with_state(worker);
    let listener = tokio::net::TcpListener::bind(listen)
        .await
        .with_context(|| format!("--listen {listen} cannot be listened on; choose a free address"))?;
    let mut terminate = signal(SignalKind::terminate())?;
    let told = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
    };
    match tls.acceptor()? {
        None => axum::serve(listener, app).with_graceful_shutdown(told).await,
        Some(acceptor) => {
            axum::serve(TlsListener { tcp: listener, acceptor }, app).with_graceful_shutdown(told).await
        }
    }
    .context("serving")
}

async fn list(State(worker): State<Arc<Worker>>) -> Json<Value> {
    let models: Vec<Value> = worker
        .models
        .iter()
        .map(|name| json!({"id": name, "object": "model", "created": 0, "owned_by": "test"}))
        .collect();
    Json(json!({"object": "list", "data": models}))
}

async fn chat(State(worker): State<Arc<Worker>>, headers: HeaderMap, body: Bytes) -> Response {
    worker.answer(Form::Chat, &headers, &body).await
}

async fn text(State(worker): State<Arc<Worker>>, headers: HeaderMap, body: Bytes) -> Response {
    worker.answer(Form::Text, &headers, &body).await
}

impl Worker {
    async fn answer(&self, form: Form, headers: &HeaderMap, body: &[u8]) -> Response {
        let sent = headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes);
        if let Some(key) = &self.api_key
            && sent != Some(format!("Bearer {key}").as_bytes())
        {
            return refusal(StatusCode::UNAUTHORIZED, "another key is wanted");
        }
        let asked: Asked = match serde_json::from_slice(body) {
            Ok(asked) => asked,
            Err(error) => {
                return refusal(StatusCode::BAD_REQUEST, &format!("the body cannot be read: {error}"));
            }
        };
        if !self.models.is_empty() && !self.models.contains(&asked.model) {
            let message = format!("the model {:?} is not served here, but {:?}", asked.model, self.models);
            return refusal(StatusCode::NOT_FOUND, &message);
        }
        let resumed = match asked.resumed() {
            Ok(resumed) => resumed,
            Err(message) => return refusal(StatusCode::BAD_REQUEST, &message),
        };
        let number = self.asked.fetch_add(1, Ordering::Relaxed);
        let mut rng = StdRng::seed_from_u64(self.seed.wrapping_add(number));
        let begun = Instant::now();
        let wanted = asked.max_completion_tokens.or(asked.max_tokens);
        let mut response = match self.behaviour.draw(wanted, &mut rng) {
            Fate::Error => refusal(StatusCode::INTERNAL_SERVER_ERROR, "told to fail"),
            // Until the client closes the connection, which drops this.
            Fate::Hang => std::future::pending().await,
            Fate::Answer { tokens, breaks_after, first_token, per_token } => {
                // As a pod: with the name that the client knows.
                let public = headers.get("x-fairlead-model").and_then(|name| name.to_str().ok());
                let answer = Answer {
                    form,
                    id: format!("test-{number}"),
                    created: Timestamp::now().as_second(),
                    model: public.map_or(asked.model, str::to_owned),
                    token_ids: asked.return_token_ids,
                    revision: self.revision.as_ref().and_then(|it| it.to_str().ok()).map(str::to_owned),
                };
                let tokens = tokens.max(resumed);
                // Four bytes are about a token.
                let prompt_tokens = u32::try_from(body.len() / 4).unwrap_or(u32::MAX);
                let last = move |index: u32| (index + 1 == tokens).then_some("length");
                if asked.stream {
                    let usage = asked.stream_options.is_some_and(|options| options.include_usage);
                    let events = async_stream::stream! {
                        for index in resumed..tokens {
                            if breaks_after == Some(index) {
                                yield Err(std::io::Error::other("told to break off"));
                                return;
                            }
                            sleep_until(begun + first_token + per_token * (index - resumed)).await;
                            yield Ok(answer.event(index, last(index)));
                        }
                        if usage {
                            yield Ok(answer.usage_event(prompt_tokens, tokens));
                        }
                        yield Ok("data: [DONE]\n\n".to_owned());
                    };
                    ([(header::CONTENT_TYPE, "text/event-stream")], Body::from_stream(events)).into_response()
                } else {
                    sleep_until(begun + first_token + per_token * tokens.saturating_sub(resumed + 1)).await;
                    if breaks_after.is_some() {
                        // Longer than what comes, so that the connection ends before the answer does.
                        let half = futures::stream::iter([Ok::<_, Infallible>("{")]);
                        return ([(header::CONTENT_LENGTH, "1000")], Body::from_stream(half)).into_response();
                    }
                    Json(answer.whole(resumed, tokens, prompt_tokens, "length")).into_response()
                }
            }
        };
        if let Some(revision) = &self.revision {
            let name = HeaderName::from_static("x-fairlead-revision");
            response.headers_mut().insert(name, revision.clone());
        }
        response
    }
}

fn refusal(status: StatusCode, message: &str) -> Response {
    let error = json!({"error": {"message": message, "type": "test_error", "param": null, "code": null}});
    (status, Json(error)).into_response()
}
