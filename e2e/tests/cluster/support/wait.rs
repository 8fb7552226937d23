//! Waiting for something to become so, with a deadline and a useful last word.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::Value;

use super::kubectl::get;

const POLL: Duration = Duration::from_millis(300);

/// Repeats `attempt` until it gives a value; its last complaint is the error when time is up.
pub async fn eventually<T, F>(within: Duration, mut attempt: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = Result<T>>,
{
    let deadline = Instant::now() + within;
    loop {
        match attempt().await {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() >= deadline => {
                return Err(error.context(format!("not so after {} s", within.as_secs())));
            }
            Err(_) => tokio::time::sleep(POLL).await,
        }
    }
}

/// One condition of an object, when it has it.
pub fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    object["status"]["conditions"].as_array()?.iter().find(|condition| condition["type"] == kind)
}

/// Whether the status speaks of the object's present generation.
fn observed(object: &Value) -> bool {
    object["status"]["observedGeneration"] == object["metadata"]["generation"]
}

/// Waits until the object is Ready at its present generation, by the kstatus rules, and returns it.
pub async fn await_ready(namespace: &str, kind: &str, name: &str, within: Duration) -> Result<Value> {
    eventually(within, async || {
        let object = get(namespace, kind, name).await?;
        let ready = condition(&object, "Ready").is_some_and(|ready| ready["status"] == "True");
        if !(ready && observed(&object)) {
            bail!("{kind}/{name} is not Ready: {}", object["status"]["conditions"]);
        }
        for abnormal in ["Reconciling", "Stalled"] {
            if condition(&object, abnormal).is_some() {
                bail!("{kind}/{name} is Ready and {abnormal} at once: {}", object["status"]["conditions"]);
            }
        }
        Ok(object)
    })
    .await
}

/// Waits until the object is Stalled for `reason` at its present generation, and returns the condition's message.
pub async fn await_reason(
    namespace: &str,
    kind: &str,
    name: &str,
    reason: &str,
    within: Duration,
) -> Result<String> {
    eventually(within, async || {
        let object = get(namespace, kind, name).await?;
        let stalled = condition(&object, "Stalled");
        if !(observed(&object) && stalled.is_some_and(|stalled| stalled["reason"] == reason)) {
            bail!("{kind}/{name} is not Stalled for {reason}: {}", object["status"]["conditions"]);
        }
        let ready = condition(&object, "Ready").is_some_and(|ready| ready["status"] == "False");
        anyhow::ensure!(ready, "{kind}/{name} is Stalled but Ready is not False");
        Ok(stalled.and_then(|stalled| stalled["message"].as_str()).unwrap_or_default().to_owned())
    })
    .await
}
