//! How fast an encoder encodes: reads lines of token ids (numbers with spaces) and prints one JSON line for each pass.
//!
//!     cargo run --release -p fairlead-backend-torch --example encode_speed -- FOLDER THREADS PASSES < tokens.txt
//!
//! `bench/encoders.py` feeds it the tokens of the texts that it gives sentence-transformers, and compares.

use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::time::Instant;

use fairlead_backend_torch::{ComputeDevice, DeviceRequest, EncoderLoadOptions, TorchEncoder};
use fairlead_engine::encoder::{BatchBudget, Encoder, EncoderInput, EncoderQueue};
use fairlead_model::{EncoderConfig, EncoderFiles};

/// What a pod on a CPU runs in one batch.
const BUDGET: BatchBudget = BatchBudget { tokens: 1024, inputs: 256 };

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let mut next = |name: &str| arguments.next().ok_or(format!("{name} is missing: FOLDER THREADS PASSES"));
    let folder = PathBuf::from(next("FOLDER")?);
    let (threads, passes): (u32, u32) = (next("THREADS")?.parse()?, next("PASSES")?.parse()?);
    let read = |name: &str| std::fs::read(folder.join(name)).ok();
    let (modules, pooling) = (read("modules.json"), read("1_Pooling/config.json"));
    let config = EncoderConfig::parse(&EncoderFiles {
        config: &std::fs::read(folder.join("config.json"))?,
        modules: modules.as_deref(),
        pooling: pooling.as_deref(),
        ..EncoderFiles::default()
    })?;
    let inputs = std::io::stdin()
        .lock()
        .lines()
        .map(|line| {
            let tokens = line?.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
            Ok(EncoderInput { tokens, token_types: Vec::new() })
        })
        .collect::<Result<Vec<_>, Box<dyn std::error::Error>>>()?;
    let options = EncoderLoadOptions {
        device: ComputeDevice::start(DeviceRequest::Cpu, Some(threads))?,
        dtype: None,
        max_input_tokens: config.longest(),
        max_batched_tokens: u32::try_from(BUDGET.tokens)?,
    };
    let mut encoder = TorchEncoder::load(&folder, &config, &options, &mut |_, _| {})?;
    encoder.warm_up()?;
    for _ in 0..passes {
        let mut queue = EncoderQueue::default();
        queue.add(1, inputs.iter().map(|input| input.tokens.len()).collect());
        let begun = Instant::now();
        let mut first = None;
        while !queue.is_empty() {
            let batch = queue.next_batch(BUDGET);
            let of_batch: Vec<&EncoderInput> =
                batch.iter().filter_map(|item| inputs.get(item.index)).collect();
            let encoded = encoder.encode(&of_batch)?;
            first = first.or_else(|| encoded.first().cloned());
            queue.done(&batch);
        }
        let seconds = begun.elapsed().as_secs_f64();
        let first = first.unwrap_or_default();
        writeln!(
            std::io::stdout(),
            "{{\"seconds\": {seconds}, \"first\": {:?}}}",
            first.get(..4).unwrap_or(&first)
        )?;
    }
    Ok(())
}
