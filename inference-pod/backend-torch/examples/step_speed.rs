//! Prints how fast a model folder runs, without a server or a scheduler around it.
//!
//!     cargo run --release -p fairlead-backend-torch --example step_speed -- DIR [f32|bf16] [THREADS]
//!
//! Prefill: one prompt at a time. Decode: batches of sequences with the given context. The best of several steps, since a shared
//! machine only ever adds time.

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use fairlead_backend_torch::{ComputeDevice, DeviceRequest, LoadOptions, TorchBackend};
use fairlead_engine::backend::{Backend, SampleRequest, SequenceStep, StepBatch};
use fairlead_engine::sampling::SamplingOptions;
use fairlead_model::{LoadQuantization, RunDtype};

const BLOCK_TOKENS: u32 = 16;
const REPEATS: usize = 9;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let folder = PathBuf::from(arguments.next().ok_or("usage: step_speed DIR [f32|bf16] [THREADS]")?);
    let dtype = match arguments.next().as_deref() {
        None => None,
        Some("f32") => Some(RunDtype::F32),
        Some("bf16") => Some(RunDtype::Bf16),
        Some(other) => return Err(format!("number type {other} is not f32 or bf16").into()),
    };
    let threads = arguments.next().map(|text| text.parse()).transpose()?;
    let options = LoadOptions {
        device: ComputeDevice::start(DeviceRequest::Auto, threads)?,
        dtype,
        quantization: LoadQuantization::None,
        block_tokens: BLOCK_TOKENS,
        kv_cache_bytes: 1 << 30,
        max_batched_tokens: 2048,
        max_sequences: 64,
    };
    let started = Instant::now();
    let mut backend = TorchBackend::load(&folder, &options, &mut |_, _| {})?;
    println!("load     {:>8.2} s", started.elapsed().as_secs_f64());
    backend.warm_up()?;
    for tokens in [32, 128, 512, 1024] {
        let batch = StepBatch::from(vec![sequence((0, 1), 0, tokens)]);
        let seconds = best(&mut backend, &batch)?;
        println!("prefill  {tokens:>5} tokens: {:>8.0} tokens/s", f64::from(tokens) / seconds);
    }
    for (count, context) in [(1, 128), (1, 1000), (4, 128), (16, 128), (16, 1000), (64, 128)] {
        let sequences: Vec<_> = (0..count).map(|id| sequence((id, count), context, 1)).collect();
        let seconds = best(&mut backend, &StepBatch::from(sequences))?;
        println!(
            "decode   {count:>3} x context {context:>4}: {:>8.1} tokens/s, {:.2} ms a step",
            f64::from(count) / seconds,
            seconds * 1e3
        );
    }
    Ok(())
}

/// Sequence `id` of `count`, whose blocks alternate with the others'.
fn sequence((id, count): (u32, u32), first_position: u32, tokens: u32) -> SequenceStep {
    let blocks = (first_position + tokens).div_ceil(BLOCK_TOKENS);
    SequenceStep {
        sequence: u64::from(id),
        tokens: (0..tokens).map(|index| 5 + (index * 31 + id) % 200).collect(),
        first_position,
        block_table: (0..blocks).map(|block| 1 + block * count + id).collect(),
        drafts: 0,
        adapter: None,
        sample: Some(SampleRequest::new(
            Arc::new(SamplingOptions { temperature: 0.0, ..SamplingOptions::default() }),
            0,
        )),
    }
}

fn best(backend: &mut TorchBackend, batch: &StepBatch) -> Result<f64, Box<dyn Error>> {
    let mut best = f64::INFINITY;
    for _ in 0..REPEATS {
        let started = Instant::now();
        backend.execute(batch)?;
        best = best.min(started.elapsed().as_secs_f64());
    }
    Ok(best)
}
