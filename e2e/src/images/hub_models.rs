//! The models that the test hub serves: the demo model, and what can be wrong with one.
//!
//! Owns: making the broken ones out of the good one. Must not: be used by anything but tests. Called by the binary's `test`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

/// The organisation that the hub's models belong to.
const ORGANISATION: &str = "fairlead";
/// A tiny encoder in the checkout.
const ENCODER: &str = "inference-pod/backend-torch/tests/encoders/bert_mean";
/// The weights' file.
const WEIGHTS: &str = "model.safetensors";

/// Lays out `models/fairlead/…` beside the demo model's folder, and returns the folder `models`.
///
/// `tiny` is the demo model; `no-weights` lacks its weights, `truncated` has half of them, `unknown-architecture` says
/// that it is another kind of model; `encoder` makes embeddings, and comes from the checkout at `root`; `slow` and `flaky` are the demo model again, for tests that disturb the fetching.
pub fn lay_out(demo_model: &Path, root: &Path) -> Result<PathBuf> {
    let parent = demo_model.parent().context("the demo model's folder has a parent")?;
    let models = parent.join("hub").join("models");
    if models.exists() {
        fs::remove_dir_all(&models).with_context(|| format!("removing {}", models.display()))?;
    }
    let of = |name: &str| models.join(ORGANISATION).join(name);
    for name in ["tiny", "slow", "flaky", "no-weights", "truncated", "unknown-architecture"] {
        copy(demo_model, &of(name))?;
    }
    copy(&root.join(ENCODER), &of("encoder"))?;
    let absent = of("no-weights").join(WEIGHTS);
    fs::remove_file(&absent).with_context(|| format!("removing {}", absent.display()))?;
    let truncated = of("truncated").join(WEIGHTS);
    let bytes = fs::read(&truncated).with_context(|| format!("reading {}", truncated.display()))?;
    fs::write(&truncated, &bytes[..bytes.len() / 2])
        .with_context(|| format!("writing {}", truncated.display()))?;
    let config = of("unknown-architecture").join("config.json");
    let text = fs::read_to_string(&config).with_context(|| format!("reading {}", config.display()))?;
    let mut parsed: Value = serde_json::from_str(&text).context("reading the demo model's config.json")?;
    parsed["architectures"] = serde_json::json!(["GPTNeoXForCausalLM"]);
    parsed["model_type"] = "gpt_neox".into();
    fs::write(&config, parsed.to_string()).with_context(|| format!("writing {}", config.display()))?;
    Ok(models)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("creating {}", to.display()))?;
    for entry in fs::read_dir(from).with_context(|| format!("reading {}", from.display()))? {
        let entry = entry?;
        if entry.path().is_dir() {
            copy(&entry.path(), &to.join(entry.file_name()))?;
            continue;
        }
        fs::copy(entry.path(), to.join(entry.file_name()))
            .with_context(|| format!("copying {}", entry.path().display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_broken_model_is_broken_in_its_own_way() {
        let folder = tempfile::tempdir().unwrap();
        let demo = folder.path().join("models");
        fs::create_dir(&demo).unwrap();
        fs::write(demo.join("config.json"), r#"{"architectures": ["LlamaForCausalLM"]}"#).unwrap();
        fs::write(demo.join(WEIGHTS), [7; 100]).unwrap();
        // A second time must do as well as the first.
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        lay_out(&demo, &root).unwrap();
        let models = lay_out(&demo, &root).unwrap().join(ORGANISATION);
        assert_eq!(fs::read(models.join("tiny").join(WEIGHTS)).unwrap().len(), 100);
        assert!(!models.join("no-weights").join(WEIGHTS).exists());
        assert_eq!(fs::read(models.join("truncated").join(WEIGHTS)).unwrap().len(), 50);
        let config = fs::read_to_string(models.join("unknown-architecture/config.json")).unwrap();
        assert!(models.join("encoder/1_Pooling/config.json").is_file());
        assert!(config.contains("GPTNeoXForCausalLM") && !config.contains("Llama"), "{config}");
    }
}
