//! Encoders: what is read, what is refused by name, and what it takes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use fairlead_model::encoder::{
    Activation, EncoderPlanInputs, Pipeline, Pooling, ScoreActivation, plan_encoder,
};
use fairlead_model::{
    DeviceKind, EncoderConfig, EncoderFiles, ModelError, ModelShape, Purpose, Reason, RunDtype,
    WeightsSummary,
};
use proptest::prelude::*;
use serde_json::{Value, json};

fn bert(extra: Value) -> Value {
    let mut config = json!({
        "architectures": ["BertModel"], "hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6,
        "num_attention_heads": 12, "vocab_size": 30522, "max_position_embeddings": 512, "type_vocab_size": 2,
        "layer_norm_eps": 1e-12, "hidden_act": "gelu", "pad_token_id": 0,
    });
    config.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    config
}

fn modules(kinds: &[(&str, &str)]) -> Value {
    kinds
        .iter()
        .map(|(path, kind)| json!({"path": path, "type": format!("sentence_transformers.models.{kind}")}))
        .collect()
}

#[derive(Default)]
struct Files {
    config: Value,
    modules: Option<Value>,
    pooling: Option<Value>,
    sentence: Option<Value>,
    tokenizer: Option<Value>,
}

impl Files {
    fn parse(&self) -> Result<EncoderConfig, ModelError> {
        let bytes = |value: &Option<Value>| value.as_ref().map(|value| value.to_string().into_bytes());
        let (modules, pooling) = (bytes(&self.modules), bytes(&self.pooling));
        let (sentence, tokenizer) = (bytes(&self.sentence), bytes(&self.tokenizer));
        EncoderConfig::parse(&EncoderFiles {
            config: self.config.to_string().as_bytes(),
            modules: modules.as_deref(),
            pooling: pooling.as_deref(),
            sentence_bert_config: sentence.as_deref(),
            tokenizer_config: tokenizer.as_deref(),
        })
    }
}

fn parse(config: Value) -> Result<EncoderConfig, ModelError> {
    Files { config, ..Files::default() }.parse()
}

#[test]
fn the_files_of_all_minilm_are_read() {
    let files = Files {
        config: bert(json!({})),
        modules: Some(modules(&[
            ("", "Transformer"),
            ("1_Pooling", "Pooling"),
            ("2_Normalize", "Normalize"),
        ])),
        pooling: Some(json!({"word_embedding_dimension": 384, "pooling_mode_cls_token": false,
            "pooling_mode_mean_tokens": true, "pooling_mode_max_tokens": false})),
        sentence: Some(json!({"max_seq_length": 256, "do_lower_case": false})),
        tokenizer: Some(json!({"model_max_length": 512})),
    };
    let config = files.parse().unwrap();
    let expected = Pipeline { pooling: Pooling::Mean, normalize: true, max_seq_length: Some(256) };
    assert_eq!(config.pipeline, expected);
    assert_eq!((config.head_dim(), config.longest(), config.max_input_tokens()), (32, 512, 256));
    assert_eq!(config.activation, Activation::Gelu);
    assert!(!config.may_cut_to(128) && config.may_cut_to(384));
    let json = serde_json::to_string(&ModelShape::Encoder(Box::new(config.clone()))).unwrap();
    assert_eq!(serde_json::from_str::<ModelShape>(&json).unwrap(), ModelShape::Encoder(Box::new(config)));
    assert!(json.len() < 1024, "it goes into a termination message: {json}");
}

#[test]
fn a_folder_without_further_files_is_the_mean_of_all_tokens() {
    let config = parse(bert(json!({}))).unwrap();
    assert_eq!(config.pipeline, Pipeline::default());
    assert_eq!(config.max_input_tokens(), 512);
    let tokenizer = Some(json!({"model_max_length": 128}));
    let cut = Files { config: bert(json!({})), tokenizer, ..Files::default() }.parse().unwrap();
    assert_eq!(cut.max_input_tokens(), 128);
    let endless = Some(json!({"model_max_length": 1e30}));
    let endless = Files { config: bert(json!({})), tokenizer: endless, ..Files::default() }.parse().unwrap();
    assert_eq!(endless.max_input_tokens(), 512);
}

#[test]
fn newer_pooling_files_name_one_mode() {
    let read = |pooling: Value| {
        let modules = Some(modules(&[("", "Transformer"), ("1_Pooling", "Pooling")]));
        Files { config: bert(json!({})), modules, pooling: Some(pooling), ..Files::default() }.parse()
    };
    assert_eq!(read(json!({"pooling_mode": "cls"})).unwrap().pipeline.pooling, Pooling::Cls);
    assert_eq!(read(json!({"pooling_mode": ["max"]})).unwrap().pipeline.pooling, Pooling::Max);
    for (pooling, word) in [
        (json!({"pooling_mode": "lasttoken"}), "lasttoken"),
        (json!({"pooling_mode_weightedmean_tokens": true}), "weightedmean"),
        (json!({"pooling_mode": ["cls", "mean"]}), "cls, mean"),
        (json!({"pooling_mode": "cls", "word_embedding_dimension": 7}), "word_embedding_dimension is 7"),
    ] {
        let error = read(pooling).unwrap_err().to_string();
        assert!(error.contains("1_Pooling/config.json") && error.contains(word), "{error}");
    }
}

#[test]
fn positions_of_roberta_begin_after_padding() {
    let roberta = bert(
        json!({"architectures": ["XLMRobertaModel"], "max_position_embeddings": 514, "pad_token_id": 1}),
    );
    let config = parse(roberta).unwrap();
    assert_eq!((config.first_position(), config.longest()), (2, 512));
}

#[test]
fn a_reranker_has_one_label_and_its_activation() {
    let of = |extra: Value| {
        let mut config =
            bert(json!({"architectures": ["BertForSequenceClassification"], "id2label": {"0": "x"}}));
        config.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        parse(config)
    };
    assert_eq!(of(json!({})).unwrap().score_activation, Some(ScoreActivation::Sigmoid));
    let identity = json!({"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}});
    assert_eq!(of(identity).unwrap().score_activation, Some(ScoreActivation::Identity));
    let older = json!({"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"});
    assert_eq!(of(older).unwrap().score_activation, Some(ScoreActivation::Identity));
    for (extra, word) in [
        (json!({"id2label": {"0": "a", "1": "b"}}), "2 labels"),
        (json!({"id2label": null}), "2 labels"),
        (json!({"sentence_transformers": {"activation_fn": "my.Softmax"}}), "my.Softmax"),
    ] {
        let error = of(extra).unwrap_err();
        assert_eq!(error.reason(), Reason::UnsupportedArchitecture);
        assert!(error.to_string().contains(word), "{error}");
    }
}

#[test]
fn what_is_not_done_is_refused_by_name() {
    for (extra, word) in [
        (json!({"architectures": ["MPNetModel"]}), "MPNetModel"),
        (json!({"position_embedding_type": "relative_key"}), "relative_key"),
        (json!({"hidden_act": "tanh"}), "tanh"),
        (json!({"is_decoder": true}), "is_decoder"),
        (json!({"num_attention_heads": 7}), "must be a multiple"),
        (json!({"hidden_size": 0}), "hidden_size"),
        (
            json!({"architectures": ["RobertaModel"], "max_position_embeddings": 2, "pad_token_id": 1}),
            "no position",
        ),
        (json!({"pad_token_id": 30522}), "pad_token_id"),
        (json!({"matryoshka_dimensions": [0]}), "matryoshka_dimensions"),
    ] {
        let error = parse(bert(extra)).unwrap_err().to_string();
        assert!(error.contains("config.json") && error.contains(word), "{error}");
    }
    for (kinds, word) in [
        (vec![("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense")], "2_Dense"),
        (vec![("0_Transformer", "Transformer"), ("1_Pooling", "Pooling")], "0_Transformer"),
        (vec![("", "Transformer"), ("1_CNN", "CNN")], "CNN"),
    ] {
        let pooling = Some(json!({"pooling_mode": "mean"}));
        let files =
            Files { config: bert(json!({})), modules: Some(modules(&kinds)), pooling, ..Files::default() };
        let error = files.parse().unwrap_err();
        assert_eq!(error.reason(), Reason::UnsupportedArchitecture);
        assert!(error.to_string().contains("modules.json") && error.to_string().contains(word), "{error}");
    }
    let missing = Files {
        config: bert(json!({})),
        modules: Some(modules(&[("", "Transformer"), ("1_Pooling", "Pooling")])),
        ..Files::default()
    };
    assert_eq!(missing.parse().unwrap_err().reason(), Reason::ModelInvalid);
    let lowered =
        Files { config: bert(json!({})), sentence: Some(json!({"do_lower_case": true})), ..Files::default() };
    assert!(lowered.parse().unwrap_err().to_string().contains("do_lower_case"));
}

#[test]
fn matryoshka_models_say_what_they_may_be_cut_to() {
    let listed = parse(bert(json!({"is_matryoshka": true, "matryoshka_dimensions": [64, 128]}))).unwrap();
    assert!(listed.may_cut_to(64) && listed.may_cut_to(384) && !listed.may_cut_to(65));
    let any = parse(bert(json!({"is_matryoshka": true}))).unwrap();
    assert!(any.may_cut_to(1) && any.may_cut_to(384) && !any.may_cut_to(385) && !any.may_cut_to(0));
}

#[test]
fn a_task_that_the_model_is_not_for_names_the_right_one() {
    let embed = ModelShape::Encoder(Box::new(parse(bert(json!({}))).unwrap()));
    assert_eq!(embed.purpose(), Purpose::Embed);
    assert!(embed.encoder(Purpose::Embed).is_ok());
    for error in [embed.decoder().err(), embed.encoder(Purpose::Rerank).err()] {
        let error = error.unwrap();
        assert_eq!(error.reason(), Reason::InvalidSpec);
        assert!(
            error.to_string().starts_with("task: is ") && error.to_string().contains("set task to Embed"),
            "{error}"
        );
    }
    let unknown = bert(json!({"architectures": ["T5Model"]})).to_string();
    let error = ModelShape::is_encoder(unknown.as_bytes()).unwrap_err().to_string();
    assert!(
        error.contains("T5Model") && error.contains("LlamaForCausalLM") && error.contains("BertModel"),
        "{error}"
    );
}

fn plan_with(budget: u64, batched: u32, length: Option<u32>) -> Result<fairlead_model::Plan, ModelError> {
    let config = parse(bert(json!({}))).unwrap();
    let weights = WeightsSummary { parameters: 22_713_216, ..WeightsSummary::default() };
    plan_encoder(&EncoderPlanInputs {
        config: &config,
        weights: &weights,
        device: DeviceKind::Cpu,
        dtype: None,
        max_model_len: length,
        memory_budget_bytes: budget,
        max_batched_tokens: batched,
    })
}

#[test]
fn the_plan_has_no_cache_and_names_remedies() {
    let fits = plan_with(1 << 30, 1024, Some(256)).unwrap();
    assert!(fits.fits, "{}", fits.explanation);
    assert_eq!(fits.dtype, RunDtype::F32);
    assert_eq!(fits.weight_bytes, 22_713_216 * 4);
    assert_eq!(
        (fits.kv_bytes_per_token, fits.kv_cache_bytes, fits.max_cached_tokens, fits.max_model_len),
        (0, 0, 0, 256)
    );
    let tight = plan_with(500 << 20, 8192, None).unwrap();
    assert!(!tight.fits);
    assert!(tight.explanation.contains("lower engine.maxBatchedTokens to 512"), "{}", tight.explanation);
    assert!(tight.explanation.contains("raise resources.memory"), "{}", tight.explanation);
    assert_eq!(tight.require_fit().unwrap_err().reason(), Reason::DoesNotFit);
    for (batched, length, field) in [
        (0, None, "engine.maxBatchedTokens"),
        (8, Some(0), "engine.maxModelLen"),
        (8, Some(513), "engine.maxModelLen"),
    ] {
        assert!(plan_with(1 << 30, batched, length).unwrap_err().to_string().starts_with(field));
    }
}

proptest! {
    #[test]
    fn hostile_files_are_refused_and_nothing_panics(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        value in prop_oneof![Just(json!(-1)), Just(json!(1e300)), Just(json!("x")), Just(json!([])), Just(json!(u64::MAX))],
        field in 0_usize..12,
    ) {
        let _ = ModelShape::parse(&EncoderFiles { config: &bytes, ..EncoderFiles::default() });
        let whole = bert(json!({})).to_string();
        let part = EncoderFiles { config: whole.as_bytes(), modules: Some(&bytes), pooling: Some(&bytes),
            sentence_bert_config: Some(&bytes), tokenizer_config: Some(&bytes) };
        let _ = EncoderConfig::parse(&part);
        let mut config = bert(json!({"matryoshka_dimensions": [8], "id2label": {"0": "x"}}));
        let fields = config.as_object_mut().unwrap();
        if let Some(key) = fields.keys().nth(field).cloned() {
            fields.insert(key, value);
        }
        let _ = parse(config);
    }
}
