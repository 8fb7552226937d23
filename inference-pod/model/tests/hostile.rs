//! Hostile bytes: no parser of this crate may panic, allocate without bound, or accept what contradicts itself.
#![allow(clippy::expect_used)] // helpers of tests

use std::collections::BTreeMap;

use fairlead_model::{
    Checkpoint, GenerationDefaults, ModelConfig, SafetensorsHeader, SafetensorsIndex, StoredDtype,
};
use proptest::prelude::*;
use serde_json::{Value, json};

fn with_length(json: &[u8]) -> Vec<u8> {
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(json);
    bytes
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[ -~]{0,12}".prop_map(Value::from),
        Just(json!("LlamaForCausalLM")),
        Just(json!("llama3")),
        Just(json!(["MistralForCausalLM"])),
        Just(json!(["Qwen2ForCausalLM"])),
        Just(json!({"rope_type": "yarn", "factor": 4.0})),
        Just(json!({"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": true})),
        Just(json!({"quant_method": "awq", "bits": 4, "group_size": -1})),
        Just(json!("F32")),
    ];
    leaf.prop_recursive(3, 24, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::btree_map("[ -~]{0,12}", inner, 0..6)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

const CONFIG_FIELDS: [&str; 24] = [
    "architectures",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "tie_word_embeddings",
    "attention_bias",
    "max_position_embeddings",
    "torch_dtype",
    "eos_token_id",
    "quantization_config",
    "sliding_window",
    "use_sliding_window",
    "max_window_layers",
    "layer_types",
    "original_max_position_embeddings",
    "num_key_value_heads",
];

/// Sound headers: tensors one behind the other.
fn sound_header() -> impl Strategy<Value = BTreeMap<String, Value>> {
    let dtype = prop_oneof![
        Just(StoredDtype::F32),
        Just(StoredDtype::BF16),
        Just(StoredDtype::F16),
        Just(StoredDtype::U8)
    ];
    let tensor = (dtype, prop::collection::vec(0u64..9, 0..4));
    prop::collection::btree_map("[a-z.]{1,20}", tensor, 0..12).prop_map(|tensors| {
        let mut position = 0;
        let place = |(name, (dtype, shape)): (String, (StoredDtype, Vec<u64>))| {
            let end = position + shape.iter().product::<u64>() * dtype.bits() / 8;
            let entry = json!({"dtype": dtype.as_str(), "shape": shape, "data_offsets": [position, end]});
            position = end;
            (name, entry)
        };
        tensors.into_iter().map(place).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
        let _ = ModelConfig::parse(&bytes);
        let _ = GenerationDefaults::parse(&bytes);
        let _ = SafetensorsIndex::parse(&bytes);
        let _ = SafetensorsHeader::parse("f", &bytes);
        let _ = SafetensorsHeader::parse("f", &with_length(&bytes));
    }

    #[test]
    fn random_json_never_panics(value in any_json()) {
        let bytes = value.to_string().into_bytes();
        let _ = ModelConfig::parse(&bytes);
        let _ = GenerationDefaults::parse(&bytes);
        let _ = SafetensorsIndex::parse(&bytes);
        let _ = SafetensorsHeader::parse("f", &with_length(&bytes));
    }

    #[test]
    fn a_config_with_random_fields_never_panics_and_stays_bounded(
        changes in prop::collection::vec((prop::sample::select(&CONFIG_FIELDS[..]), any_json()), 0..4),
        small in prop::collection::vec(1u64..512, 6),
    ) {
        let mut config = json!({
            "architectures": ["LlamaForCausalLM"], "hidden_size": small[0], "intermediate_size": small[1],
            "num_hidden_layers": small[2], "num_attention_heads": small[3], "head_dim": 2 * small[4],
            "vocab_size": small[5], "max_position_embeddings": 2048,
        });
        for (field, value) in changes {
            config[field] = value;
        }
        if let Ok(config) = ModelConfig::parse(config.to_string().as_bytes()) {
            prop_assert!(config.query_groups() >= 1);
            prop_assert_eq!(config.rope.inverse_frequencies(config.head_dim).len() as u32 * 2, config.head_dim);
            if config.num_hidden_layers < 64 {
                let parameters = config.tensors().map(|tensors| tensors.iter().try_fold(0u64, |sum, tensor| sum.checked_add(tensor.parameters)));
                prop_assert!(!matches!(parameters, Ok(None)));
            }
        }
    }

    #[test]
    fn a_sound_header_is_read_whole(header in sound_header()) {
        let json = serde_json::to_vec(&header).expect("is JSON");
        let parsed = SafetensorsHeader::parse("f", &with_length(&json)).expect("is sound");
        prop_assert_eq!(parsed.tensors.len(), header.len());
        let bytes: u64 = parsed.tensors.values().map(fairlead_model::TensorInfo::bytes).sum();
        prop_assert_eq!(parsed.data_bytes, bytes);
        prop_assert_eq!(parsed.file_bytes(), 8 + json.len() as u64 + bytes);
    }

    #[test]
    fn a_header_with_one_changed_number_is_refused_or_consistent(
        header in sound_header(), which in any::<prop::sample::Index>(), offset in any::<bool>(), value in any::<u64>(),
    ) {
        prop_assume!(!header.is_empty());
        let mut header = header;
        let name = which.get(&header.keys().cloned().collect::<Vec<_>>()).clone();
        header.get_mut(&name).expect("is there")["data_offsets"][usize::from(offset)] = json!(value);
        let json = serde_json::to_vec(&header).expect("is JSON");
        if let Ok(parsed) = SafetensorsHeader::parse("f", &with_length(&json)) {
            let mut spans: Vec<(u64, u64)> = parsed.tensors.values().map(|tensor| (tensor.begin, tensor.end)).collect();
            spans.sort_unstable();
            let mut position = 0;
            for (begin, end) in spans {
                prop_assert_eq!(begin, position);
                position = end;
            }
            prop_assert_eq!(position, parsed.data_bytes);
        }
    }

    #[test]
    fn a_cut_header_is_refused(header in sound_header(), cut in any::<prop::sample::Index>()) {
        let bytes = with_length(&serde_json::to_vec(&header).expect("is JSON"));
        let cut = cut.index(bytes.len());
        prop_assert!(SafetensorsHeader::parse("f", &bytes[..cut]).is_err());
    }
}

#[test]
fn deep_nesting_is_refused_without_a_stack_overflow() {
    let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(ModelConfig::parse(deep.as_bytes()).is_err());
    assert!(SafetensorsIndex::parse(deep.as_bytes()).is_err());
    assert!(SafetensorsHeader::parse("f", &with_length(deep.as_bytes())).is_err());
    let inside = format!(r#"{{"a":{deep}}}"#);
    assert!(SafetensorsHeader::parse("f", &with_length(inside.as_bytes())).is_err());
}

mod checkpoints {
    use fairlead_model::{ModelError, Reason};

    use super::*;

    fn tied() -> ModelConfig {
        ModelConfig::parse(
            br#"{"architectures":["LlamaForCausalLM"],"hidden_size":8,"intermediate_size":16,"num_hidden_layers":1,
            "num_attention_heads":2,"num_key_value_heads":1,"vocab_size":10,"max_position_embeddings":64,
            "tie_word_embeddings":true}"#,
        )
        .expect("is sound")
    }

    /// A header with the tensors of `config` and `extra` ones, after `change`.
    fn header(config: &ModelConfig, extra: &[&str], change: impl Fn(&str, &mut Value)) -> SafetensorsHeader {
        let mut entries = serde_json::Map::new();
        let mut position = 0;
        let specs =
            config.tensors().expect("nothing is packed").into_iter().map(|spec| (spec.name, spec.shape));
        for (name, shape) in specs.chain(extra.iter().map(|name| ((*name).to_owned(), vec![3]))) {
            let mut entry = json!({"dtype": "F32", "shape": shape});
            change(&name, &mut entry);
            if entry.is_null() {
                continue;
            }
            let dtype = StoredDtype::parse(entry["dtype"].as_str().expect("a name")).expect("is known");
            let shape = entry["shape"].as_array().expect("a shape").iter();
            let end =
                position + shape.map(|n| n.as_u64().expect("a size")).product::<u64>() * dtype.bits() / 8;
            entry["data_offsets"] = json!([position, end]);
            position = end;
            entries.insert(name, entry);
        }
        SafetensorsHeader::parse("f", &with_length(Value::Object(entries).to_string().as_bytes()))
            .expect("is sound")
    }

    fn check(header: SafetensorsHeader) -> Result<fairlead_model::WeightsSummary, ModelError> {
        Checkpoint::new([("f".to_owned(), header)], None).expect("is one file").check(&tied())
    }

    #[test]
    fn tensors_that_the_model_does_not_use_are_left_out() {
        let spare = ["lm_head.weight", "model.layers.0.self_attn.rotary_emb.inv_freq"];
        let summary = check(header(&tied(), &spare, |_, _| {})).expect("is sound");
        assert_eq!(summary.tensors, 11);
        let wanted: u64 =
            tied().tensors().expect("nothing is packed").iter().map(|tensor| tensor.parameters).sum();
        assert_eq!(summary.parameters, wanted);
        assert_eq!(summary.stored_bytes, [(StoredDtype::F32, 4 * wanted)].into_iter().collect());
    }

    #[test]
    fn a_missing_misshapen_or_quantised_tensor_is_named() {
        let at = "model.layers.0.mlp.up_proj.weight";
        let changed = |value: fn(&mut Value)| {
            let header = header(&tied(), &[], |name, entry| {
                if name == at {
                    value(entry);
                }
            });
            let error = check(header).expect_err("must be refused");
            assert!(error.to_string().contains(at), "{error}");
            error
        };
        assert_eq!(changed(|entry| *entry = Value::Null).reason(), Reason::ModelInvalid);
        let misshapen = changed(|entry| entry["shape"] = json!([8, 16]));
        assert_eq!(misshapen.reason(), Reason::ModelInvalid);
        assert!(
            misshapen.to_string().contains("[8, 16]") && misshapen.to_string().contains("[16, 8]"),
            "{misshapen}"
        );
        assert_eq!(changed(|entry| entry["dtype"] = json!("I8")).reason(), Reason::UnsupportedArchitecture);
    }

    #[test]
    fn two_files_may_not_hold_one_tensor() {
        let twice = ["a", "b"].map(|file| (file.to_owned(), header(&tied(), &[], |_, _| {})));
        let error = Checkpoint::new(twice, None).expect_err("must be refused");
        assert_eq!(error.reason(), Reason::ModelInvalid);
        assert!(error.to_string().contains("and so does a"), "{error}");
    }
}
