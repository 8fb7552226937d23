//! LoRA adapters against what PEFT computed with the same files (tests/make_lora_reference.py): each alone, and all of them
//! and the base model in one batch. And what is refused.

#![allow(clippy::unwrap_used, clippy::panic)] // a panic is a test's verdict

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{Case, Driver, Expected, Span, greedy, read_expected};
use fairlead_engine::backend::{
    AdapterError, AdapterId, AdapterInfo, Backend, BackendError, ReadAdapter, SequenceStep, StepBatch,
};
use fairlead_model::RunDtype;

/// Largest difference of two log-probabilities in f32.
const TOLERANCE: f32 = 1e-4;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lora_reference").join(name)
}

/// An adapter's base model, and what it makes of the prompts.
fn read(name: &str) -> (Case, Vec<Expected>) {
    let config: serde_json::Value =
        serde_json::from_slice(&fs::read(folder(name).join("adapter_config.json")).unwrap()).unwrap();
    (Case::read(config["base_model_name_or_path"].as_str().unwrap()), read_expected(&folder(name)))
}

fn load(backend: &mut impl Backend, id: AdapterId, folder: &Path) -> Result<AdapterInfo, AdapterError> {
    let ReadAdapter { info, digest, weights } = backend.adapter_reader().unwrap().read(folder)?;
    backend.load_adapter(id, ReadAdapter { info, digest, weights })?;
    Ok(info)
}

#[test]
fn each_adapter_agrees_with_peft_alone_in_chunks_and_decoding() {
    for name in ["every_projection", "rank_stabilised", "patterns", "first_layer", "tied"] {
        let (base, prompts) = read(name);
        let mut driver = Driver::new(base.load(16, None));
        load(driver.backend(), 1, &folder(name)).unwrap();
        for expected in &prompts {
            let length = expected.prompt.len() as u32;
            let sequence = driver.add_with(&expected.prompt, length + 16, Some(1));
            let begun = driver.run(&[Span::scored(sequence, 5)]);
            expected.assert_close(name, 0, &begun[0].distributions, TOLERANCE);
            let step = driver.run(&[Span::scored(sequence, length - 5)]);
            expected.assert_close(name, 5, &step[0].distributions, TOLERANCE);
            let answer = driver.decode(&[sequence], step, expected.greedy.len());
            assert_eq!(answer, std::slice::from_ref(&expected.greedy), "{name}");
        }
    }
}

#[test]
fn several_adapters_and_the_base_share_a_batch() {
    let names = ["every_projection", "rank_stabilised", "patterns"];
    let base = Case::read("gqa_untied");
    let mut driver = Driver::new(base.load(16, None));
    // Whose prompts they are, by the adapter's number; the base has none.
    let mut expected = vec![(None, base.prompts)];
    for (id, name) in (7..).zip(names) {
        load(driver.backend(), id, &folder(name)).unwrap();
        expected.push((Some(id), read_expected(&folder(name))));
    }
    let mut add = |adapter: usize, prompt: usize| {
        let (id, prompts) = &expected[adapter];
        (driver.add_with(&prompts[prompt].prompt, 64, *id), &prompts[prompt])
    };
    // Two of each, adapters alternating, so that most of them have rows in several places.
    let longs: Vec<(usize, &Expected)> = (0..4).map(|adapter| add(adapter, 0)).collect();
    let shorts: Vec<(usize, &Expected)> = (0..4).rev().map(|adapter| add(adapter, 1)).collect();

    let spans: Vec<Span> = longs.iter().map(|(sequence, _)| Span::scored(*sequence, 18)).collect();
    for ((_, expected), told) in longs.iter().zip(driver.run(&spans)) {
        expected.assert_close("mixed prefill", 0, &told.distributions, TOLERANCE);
    }
    // The long prompts end while the short ones are read; then all decode together.
    let joined: Vec<&(usize, &Expected)> =
        longs.iter().zip(&shorts).flat_map(|(long, short)| [short, long]).collect();
    let spans: Vec<Span> = joined
        .iter()
        .enumerate()
        .map(|(index, (sequence, _))| Span::scored(*sequence, if index % 2 == 0 { 9 } else { 11 }))
        .collect();
    let begun = driver.run(&spans);
    for (index, ((_, expected), told)) in joined.iter().zip(&begun).enumerate() {
        expected.assert_close("mixed", if index % 2 == 0 { 0 } else { 18 }, &told.distributions, TOLERANCE);
    }
    let sequences: Vec<usize> = joined.iter().map(|(sequence, _)| *sequence).collect();
    let answers = driver.decode(&sequences, begun, 12);
    for ((_, expected), answer) in joined.iter().zip(&answers) {
        assert_eq!(answer, &expected.greedy);
    }

    // Decodes of some while others are read, the base among them.
    let (late, wanted) = {
        let (id, prompts) = &expected[2];
        (driver.add_with(&prompts[0].prompt, 64, *id), &prompts[0])
    };
    for (sequence, answer) in sequences.iter().zip(&answers) {
        driver.append(*sequence, answer[answer.len() - 1]);
    }
    let mut spans: Vec<Span> = sequences[..3].iter().map(|&sequence| Span::next(sequence)).collect();
    spans.push(Span::scored(late, 29));
    let told = driver.run(&spans);
    wanted.assert_close("late", 0, &told[3].distributions, TOLERANCE);
}

#[test]
fn bf16_agrees_as_far_as_bf16_can() {
    let (base, prompts) = read("every_projection");
    let mut driver = Driver::new(base.load(16, Some(RunDtype::Bf16)));
    let info = load(driver.backend(), 1, &folder("every_projection")).unwrap();
    assert_eq!((info.rank, info.bytes), (8, 2 * 2 * 8 * (128 + 96 + 96 + 128 + 112 + 112 + 112)));
    let sequence = driver.add_with(&prompts[0].prompt, 64, Some(1));
    let told = driver.run(&[Span::scored(sequence, 29)]);
    prompts[0].assert_close("bf16", 0, &told[0].distributions, 0.6);
}

#[test]
fn an_adapter_that_is_gone_is_not_served_and_the_rest_goes_on() {
    let (base, prompts) = read("every_projection");
    let mut driver = Driver::new(base.load(16, None));
    load(driver.backend(), 1, &folder("every_projection")).unwrap();
    load(driver.backend(), 2, &folder("patterns")).unwrap();
    driver.backend().unload_adapter(1);
    let step = |adapter| SequenceStep {
        sequence: 0,
        tokens: vec![5],
        first_position: 0,
        block_table: vec![1],
        drafts: 0,
        adapter,
        sample: Some(greedy()),
    };
    let refused = driver.backend().execute(&StepBatch::from(vec![step(Some(1))]));
    assert!(matches!(refused, Err(BackendError::Fatal(problem)) if problem.contains("adapter 1")));
    for adapter in [None, Some(2)] {
        driver.backend().execute(&StepBatch::from(vec![step(adapter)])).unwrap();
    }
    // Loaded again, under another number.
    load(driver.backend(), 3, &folder("every_projection")).unwrap();
    let sequence = driver.add_with(&prompts[1].prompt, 64, Some(3));
    let told = driver.run(&[Span::scored(sequence, 9)]);
    prompts[1].assert_close("again", 0, &told[0].distributions, TOLERANCE);
}

#[test]
fn what_cannot_be_served_is_named() {
    let backend = Case::read("gqa_untied").load(16, None);
    let reader = backend.adapter_reader().unwrap();
    let other = Case::read("gqa_tied").load(16, None).adapter_reader().unwrap();
    let other = other.read(&folder("every_projection")).unwrap_err();
    assert!(matches!(&other, AdapterError::Invalid(problem) if problem.contains("(1 layers)")), "{other}");
    let nowhere = reader.read(&folder("nowhere")).unwrap_err();
    assert!(matches!(&nowhere, AdapterError::NotFound(problem) if problem.contains("adapter_config.json")));

    let copy = tempfile::tempdir().unwrap();
    let weights = copy.path().join("adapter_model.safetensors");
    let config = folder("patterns").join("adapter_config.json");
    fs::copy(&config, copy.path().join("adapter_config.json")).unwrap();
    let problem = || reader.read(copy.path()).unwrap_err().to_string();
    assert!(problem().contains("adapter_model.safetensors: is missing"));
    let bytes = fs::read(folder("patterns").join("adapter_model.safetensors")).unwrap();
    fs::write(&weights, &bytes[..bytes.len() - 1]).unwrap();
    assert!(problem().contains("truncated"));
    fs::write(&weights, &bytes[..3]).unwrap();
    assert!(problem().contains("cut short"));
    let mut broken = bytes.clone();
    let length = broken.len();
    broken[length - 2..].copy_from_slice(&0x7f80_u16.to_le_bytes());
    fs::write(&weights, &broken).unwrap();
    assert!(problem().contains("not finite"));

    fs::write(&weights, &bytes).unwrap();
    let same = reader.read(copy.path()).unwrap();
    assert_eq!(same.digest, reader.read(&folder("patterns")).unwrap().digest);
    assert_ne!(same.digest, reader.read(&folder("every_projection")).unwrap().digest);
    fs::write(
        copy.path().join("adapter_config.json"),
        fs::read_to_string(&config).unwrap().replace("\"lora_alpha\": 4", "\"lora_alpha\": 5"),
    )
    .unwrap();
    assert_ne!(same.digest, reader.read(copy.path()).unwrap().digest, "settings count too");
}
