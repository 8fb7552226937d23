//! A port-forward to the gateway, and requests through it.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use super::gateways;
use super::kubectl::root;
use super::wait::eventually;

/// The gateway's Service at a loopback port for as long as this lives.
pub struct Gateway {
    pub url: String,
    pub http: reqwest::Client,
    _forward: Child,
}

impl Gateway {
    /// Forwards a free loopback port to the gateway's Service.
    pub async fn open() -> Result<Self> {
        Self::forward("service/fairlead-gateway", ":80").await
    }

    /// The same for every gateway's pod.
    pub async fn open_each() -> Result<Vec<Self>> {
        let mut all = Vec::new();
        for pod in gateways::pods().await? {
            let name = pod["metadata"]["name"].as_str().context("a pod has a name")?;
            all.push(Self::forward(&format!("pod/{name}"), ":8080").await?);
        }
        Ok(all)
    }

    async fn forward(target: &str, port: &str) -> Result<Self> {
        let mut forward = Command::new(root().join("e2e/kubectl"))
            .args(["-n", "fairlead-system", "port-forward", target, port])
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .kill_on_drop(true)
            .spawn()
            .context("starting kubectl port-forward")?;
        let out = forward.stdout.take().context("port-forward has no output")?;
        let mut lines = BufReader::new(out).lines();
        let line = tokio::time::timeout(Duration::from_secs(20), lines.next_line())
            .await
            .context("port-forward said nothing for 20 s")??
            .context("port-forward ended at once")?;
        let address = line.split_whitespace().nth(2).context("port-forward's first line has no address")?;
        let url = format!("http://{address}");
        // Keep reading: a full pipe would stop the forwarder.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        let http = reqwest::Client::builder().timeout(Duration::from_secs(120)).build()?;
        Ok(Self { url, http, _forward: forward })
    }

    /// Posts JSON and returns the status, the headers and the body, JSON or `Value::Null`.
    pub async fn post(
        &self,
        path: &str,
        body: &Value,
    ) -> Result<(StatusCode, reqwest::header::HeaderMap, Value)> {
        self.post_text(path, body.to_string()).await
    }

    /// Posts any text as JSON.
    pub async fn post_text(
        &self,
        path: &str,
        body: String,
    ) -> Result<(StatusCode, reqwest::header::HeaderMap, Value)> {
        self.post_with(path, &[], body).await
    }

    /// The same with these headers.
    pub async fn post_with(
        &self,
        path: &str,
        headers: &[(&str, &str)],
        body: String,
    ) -> Result<(StatusCode, reqwest::header::HeaderMap, Value)> {
        let request =
            self.http.post(format!("{}{path}", self.url)).header("content-type", "application/json");
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        let answer = request.body(body).send().await?;
        let (status, headers) = (answer.status(), answer.headers().clone());
        let text = answer.text().await?;
        Ok((status, headers, serde_json::from_str(&text).unwrap_or(Value::Null)))
    }

    /// Asks `model` until the gateway knows it and answers, and returns the first answer.
    pub async fn await_answer(&self, model: &str, within: Duration) -> Result<Value> {
        eventually(within, async || {
            let (status, _, body) = self.post("/v1/chat/completions", &chat(model, 8)).await?;
            if status != StatusCode::OK {
                bail!("{model} answered {status}: {body}");
            }
            Ok(body)
        })
        .await
    }
}

/// A greedy chat request of at most `max_tokens` tokens.
pub fn chat(model: &str, max_tokens: u32) -> Value {
    json!({
        "model": model,
        "messages": [{"role": "user", "content": "What is a fairlead?"}],
        "max_tokens": max_tokens,
        "temperature": 0,
    })
}
