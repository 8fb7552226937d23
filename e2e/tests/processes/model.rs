//! A model's folder that the pod can serve in a moment: reference weights and a tokenizer of one letter a token.

use std::path::Path;

use serde_json::{Map, Value, json};

/// Longest sequence of the model. Longer than the reference's, so that an answer can outlast whatever a test does meanwhile.
pub const LONGEST: u32 = 16_384;

/// Makes the folder.
pub fn make() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    let reference = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../inference-pod/backend-torch/tests/reference/gqa_untied");
    let write = |name: &str, text: String| std::fs::write(dir.path().join(name), text).expect(name);
    let config = std::fs::read_to_string(reference.join("config.json")).expect("config.json");
    let mut config: Value = serde_json::from_str(&config).expect("config.json");
    config["max_position_embeddings"] = json!(LONGEST);
    write("config.json", config.to_string());
    std::fs::copy(reference.join("model.safetensors"), dir.path().join("model.safetensors"))
        .expect("weights");
    write("tokenizer.json", tokenizer().to_string());
    write("tokenizer_config.json", json!({"bos_token": "<|begin|>", "eos_token": "<|end|>"}).to_string());
    // Calls of tools are written as Hermes does.
    let template = "{{ bos_token }}{% if tools %}<tool_call>\n{% endif %}\
        {% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}";
    write("chat_template.jinja", template.to_owned());
    dir
}

/// The model's 160 tokens: two special ones, and bytes in GPT-2's writing.
fn tokenizer() -> Value {
    let letters = ('!'..='~').chain(['Ġ', 'Ċ']).chain(('¡'..='¬').chain('®'..='ÿ'));
    let special = ["<|begin|>", "<|end|>"].map(str::to_owned);
    let words = special.iter().cloned().chain(letters.map(String::from));
    let vocabulary: Map<_, _> = words.take(160).zip(0..).map(|(word, id)| (word, json!(id))).collect();
    let added: Vec<Value> = special
        .iter()
        .enumerate()
        .map(|(id, content)| {
            json!({"id": id, "content": content, "special": true, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false})
        })
        .collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "added_tokens": added,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    })
}
