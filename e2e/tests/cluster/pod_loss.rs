//! An inference pod dies under load, and another is told to stop: no accepted request is lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};
use futures::StreamExt;
use reqwest::StatusCode;
use serde_json::json;

use crate::support::kubectl::list;
use crate::support::pair::two_replicas;
use crate::support::{
    Gateway, SERVED, apply, await_ready, chat, eventually, get, in_namespace, kubectl, model_deployment,
    model_image, model_route,
};

const CLIENTS: usize = 4;
/// Answers wanted after the kill, so that the loss falls into the load and not behind it.
const AFTER: u32 = 60;
/// Tokens of the stream that a stopping pod must finish: most of what the model's context holds.
const TOKENS: u32 = 1900;

#[tokio::test]
async fn a_killed_pod_loses_no_accepted_request() -> Result<()> {
    in_namespace(async |namespace| {
        let (model, gateway) = two_replicas(&namespace).await?;
        let gateway = Arc::new(gateway);
        let stop = Arc::new(AtomicBool::new(false));
        let answered = Arc::new(AtomicU32::new(0));
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                let (gateway, stop, answered, body) =
                    (gateway.clone(), stop.clone(), answered.clone(), chat(&model, 48));
                tokio::spawn(async move {
                    let mut failures = Vec::new();
                    while !stop.load(Ordering::Relaxed) {
                        match gateway.post("/v1/chat/completions", &body).await {
                            Ok((StatusCode::OK, _, _)) => _ = answered.fetch_add(1, Ordering::Relaxed),
                            Ok((status, _, body)) => failures.push(format!("{status}: {body}")),
                            Err(error) => failures.push(format!("{error:#}")),
                        }
                    }
                    failures
                })
            })
            .collect();

        let reaches = async |wanted: u32| {
            eventually(SERVED, async || {
                let now = answered.load(Ordering::Relaxed);
                ensure!(now >= wanted, "only {now} of {wanted} answers");
                Ok(())
            })
            .await
        };
        reaches(20).await?;
        let pods = list(&namespace, "pods", "fairlead.dev/model-deployment=pair").await?;
        let victim = pods[0]["metadata"]["name"].as_str().context("a pod has no name")?.to_owned();
        kubectl(&["-n", &namespace, "delete", "pod", &victim, "--grace-period=0", "--force"]).await?;
        let at_kill = answered.load(Ordering::Relaxed);
        reaches(at_kill + AFTER).await?;
        stop.store(true, Ordering::Relaxed);

        let mut failures = Vec::new();
        for client in clients {
            failures.extend(client.await?);
        }
        let total = answered.load(Ordering::Relaxed);
        println!("pod killed after {at_kill} answers; {total} answers in all, {} failures", failures.len());
        ensure!(failures.is_empty(), "{} requests failed: {failures:?}", failures.len());
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_pod_told_to_stop_finishes_its_stream() -> Result<()> {
    in_namespace(async |namespace| {
        let model = format!("drain-{namespace}");
        let mut deployment = model_deployment("drain", &model_image());
        deployment["spec"]["podTemplate"]["terminationGracePeriodSeconds"] = json!(180);
        apply(&namespace, &deployment).await?;
        apply(&namespace, &model_route("drain", &model, &[("drain", 1)])).await?;
        await_ready(&namespace, "modelroute", "drain", SERVED).await?;
        let gateway = Gateway::open().await?;
        gateway.await_answer(&model, SERVED).await?;

        let body = json!({
            "model": model, "prompt": "A fairlead", "max_tokens": TOKENS, "ignore_eos": true, "temperature": 0,
            "stream": true, "stream_options": {"include_usage": true},
        });
        let answer = gateway.http.post(format!("{}/v1/completions", gateway.url)).json(&body).send().await?;
        ensure!(answer.status() == StatusCode::OK, "{}", answer.status());
        let seen = Arc::new(AtomicU32::new(0));
        let reader = tokio::spawn(read_events(answer, seen.clone()));
        eventually(SERVED, async || {
            ensure!(seen.load(Ordering::Relaxed) > 0, "nothing has come yet");
            Ok(())
        })
        .await?;
        let pods = list(&namespace, "pods", "fairlead.dev/model-deployment=drain").await?;
        let name = pods[0]["metadata"]["name"].as_str().context("a pod has no name")?.to_owned();
        kubectl(&["-n", &namespace, "delete", "pod", &name, "--wait=false"]).await?;
        let pod = get(&namespace, "pod", &name).await?;
        let at_stop = seen.load(Ordering::Relaxed);
        ensure!(pod["metadata"]["deletionTimestamp"].is_string(), "the pod was not told to stop: {pod}");
        ensure!(at_stop < TOKENS, "the stream was over before the pod was told to stop: nothing was tested");

        let text = reader.await??;
        let end = &text[text.len().saturating_sub(300)..];
        ensure!(text.trim_end().ends_with("data: [DONE]"), "the stream was cut: …{end}");
        ensure!(text.contains(&format!("\"completion_tokens\":{TOKENS}")), "not all tokens came: …{end}");
        println!("told to stop after {at_stop} of {TOKENS} events; the rest came");
        Ok(())
    })
    .await
}

/// Reads a stream to its end, counting its events as they come.
async fn read_events(answer: reqwest::Response, seen: Arc<AtomicU32>) -> Result<String> {
    let (mut stream, mut text) = (answer.bytes_stream(), String::new());
    while let Some(piece) = stream.next().await {
        let piece = String::from_utf8_lossy(&piece?).into_owned();
        let events = u32::try_from(piece.matches("data: ").count())?;
        seen.fetch_add(events, Ordering::Relaxed);
        text.push_str(&piece);
    }
    Ok(text)
}
