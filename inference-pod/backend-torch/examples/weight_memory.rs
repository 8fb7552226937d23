//! Prints what a model's weights take in memory, in full or quantised while they are loaded, and how far answers move.
//!
//!     cargo run -p fairlead-backend-torch --example weight_memory -- DIR [f32|bf16|f16] [none|int8|int4]
//!
//! One process for each quantisation: what an earlier one has freed would be counted as free of charge. Full weights are
//! loaded after the measurement, to compare answers with. Memory is the process's anonymous resident memory before and after loading (pages of the files are the kernel's to drop).
//! Answers are the log-probabilities of the next token after a prompt of 128 made-up tokens, against those of full weights.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fairlead_backend_torch::{ComputeDevice, DeviceRequest, LoadOptions, TorchBackend};
use fairlead_engine::backend::{Backend, SampleRequest, SequenceStep, StepBatch};
use fairlead_engine::sampling::SamplingOptions;
use fairlead_model::{LoadQuantization, RunDtype};

const BLOCK_TOKENS: u32 = 16;
const PROMPT: u32 = 128;
const MIB: f64 = 1_048_576.0;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let folder = PathBuf::from(arguments.next().ok_or("usage: weight_memory DIR [f32|bf16|f16]")?);
    let dtype = match arguments.next().as_deref() {
        None | Some("f32") => RunDtype::F32,
        Some("bf16") => RunDtype::Bf16,
        Some("f16") => RunDtype::F16,
        Some(other) => return Err(format!("{other}: must be f32, bf16 or f16").into()),
    };
    let quantization = match arguments.next().as_deref() {
        None | Some("none") => LoadQuantization::None,
        Some("int8") => LoadQuantization::Int8,
        Some("int4") => LoadQuantization::Int4,
        Some(other) => return Err(format!("{other}: must be none, int8 or int4").into()),
    };
    let (tensors, resident, answer) = run(&folder, dtype, quantization)?;
    let (_, _, full) = run(&folder, dtype, LoadQuantization::None)?;
    let change: f64 =
        answer.iter().zip(&full).map(|(a, b)| f64::from(b.exp()) * f64::from((a - b).abs())).sum();
    println!("tensors  {:>8.1} MiB", tensors as f64 / MIB);
    println!("resident {:>8.1} MiB", resident as f64 / MIB);
    println!("mean change of a log-probability {change:.5}");
    Ok(())
}

/// Bytes of the weights' tensors, bytes that the process grew by, and log-probabilities of the next token by token.
fn run(
    folder: &Path,
    dtype: RunDtype,
    quantization: LoadQuantization,
) -> Result<(u64, u64, Vec<f32>), Box<dyn Error>> {
    let options = LoadOptions {
        device: ComputeDevice::start(DeviceRequest::Cpu, None)?,
        dtype: Some(dtype),
        quantization,
        block_tokens: BLOCK_TOKENS,
        kv_cache_bytes: 64 << 20,
        max_batched_tokens: PROMPT,
        max_sequences: 1,
    };
    let before = resident()?;
    let mut backend = TorchBackend::load(folder, &options, &mut |_, _| {})?;
    let cache = backend.kv_capacity();
    let cache_bytes = cache.block_bytes * u64::from(cache.blocks);
    let grown = resident()?.saturating_sub(before).saturating_sub(cache_bytes);
    let vocabulary = backend.config().vocab_size;
    let wanted =
        SamplingOptions { temperature: 0.0, logprobs: Some(vocabulary), ..SamplingOptions::default() };
    let step = SequenceStep {
        sequence: 0,
        tokens: (0..PROMPT).map(|position| position * 7919 % vocabulary).collect(),
        first_position: 0,
        block_table: (1..=PROMPT.div_ceil(BLOCK_TOKENS)).collect(),
        drafts: 0,
        adapter: None,
        sample: Some(SampleRequest::new(Arc::new(wanted), 0)),
    };
    let sampled = backend.execute(&StepBatch::from(vec![step])).map_err(|error| format!("{error:?}"))?;
    let mut answer = vec![f32::NEG_INFINITY; vocabulary as usize];
    for entry in sampled.iter().flat_map(|sampled| &sampled.tokens).flat_map(|token| &token.top_logprobs) {
        answer[entry.token as usize] = entry.logprob;
    }
    Ok((backend.weight_bytes(), grown, answer))
}

/// Bytes of anonymous memory that are resident.
fn resident() -> Result<u64, Box<dyn Error>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).ok_or("no RssAnon")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse::<u64>()? * 1024)
}
