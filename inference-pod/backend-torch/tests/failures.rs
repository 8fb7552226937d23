//! What happens with models that cannot be loaded and steps that cannot be run: a typed error that says what to do, never a
//! panic, and a backend that goes on.

#![allow(clippy::unwrap_used, clippy::panic)] // a panic is a test's verdict

mod common;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use common::{Case, Driver, Span, greedy, options, reference};
use fairlead_backend_torch::{LoadError, TorchBackend};
use fairlead_engine::backend::{Backend, BackendError, SampleRequest, SequenceStep, StepBatch};
use fairlead_engine::sampling::SamplingOptions;
use fairlead_model::Reason;
use safetensors::SafeTensors;
use tempfile::TempDir;

/// A copy of a case's model folder.
fn copy(name: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(reference().join(name)).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    folder
}

/// Loads a folder that must be refused.
fn refusal(folder: &Path) -> LoadError {
    match TorchBackend::load(folder, &options(16, None, 1 << 20), &mut |_, _| {}) {
        Ok(_) => panic!("{} must be refused", folder.display()),
        Err(error) => error,
    }
}

fn edit_config(folder: &Path, edit: impl FnOnce(&mut serde_json::Value)) {
    let path = folder.join("config.json");
    let mut config = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    edit(&mut config);
    fs::write(path, serde_json::to_vec(&config).unwrap()).unwrap();
}

fn assert_refused(folder: &Path, reason: Reason, text: &str) {
    let error = refusal(folder);
    assert_eq!(error.reason(), reason, "{error}");
    assert!(error.to_string().contains(text), "{error}");
}

#[test]
fn a_folder_without_a_model_is_not_found() {
    let folder = tempfile::tempdir().unwrap();
    assert_refused(folder.path(), Reason::ModelNotFound, "config.json");

    let folder = copy("gqa_untied");
    fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    assert_refused(folder.path(), Reason::ModelNotFound, "model.safetensors");

    let folder = copy("sharded");
    fs::remove_file(folder.path().join("model-00003-of-00004.safetensors")).unwrap();
    assert_refused(folder.path(), Reason::ModelNotFound, "model-00003-of-00004.safetensors");
}

#[test]
fn files_that_are_cut_or_contradict_each_other_are_invalid() {
    let folder = copy("gqa_untied");
    let path = folder.path().join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 2]).unwrap();
    assert_refused(folder.path(), Reason::ModelInvalid, "truncated");
    fs::write(&path, &bytes[..20]).unwrap();
    assert_refused(folder.path(), Reason::ModelInvalid, "model.safetensors");
    fs::write(&path, b"").unwrap();
    assert_refused(folder.path(), Reason::ModelInvalid, "model.safetensors");

    let folder = copy("gqa_untied");
    edit_config(folder.path(), |config| config["num_hidden_layers"] = 3.into());
    assert_refused(folder.path(), Reason::ModelInvalid, "model.layers.2");

    let folder = copy("gqa_untied");
    edit_config(folder.path(), |config| config["intermediate_size"] = 50.into());
    assert_refused(folder.path(), Reason::ModelInvalid, "mlp.gate_proj.weight has shape");

    fs::write(folder.path().join("config.json"), "{").unwrap();
    assert_refused(folder.path(), Reason::ModelInvalid, "config.json");
}

#[test]
fn a_model_that_is_not_supported_says_what_is() {
    let folder = copy("gqa_untied");
    edit_config(folder.path(), |config| config["architectures"] = serde_json::json!(["MambaForCausalLM"]));
    assert_refused(folder.path(), Reason::UnsupportedArchitecture, "LlamaForCausalLM");

    let folder = copy("gqa_untied");
    edit_config(folder.path(), |config| {
        config["rope_parameters"] =
            serde_json::json!({"rope_type": "longrope", "rope_theta": 10000.0, "factor": 4.0});
    });
    assert_refused(folder.path(), Reason::UnsupportedArchitecture, "longrope");
}

#[test]
fn a_cache_that_is_too_small_or_too_large_says_so() {
    let folder = reference().join("gqa_untied");
    let load = |block_tokens, bytes| {
        TorchBackend::load(&folder, &options(block_tokens, None, bytes), &mut |_, _| {}).err().unwrap()
    };
    let small = load(16, 10_000);
    assert_eq!(small.reason(), Reason::InvalidSpec);
    assert!(small.to_string().contains("kvCache.memory"), "{small}");
    let large = load(16, 1 << 46);
    assert_eq!(large.reason(), Reason::DoesNotFit, "{large}");
    assert!(large.to_string().contains("are left"), "{large}");
    let odd = load(17, 1 << 20);
    assert!(odd.to_string().contains("kvCache.blockTokens"), "{odd}");
}

#[test]
fn a_cache_gets_another_size_before_the_first_request() {
    let case = Case::read("gqa_untied");
    let mut backend = case.load(16, None);
    let block_bytes = backend.kv_capacity().block_bytes;
    let mut resized =
        TorchBackend::load(&case.folder, &options(16, None, 2 * block_bytes), &mut |_, _| {}).unwrap();
    assert_eq!(resized.kv_capacity().blocks, 2);
    resized.warm_up().unwrap();
    resized.resize_cache(64 * block_bytes).unwrap();
    assert_eq!(resized.kv_capacity(), backend.kv_capacity());
    let mut driver = Driver::new(resized);
    let sequence = driver.add(&case.prompts[0].prompt, 64);
    let step = driver.run(&[Span::scored(sequence, 29)]);
    let answers = driver.decode(&[sequence], step, 12);
    assert_eq!(answers, std::slice::from_ref(&case.prompts[0].greedy));
    let error = backend.resize_cache(1 << 46).unwrap_err();
    assert_eq!(error.reason(), Reason::DoesNotFit, "{error}");
    assert_eq!(backend.kv_capacity().blocks, 64, "what was there is still there");
}

#[test]
fn progress_ends_at_the_bytes_of_all_weights() {
    let mut seen = Vec::new();
    let folder = reference().join("sharded");
    TorchBackend::load(&folder, &options(16, None, 1 << 20), &mut |done, total| seen.push((done, total)))
        .unwrap();
    assert!(seen.is_sorted());
    let (done, total) = *seen.last().unwrap();
    assert_eq!(done, total);
    assert!(seen.iter().all(|entry| entry.1 == total));
}

#[test]
fn an_impossible_batch_is_an_error_and_not_the_end() {
    let case = Case::read("gqa_untied");
    let mut backend = case.load(16, None);
    let step = |tokens: Vec<u32>, block_table: Vec<u32>| {
        StepBatch::from(vec![SequenceStep {
            sequence: 5,
            tokens,
            first_position: 0,
            block_table,
            drafts: 0,
            adapter: None,
            sample: Some(greedy()),
        }])
    };
    for (batch, text) in [
        (step(vec![160], vec![1]), "token 160"),
        (step(vec![1], vec![64]), "block 64"),
        (step(vec![1; 17], vec![1]), "needs 2"),
    ] {
        match backend.execute(&batch) {
            Err(BackendError::Fatal(message)) => {
                assert!(message.contains(text) && message.contains("sequence 5"), "{message}");
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(backend.execute(&StepBatch::default()).unwrap(), []);
    assert_eq!(backend.execute(&step(vec![1], vec![1])).unwrap().len(), 1);
}

/// A model whose embedding of one token is not a number.
fn poisoned(token: usize) -> (TempDir, Case) {
    let folder = copy("gqa_tied");
    let path = folder.path().join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let row = {
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let view = tensors.tensor("model.embed_tokens.weight").unwrap();
        let start = view.data().as_ptr().addr() - bytes.as_ptr().addr();
        let row_bytes = view.shape()[1] * 4;
        start + token * row_bytes..start + (token + 1) * row_bytes
    };
    for number in bytes[row].as_chunks_mut::<4>().0 {
        *number = f32::NAN.to_le_bytes();
    }
    fs::write(&path, bytes).unwrap();
    let case = Case { folder: folder.path().to_path_buf(), ..Case::read("gqa_tied") };
    (folder, case)
}

#[test]
fn a_sequence_that_goes_wrong_is_named_and_harms_no_other() {
    let (folder, mut case) = poisoned(100);
    // The output is untied here, or the poisoned row would be in everybody's logits.
    untie(folder.path());
    case.prompts.truncate(1);
    let healthy = &case.prompts[0];
    assert!(!healthy.prompt.contains(&100) && !healthy.greedy.contains(&100));

    let mut backend = case.load(16, None);
    let step = |sequence, tokens: &[u32], first_position, block_table: &[u32]| SequenceStep {
        sequence,
        tokens: tokens.to_vec(),
        first_position,
        block_table: block_table.to_vec(),
        drafts: 0,
        adapter: None,
        sample: Some(greedy()),
    };
    let good = step(1, &healthy.prompt, 0, &[3, 4]);
    let bad = step(2, &[7, 100, 8, 9], 0, &[9]);
    match backend.execute(&StepBatch::from(vec![good.clone(), bad])) {
        Err(BackendError::NonFinite(sequences)) => assert_eq!(sequences, [2]),
        other => panic!("{other:?}"),
    }
    // Again without the bad one; then its block goes to the good one, which reads it whole while only a part is written.
    let again = backend.execute(&StepBatch::from(vec![good])).unwrap();
    assert_eq!(again[0].tokens[0].token, healthy.greedy[0]);
    let mut length = healthy.prompt.len() as u32;
    for (fed, expected) in healthy.greedy.iter().zip(&healthy.greedy[1..]) {
        let next = step(1, &[*fed], length, &[3, 4, 9]);
        let sampled = backend.execute(&StepBatch::from(vec![next])).unwrap();
        assert_eq!(sampled[0].tokens[0].token, *expected);
        length += 1;
    }
    assert!(length > 32, "the reused block must be reached");
}

/// Gives a tied model an output of its own: the embedding, with zeros where that is not a number.
fn untie(folder: &Path) {
    edit_config(folder, |config| config["tie_word_embeddings"] = false.into());
    let path = folder.join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let embedding = tensors.tensor("model.embed_tokens.weight").unwrap();
    let mut output = embedding.data().to_vec();
    for number in output.as_chunks_mut::<4>().0 {
        if f32::from_le_bytes(*number).is_nan() {
            *number = [0; 4];
        }
    }
    let head =
        safetensors::tensor::TensorView::new(embedding.dtype(), embedding.shape().to_vec(), &output).unwrap();
    let mut all: Vec<(String, safetensors::tensor::TensorView<'_>)> = tensors.tensors();
    all.push(("lm_head.weight".to_owned(), head));
    let serialized = safetensors::serialize(all, None).unwrap();
    fs::write(path, serialized).unwrap();
}

#[test]
fn chosen_tokens_follow_the_request() {
    let case = Case::read("gqa_untied");
    let expected = &case.prompts[0];
    let mut backend = case.load(16, None);
    let mut ask = |request| {
        let sequence = SequenceStep {
            sequence: 1,
            tokens: expected.prompt.clone(),
            first_position: 0,
            block_table: vec![1, 2],
            drafts: 0,
            adapter: None,
            sample: request,
        };
        backend.execute(&StepBatch::from(vec![sequence])).unwrap()
    };
    assert!(ask(None).is_empty(), "nothing is asked, nothing is answered");
    let likeliest = ask(Some(greedy()))[0].tokens[0].token;
    let mut other = greedy();
    (other.banned, other.banned_draws) = (Arc::new([likeliest]), 1);
    assert_ne!(ask(Some(other))[0].tokens[0].token, likeliest);
    let options = Arc::new(SamplingOptions { temperature: 5.0, seed: 3, ..SamplingOptions::default() });
    let hot = |draw| SampleRequest::new(Arc::clone(&options), draw);
    assert_eq!(ask(Some(hot(1))), ask(Some(hot(1))));
    let drawn: std::collections::BTreeSet<u32> =
        (0..20).map(|draw| ask(Some(hot(draw)))[0].tokens[0].token).collect();
    assert!(drawn.len() > 5, "{drawn:?}");
}

#[test]
fn the_last_block_of_the_cache_can_be_used() {
    let case = Case::read("gqa_untied");
    let mut driver = Driver::new(case.load(16, None));
    // All 63 blocks but block 0.
    let sequences: Vec<usize> = (0..21).map(|_| driver.add(&case.prompts[0].prompt, 48)).collect();
    let spans: Vec<Span> = sequences.iter().map(|&sequence| Span::scored(sequence, 29)).collect();
    for told in driver.run(&spans) {
        case.prompts[0].assert_close("full cache", 0, &told.distributions, 1e-4);
    }
}
