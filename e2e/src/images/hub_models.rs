//! The models that the test hub serves: the example model, and what can be wrong with one.
//!
//! Owns: making the broken ones out of the good one. Must not: be used by anything but tests. Called by the binary's `test`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use safetensors::tensor::{Dtype, TensorView};
use serde::Deserialize;
use serde_json::{Value, json};

use super::models;

/// The organisation that the hub's models belong to.
const ORGANISATION: &str = "fairlead";
/// A tiny encoder in the checkout.
const ENCODER: &str = "inference-pod/backend-torch/tests/encoders/bert_mean";
/// A chat template that writes calls of tools as Qwen's does, with the example model's special tokens.
const TOOL_TEMPLATE: &str = "{% for tool in tools or [] %}{{ tool.function.name }}\n{% endfor %}\
    {% for message in messages %}<|im_start|>{{ 'user' if message.role == 'tool' else message.role }}\n{{ message.content }}\
    {% for call in message.tool_calls or [] %}<tool_call>\n{{ call.function | tojson }}\n</tool_call>{% endfor %}<|im_end|>\n\
    {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
/// The weights' file.
const WEIGHTS: &str = "model.safetensors";

/// Lays out `fairlead/…` in the folder `into`, from the checkout at `root`, and returns that folder.
///
/// `tiny` is the example model; `no-weights` lacks its weights, `truncated` has half of them, `unknown-architecture` says
/// that it is another kind of model; `encoder` makes embeddings, and comes from the tests of the backend; `slow` and `flaky` are the
/// example model again, for tests that disturb the fetching; `tools` is the example model with a chat template that knows tools; `adapter` is
/// a LoRA adapter for it that changes what it says.
pub fn lay_out(root: &Path, into: &Path) -> Result<PathBuf> {
    if into.exists() {
        fs::remove_dir_all(into).with_context(|| format!("removing {}", into.display()))?;
    }
    let model = models::generative(root, models::GENERATIVE[0]);
    let of = |name: &str| into.join(ORGANISATION).join(name);
    for name in ["tiny", "slow", "flaky", "no-weights", "truncated", "unknown-architecture", "tools"] {
        copy(&model, &of(name))?;
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
    let mut parsed: Value = serde_json::from_str(&text).context("reading the example model's config.json")?;
    parsed["architectures"] = serde_json::json!(["GPTNeoXForCausalLM"]);
    parsed["model_type"] = "gpt_neox".into();
    fs::write(&config, parsed.to_string()).with_context(|| format!("writing {}", config.display()))?;
    let template = of("tools").join("chat_template.jinja");
    fs::write(&template, TOOL_TEMPLATE).with_context(|| format!("writing {}", template.display()))?;
    let shape: Shape = serde_json::from_str(&text).context("reading the example model's config.json")?;
    write_adapter(&of("adapter"), &shape)?;
    Ok(into.to_path_buf())
}

/// What of the model's config.json an adapter's tensors depend on.
#[derive(Deserialize)]
struct Shape {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
}

/// Writes an adapter of rank 1 on the last layer's `down_proj`, strong enough that no answer stays what it was.
fn write_adapter(folder: &Path, shape: &Shape) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    let config = json!({
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "fairlead/tiny", "r": 1, "lora_alpha": 16,
        "bias": "none", "target_modules": ["down_proj"], "layers_to_transform": [shape.num_hidden_layers - 1],
    });
    let path = folder.join("adapter_config.json");
    fs::write(&path, config.to_string()).with_context(|| format!("writing {}", path.display()))?;
    // Signs that alternate, so that some tokens become likelier and others less.
    let pattern = |length: usize| {
        (0..length).flat_map(|at| if at % 3 == 0 { 1_f32 } else { -0.5 }.to_le_bytes()).collect::<Vec<u8>>()
    };
    let module = format!("base_model.model.model.layers.{}.mlp.down_proj", shape.num_hidden_layers - 1);
    let (a, b) = (pattern(shape.intermediate_size), pattern(shape.hidden_size));
    let tensors = [
        (
            format!("{module}.lora_A.weight"),
            TensorView::new(Dtype::F32, vec![1, shape.intermediate_size], &a)?,
        ),
        (format!("{module}.lora_B.weight"), TensorView::new(Dtype::F32, vec![shape.hidden_size, 1], &b)?),
    ];
    let path = folder.join("adapter_model.safetensors");
    // Not `serialize_to_file`: its file is its owner's alone, and the hub runs as another.
    let bytes = safetensors::serialize(tensors, None).context("writing the adapter's tensors")?;
    fs::write(&path, bytes).with_context(|| format!("writing {}", path.display()))
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
        // A second time must do as well as the first.
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        lay_out(&root, &folder.path().join("models")).unwrap();
        let models = lay_out(&root, &folder.path().join("models")).unwrap().join(ORGANISATION);
        let whole = fs::metadata(models.join("tiny").join(WEIGHTS)).unwrap().len();
        assert!(!models.join("no-weights").join(WEIGHTS).exists());
        assert_eq!(fs::metadata(models.join("truncated").join(WEIGHTS)).unwrap().len(), whole / 2);
        let config = fs::read_to_string(models.join("unknown-architecture/config.json")).unwrap();
        assert!(models.join("encoder/1_Pooling/config.json").is_file());
        assert!(models.join("tools/chat_template.jinja").is_file());
        let adapter = fs::read(models.join("adapter/adapter_model.safetensors")).unwrap();
        let adapter = safetensors::SafeTensors::deserialize(&adapter).unwrap();
        let shape = |name: &str| {
            let name = format!("base_model.model.model.layers.5.mlp.down_proj.{name}.weight");
            adapter.tensor(&name).unwrap().shape().to_vec()
        };
        assert_eq!((shape("lora_A"), shape("lora_B")), (vec![1, 384], vec![192, 1]));
        assert!(config.contains("GPTNeoXForCausalLM") && !config.contains("Llama"), "{config}");
    }
}
