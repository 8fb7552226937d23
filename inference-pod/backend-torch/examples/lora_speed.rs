//! Prints what LoRA adapters cost: the same batches without any, with one for all, and with several in one batch.
//!
//!     cargo run --release -p fairlead-backend-torch --example lora_speed -- DIR [RANK] [ADAPTERS]
//!
//! The adapters are made of noise and change every projection. The batches of a row take turns, and the best time of each
//! counts, since a shared machine only ever adds time.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use fairlead_backend_torch::{ComputeDevice, DeviceRequest, LoadOptions, TorchBackend};
use fairlead_engine::backend::{AdapterId, Backend, SampleRequest, SequenceStep, StepBatch};
use fairlead_engine::sampling::SamplingOptions;
use fairlead_model::lora::{ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE, Projection};
use fairlead_model::{LoadQuantization, ModelConfig};
use serde_json::{Map, Value, json};

const BLOCK_TOKENS: u32 = 16;
const CONTEXT: u32 = 128;
const REPEATS: usize = 15;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let folder = PathBuf::from(arguments.next().ok_or("usage: lora_speed DIR [RANK] [ADAPTERS]")?);
    let rank: u32 = arguments.next().map_or(Ok(16), |text| text.parse())?;
    let adapters: AdapterId = arguments.next().map_or(Ok(4), |text| text.parse())?;
    let options = LoadOptions {
        device: ComputeDevice::start(DeviceRequest::Auto, None)?,
        dtype: None,
        quantization: LoadQuantization::None,
        block_tokens: BLOCK_TOKENS,
        kv_cache_bytes: 1 << 29,
        max_batched_tokens: 512,
        max_sequences: 16,
    };
    let mut backend = TorchBackend::load(&folder, &options, &mut |_, _| {})?;
    backend.warm_up()?;
    let reader = backend.adapter_reader().ok_or("this model takes no adapters")?;
    let files = tempfile::tempdir()?;
    write_adapter(files.path(), backend.config(), rank)?;
    for id in 1..=adapters {
        let started = Instant::now();
        let read = reader.read(files.path())?;
        let (info, reading) = (read.info, started.elapsed());
        let started = Instant::now();
        backend.load_adapter(id, read)?;
        println!(
            "adapter {id}: {:.1} MB, read in {:.1} ms, taken in between steps in {:.3} ms",
            info.bytes as f64 / 1e6,
            reading.as_secs_f64() * 1e3,
            started.elapsed().as_secs_f64() * 1e3
        );
    }
    for (name, count, first, tokens) in [
        ("decode   1", 1, CONTEXT, 1),
        ("decode   4", 4, CONTEXT, 1),
        ("decode  16", 16, CONTEXT, 1),
        ("prefill 256", 1, 0, 256),
    ] {
        let batch = |adapter: &dyn Fn(u32) -> Option<AdapterId>| {
            let sequence = |id| sequence((id, count), first, tokens, adapter(id));
            StepBatch::from((0..count).map(sequence).collect::<Vec<_>>())
        };
        let batches = [
            batch(&|_| None),
            batch(&|_| Some(1)),
            batch(&|id| (id % (adapters + 1) > 0).then_some(id % (adapters + 1))),
        ];
        let mut best = [f64::INFINITY; 3];
        for _ in 0..REPEATS {
            for (batch, best) in batches.iter().zip(&mut best) {
                let started = Instant::now();
                backend.execute(batch)?;
                *best = best.min(started.elapsed().as_secs_f64() * 1e3);
            }
        }
        let [base, one, mixed] = best;
        println!(
            "{name}: base {base:.2} ms, one adapter {one:.2} ms ({:+.0} %), base and {adapters} adapters {mixed:.2} ms ({:+.0} %)",
            (one / base - 1.0) * 100.0,
            (mixed / base - 1.0) * 100.0
        );
    }
    Ok(())
}

/// Sequence `id` of `count`, whose blocks alternate with the others'.
fn sequence(
    (id, count): (u32, u32),
    first_position: u32,
    tokens: u32,
    adapter: Option<AdapterId>,
) -> SequenceStep {
    let blocks = (first_position + tokens).div_ceil(BLOCK_TOKENS);
    SequenceStep {
        sequence: u64::from(id),
        tokens: (0..tokens).map(|index| 5 + (index * 31 + id) % 200).collect(),
        first_position,
        block_table: (0..blocks).map(|block| 1 + block * count + id).collect(),
        drafts: 0,
        adapter,
        sample: Some(SampleRequest::new(
            Arc::new(SamplingOptions { temperature: 0.0, ..SamplingOptions::default() }),
            0,
        )),
    }
}

/// An adapter of noise on every projection, as PEFT would save it.
fn write_adapter(folder: &Path, config: &ModelConfig, rank: u32) -> Result<(), Box<dyn Error>> {
    let mut header = Map::new();
    let mut end = 0_u64;
    for layer in 0..config.num_hidden_layers {
        for projection in Projection::ALL {
            let (out, input) = projection.sizes(config);
            for (half, shape) in [("lora_A", [rank, input]), ("lora_B", [out, rank])] {
                let begin = end;
                end += 4 * u64::from(shape[0]) * u64::from(shape[1]);
                let name = format!("base_model.model.{}.{half}.weight", projection.module(layer));
                header.insert(name, json!({"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}));
            }
        }
    }
    let header = Value::Object(header).to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    let mut state = 1_u32;
    for _ in 0..end / 4 {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        bytes.extend_from_slice(&((state >> 8) as f32 / 1e9).to_le_bytes());
    }
    fs::write(folder.join(ADAPTER_WEIGHTS_FILE), bytes)?;
    let settings =
        json!({"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": "all-linear"});
    fs::write(folder.join(ADAPTER_CONFIG_FILE), settings.to_string())?;
    Ok(())
}
