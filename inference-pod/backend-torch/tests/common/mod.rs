//! Reference cases and a driver that plays the scheduler's part.
#![allow(dead_code)] // each test program uses its own share

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fairlead_backend_torch::{ComputeDevice, DeviceRequest, LoadOptions, TorchBackend};
use fairlead_engine::backend::{
    AdapterId, Backend, BlockId, SampleRequest, Sampled, SequenceStep, StepBatch, TokenLogprob,
};
use fairlead_engine::sampling::SamplingOptions;
use fairlead_model::plan::kv_bytes_per_token;
use fairlead_model::{LoadQuantization, ModelConfig, RunDtype};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;

/// The folder of the reference cases.
pub fn reference() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference")
}

/// The folder of the quantised cases.
pub fn quantized() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/quantized")
}

/// A model folder with what transformers made of it.
pub struct Case {
    /// The model's folder.
    pub folder: PathBuf,
    /// What transformers made of each prompt.
    pub prompts: Vec<Expected>,
}

/// One prompt and what follows from it.
pub struct Expected {
    /// Its tokens.
    pub prompt: Vec<u32>,
    /// Tokens that greedy decoding continues with.
    pub greedy: Vec<u32>,
    /// Log-probabilities at each position, by token.
    pub logprobs: Vec<Vec<f32>>,
}

impl Case {
    /// Reads a case by its name.
    pub fn read(name: &str) -> Self {
        Self::read_folder(reference().join(name))
    }

    /// Reads a quantised case by its name.
    pub fn read_quantized(name: &str) -> Self {
        Self::read_folder(quantized().join(name))
    }

    fn read_folder(folder: PathBuf) -> Self {
        let prompts = read_expected(&folder);
        Self { folder, prompts }
    }

    /// Loads the model with 64 blocks, on the CPU.
    pub fn load(&self, block_tokens: u32, dtype: Option<RunDtype>) -> TorchBackend {
        load(&self.folder, block_tokens, dtype)
    }
}

/// Reads what was computed for the two prompts of a folder.
pub fn read_expected(folder: &Path) -> Vec<Expected> {
    let bytes = fs::read(folder.join("expected.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let read = |index| {
        let tokens = |part: &str| -> Vec<u32> {
            let view = tensors.tensor(&format!("{part}.{index}")).unwrap();
            let words = view.data().as_chunks::<8>().0;
            words.iter().map(|word| u32::try_from(i64::from_le_bytes(*word)).unwrap()).collect()
        };
        Expected {
            prompt: tokens("prompt"),
            greedy: tokens("greedy"),
            logprobs: log_softmax_rows(&tensors.tensor(&format!("logits.{index}")).unwrap()),
        }
    };
    (0..2).map(read).collect()
}

/// Options of a small backend on the CPU.
pub fn options(block_tokens: u32, dtype: Option<RunDtype>, kv_cache_bytes: u64) -> LoadOptions {
    LoadOptions {
        device: ComputeDevice::start(DeviceRequest::Cpu, None).unwrap(),
        dtype,
        quantization: LoadQuantization::None,
        block_tokens,
        kv_cache_bytes,
        max_batched_tokens: 64,
        max_sequences: 8,
    }
}

/// Loads the model in a folder with 64 blocks, on the CPU.
pub fn load(folder: &Path, block_tokens: u32, dtype: Option<RunDtype>) -> TorchBackend {
    let config = ModelConfig::parse(&fs::read(folder.join("config.json")).unwrap()).unwrap();
    let token_bytes = kv_bytes_per_token(&config, dtype.unwrap_or(RunDtype::F32));
    let bytes = token_bytes * u64::from(block_tokens) * 64;
    TorchBackend::load(folder, &options(block_tokens, dtype, bytes), &mut |_, _| {}).unwrap()
}

impl Expected {
    /// Mean difference of the distributions after the prompt's tokens, weighted by how likely each next token is.
    pub fn mean_error(&self, distributions: &[Vec<f32>]) -> f32 {
        let weighted = |(got, wanted): (&Vec<f32>, &Vec<f32>)| -> f32 {
            got.iter().zip(wanted).map(|(got, wanted)| wanted.exp() * (got - wanted).abs()).sum()
        };
        distributions.iter().zip(&self.logprobs).map(weighted).sum::<f32>() / distributions.len() as f32
    }

    /// Compares the distributions after tokens `first..` of the prompt.
    pub fn assert_close(&self, name: &str, first: usize, distributions: &[Vec<f32>], tolerance: f32) {
        for (position, (got, wanted)) in (first..).zip(distributions.iter().zip(&self.logprobs[first..])) {
            assert_eq!(got.len(), wanted.len(), "{name}: position {position}");
            for (token, (got, wanted)) in got.iter().zip(wanted).enumerate() {
                let difference = (got - wanted).abs();
                assert!(
                    difference <= tolerance,
                    "{name}: position {position}, token {token}: {got} against {wanted}"
                );
            }
        }
    }
}

fn log_softmax_rows(view: &TensorView<'_>) -> Vec<Vec<f32>> {
    let numbers: Vec<f32> =
        view.data().as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word)).collect();
    let rows = numbers.chunks_exact(view.shape()[1]);
    rows.map(|row| {
        let highest = row.iter().copied().fold(f32::MIN, f32::max);
        let sum: f64 = row.iter().map(|logit| f64::from(logit - highest).exp()).sum();
        row.iter().map(|logit| (f64::from(logit - highest) - sum.ln()) as f32).collect()
    })
    .collect()
}

/// What to run of a sequence in a step.
pub struct Span {
    sequence: usize,
    tokens: u32,
    scored: bool,
}

impl Span {
    /// The next tokens, reporting the whole distribution after each.
    pub fn scored(sequence: usize, tokens: u32) -> Self {
        Self { sequence, tokens, scored: true }
    }

    /// One more token of an answer.
    pub fn next(sequence: usize) -> Self {
        Self { sequence, tokens: 1, scored: false }
    }
}

/// What a step tells about one sequence.
pub struct Told {
    /// The likeliest next token.
    pub token: u32,
    /// The distribution after each of the span's tokens, if it was scored.
    pub distributions: Vec<Vec<f32>>,
}

struct Sequence {
    tokens: Vec<u32>,
    computed: usize,
    block_table: Vec<BlockId>,
    adapter: Option<AdapterId>,
}

/// Plays the scheduler: gives each sequence blocks that lie apart and in no order.
pub struct Driver {
    backend: TorchBackend,
    sequences: Vec<Sequence>,
    free: Vec<BlockId>,
}

impl Driver {
    /// Takes a backend whose cache is unused.
    pub fn new(backend: TorchBackend) -> Self {
        let blocks = backend.kv_capacity().blocks;
        // A step that shares no factor with the number of blocks visits all of them; block 0 is for padding.
        assert_eq!(blocks, 64);
        let free = (1..blocks).map(|index| index * 27 % blocks).collect();
        Self { backend, sequences: Vec::new(), free }
    }

    /// Adds a sequence and gives it blocks for `capacity` tokens.
    pub fn add(&mut self, prompt: &[u32], capacity: u32) -> usize {
        self.add_with(prompt, capacity, None)
    }

    /// Adds a sequence that goes through an adapter.
    pub fn add_with(&mut self, prompt: &[u32], capacity: u32, adapter: Option<AdapterId>) -> usize {
        let blocks = capacity.div_ceil(self.backend.kv_capacity().block_tokens);
        let block_table = (0..blocks).map(|_| self.free.pop().unwrap()).collect();
        self.sequences.push(Sequence { tokens: prompt.to_vec(), computed: 0, block_table, adapter });
        self.sequences.len() - 1
    }

    /// The backend, to load adapters into.
    pub fn backend(&mut self) -> &mut TorchBackend {
        &mut self.backend
    }

    /// Tokens of a sequence, prompt and answer.
    pub fn tokens(&self, sequence: usize) -> &[u32] {
        &self.sequences[sequence].tokens
    }

    /// Adds a sampled token.
    pub fn append(&mut self, sequence: usize, token: u32) {
        self.sequences[sequence].tokens.push(token);
    }

    /// Runs one step.
    pub fn run(&mut self, spans: &[Span]) -> Vec<Told> {
        let steps: Vec<SequenceStep> = spans.iter().map(|span| self.step(span)).collect();
        let sampled = self.backend.execute(&StepBatch::from(steps)).unwrap();
        assert_eq!(sampled.len(), spans.len());
        let vocabulary = self.backend.config().vocab_size as usize;
        spans
            .iter()
            .zip(sampled)
            .map(|(span, answer)| {
                assert_eq!(answer.sequence, span.sequence as u64);
                let sequence = &mut self.sequences[span.sequence];
                let first = sequence.computed;
                sequence.computed += span.tokens as usize;
                let given = &sequence.tokens[first + 1..sequence.computed];
                Told {
                    token: answer.tokens[0].token,
                    distributions: distributions(span, &answer, given, vocabulary),
                }
            })
            .collect()
    }

    /// Decodes greedily until each answer has `count` tokens; `begun` is the step that ended their prompts.
    pub fn decode(&mut self, sequences: &[usize], begun: Vec<Told>, count: usize) -> Vec<Vec<u32>> {
        let mut answers: Vec<Vec<u32>> = begun.iter().map(|told| vec![told.token]).collect();
        for _ in 1..count {
            for (&sequence, answer) in sequences.iter().zip(&answers) {
                self.append(sequence, answer[answer.len() - 1]);
            }
            let spans: Vec<Span> = sequences.iter().map(|&sequence| Span::next(sequence)).collect();
            for (answer, told) in answers.iter_mut().zip(self.run(&spans)) {
                answer.push(told.token);
            }
        }
        answers
    }

    fn step(&self, span: &Span) -> SequenceStep {
        let sequence = &self.sequences[span.sequence];
        let end = sequence.computed + span.tokens as usize;
        let vocabulary = self.backend.config().vocab_size;
        SequenceStep {
            sequence: span.sequence as u64,
            tokens: sequence.tokens[sequence.computed..end].to_vec(),
            first_position: sequence.computed as u32,
            block_table: sequence.block_table.clone(),
            drafts: 0,
            adapter: sequence.adapter,
            sample: Some(SampleRequest {
                prompt_logprobs: span.scored,
                ..reporting(span.scored.then_some(vocabulary))
            }),
        }
    }
}

/// Asks for the likeliest token and nothing else.
pub fn greedy() -> SampleRequest {
    reporting(None)
}

fn reporting(logprobs: Option<u32>) -> SampleRequest {
    let options = SamplingOptions { temperature: 0.0, logprobs, ..SamplingOptions::default() };
    SampleRequest::new(Arc::new(options), 0)
}

/// Puts a scored span's answer into one distribution a token, and checks that its parts agree.
fn distributions(span: &Span, answer: &Sampled, given: &[u32], vocabulary: usize) -> Vec<Vec<f32>> {
    if !span.scored {
        assert!(
            answer.tokens[0].logprob.is_none()
                && answer.tokens[0].top_logprobs.is_empty()
                && answer.prompt_logprobs.is_empty()
        );
        return Vec::new();
    }
    let by_token = |top: &[TokenLogprob]| {
        let mut row = vec![f32::NAN; vocabulary];
        for entry in top {
            row[entry.token as usize] = entry.logprob;
        }
        row
    };
    let mut rows = Vec::new();
    assert_eq!(answer.prompt_logprobs.len(), given.len());
    for ((own, top), token) in answer.prompt_logprobs.iter().zip(given) {
        let row = by_token(top);
        assert_eq!((own.token, own.logprob), (*token, row[*token as usize]));
        rows.push(row);
    }
    let chosen = &answer.tokens[0];
    let last = by_token(&chosen.top_logprobs);
    assert_eq!(chosen.logprob, Some(last[chosen.token as usize]));
    rows.push(last);
    rows
}
