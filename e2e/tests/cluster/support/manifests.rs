//! Small manifests that tests vary.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::image;
use super::kubectl::root;

/// A manifest of docs/examples, with the images where the cluster in use finds them.
pub fn example(file: &str) -> Result<Value> {
    let path = root().join("docs/examples").join(file);
    let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let [here, there] =
        ["localhost/fairlead-", &image("fairlead-")].map(|name| name.trim_end_matches(":dev").to_owned());
    serde_saphyr::from_str(&text.replace(&here, &there))
        .with_context(|| format!("reading {}", path.display()))
}

/// A ModelDeployment with one small pod; tests change the fields they care about.
pub fn model_deployment(name: &str, uri: &str) -> Value {
    json!({
        "apiVersion": "fairlead.dev/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": {"name": name},
        "spec": {
            "model": {"uri": uri},
            "resources": {"cpu": "100m", "memory": "768Mi"},
            "podTemplate": {"terminationGracePeriodSeconds": 30},
            "replicas": 1,
        },
    })
}

/// A ModelRoute whose `model` is `model`, over (backend and ModelDeployment, weight) pairs.
pub fn model_route(name: &str, model: &str, backends: &[(&str, u32)]) -> Value {
    let backends: Vec<Value> = backends
        .iter()
        .map(|(deployment, weight)| json!({"name": deployment, "modelDeployment": deployment, "weight": weight}))
        .collect();
    json!({
        "apiVersion": "fairlead.dev/v1alpha1",
        "kind": "ModelRoute",
        "metadata": {"name": name},
        "spec": {"model": model, "backends": backends},
    })
}
