//! The memory plan: known models, exact formulas, verdicts and remedies, and its monotony.
#![allow(clippy::expect_used)] // helpers of tests

use fairlead_model::plan::{draft_spare_blocks, kv_bytes_per_token, runtime_bytes};
use fairlead_model::{
    DeviceKind, DraftInputs, LoadQuantization, ModelConfig, ModelError, Plan, PlanInputs, Reason, RunDtype,
    StoredDtype, WeightsSummary, plan,
};
use proptest::prelude::*;

const GIB: u64 = 1 << 30;

fn llama_8b() -> (ModelConfig, WeightsSummary) {
    let config = ModelConfig::parse(
        br#"{"architectures":["LlamaForCausalLM"],"hidden_size":4096,"intermediate_size":14336,"num_hidden_layers":32,
        "num_attention_heads":32,"num_key_value_heads":8,"vocab_size":128256,"max_position_embeddings":131072,
        "rope_theta":500000.0}"#,
    )
    .expect("is sound");
    let parameters: u64 =
        config.tensors().expect("can be packed").iter().map(|tensor| tensor.parameters).sum();
    let stored_bytes = [(StoredDtype::BF16, parameters * 2)].into_iter().collect();
    let weights = WeightsSummary { parameters, tensors: 291, stored_bytes };
    (config, weights)
}

fn inputs<'a>(
    (config, weights): &'a (ModelConfig, WeightsSummary),
    memory_budget_bytes: u64,
) -> PlanInputs<'a> {
    PlanInputs {
        config,
        weights,
        device: DeviceKind::Gpu,
        dtype: None,
        quantization: LoadQuantization::None,
        max_model_len: Some(8192),
        block_tokens: 16,
        memory_budget_bytes,
        max_sequences: 256,
        max_batched_tokens: 8192,
        draft: None,
    }
}

fn planned(inputs: &PlanInputs<'_>) -> Plan {
    plan(inputs).expect("settings are sound")
}

#[test]
fn a_known_model_has_its_known_numbers() {
    let model = llama_8b();
    let plan = planned(&inputs(&model, 72 * GIB));
    assert_eq!(plan.dtype, RunDtype::Bf16);
    assert_eq!(plan.weight_bytes, 16_060_522_496);
    assert_eq!(plan.kv_bytes_per_token, 131_072);
    assert!(plan.fits);
    assert_eq!(plan.kv_cache_bytes, plan.kv_blocks * 16 * 131_072);
    assert_eq!(plan.max_cached_tokens, (plan.kv_blocks - 1) * 16);
    let rest =
        plan.memory_budget_bytes - plan.weight_bytes - plan.activation_reserve_bytes - plan.kv_cache_bytes;
    assert!(rest < 16 * 131_072, "less than a block is left over, not {rest}");
    assert!(plan.explanation.contains("15.0 GiB of weights (bf16)"), "{}", plan.explanation);
    plan.require_fit().expect("fits");
}

#[test]
fn the_reserve_is_the_documented_sum() {
    let model = llama_8b();
    let plan = planned(&inputs(&model, 72 * GIB));
    let layer = 8192 * (4 * 4096 + (2 * 32 + 2 * 8) * 128 + 3 * 14336) * 2;
    let logits = 2 * 256 * 128_256 * 4;
    let gathered = 2 * 8192 * (8 + 32) * 128 * 2;
    let rotary = 2 * 8192 * 128 * 4;
    assert_eq!(
        plan.activation_reserve_bytes,
        layer + logits + gathered + rotary + runtime_bytes(DeviceKind::Gpu)
    );
}

#[test]
fn quantised_projections_count_with_what_they_take() {
    let (config, weights) = llama_8b();
    let model = (config, weights);
    let of = |quantization| {
        planned(&PlanInputs {
            device: DeviceKind::Cpu,
            dtype: Some(RunDtype::Bf16),
            quantization,
            ..inputs(&model, 72 * GIB)
        })
    };
    let projections: u64 = 32 * (2 * 4096 * 4096 + 2 * 1024 * 4096 + 3 * 14336 * 4096);
    let rows: u64 = 32 * (2 * 4096 + 2 * 1024 + 2 * 14336 + 4096);
    let full = of(LoadQuantization::None);
    let int8 = of(LoadQuantization::Int8);
    assert_eq!(int8.weight_bytes, full.weight_bytes - projections + rows * 2);
    let int4 = of(LoadQuantization::Int4);
    let scales_and_zeros = projections / 128 * 2 * 2;
    assert_eq!(int4.weight_bytes, full.weight_bytes - projections * 2 + projections / 2 + scales_and_zeros);
    assert!(
        int4.max_cached_tokens > int8.max_cached_tokens && int8.max_cached_tokens > full.max_cached_tokens
    );
    assert_eq!(int4.kv_bytes_per_token, full.kv_bytes_per_token, "the cache is not quantised");
}

#[test]
fn a_draft_model_takes_its_share() {
    let model = llama_8b();
    let (config, weights) = &model;
    let small = ModelConfig { num_hidden_layers: 2, ..config.clone() };
    let small_weights = WeightsSummary { parameters: 1_000_000_000, ..weights.clone() };
    let alone = inputs(&model, 72 * GIB);
    let draft = DraftInputs { config: &small, weights: &small_weights, tokens: 4 };
    let (without, with) = (planned(&alone), planned(&PlanInputs { draft: Some(draft), ..alone }));
    assert_eq!(with.weight_bytes, without.weight_bytes + 2_000_000_000);
    // 2 of 32 layers.
    assert_eq!(with.kv_bytes_per_token, 131_072 + 131_072 / 16);
    // 12 sequences are guessed for at once, each with a block for its guesses and one that it shares with what was before.
    assert_eq!(draft_spare_blocks(4, 16), 24);
    let spare = 24 * 16 * 131_072 / 16;
    assert_eq!(with.activation_reserve_bytes, without.activation_reserve_bytes + spare);
    assert_eq!(with.kv_cache_bytes, with.kv_blocks * 16 * with.kv_bytes_per_token);
    assert!(with.max_cached_tokens < without.max_cached_tokens);
}

#[test]
fn a_draft_model_that_cannot_guess_for_the_model_is_refused() {
    let model = llama_8b();
    let sound = inputs(&model, 72 * GIB);
    let refused = |small: &ModelConfig| {
        let draft = Some(DraftInputs { config: small, weights: &model.1, tokens: 4 });
        plan(&PlanInputs { draft, ..sound }).expect_err("is refused").to_string()
    };
    let error = refused(&ModelConfig { vocab_size: 32_000, ..model.0.clone() });
    assert!(error.contains("engine.speculation.draftModel: has 32000 tokens"), "{error}");
    let error = refused(&ModelConfig { max_position_embeddings: 2048, ..model.0.clone() });
    assert!(error.contains("engine.maxModelLen: is 8192, but the draft model reads 2048"), "{error}");
}

#[test]
fn auto_is_f32_on_a_cpu() {
    let model = llama_8b();
    let plan = planned(&PlanInputs { device: DeviceKind::Cpu, ..inputs(&model, 72 * GIB) });
    assert_eq!(plan.dtype, RunDtype::F32);
    assert_eq!(plan.weight_bytes, 4 * model.1.parameters);
    assert_eq!(plan.kv_bytes_per_token, 262_144);
    assert_eq!(kv_bytes_per_token(&model.0, RunDtype::F16), 131_072);
}

#[test]
fn weights_that_do_not_fit_ask_for_memory() {
    let model = llama_8b();
    let plan = planned(&inputs(&model, 12 * GIB));
    assert!(!plan.fits);
    assert_eq!((plan.kv_blocks, plan.kv_cache_bytes, plan.max_cached_tokens), (0, 0, 0));
    let error = plan.require_fit().expect_err("does not fit");
    assert_eq!(error.reason(), Reason::DoesNotFit);
    let message = error.to_string();
    for part in ["15.0 GiB of weights", "8192 tokens", "a replica has 12.0 GiB", "use a GPU with more memory"]
    {
        assert!(message.contains(part), "{part}: {message}");
    }
    assert!(!message.contains("maxModelLen"), "a shorter sequence would not help: {message}");
}

#[test]
fn a_sequence_that_does_not_fit_names_the_longest_that_does() {
    let model = llama_8b();
    let tight = PlanInputs { max_model_len: None, ..inputs(&model, 24 * GIB) };
    let plan = planned(&tight);
    assert!(!plan.fits);
    assert_eq!(plan.max_model_len, 131_072);
    let (_, rest) = plan.explanation.split_once("set engine.maxModelLen to ").expect("is a remedy");
    let length: u32 = rest.split(' ').next().expect("a number").parse().expect("a number");
    assert!(planned(&PlanInputs { max_model_len: Some(length), ..tight }).fits, "{length}");
    assert!(!planned(&PlanInputs { max_model_len: Some(length + 1), ..tight }).fits, "{length}");
}

#[test]
fn more_sequences_than_memory_has_room_for_are_the_first_remedy() {
    let model = llama_8b();
    let crowded = PlanInputs { max_sequences: 65_536, ..inputs(&model, 40 * GIB) };
    let plan = planned(&crowded);
    assert!(!plan.fits);
    let (_, rest) = plan.explanation.split_once("40.0 GiB: lower engine.maxSequences to ").expect("is first");
    let sequences: u32 = rest.split(' ').next().expect("a number").parse().expect("a number");
    assert!(planned(&PlanInputs { max_sequences: sequences, ..crowded }).fits, "{sequences}");
    assert!(!planned(&PlanInputs { max_sequences: sequences + 1, ..crowded }).fits, "{sequences}");
    // Where they are not what takes the memory, they are not named.
    let tight = planned(&PlanInputs { max_model_len: None, ..inputs(&model, 24 * GIB) });
    assert!(!tight.explanation.contains("maxSequences"), "{}", tight.explanation);
}

#[test]
fn a_step_holds_a_token_of_every_sequence() {
    let model = llama_8b();
    let few = PlanInputs { max_sequences: 256, max_batched_tokens: 1, ..inputs(&model, 72 * GIB) };
    let enough = PlanInputs { max_batched_tokens: 257, ..few };
    assert_eq!(planned(&few), planned(&enough));
    assert_ne!(planned(&few), planned(&PlanInputs { max_batched_tokens: 258, ..few }));
}

#[test]
fn f32_that_would_fit_as_bf16_says_so() {
    let model = llama_8b();
    let cpu = PlanInputs { device: DeviceKind::Cpu, max_batched_tokens: 512, ..inputs(&model, 28 * GIB) };
    let plan = planned(&cpu);
    assert!(plan.explanation.contains("set engine.dtype to bf16"), "{}", plan.explanation);
    assert!(plan.explanation.contains("raise resources.memory"), "{}", plan.explanation);
    assert!(planned(&PlanInputs { dtype: Some(RunDtype::Bf16), ..cpu }).fits);
}

#[test]
fn a_shape_that_nobody_has_checked_is_refused_or_does_not_fit() {
    // As an inspection pod with an image of anyone's could say.
    let (sound, weights) = llama_8b();
    let mut model = (ModelConfig { max_position_embeddings: 0, ..sound.clone() }, weights.clone());
    let error = plan(&PlanInputs { max_model_len: None, ..inputs(&model, 72 * GIB) }).expect_err("0 tokens");
    assert_eq!(error.reason(), Reason::InvalidSpec);
    let most = u32::MAX;
    model.0 = ModelConfig {
        hidden_size: most,
        intermediate_size: most,
        num_hidden_layers: most,
        num_attention_heads: most,
        num_key_value_heads: most,
        head_dim: most,
        vocab_size: most,
        max_position_embeddings: most,
        ..sound.clone()
    };
    assert!(!planned(&PlanInputs { max_model_len: None, ..inputs(&model, 72 * GIB) }).fits);
    model.0 = ModelConfig { num_hidden_layers: 0, ..sound };
    model.1.parameters = 0;
    planned(&inputs(&model, u64::MAX));
}

#[test]
fn settings_that_cannot_be_are_named() {
    let model = llama_8b();
    let sound = inputs(&model, 72 * GIB);
    for (wrong, field) in [
        (PlanInputs { block_tokens: 24, ..sound }, "kvCache.blockTokens"),
        (PlanInputs { block_tokens: 0, ..sound }, "kvCache.blockTokens"),
        (PlanInputs { max_model_len: Some(0), ..sound }, "engine.maxModelLen"),
        (PlanInputs { max_model_len: Some(131_073), ..sound }, "engine.maxModelLen"),
        (PlanInputs { max_sequences: 0, ..sound }, "engine.maxSequences"),
        (PlanInputs { max_batched_tokens: 0, ..sound }, "engine.maxBatchedTokens"),
    ] {
        let error = plan(&wrong).expect_err(field);
        assert_eq!(error.reason(), Reason::InvalidSpec);
        assert!(
            matches!(error, ModelError::InvalidSetting { field: named, .. } if named == field),
            "{error}"
        );
    }
}

prop_compose! {
    fn any_model()(
        layers in 1u32..=1024, kv_heads in 1u32..=64, groups in 1u32..=64, half_dim in 1u32..=2048,
        hidden in 1u32..=(1 << 18), inner in 1u32..=(1 << 20), vocabulary in 1u32..=(1 << 24), positions in 1u32..=(1 << 28),
        parameters in 0u64..=(1 << 60),
    ) -> (ModelConfig, WeightsSummary) {
        let (mut config, _) = llama_8b();
        config.num_hidden_layers = layers;
        config.num_key_value_heads = kv_heads;
        config.num_attention_heads = kv_heads * groups;
        config.head_dim = 2 * half_dim;
        config.hidden_size = hidden;
        config.intermediate_size = inner;
        config.vocab_size = vocabulary;
        config.max_position_embeddings = positions;
        (config, WeightsSummary { parameters, ..WeightsSummary::default() })
    }
}

proptest! {
    #[test]
    fn no_model_and_no_setting_overflows(
        model in any_model(), memory in any::<u64>(), sequences in 1u32.., step in 1u32.., length in 1u32..,
        gpu in any::<bool>(),
    ) {
        let length = length.min(model.0.max_position_embeddings);
        let device = if gpu { DeviceKind::Gpu } else { DeviceKind::Cpu };
        let inputs = PlanInputs {
            device, max_sequences: sequences, max_batched_tokens: step, max_model_len: Some(length), ..inputs(&model, memory)
        };
        let plan = plan(&inputs).expect("settings are sound");
        prop_assert_eq!(plan.fits, plan.max_cached_tokens >= u64::from(length));
        prop_assert!(plan.kv_cache_bytes <= memory);
        prop_assert_eq!(plan.require_fit().is_ok(), plan.fits);
    }

    #[test]
    fn more_memory_never_holds_less(
        memory in 0u64..(200 * GIB), more in 0u64..(200 * GIB), length in 1u32..=131_072, step in 1u32..=16_384,
    ) {
        let model = llama_8b();
        let before = PlanInputs { max_model_len: Some(length), max_batched_tokens: step, ..inputs(&model, memory) };
        let after = PlanInputs { memory_budget_bytes: memory + more, ..before };
        let (before, after) = (planned(&before), planned(&after));
        prop_assert!(after.max_cached_tokens >= before.max_cached_tokens);
        prop_assert!(after.fits || !before.fits);
    }

    #[test]
    fn asking_for_more_never_helps_to_fit(
        memory in (14 * GIB)..(80 * GIB), length in 1u32..=65_536, step in 1u32..=8192, sequences in 1u32..=512,
    ) {
        let model = llama_8b();
        let asked = PlanInputs {
            max_model_len: Some(length), max_batched_tokens: step, max_sequences: sequences, ..inputs(&model, memory)
        };
        let fits = |inputs: PlanInputs<'_>| planned(&inputs).fits;
        if !fits(asked) {
            for more in [
                PlanInputs { max_model_len: Some(2 * length), ..asked },
                PlanInputs { max_batched_tokens: 2 * step, ..asked },
                PlanInputs { max_sequences: 2 * sequences, ..asked },
                PlanInputs { dtype: Some(RunDtype::F32), ..asked },
            ] {
                prop_assert!(!fits(more));
            }
        }
    }
}
