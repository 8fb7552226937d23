//! Writes a run's items to the ConfigMap that was made for them: the one object that the pod's account may change.

use std::time::Duration;

use fairlead_evaluation::Summary;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;

use crate::failure::Failure;

/// Key of the items.
pub const ITEMS_KEY: &str = "items.jsonl";
/// Key of the scores, for whoever reads the ConfigMap alone.
const SUMMARY_KEY: &str = "summary.json";
/// Most bytes of items: a ConfigMap may have 1 MiB in all.
pub const LARGEST: usize = 960 << 10;
/// Who owns the fields.
const MANAGER: &str = "fairlead-rag";
/// Attempts to write.
const ATTEMPTS: u32 = 6;
/// Wait after the first failed attempt; it doubles.
const FIRST_DELAY: Duration = Duration::from_secs(1);

/// Writes the items and the scores.
///
/// # Errors
/// [`Failure::Again`] when the API server can't be reached or refuses.
pub async fn deliver(name: &str, items: &str, summary: &Summary) -> Result<(), Failure> {
    let failed = |error: &dyn std::fmt::Display| {
        Failure::again(format!("the results can't be written to ConfigMap {name}: {error}"))
    };
    let client = Client::try_default().await.map_err(|error| failed(&error))?;
    let summary = serde_json::to_string(summary).map_err(|error| failed(&error))?;
    let api = Api::<ConfigMap>::default_namespaced(client);
    let body = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name},
        "data": {ITEMS_KEY: items, SUMMARY_KEY: summary},
    });
    let parameters = PatchParams::apply(MANAGER).force();
    let mut delay = FIRST_DELAY;
    for attempt in 1.. {
        match api.patch(name, &parameters, &Patch::Apply(&body)).await {
            Ok(_) => break,
            // Asked again it would refuse again.
            Err(kube::Error::Api(status)) if matches!(status.code, 400 | 401 | 403 | 404 | 413 | 422) => {
                return Err(failed(&status.message));
            }
            Err(error) if attempt >= ATTEMPTS => return Err(failed(&error)),
            Err(error) => {
                tracing::warn!(%error, ?delay, "writing the results again");
                tokio::time::sleep(delay).await;
                delay *= 2;
            }
        }
    }
    Ok(())
}
