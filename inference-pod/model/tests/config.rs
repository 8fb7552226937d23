//! config.json: what is read, what is refused, and that every refusal names the field.
#![allow(clippy::expect_used)] // helpers of tests

use fairlead_model::{
    Architecture, AttentionKind, GenerationDefaults, ModelConfig, ModelError, Reason, RopeScaling,
    SlidingWindow, StoredDtype,
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

/// Values of `ROPE_INIT_FUNCTIONS["yarn"]` in transformers 5.23, head width 128.
#[test]
fn yarn_agrees_with_transformers() {
    let check = |changes: Value, expected: &[(usize, f32)], attention_factor: f64| {
        let mut settings = json!({
            "rope_type": "yarn", "rope_theta": 1_000_000.0, "factor": 4.0, "original_max_position_embeddings": 32768
        });
        for (field, value) in changes.as_object().expect("is an object") {
            settings[field] = value.clone();
        }
        let rope = parse(&with("rope_parameters", settings)).expect("is sound").rope;
        let frequencies = rope.inverse_frequencies(128);
        for (index, value) in expected {
            let relative = (frequencies[*index] - value).abs() / value;
            assert!(relative < 2e-6, "{index}: {} instead of {value}", frequencies[*index]);
        }
        assert!((rope.attention_factor() - attention_factor).abs() < 1e-12, "{}", rope.attention_factor());
    };
    let plain = [
        (0, 1.0),
        (20, 0.013_335_215),
        (24, 0.005_375_321_5),
        (28, 0.001_848_276_6),
        (34, 0.000_334_240_55),
        (39, 6.490_394e-5),
        (40, 4.445_698_5e-5),
        (63, 3.102_344_4e-7),
    ];
    check(json!({}), &plain, 1.138_629_436_111_989);
    // Without a factor it is what max_position_embeddings (131,072) is of the original length.
    check(json!({"factor": null, "attention_factor": 1.1}), &plain, 1.1);
    check(
        json!({"beta_fast": 16.0, "beta_slow": 0.5, "mscale": 1.2, "mscale_all_dim": 0.7, "truncate": false}),
        &[
            (20, 0.013_335_215),
            (24, 0.005_623_413),
            (28, 0.002_239_208_4),
            (34, 0.000_431_175_63),
            (39, 9.497_908_5e-5),
            (40, 6.823_099e-5),
        ],
        1.063_183_365_977_966_6,
    );
}

#[test]
fn yarn_stretches_a_model_beyond_what_it_was_trained_on() {
    let mut config = with(
        "rope_parameters",
        json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}),
    );
    config["max_position_embeddings"] = json!(40960);
    assert_eq!(parse(&config).expect("is sound").max_position_embeddings, 131_072);
    config["rope_parameters"]["factor"] = json!(1.0);
    assert_eq!(parse(&config).expect("is sound").max_position_embeddings, 40960);
}

/// A config.json of another architecture.
fn of(architecture: &str, changes: Value) -> Value {
    let mut config = without(&["attention_bias", "mlp_bias", "head_dim"]);
    config["architectures"] = json!([architecture]);
    for (field, value) in changes.as_object().expect("is an object") {
        config[field] = value.clone();
    }
    config
}

#[test]
fn what_tells_architectures_apart_is_read() {
    let names = |config: &ModelConfig| -> Vec<String> {
        let tensors = config.tensors().expect("nothing is packed");
        let first = tensors
            .into_iter()
            .filter_map(|tensor| tensor.name.strip_prefix("model.layers.0.").map(str::to_owned));
        first.collect()
    };
    let qwen2 = parse(&of("Qwen2ForCausalLM", json!({"attention_bias": false}))).expect("is sound");
    assert!(qwen2.qkv_bias && !qwen2.output_bias && !qwen2.qk_norm, "attention_bias does not count");
    assert!(names(&qwen2).contains(&"self_attn.v_proj.bias".to_owned()));
    assert!(!names(&qwen2).contains(&"self_attn.o_proj.bias".to_owned()));

    let qwen3 = parse(&of("Qwen3ForCausalLM", json!({"num_key_value_heads": 4}))).expect("is sound");
    assert_eq!((qwen3.head_dim, qwen3.qkv_bias, qwen3.qk_norm), (128, false, true));
    assert!(names(&qwen3).contains(&"self_attn.k_norm.weight".to_owned()));
    let biased = parse(&of("Qwen3ForCausalLM", json!({"attention_bias": true}))).expect("is sound");
    assert!(biased.qkv_bias && biased.output_bias);

    let mut mistral = of("MistralForCausalLM", json!({"attention_bias": true, "mlp_bias": true}));
    mistral.as_object_mut().expect("is an object").remove("num_key_value_heads");
    let mistral = parse(&mistral).expect("is sound");
    assert!(!mistral.qkv_bias && !mistral.mlp_bias, "Mistral has none");
    assert_eq!(mistral.num_key_value_heads, 8, "the default of its class");
}

#[test]
fn windows_are_those_of_transformers() {
    let window = |architecture: &str, changes: Value| {
        parse(&of(architecture, changes)).map(|config| config.sliding_window)
    };
    let some = |tokens, layers: &[(u32, u32)]| Some(SlidingWindow { tokens, layers: layers.to_vec() });
    let mistral = |changes| window("MistralForCausalLM", changes).expect("is sound");
    assert_eq!(mistral(json!({"sliding_window": null})), None);
    assert_eq!(mistral(json!({"sliding_window": 512})), some(512, &[(0, 32)]));
    assert_eq!(mistral(json!({})), some(4096, &[(0, 32)]), "the default of its class");

    let qwen = |changes| window("Qwen2ForCausalLM", changes).expect("is sound");
    assert_eq!(qwen(json!({"sliding_window": 512})), None, "use_sliding_window is false");
    let on = |changes: &[(&str, Value)]| {
        let mut settings = json!({"use_sliding_window": true, "sliding_window": 512});
        for (field, value) in changes {
            settings[*field] = value.clone();
        }
        settings
    };
    assert_eq!(qwen(on(&[])), some(512, &[(28, 32)]));
    assert_eq!(qwen(on(&[("max_window_layers", json!(0))])), some(512, &[(0, 32)]));
    assert_eq!(qwen(on(&[("max_window_layers", json!(32))])), None);
    let mut types = vec!["full_attention"; 32];
    types[1] = "sliding_attention";
    types[30] = "sliding_attention";
    types[31] = "sliding_attention";
    let types = on(&[("layer_types", json!(types))]);
    assert_eq!(qwen(types.clone()), some(512, &[(1, 2), (30, 32)]));

    let config = parse(&of("Qwen3ForCausalLM", types.clone())).expect("is sound");
    assert_eq!(config.attention_kind(1), AttentionKind::Sliding);
    assert_eq!(config.attention_kind(2), AttentionKind::Full);
    assert_eq!(config.attention_kind(31), AttentionKind::Sliding);

    let refused = |changes| window("Qwen2ForCausalLM", changes).expect_err("is refused").to_string();
    assert!(refused(on(&[("layer_types", json!(["full_attention"]))])).contains("1 entries for 32 layers"));
    assert!(
        refused(on(&[("layer_types", json!(vec!["chunked_attention"; 32]))])).contains("chunked_attention")
    );
    let mut without = types;
    without["use_sliding_window"] = json!(false);
    assert!(refused(without).contains("use_sliding_window"));
    let error = window("MistralForCausalLM", json!({"layer_types": ["full_attention"]}));
    assert!(error.expect_err("is refused").to_string().contains("layer_types"));
}

#[test]
fn packed_projections_have_the_shapes_of_their_format() {
    let shapes = |settings: Value| -> Vec<(String, Vec<u64>)> {
        let config = parse(&with("quantization_config", settings)).expect("is sound");
        let tensors = config.tensors().expect("can be packed").into_iter();
        let first = tensors.filter_map(|tensor| {
            let part = tensor.name.strip_prefix("model.layers.0.mlp.down_proj.")?.to_owned();
            Some((part, tensor.shape))
        });
        first.collect()
    };
    let named = |parts: &[(&str, &[u64])]| -> Vec<(String, Vec<u64>)> {
        parts.iter().map(|(part, shape)| ((*part).to_owned(), shape.to_vec())).collect()
    };
    assert_eq!(
        shapes(json!({"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": true})),
        named(&[
            ("qweight", &[1792, 4096]),
            ("qzeros", &[112, 512]),
            ("scales", &[112, 4096]),
            ("g_idx", &[14336])
        ])
    );
    assert_eq!(
        shapes(json!({"quant_method": "gptq", "bits": 8, "group_size": -1})),
        named(&[("qweight", &[3584, 4096]), ("qzeros", &[1, 1024]), ("scales", &[1, 4096])])
    );
    assert_eq!(
        shapes(
            json!({"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": true, "version": "gemm"})
        ),
        named(&[("qweight", &[14336, 512]), ("qzeros", &[224, 512]), ("scales", &[224, 4096])])
    );
    let skipping = shapes(
        json!({"quant_method": "awq", "bits": 4, "group_size": 64, "modules_to_not_convert": ["mlp.down_proj"]}),
    );
    assert_eq!(skipping, named(&[("weight", &[4096, 14336])]));
}

#[test]
fn a_config_survives_its_own_json() {
    let quantized = with("quantization_config", json!({"quant_method": "awq", "bits": 4, "group_size": 64}));
    let config = parse(&quantized).expect("is sound");
    let json = serde_json::to_string(&config).expect("is JSON");
    assert_eq!(serde_json::from_str::<ModelConfig>(&json).expect("is read back"), config);
    let config = parse(&of("MistralForCausalLM", json!({}))).expect("is sound");
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
