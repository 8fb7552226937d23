//! What the scheduler itself costs: microseconds of each step beside the backend, with 1, 16 and 256 running sequences.
//!
//!     cargo run --release -p fairlead-engine --example scheduler_speed
//!
//! The backend answers at once with a token it makes up, so all that is measured is planning a step and taking its results in.

use std::time::{Duration, Instant};

use fairlead_engine::backend::{ChosenToken, KvCapacity, Sampled, StepBatch};
use fairlead_engine::scheduler::{Budget, Limits, State, complete, schedule};
use fairlead_engine::sequence::GenerationRequest;

const BLOCK_TOKENS: u32 = 16;
/// Tokens of each prompt.
const PROMPT: u32 = 1000;
/// Steps measured, after all prompts are read; also the tokens of each answer.
const STEPS: u32 = 1000;

fn answer(batch: &StepBatch, step: u32) -> Vec<Sampled> {
    let asked = batch.sequences.iter().filter(|sequence| sequence.sample.is_some());
    let chosen = |token| vec![ChosenToken { token, logprob: None, top_logprobs: Vec::new() }];
    asked
        .map(|sequence| Sampled {
            sequence: sequence.sequence,
            tokens: chosen(step % 1000),
            prompt_logprobs: Vec::new(),
            drafts: Vec::new(),
        })
        .collect()
}

/// Times of `STEPS` steps in each of which `sequences` sequences get a token.
fn measure(sequences: usize) -> Result<Vec<Duration>, Box<dyn std::error::Error>> {
    let blocks = (PROMPT + STEPS + 50).div_ceil(BLOCK_TOKENS) * sequences as u32 + 1;
    let capacity = KvCapacity { blocks, block_tokens: BLOCK_TOKENS, block_bytes: 1 };
    let limits = Limits { max_sequences: sequences, max_model_len: 100_000, prefix_sharing: true };
    let mut state = State::new(capacity, limits);
    let budget = Budget { tokens: 8192, sequences, logits_rows: 8192 };
    for id in 0..sequences as u64 {
        let prompt = (0..PROMPT).map(|token| token + id as u32).collect();
        let request =
            GenerationRequest { prompt, max_new_tokens: STEPS + 40, ..GenerationRequest::default() };
        state.add(id, request)?;
    }
    let mut times = Vec::new();
    for step in 0.. {
        let begun = Instant::now();
        let plan = schedule(&mut state, budget)?;
        let planned = begun.elapsed();
        if plan.batch.sequences.is_empty() || times.len() == STEPS as usize {
            break;
        }
        let all_write = plan.batch.sequences.len() == sequences && plan.tokens() == sequences;
        let sampled = answer(&plan.batch, step);
        let answered = Instant::now();
        complete(&mut state, plan, sampled)?;
        if all_write {
            times.push(planned + answered.elapsed());
        }
    }
    Ok(times)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("contexts of {PROMPT} to {} tokens, blocks of {BLOCK_TOKENS}", PROMPT + STEPS);
    println!("{:>9}  {:>6}  {:>10}  {:>10}  {:>10}", "sequences", "steps", "median µs", "p99 µs", "mean µs");
    for sequences in [1, 16, 256] {
        let mut times = measure(sequences)?;
        times.sort_unstable();
        let micros = |time: Duration| time.as_secs_f64() * 1e6;
        let at = |share: f64| times.get((times.len() as f64 * share) as usize).copied().unwrap_or_default();
        let mean = micros(times.iter().sum()) / times.len().max(1) as f64;
        let (median, p99) = (micros(at(0.5)), micros(at(0.99)));
        println!("{sequences:>9}  {:>6}  {median:>10.1}  {p99:>10.1}  {mean:>10.1}", times.len());
    }
    Ok(())
}
