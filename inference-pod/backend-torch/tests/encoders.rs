//! Encoders against transformers and sentence-transformers, on tiny random models; make_encoders.py says what is compared.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};

use fairlead_backend_torch::{ComputeDevice, DeviceRequest, EncoderLoadOptions, TorchEncoder};
use fairlead_engine::backend::BackendError;
use fairlead_engine::encoder::{Encoder, EncoderInput};
use fairlead_model::encoder::pipeline::{MODULES_FILE, POOLING_FILE, SENTENCE_FILE};
use fairlead_model::{EncoderConfig, EncoderFiles, RunDtype};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;

const CASES: [&str; 8] = [
    "bert_mean",
    "bert_cls",
    "bert_score",
    "roberta_max",
    "roberta_score",
    "xlm_roberta_score",
    "distilbert_mean",
    "distilbert_score",
];
const INPUTS: usize = 7;
const TOLERANCE: f32 = 1e-4;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/encoders").join(name)
}

fn config(folder: &Path) -> EncoderConfig {
    let read = |name: &str| fs::read(folder.join(name)).ok();
    let (modules, pooling, sentence) = (read(MODULES_FILE), read(POOLING_FILE), read(SENTENCE_FILE));
    EncoderConfig::parse(&EncoderFiles {
        config: &read("config.json").unwrap(),
        modules: modules.as_deref(),
        pooling: pooling.as_deref(),
        sentence_bert_config: sentence.as_deref(),
        tokenizer_config: None,
    })
    .unwrap()
}

fn load(name: &str, dtype: Option<RunDtype>) -> TorchEncoder {
    let options = EncoderLoadOptions {
        device: ComputeDevice::start(DeviceRequest::Cpu, None).unwrap(),
        dtype,
        max_input_tokens: 40,
        max_batched_tokens: 64,
    };
    let folder = folder(name);
    TorchEncoder::load(&folder, &config(&folder), &options, &mut |_, _| {}).unwrap()
}

fn integers(view: &TensorView<'_>) -> Vec<i64> {
    view.data().as_chunks::<8>().0.iter().map(|word| i64::from_le_bytes(*word)).collect()
}

fn floats(view: &TensorView<'_>) -> Vec<f32> {
    view.data().as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word)).collect()
}

fn expected(name: &str) -> (Vec<EncoderInput>, Vec<Vec<f32>>) {
    let bytes = fs::read(folder(name).join("expected.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    (0..INPUTS)
        .map(|index| {
            let types = tensors.tensor(&format!("types.{index}")).ok();
            let input = EncoderInput {
                tokens: integers(&tensors.tensor(&format!("tokens.{index}")).unwrap())
                    .into_iter()
                    .map(|token| u32::try_from(token).unwrap())
                    .collect(),
                token_types: types
                    .map(|types| integers(&types).into_iter().map(|it| u8::try_from(it).unwrap()).collect())
                    .unwrap_or_default(),
            };
            (input, floats(&tensors.tensor(&format!("output.{index}")).unwrap()))
        })
        .unzip()
}

fn assert_close(what: &str, got: &[f32], wanted: &[f32], tolerance: f32) {
    assert_eq!(got.len(), wanted.len(), "{what}");
    for (index, (got, wanted)) in got.iter().zip(wanted).enumerate() {
        assert!((got - wanted).abs() <= tolerance, "{what}: number {index}: {got} against {wanted}");
    }
}

#[test]
fn every_family_agrees_with_the_reference_alone_and_in_any_batch() {
    for name in CASES {
        let (inputs, wanted) = expected(name);
        let mut encoder = load(name, None);
        encoder.warm_up().unwrap();
        let all: Vec<&EncoderInput> = inputs.iter().collect();
        let together = encoder.encode(&all).unwrap();
        for (index, (input, wanted)) in inputs.iter().zip(&wanted).enumerate() {
            let alone = encoder.encode(&[input]).unwrap();
            assert_close(&format!("{name} {index} alone"), &alone[0], wanted, TOLERANCE);
            assert_close(&format!("{name} {index} in a batch"), &together[index], wanted, TOLERANCE);
        }
        let backwards: Vec<&EncoderInput> = inputs.iter().rev().collect();
        for (got, wanted) in encoder.encode(&backwards).unwrap().iter().zip(wanted.iter().rev()) {
            assert_close(name, got, wanted, TOLERANCE);
        }
    }
}

#[test]
fn bf16_agrees_as_far_as_bf16_can() {
    for name in ["bert_mean", "roberta_score"] {
        let (inputs, wanted) = expected(name);
        let encoded = load(name, Some(RunDtype::Bf16)).encode(&inputs.iter().collect::<Vec<_>>()).unwrap();
        for (got, wanted) in encoded.iter().zip(&wanted) {
            assert_close(name, got, wanted, 0.05);
        }
    }
}

#[test]
fn the_types_of_a_pair_count() {
    let (inputs, _) = expected("bert_score");
    let pair = &inputs[3];
    let one_text = EncoderInput { token_types: Vec::new(), ..pair.clone() };
    let scores = load("bert_score", None).encode(&[pair, &one_text]).unwrap();
    assert!((scores[0][0] - scores[1][0]).abs() > 1e-3, "{scores:?}");
}

/// Padding inside a text is the client's own doing; transformers passes over it when it counts positions.
#[test]
fn what_cannot_be_run_never_reaches_libtorch() {
    let mut encoder = load("roberta_max", None);
    let input = |tokens: &[u32]| EncoderInput { tokens: tokens.to_vec(), token_types: Vec::new() };
    encoder.encode(&[&input(&[5, 1, 6])]).unwrap();
    for (broken, word) in
        [(input(&[]), "0 tokens"), (input(&[96]), "token 96"), (input(&[5; 47]), "47 tokens")]
    {
        match encoder.encode(&[&broken]) {
            Err(BackendError::Fatal(message)) => assert!(message.contains(word), "{message}"),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(encoder.encode(&[]).unwrap(), Vec::<Vec<f32>>::new());
}
