//! LoRA adapters: what is served, what is refused and how it is said, and hostile bytes.
#![allow(clippy::expect_used)] // helpers of tests

use fairlead_model::lora::{MAX_RANK, Projection};
use fairlead_model::{LoraConfig, LoraTensors, ModelConfig, ModelError, SafetensorsHeader};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

/// Tensors by name, with their shapes.
type Shapes = Vec<(String, [u64; 2])>;

fn model() -> ModelConfig {
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 160, "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
    });
    ModelConfig::parse(config.to_string().as_bytes()).expect("is a model")
}

fn settings(extra: Value) -> Value {
    let mut config = json!({"peft_type": "LORA", "task_type": "CAUSAL_LM", "bias": "none", "r": 4, "lora_alpha": 8,
        "target_modules": ["q_proj", "down_proj"], "megatron_core": "megatron.core", "qalora_group_size": 16,
        "peft_version": "0.21.2", "init_lora_weights": true, "use_dora": false, "modules_to_save": null,
        "loftq_config": {}});
    config.as_object_mut().expect("is one").extend(extra.as_object().expect("is one").clone());
    config
}

fn parse(extra: Value) -> Result<LoraConfig, ModelError> {
    LoraConfig::parse(settings(extra).to_string().as_bytes())
}

fn header(tensors: &[(String, [u64; 2])]) -> SafetensorsHeader {
    let mut entries = Map::new();
    let mut position = 0;
    for (name, [rows, columns]) in tensors {
        let end = position + rows * columns * 4;
        entries.insert(
            name.clone(),
            json!({"dtype": "F32", "shape": [rows, columns], "data_offsets": [position, end]}),
        );
        position = end;
    }
    let text = Value::Object(entries).to_string();
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(text.as_bytes());
    SafetensorsHeader::parse("adapter_model.safetensors", &bytes).expect("is a header")
}

/// The matrices of q_proj and down_proj in both layers.
fn tensors(rank: u64) -> Shapes {
    let module = |layer: u64, name: &str, out: u64, input: u64| {
        let name = format!("base_model.model.model.layers.{layer}.{name}");
        [(format!("{name}.lora_A.weight"), [rank, input]), (format!("{name}.lora_B.weight"), [out, rank])]
    };
    (0..2)
        .flat_map(|layer| [module(layer, "self_attn.q_proj", 64, 64), module(layer, "mlp.down_proj", 64, 48)])
        .flatten()
        .collect()
}

fn check(extra: Value, tensors: &[(String, [u64; 2])]) -> Result<LoraTensors, ModelError> {
    parse(extra)?.check(&header(tensors), &model())
}

#[test]
fn an_adapter_is_read_with_its_ranks_and_scales() {
    let found = check(json!({}), &tensors(4)).expect("is served");
    assert_eq!((found.modules.len(), found.rank), (4, 4));
    assert_eq!(found.parameters, 2 * (4 * 128 + 4 * 112));
    assert!(found.modules.iter().all(|module| module.scale == 2.0));
    let order: Vec<(u32, Projection)> =
        found.modules.iter().map(|module| (module.layer, module.projection)).collect();
    assert_eq!(order[..2], [(0, Projection::Query), (0, Projection::Down)]);

    let stabilised = parse(json!({"use_rslora": true})).expect("is served");
    assert_eq!(stabilised.scale("model.layers.0.self_attn.q_proj"), 4.0);
    let patterns =
        parse(json!({"rank_pattern": {"layers.1.mlp.down_proj": 2}, "alpha_pattern": {"down_proj": 3}}));
    let patterns = patterns.expect("is served");
    assert_eq!(patterns.rank("model.layers.1.mlp.down_proj"), 2);
    assert_eq!(patterns.scale("model.layers.1.mlp.down_proj"), 1.5);
    assert_eq!(patterns.scale("model.layers.0.mlp.down_proj"), 0.75);
}

#[test]
fn what_would_change_the_answer_in_another_way_is_refused_by_name() {
    for (extra, named) in [
        (json!({"peft_type": "LOHA"}), "peft_type"),
        (json!({"task_type": "SEQ_CLS"}), "task_type"),
        (json!({"bias": "all"}), "bias"),
        (json!({"use_dora": true}), "use_dora"),
        (json!({"fan_in_fan_out": true}), "fan_in_fan_out"),
        (json!({"modules_to_save": ["lm_head"]}), "modules_to_save"),
        (json!({"lora_bias": true}), "lora_bias"),
        (json!({"use_qalora": true}), "use_qalora"),
        (json!({"trainable_token_indices": [1]}), "trainable_token_indices"),
        (json!({"target_parameters": ["x"]}), "target_parameters"),
        (json!({"layer_replication": [[0, 2]]}), "layer_replication"),
        (json!({"alora_invocation_tokens": [1]}), "alora_invocation_tokens"),
        (json!({"init_lora_weights": "pissa"}), "init_lora_weights"),
        (json!({"a_new_switch": true}), "a_new_switch"),
    ] {
        let error = parse(extra).expect_err(named);
        assert!(matches!(error, ModelError::Unsupported { .. }), "{error:?}");
        assert!(error.to_string().contains(named), "{error}");
    }
    for (extra, named) in [
        (json!({"r": 0}), "r must"),
        (json!({"r": MAX_RANK + 1}), "r must"),
        (json!({"r": "4"}), "r must"),
        (json!({"lora_alpha": null}), "lora_alpha"),
        (json!({"lora_alpha": 1e30}), "lora_alpha"),
        (json!({"rank_pattern": {"q_proj": 0}}), "rank_pattern of q_proj"),
        (json!({"rank_pattern": {"(": 1}}), "rank_pattern"),
        (json!({"target_modules": 5}), "target_modules"),
    ] {
        let error = parse(extra).expect_err(named).to_string();
        assert!(error.starts_with("adapter_config.json: ") && error.contains(named), "{error}");
    }
}

#[test]
fn matrices_that_do_not_belong_are_refused_by_name() {
    let with = |change: &dyn Fn(&mut Shapes)| {
        let mut tensors = tensors(4);
        change(&mut tensors);
        check(json!({}), &tensors).expect_err("must be refused").to_string()
    };
    let renamed = |to: &'static str| with(&|tensors| tensors[0].0 = to.to_owned());
    assert!(with(&Vec::clear).contains("holds no matrices"));
    assert!(with(&|tensors| drop(tensors.remove(1))).contains("lora_B.weight is missing"));
    assert!(with(&|tensors| tensors.truncate(4)).contains("layers.1.self_attn.q_proj, which target_modules"));
    assert!(with(&|tensors| tensors[0].1 = [4, 32]).contains("[4, 32]"));
    assert!(with(&|tensors| *tensors = self::tensors(8)).contains("rank in adapter_config.json"));
    assert!(renamed("base_model.model.lm_head.lora_A.weight").contains("the embedding or the output"));
    assert!(renamed("base_model.model.model.embed_tokens.lora_embedding_A").contains("the embedding"));
    assert!(renamed("base_model.model.model.layers.2.mlp.up_proj.lora_A.weight").contains("another one"));
    assert!(renamed("base_model.model.model.layers.0.mlp.up_proj.lora_A.weight").contains("target_modules"));
    assert!(
        renamed("base_model.model.model.layers.0.mlp.up_proj.lora_magnitude_vector").contains("plain LoRA")
    );
    assert!(renamed("model.layers.0.self_attn.q_proj.lora_A.weight").contains("plain LoRA"));

    // Fields that leave modules out make fewer matrices right.
    assert!(check(json!({"layers_to_transform": [0]}), &tensors(4)[..4]).is_ok());
    assert!(check(json!({"exclude_modules": ["down_proj"]}), &tensors(4)[..2]).is_ok());
    assert!(check(json!({"target_modules": null}), &tensors(4)[..2]).is_ok());
}

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[ -~]{0,16}".prop_map(Value::from),
        Just(json!("all-linear")),
        Just(json!(".*q_proj")),
    ];
    leaf.prop_recursive(2, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[ -~]{0,12}", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn hostile_settings_never_panic(
        field in prop::sample::select(vec!["r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern",
            "use_rslora", "layers_to_transform", "init_lora_weights", "bias", "peft_type", "x"]),
        value in any_value(),
    ) {
        if let Ok(found) = check(json!({field: value}), &tensors(4)) {
            prop_assert!(found.rank <= MAX_RANK);
            prop_assert!(found.modules.iter().all(|module| module.scale.is_finite()));
        }
    }

    #[test]
    fn hostile_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = LoraConfig::parse(&bytes);
    }
}
