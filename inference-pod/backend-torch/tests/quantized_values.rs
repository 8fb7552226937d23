//! Packed checkpoints (GPTQ, AWQ) and weights quantised while they are loaded, against what `transformers` computes with the
//! weights that the packed ones stand for (tests/make_quantized.py).
//!
//! In f32 libtorch's products multiply activations with exactly those weights, in another order of summation: so the
//! tolerance is that of unquantised models.

#![allow(clippy::unwrap_used, clippy::panic)] // a panic is a test's verdict

mod common;

use std::fs;

use common::{Case, Driver, Span, options};
use fairlead_backend_torch::{LoadOptions, TorchBackend};
use fairlead_model::plan::{kv_bytes_per_token, weight_bytes};
use fairlead_model::{DeviceKind, LoadQuantization, ModelConfig, Reason, RunDtype};

/// Largest difference of two log-probabilities in f32.
const TOLERANCE: f32 = 1e-4;

const CASES: [&str; 8] = [
    "gptq4",
    "gptq4_symmetric_whole",
    "gptq4_act_order",
    "gptq4_v2",
    "gptq8",
    "gptq8_act_order",
    "gptq4_unpacked",
    "awq4",
];

/// Bytes of a case's weights in memory and what the plan says of them.
fn measured_and_planned(case: &Case, dtype: RunDtype, quantization: LoadQuantization) -> (u64, u64) {
    let options = LoadOptions { quantization, ..options(16, Some(dtype), 1 << 20) };
    let backend = TorchBackend::load(&case.folder, &options, &mut |_, _| {}).unwrap();
    let planned = weight_bytes(backend.config(), backend.weights(), DeviceKind::Cpu, dtype, quantization);
    (backend.weight_bytes(), planned)
}

#[test]
fn every_case_has_its_folder() {
    let mut folders: Vec<String> = fs::read_dir(common::quantized())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    folders.sort();
    let mut cases = CASES.map(str::to_owned);
    cases.sort();
    assert_eq!(folders, cases);
}

#[test]
fn packed_checkpoints_agree_with_their_unpacked_weights() {
    for name in CASES {
        let case = Case::read_quantized(name);
        for chunks in [vec![29], vec![5, 11, 13]] {
            let expected = &case.prompts[0];
            let mut driver = Driver::new(case.load(16, None));
            let sequence = driver.add(&expected.prompt, 64);
            let mut first = 0;
            let mut last = Vec::new();
            for chunk in chunks {
                last = driver.run(&[Span::scored(sequence, chunk)]);
                expected.assert_close(name, first, &last[0].distributions, TOLERANCE);
                first += chunk as usize;
            }
            let answers = driver.decode(&[sequence], last, expected.greedy.len());
            assert_eq!(answers, std::slice::from_ref(&expected.greedy), "{name}");
        }
        let mut driver = Driver::new(case.load(32, None));
        let [a, b] = [0, 1].map(|index| driver.add(&case.prompts[index].prompt, 64));
        let step = driver.run(&[Span::scored(a, 29), Span::scored(b, 9)]);
        let answers = driver.decode(&[a, b], step, 12);
        assert_eq!(answers, [case.prompts[0].greedy.clone(), case.prompts[1].greedy.clone()], "{name}");
    }
}

#[test]
fn half_precision_agrees_as_far_as_it_can() {
    for (dtype, tolerance) in [(RunDtype::Bf16, 0.3), (RunDtype::F16, 0.05)] {
        for name in ["gptq4", "gptq8", "awq4"] {
            let case = Case::read_quantized(name);
            let expected = &case.prompts[0];
            let mut driver = Driver::new(case.load(16, Some(dtype)));
            let sequence = driver.add(&expected.prompt, 64);
            let step = driver.run(&[Span::scored(sequence, 29)]);
            expected.assert_close(&format!("{name} {dtype}"), 0, &step[0].distributions, tolerance);
        }
    }
}

#[test]
fn weights_take_the_memory_that_the_plan_says() {
    for name in CASES {
        let case = Case::read_quantized(name);
        for dtype in [RunDtype::F32, RunDtype::Bf16] {
            let (measured, planned) = measured_and_planned(&case, dtype, LoadQuantization::None);
            // Scattered groups keep the order of each projection's inputs, of four bytes each, which no plan knows of.
            let order = if name == "gptq4_act_order" { 2 * (6 * 64 + 96) * 4 } else { 0 };
            assert_eq!(measured, planned + order, "{name} {dtype}");
        }
    }
    let case = Case::read("qwen3");
    for quantization in [LoadQuantization::None, LoadQuantization::Int8, LoadQuantization::Int4] {
        let (measured, planned) = measured_and_planned(&case, RunDtype::F32, quantization);
        assert_eq!(measured, planned, "{quantization:?}");
    }
}

/// Rounding changes answers, so this is a bound and no equality: eight bits are close, four are not but still the same model.
#[test]
fn weights_quantised_at_load_stay_near_those_in_full() {
    let case = Case::read("mistral_window");
    let expected = &case.prompts[0];
    let config = ModelConfig::parse(&fs::read(case.folder.join("config.json")).unwrap()).unwrap();
    let bytes = kv_bytes_per_token(&config, RunDtype::F32) * 16 * 64;
    let mut errors = Vec::new();
    for quantization in [LoadQuantization::None, LoadQuantization::Int8, LoadQuantization::Int4] {
        let options = LoadOptions { quantization, ..options(16, None, bytes) };
        let mut driver = Driver::new(TorchBackend::load(&case.folder, &options, &mut |_, _| {}).unwrap());
        let sequence = driver.add(&expected.prompt, 64);
        let step = driver.run(&[Span::scored(sequence, 29)]);
        errors.push(expected.mean_error(&step[0].distributions));
    }
    assert!(errors[0] < 1e-5 && errors[1] < 0.03 && errors[2] < 0.6, "{errors:?}");
    assert!(errors[1] > 1e-4 && errors[2] > 5.0 * errors[1], "nothing was quantised: {errors:?}");
}

#[test]
fn what_is_quantised_already_is_not_quantised_again() {
    let case = Case::read_quantized("gptq4");
    let options = LoadOptions { quantization: LoadQuantization::Int8, ..options(16, None, 1 << 20) };
    let error = TorchBackend::load(&case.folder, &options, &mut |_, _| {}).err().unwrap();
    assert_eq!(error.reason(), Reason::InvalidSpec);
    assert!(error.to_string().contains("engine.quantization"), "{error}");
}

#[test]
fn tensors_that_contradict_their_quantisation_are_refused_by_name() {
    let edited = |name: &str, edit: &dyn Fn(&mut serde_json::Value)| {
        let folder = tempfile::tempdir().unwrap();
        for file in ["config.json", "model.safetensors"] {
            fs::copy(common::quantized().join(name).join(file), folder.path().join(file)).unwrap();
        }
        let path = folder.path().join("config.json");
        let mut config: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        edit(&mut config["quantization_config"]);
        fs::write(path, config.to_string()).unwrap();
        let error = TorchBackend::load(folder.path(), &options(16, None, 1 << 20), &mut |_, _| {});
        error.err().unwrap().to_string()
    };
    let error = edited("gptq4", &|settings| settings["bits"] = 8.into());
    assert!(error.contains("q_proj.qweight has shape [8, 64]"), "{error}");
    let error = edited("gptq4", &|settings| settings["group_size"] = 64.into());
    assert!(error.contains("q_proj.qzeros has shape"), "{error}");
    let error = edited("awq4", &|settings| settings["quant_method"] = "gptq".into());
    assert!(error.contains("qweight has shape"), "{error}");
    let error = edited("awq4", &|settings| settings["modules_to_not_convert"] = serde_json::json!(["mlp"]));
    assert!(error.contains("mlp.gate_proj.weight is missing"), "{error}");
}
