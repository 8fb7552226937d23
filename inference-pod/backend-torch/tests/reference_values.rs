//! What the backend computes, against what `transformers` computed with the same weights (tests/make_reference.py).
//!
//! Logits are seen through the engine's seam: with `prompt_logprobs` and as many alternatives as the vocabulary has, a step
//! tells the whole distribution at every position. That is also what proves that a prompt in one piece, a prompt in chunks
//! and any mixture of sequences over scattered blocks give the same answer.

#![allow(clippy::unwrap_used, clippy::panic)] // a panic is a test's verdict

mod common;

use common::{Case, Driver, Span};
use fairlead_backend_torch::TorchBackend;
use fairlead_engine::backend::Backend;
use fairlead_model::RunDtype;

/// Largest difference of two log-probabilities in f32.
const TOLERANCE: f32 = 1e-4;

const CASES: [&str; 18] = [
    "mha_untied",
    "gqa_untied",
    "gqa_tied",
    "mqa_tied",
    "biases",
    "rope_llama3",
    "rope_linear",
    "head_dim",
    "sharded",
    "mistral",
    "mistral_window",
    "qwen2",
    "qwen2_window",
    "qwen2_yarn",
    "qwen3",
    "qwen3_layer_types",
    "qwen3_yarn",
    "rope_dynamic",
];

#[test]
fn every_case_has_its_folder() {
    let mut folders: Vec<String> = std::fs::read_dir(common::reference())
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.path().is_dir())
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    folders.sort();
    let mut cases = CASES.map(str::to_owned);
    cases.sort();
    assert_eq!(folders, cases);
}

#[test]
fn a_prompt_in_one_piece_and_greedy_decoding_agree() {
    for name in CASES {
        let case = Case::read(name);
        let mut driver = Driver::new(case.load(16, None));
        for expected in &case.prompts {
            let length = expected.prompt.len() as u32;
            let sequence = driver.add(&expected.prompt, length + 16);
            let step = driver.run(&[Span::scored(sequence, length)]);
            expected.assert_close(name, 0, &step[0].distributions, TOLERANCE);
            assert_eq!(
                driver.decode(&[sequence], step, expected.greedy.len()),
                std::slice::from_ref(&expected.greedy),
                "{name}"
            );
        }
    }
}

#[test]
fn a_prompt_in_chunks_agrees() {
    for name in CASES {
        let case = Case::read(name);
        let expected = &case.prompts[0];
        // One token, chunks that end inside, at and beyond the end of a block.
        for chunks in [vec![1, 28], vec![5, 11, 13], vec![16, 13], vec![17, 1, 1, 10]] {
            assert_eq!(chunks.iter().sum::<u32>() as usize, expected.prompt.len());
            let mut driver = Driver::new(case.load(16, None));
            let sequence = driver.add(&expected.prompt, 64);
            let mut first = 0;
            let mut last = Vec::new();
            for chunk in &chunks {
                last = driver.run(&[Span::scored(sequence, *chunk)]);
                expected.assert_close(name, first, &last[0].distributions, TOLERANCE);
                first += *chunk as usize;
            }
            assert_eq!(
                driver.decode(&[sequence], last, 12),
                std::slice::from_ref(&expected.greedy),
                "{name} {chunks:?}"
            );
        }
    }
}

#[test]
fn sequences_of_every_stage_in_one_batch_agree_over_scattered_blocks() {
    for name in CASES {
        let case = Case::read(name);
        let (long, short) = (&case.prompts[0], &case.prompts[1]);
        let mut driver = Driver::new(case.load(16, None));
        let [a, b, c, d] = [long, short, long, short].map(|expected| driver.add(&expected.prompt, 64));

        // a begins alone; b's whole prompt joins while a goes on; then all four, each at another stage.
        let begun = driver.run(&[Span::scored(a, 18)]);
        long.assert_close(name, 0, &begun[0].distributions, TOLERANCE);
        let mixed = driver.run(&[Span::scored(b, 9), Span::scored(a, 11)]);
        short.assert_close(name, 0, &mixed[0].distributions, TOLERANCE);
        long.assert_close(name, 18, &mixed[1].distributions, TOLERANCE);
        driver.append(b, mixed[0].token);
        driver.append(a, mixed[1].token);

        let all = driver.run(&[Span::next(a), Span::scored(c, 29), Span::next(b), Span::scored(d, 4)]);
        long.assert_close(name, 0, &all[1].distributions, TOLERANCE);
        short.assert_close(name, 0, &all[3].distributions, TOLERANCE);
        driver.append(a, all[0].token);
        driver.append(c, all[1].token);
        driver.append(b, all[2].token);

        let rest = driver.run(&[Span::next(c), Span::scored(d, 5), Span::next(a), Span::next(b)]);
        short.assert_close(name, 4, &rest[1].distributions, TOLERANCE);
        driver.append(c, rest[0].token);
        driver.append(d, rest[1].token);
        driver.append(a, rest[2].token);
        driver.append(b, rest[3].token);
        for _ in 0..8 {
            let step = driver.run(&[Span::next(d), Span::next(a), Span::next(c), Span::next(b)]);
            for (sequence, answer) in [d, a, c, b].into_iter().zip(step) {
                driver.append(sequence, answer.token);
            }
        }
        for (sequence, expected) in [(a, long), (b, short), (c, long), (d, short)] {
            let answer = &driver.tokens(sequence)[expected.prompt.len()..];
            assert!(answer.len() >= 9, "{name}");
            assert_eq!(answer, &expected.greedy[..answer.len()], "{name}: sequence {sequence}");
        }
    }
}

#[test]
fn bf16_agrees_as_far_as_bf16_can() {
    let case = Case::read("gqa_untied");
    let mut driver = Driver::new(case.load(32, Some(RunDtype::Bf16)));
    let expected = &case.prompts[0];
    let sequence = driver.add(&expected.prompt, 64);
    let begun = driver.run(&[Span::scored(sequence, 20)]);
    expected.assert_close("bf16", 0, &begun[0].distributions, 0.25);
    let step = driver.run(&[Span::scored(sequence, 9)]);
    expected.assert_close("bf16", 20, &step[0].distributions, 0.25);
}

#[test]
fn warming_up_leaves_no_trace_in_answers() {
    let case = Case::read("gqa_untied");
    let mut backend: TorchBackend = case.load(16, None);
    backend.warm_up().unwrap();
    let capacity = backend.kv_capacity();
    assert_eq!((capacity.block_tokens, capacity.blocks), (16, 64));
    let mut driver = Driver::new(backend);
    // Two contexts of unequal length in one batch, so that the padding block is read.
    let [a, b] = [0, 1].map(|index| driver.add(&case.prompts[index].prompt, 64));
    let step = driver.run(&[Span::scored(a, 29), Span::scored(b, 9)]);
    let answers = driver.decode(&[a, b], step, 12);
    assert_eq!(answers, [case.prompts[0].greedy.clone(), case.prompts[1].greedy.clone()]);
}
