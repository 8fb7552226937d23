//! Waiting for an object while showing what it says about itself.
//!
//! Owns: reading a Ready condition of any kind. Called by the quickstart.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use kube::api::{ApiResource, DynamicObject, GroupVersionKind};
use kube::{Api, Client};
use serde_json::Value;

use crate::progress::{human, say};

const POLL: Duration = Duration::from_millis(250);

/// What a Ready condition says.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Readiness {
    ready: bool,
    text: String,
}

/// Waits until the object that a manifest describes is Ready in its newest generation; prints its message as it changes.
pub async fn await_ready(client: &Client, namespace: &str, manifest: &Path, within: Duration) -> Result<()> {
    let text =
        std::fs::read_to_string(manifest).with_context(|| format!("reading {}", manifest.display()))?;
    let (kind, name) =
        identity(&text).with_context(|| format!("{} lacks kind or metadata.name", manifest.display()))?;
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("fairlead.dev", "v1alpha1", &kind));
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &resource);
    let (begin, mut shown) = (Instant::now(), String::new());
    loop {
        let object = api.get(&name).await.with_context(|| format!("reading {kind} {name}"))?;
        let now = readiness(&object);
        if now.text != shown {
            say(&format!("  {kind} {name}: {} ({})", now.text, human(begin.elapsed())));
            shown.clone_from(&now.text);
        }
        if now.ready {
            return Ok(());
        }
        if begin.elapsed() >= within {
            bail!("{kind} {name} is not Ready after {}: {}", human(within), now.text);
        }
        tokio::time::sleep(POLL).await;
    }
}

/// The kind and name in a manifest of one object. The manifests are ours: both stand at the beginning of a line.
fn identity(manifest: &str) -> Option<(String, String)> {
    let value = |prefix: &str| {
        let line = manifest.lines().find_map(|line| line.strip_prefix(prefix))?;
        Some(line.trim().trim_matches('"').to_owned())
    };
    Some((value("kind: ")?, value("  name: ")?))
}

fn readiness(object: &DynamicObject) -> Readiness {
    let status = &object.data["status"];
    let observed = status["observedGeneration"].as_i64();
    let current = observed.is_some() && observed == object.metadata.generation;
    let conditions = status["conditions"].as_array();
    let condition = conditions.and_then(|all| all.iter().find(|condition| condition["type"] == "Ready"));
    let Some(condition) = condition.filter(|_| current) else {
        return Readiness { ready: false, text: "waiting for the operator".into() };
    };
    let word = |key: &str| condition.get(key).and_then(Value::as_str).unwrap_or_default();
    Readiness { ready: word("status") == "True", text: format!("{}: {}", word("reason"), word("message")) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(status: Value) -> DynamicObject {
        serde_json::from_value(json!({
            "apiVersion": "fairlead.dev/v1alpha1", "kind": "ModelRoute", "metadata": {"name": "r", "generation": 2},
            "status": status,
        }))
        .unwrap()
    }

    #[test]
    fn a_manifest_names_its_object() {
        let manifest = "# A comment.\napiVersion: x\nkind: ModelRoute\nmetadata:\n  name: chat\nspec:\n  backends:\n    - name: v1\n";
        assert_eq!(identity(manifest), Some(("ModelRoute".into(), "chat".into())));
    }

    #[test]
    fn an_old_generations_condition_does_not_count() {
        let condition =
            json!([{"type": "Ready", "status": "True", "reason": "Available", "message": "fine"}]);
        assert!(!readiness(&object(json!({"observedGeneration": 1, "conditions": condition}))).ready);
        let now = readiness(&object(json!({"observedGeneration": 2, "conditions": condition})));
        assert!(now.ready);
        assert_eq!(now.text, "Available: fine");
    }
}
