//! A few requests, one after another, for as long as a test watches something else.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use reqwest::StatusCode;

use super::gateway::{Gateway, chat};

/// Requests at a time.
const CLIENTS: usize = 2;

/// Clients that ask again as soon as they have an answer.
pub struct Trickle {
    stop: Arc<AtomicBool>,
    clients: Vec<tokio::task::JoinHandle<Vec<Asked>>>,
}

/// What became of one request.
#[derive(Debug)]
pub struct Asked {
    /// The backend that the answer names.
    pub backend: String,
    /// Why it is not an answer.
    pub failure: Option<String>,
}

impl Trickle {
    /// Starts to ask `model`.
    pub fn start(gateway: &Arc<Gateway>, model: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let clients = (0..CLIENTS)
            .map(|_| {
                let (gateway, stop, body) = (Arc::clone(gateway), Arc::clone(&stop), chat(model, 8));
                tokio::spawn(async move {
                    let mut all = Vec::new();
                    while !stop.load(Ordering::Relaxed) {
                        all.push(match gateway.post("/v1/chat/completions", &body).await {
                            Ok((status, headers, body)) => {
                                let backend = headers.get("x-fairlead-backend");
                                let backend =
                                    backend.and_then(|value| value.to_str().ok()).unwrap_or_default();
                                let failure = (status != StatusCode::OK).then(|| format!("{status}: {body}"));
                                Asked { backend: backend.to_owned(), failure }
                            }
                            Err(error) => {
                                Asked { backend: String::new(), failure: Some(format!("{error:#}")) }
                            }
                        });
                    }
                    all
                })
            })
            .collect();
        Self { stop, clients }
    }

    /// Stops, and says what became of the requests.
    pub async fn stop(mut self) -> Result<Vec<Asked>> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Vec::new();
        for client in std::mem::take(&mut self.clients) {
            all.extend(client.await.context("a client panicked")?);
        }
        Ok(all)
    }
}

impl Drop for Trickle {
    /// A test that failed does not go on asking.
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
