//! config.json: what is read, what is refused, and that every refusal names the field.
#![allow(clippy::expect_used)] // helpers of tests

use fairlead_model::{
    Architecture, GenerationDefaults, ModelConfig, ModelError, Reason, RopeScaling, StoredDtype,
};
use serde_json::{Value, json};

/// A config.json as transformers 5 writes it.
fn llama() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0, "bos_token_id": 128000,
        "dtype": "bfloat16", "eos_token_id": [128001, 128008, 128009], "head_dim": 128, "hidden_act": "silu",
        "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336, "max_position_embeddings": 131072,
        "mlp_bias": false, "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32,
        "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-5,
        "rope_parameters": {
            "factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192,
            "rope_theta": 500000.0, "rope_type": "llama3"
        },
        "tie_word_embeddings": false, "transformers_version": "5.0.0", "use_cache": true, "vocab_size": 128256
    })
}

fn parse(config: &Value) -> Result<ModelConfig, ModelError> {
    ModelConfig::parse(config.to_string().as_bytes())
}

fn with(field: &str, value: Value) -> Value {
    let mut config = llama();
    config[field] = value;
    config
}

fn without(fields: &[&str]) -> Value {
    let mut config = llama();
    let map = config.as_object_mut().expect("is an object");
    fields.iter().for_each(|field| drop(map.remove(*field)));
    config
}

fn refusal(config: &Value) -> ModelError {
    parse(config).expect_err("must be refused")
}

#[test]
fn reads_a_config_of_transformers_5() {
    let config = parse(&llama()).expect("is sound");
    assert_eq!(config.architecture, Architecture::LlamaForCausalLM);
    assert_eq!(config.query_groups(), 4);
    assert_eq!(config.eos_token_ids, [128_001, 128_008, 128_009]);
    assert_eq!(config.bos_token_id, Some(128_000));
    assert_eq!(config.stored_dtype, Some(StoredDtype::BF16));
    assert!((config.rope.theta - 500_000.0).abs() < f64::EPSILON);
    assert!(
        matches!(config.rope.scaling, RopeScaling::Llama3 { original_max_position_embeddings: 8192, .. }),
        "{:?}",
        config.rope
    );
}

#[test]
fn reads_a_config_of_transformers_4() {
    let mut old = without(&["rope_parameters", "dtype", "head_dim", "attention_bias", "mlp_bias"]);
    old["torch_dtype"] = json!("float16");
    old["rope_theta"] = json!(500_000.0);
    let mut scaling = llama()["rope_parameters"].clone();
    scaling.as_object_mut().expect("is an object").remove("rope_theta");
    old["rope_scaling"] = scaling;
    let config = parse(&old).expect("is sound");
    assert_eq!(config.stored_dtype, Some(StoredDtype::F16));
    let new = parse(&llama()).expect("is sound");
    assert_eq!(ModelConfig { stored_dtype: new.stored_dtype, ..config }, new);
}

#[test]
fn what_old_configs_leave_out_has_the_defaults_of_transformers() {
    let config =
        parse(&without(&["rope_parameters", "num_key_value_heads", "head_dim", "tie_word_embeddings"]))
            .expect("is sound");
    assert_eq!(config.num_key_value_heads, 32);
    assert_eq!(config.head_dim, 128);
    assert!(!config.tie_word_embeddings);
    assert_eq!(config.rope.scaling, RopeScaling::Default);
    assert!((config.rope.theta - 10_000.0).abs() < f64::EPSILON);
    let config = parse(&with("rope_scaling", json!(null))).expect("null is absent");
    assert!(matches!(config.rope.scaling, RopeScaling::Llama3 { .. }));
}

#[test]
fn an_older_form_of_scaling_is_read() {
    let mut config = without(&["rope_parameters"]);
    config["rope_scaling"] = json!({"type": "linear", "factor": 2.0});
    assert_eq!(parse(&config).expect("is sound").rope.scaling, RopeScaling::Linear { factor: 2.0 });
}

#[test]
fn what_the_engine_does_not_run_is_unsupported_by_name() {
    let rope = |settings: Value| with("rope_parameters", settings);
    for (config, named) in [
        (with("architectures", json!(["MixtralForCausalLM"])), "MixtralForCausalLM"),
        (with("quantization_config", json!({"quant_method": "bitsandbytes", "bits": 4})), "bitsandbytes"),
        (
            with("quantization_config", json!({"quant_method": "gptq", "bits": 3, "group_size": 128})),
            "bits is 3",
        ),
        (
            with(
                "quantization_config",
                json!({"quant_method": "gptq", "bits": 4, "group_size": 128, "lm_head": true}),
            ),
            "lm_head",
        ),
        (
            with(
                "quantization_config",
                json!({"quant_method": "gptq", "bits": 4, "group_size": 128, "checkpoint_format": "marlin"}),
            ),
            "marlin",
        ),
        (
            with("quantization_config", json!({"quant_method": "awq", "bits": 8, "group_size": 128})),
            "bits is 8",
        ),
        (
            with(
                "quantization_config",
                json!({"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemv"}),
            ),
            "gemv",
        ),
        (with("hidden_act", json!("gelu")), "gelu"),
        (rope(json!({"rope_type": "proportional", "factor": 4.0})), "proportional"),
        (rope(json!({"full_attention": {"rope_type": "default"}})), "rope_parameters.full_attention"),
        (rope(json!({"rope_type": "longrope"})), "longrope"),
        (rope(json!({"rope_type": "default", "partial_rotary_factor": 0.5})), "partial_rotary_factor"),
    ] {
        let error = refusal(&config);
        assert_eq!(error.reason(), Reason::UnsupportedArchitecture, "{error}");
        assert!(error.to_string().contains(named), "{error}");
        assert!(error.to_string().starts_with("config.json: "), "{error}");
    }
    assert!(
        refusal(&with("architectures", json!(["X"]))).to_string().contains("supported: LlamaForCausalLM")
    );
}

#[test]
fn impossible_numbers_are_refused_by_field() {
    for (field, values) in [
        (
            "hidden_size",
            vec![json!(0), json!(-1), json!(1.5), json!("4096"), json!(u64::MAX), json!(1_u64 << 40)],
        ),
        ("num_hidden_layers", vec![json!(0), json!(1_000_000)]),
        ("num_attention_heads", vec![json!(0), json!(33)]),
        ("num_key_value_heads", vec![json!(0), json!(5), json!(64)]),
        ("head_dim", vec![json!(127), json!(0), json!(1 << 20)]),
        ("vocab_size", vec![json!(0), json!(u32::MAX)]),
        ("intermediate_size", vec![json!(0), json!(u32::MAX)]),
        ("max_position_embeddings", vec![json!(0), json!(u64::MAX)]),
        ("rms_norm_eps", vec![json!(-1.0), json!("small"), json!(2)]),
        ("tie_word_embeddings", vec![json!("yes"), json!(1)]),
        ("eos_token_id", vec![json!("</s>"), json!([1.5]), json!(u64::MAX), json!(vec![1; 1000])]),
        ("architectures", vec![json!([]), json!("LlamaForCausalLM"), json!(null)]),
    ] {
        for value in values {
            let error = refusal(&with(field, value.clone()));
            assert_eq!(error.reason(), Reason::ModelInvalid, "{field} {value}: {error}");
            assert!(error.to_string().contains(field), "{field} {value}: {error}");
        }
    }
    let error = refusal(&with("rope_parameters", json!({"rope_type": "llama3", "factor": 8.0})));
    assert!(error.to_string().contains("rope_parameters.low_freq_factor is missing"), "{error}");
    let error = refusal(&with("rope_parameters", json!({"rope_type": "linear", "factor": 0})));
    assert!(error.to_string().contains("rope_parameters.factor"), "{error}");
}

#[test]
fn missing_fields_are_named() {
    for field in ["architectures", "hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"] {
        let error = refusal(&without(&[field]));
        assert!(error.to_string().contains(&format!("{field} is missing")), "{error}");
    }
}

#[test]
fn what_is_no_json_object_is_refused() {
    for bytes in [&b""[..], b"{", b"[]", b"null", b"\xff\xfe", b"version https://git-lfs"] {
        assert_eq!(ModelConfig::parse(bytes).expect_err("is refused").reason(), Reason::ModelInvalid);
    }
    let padded = format!("{}{}", llama(), " ".repeat(1 << 20));
    assert!(
        ModelConfig::parse(padded.as_bytes()).expect_err("is too long").to_string().contains("bytes long")
    );
}

#[test]
fn every_tensor_has_its_name_and_shape() {
    let config = parse(&llama()).expect("is sound");
    let tensors = config.tensors().expect("nothing is packed");
    assert_eq!(tensors.len(), 3 + 32 * 9);
    let shape = |name: &str| tensors.iter().find(|tensor| tensor.name == name).expect(name).shape.clone();
    assert_eq!(shape("model.layers.31.self_attn.k_proj.weight"), [1024, 4096]);
    assert_eq!(shape("model.layers.0.mlp.down_proj.weight"), [4096, 14336]);
    assert_eq!(shape("lm_head.weight"), [128_256, 4096]);
    assert_eq!(tensors.iter().map(|tensor| tensor.parameters).sum::<u64>(), 8_030_261_248);

    let biased = ModelConfig {
        qkv_bias: true,
        output_bias: true,
        mlp_bias: true,
        tie_word_embeddings: true,
        ..config
    };
    let tensors = biased.tensors().expect("nothing is packed");
    assert_eq!(tensors.len(), 2 + 32 * 16);
    assert!(
        tensors
            .iter()
            .any(|tensor| tensor.name == "model.layers.3.mlp.up_proj.bias" && tensor.shape == [14336])
    );
    assert!(!tensors.iter().any(|tensor| tensor.name == "lm_head.weight"));
}

/// Values of `LlamaRotaryEmbedding.inv_freq` in transformers 5.23, head width 128.
#[test]
fn rotary_frequencies_agree_with_transformers() {
    let check = |rope: Value, expected: &[(usize, f32)]| {
        let frequencies =
            parse(&with("rope_parameters", rope)).expect("is sound").rope.inverse_frequencies(128);
        assert_eq!(frequencies.len(), 64);
        for (index, value) in expected {
            let relative = (frequencies[*index] - value).abs() / value;
            assert!(relative < 2e-6, "{index}: {} instead of {value}", frequencies[*index]);
        }
    };
    check(
        json!({"rope_type": "default", "rope_theta": 10000.0}),
        &[(0, 1.0), (1, 0.865_964_35), (20, 0.056_234_13), (40, 0.003_162_277_9), (63, 0.000_115_478_19)],
    );
    check(
        json!({"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}),
        &[(0, 0.25), (7, 0.091_293_536), (32, 0.0025), (63, 2.886_954_8e-5)],
    );
    check(
        llama()["rope_parameters"].clone(),
        &[
            (0, 1.0),
            (15, 0.046_164_05),
            (28, 0.003_211_446),
            (29, 0.002_166_570_6),
            (30, 0.001_371_893_7),
            (32, 0.000_524_846),
            (34, 0.000_178_507_8),
            (36, 7.784_655_5e-5),
            (40, 3.428_102_4e-5),
            (63, 3.068_926e-7),
        ],
    );
}

#[test]
fn a_config_survives_its_own_json() {
    let config = parse(&llama()).expect("is sound");
    let json = serde_json::to_string(&config).expect("is JSON");
    assert_eq!(serde_json::from_str::<ModelConfig>(&json).expect("is read back"), config);
}

#[test]
fn generation_defaults_are_advice() {
    let parse = |json: Value| GenerationDefaults::parse(json.to_string().as_bytes());
    let defaults =
        parse(json!({"eos_token_id": 2, "temperature": 0.6, "top_p": 0.9, "top_k": 50})).expect("is sound");
    assert_eq!(defaults.eos_token_ids, [2]);
    assert_eq!((defaults.temperature, defaults.top_p, defaults.top_k), (Some(0.6), Some(0.9), Some(50)));
    let odd = parse(json!({"temperature": -3, "top_p": 7, "top_k": null})).expect("odd advice is ignored");
    assert_eq!(odd, GenerationDefaults::default());
    assert!(parse(json!([1])).is_err());
    assert!(parse(json!({"eos_token_id": "x"})).is_err());
}
