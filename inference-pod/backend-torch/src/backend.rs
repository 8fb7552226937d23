//! The engine's backend on libtorch: a model, its cache, and one call for each step.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use fairlead_engine::backend::{
    AdapterError, AdapterId, AdapterReader, Backend, BackendError, BlockBytes, BlockId, KvCapacity,
    ReadAdapter, SampleRequest, Sampled, SequenceId, SequenceStep, StepBatch,
};
use fairlead_engine::sampling::SamplingOptions;
use fairlead_model::plan::BLOCK_SIZES;
use fairlead_model::{DeviceKind, LoadQuantization, ModelConfig, RunDtype, WeightsSummary};

use crate::device::ComputeDevice;
use crate::error::{LoadError, step_error};
use crate::kv_cache::KvCache;
use crate::logits::sample_step;
use crate::lora::{Adapter, StepAdapters, TorchAdapterReader};
use crate::model::DecoderModel;
use crate::step::StepLayout;
use crate::weights::read_config;

/// Tokens of the warm-up's prefill on a CPU, where there is nothing to compile or measure: enough to start the threads and
/// touch every weight.
const CPU_WARM_UP_TOKENS: u32 = 16;

/// How a model is loaded and run.
#[derive(Clone, Copy, Debug)]
pub struct LoadOptions {
    /// Where tensors live.
    pub device: ComputeDevice,
    /// Number type of weights, activations and cache; `None` is f32 on a CPU and bf16 on a GPU.
    pub dtype: Option<RunDtype>,
    /// Quantisation of weights that the checkpoint holds in full.
    pub quantization: LoadQuantization,
    /// Tokens in a KV block: 16, 32 or 64.
    pub block_tokens: u32,
    /// Bytes of the KV cache, whole blocks of which are used. [`TorchBackend::resize_cache`] may change it.
    pub kv_cache_bytes: u64,
    /// Most tokens in a step; what [`TorchBackend::warm_up`] runs on a GPU.
    pub max_batched_tokens: u32,
    /// Most sequences in a step.
    pub max_sequences: u32,
}

/// A model that runs steps. One thread owns it.
pub struct TorchBackend {
    model: DecoderModel,
    cache: KvCache,
    config: ModelConfig,
    weights: WeightsSummary,
    weight_bytes: u64,
    options: LoadOptions,
    dtype: RunDtype,
    adapters: BTreeMap<AdapterId, Adapter>,
}

impl TorchBackend {
    /// Loads the model in `folder` (Hugging Face layout) and allocates its KV cache. `progress` is called with the bytes of
    /// weights read so far and in all.
    ///
    /// # Errors
    /// [`LoadError`], whose `reason()` is the condition reason. Whatever can be told from config.json and the headers is
    /// refused before a weight is read.
    pub fn load(
        folder: &Path,
        options: &LoadOptions,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self, LoadError> {
        let started = Instant::now();
        let _no_grad = tch::no_grad_guard();
        if !BLOCK_SIZES.contains(&options.block_tokens) {
            let problem = format!("is {}, it must be 16, 32 or 64", options.block_tokens);
            return Err(LoadError::Setting { field: "kvCache.blockTokens", problem });
        }
        let config = read_config(folder)?;
        let dtype = options.dtype.unwrap_or_else(|| options.device.kind().auto_dtype());
        if config.quantization.is_some() && options.quantization != LoadQuantization::None {
            let problem = "is set, but the checkpoint is quantised already; leave it out".to_owned();
            return Err(LoadError::Setting { field: "engine.quantization", problem });
        }
        let (model, weights, weight_bytes) = DecoderModel::load(
            folder,
            &config,
            dtype,
            options.quantization,
            options.device,
            options.block_tokens,
            progress,
        )?;
        fairlead_torch_shim::heap::release_freed_memory();
        let cache =
            KvCache::allocate(&config, dtype, options.device, options.block_tokens, options.kv_cache_bytes)?;
        tracing::info!(
            parameters = weights.parameters,
            weight_bytes,
            %dtype,
            device = ?options.device.kind(),
            threads = tch::get_num_threads(),
            kv_blocks = cache.capacity().blocks,
            seconds = started.elapsed().as_secs_f64(),
            "model loaded"
        );
        Ok(Self {
            model,
            cache,
            config,
            weights,
            weight_bytes,
            options: *options,
            dtype,
            adapters: BTreeMap::new(),
        })
    }

    /// The model's configuration.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// What the weights amount to.
    #[must_use]
    pub fn weights(&self) -> &WeightsSummary {
        &self.weights
    }

    /// Bytes that the weights take in memory, measured from the tensors.
    #[must_use]
    pub fn weight_bytes(&self) -> u64 {
        self.weight_bytes
    }

    /// Gives the cache another size. Whatever is in it is gone, so this is for before the first request: what is left for a
    /// cache is known when the weights are loaded and the largest step has run.
    ///
    /// # Errors
    /// [`LoadError::OutOfMemory`] if there is not so much, [`LoadError::Setting`] for less than two blocks.
    pub fn resize_cache(&mut self, bytes: u64) -> Result<(), LoadError> {
        let _no_grad = tch::no_grad_guard();
        let options = &self.options;
        self.cache =
            KvCache::allocate(&self.config, self.dtype, options.device, options.block_tokens, bytes)?;
        Ok(())
    }

    /// Runs a prefill and a batch of decodes in the padding block, so that the first request does not pay for starting
    /// threads, reading weights in and choosing kernels; on a GPU also so that a batch too big for its memory fails here.
    ///
    /// # Errors
    /// [`LoadError::OutOfMemory`] if the largest step does not fit, [`LoadError::Torch`] if it cannot be run.
    pub fn warm_up(&mut self) -> Result<(), LoadError> {
        let doing = "warming up";
        let most_tokens = match self.options.device.kind() {
            DeviceKind::Cpu => self.options.max_batched_tokens.min(CPU_WARM_UP_TOKENS),
            DeviceKind::Gpu => self.options.max_batched_tokens,
        }
        .min(self.config.max_position_embeddings)
        .max(1);
        let prefill = StepBatch::from(vec![warm_up_sequence(0, most_tokens, self.options.block_tokens)]);
        let decodes = self.options.max_sequences.min(most_tokens).max(1);
        let decodes = (0..decodes).map(|id| warm_up_sequence(u64::from(id), 1, self.options.block_tokens));
        let decode = StepBatch::from(decodes.collect::<Vec<_>>());
        for batch in [prefill, decode] {
            match self.execute(&batch) {
                // What an untrained or broken model says of padding is not the question here.
                Ok(_) | Err(BackendError::NonFinite(_)) => {}
                Err(BackendError::OutOfMemory(message)) => {
                    return Err(LoadError::OutOfMemory { doing, message });
                }
                Err(BackendError::Fatal(message)) => return Err(LoadError::Torch { doing, message }),
            }
        }
        Ok(())
    }
}

fn warm_up_sequence(sequence: u64, tokens: u32, block_tokens: u32) -> SequenceStep {
    SequenceStep {
        sequence,
        tokens: vec![0; tokens as usize],
        first_position: 0,
        block_table: vec![0; tokens.div_ceil(block_tokens) as usize],
        drafts: 0,
        adapter: None,
        sample: Some(SampleRequest::new(
            Arc::new(SamplingOptions { temperature: 0.0, ..SamplingOptions::default() }),
            0,
        )),
    }
}

impl Backend for TorchBackend {
    fn kv_capacity(&self) -> KvCapacity {
        self.cache.capacity()
    }

    fn execute(&mut self, batch: &StepBatch) -> Result<Vec<Sampled>, BackendError> {
        if batch.sequences.is_empty() {
            return Ok(Vec::new());
        }
        let _no_grad = tch::no_grad_guard();
        let layout =
            StepLayout::new(batch, self.cache.capacity(), self.config.vocab_size).map_err(|problem| {
                BackendError::Fatal(format!("the scheduler made an impossible batch: {problem}"))
            })?;
        let device = self.options.device.torch();
        let adapters = StepAdapters::plan(batch, &layout.rows, &self.adapters, device)?;
        self.cache.load(&batch.loads).map_err(step_error)?;
        self.cache.copy(&batch.copies).map_err(step_error)?;
        let hidden = self.model.forward(&layout, &adapters, &mut self.cache).map_err(step_error)?;
        let vocabulary = self.config.vocab_size as usize;
        let sampled = sample_step(batch, &layout.rows, vocabulary, |rows| self.model.logits(&hidden, rows));
        if let Err(BackendError::NonFinite(broken)) = &sampled {
            let blocks = blocks_of(batch, broken);
            tracing::warn!(sequences = ?broken, "logits are not finite; their blocks are cleaned");
            self.cache.scrub(&blocks).map_err(step_error)?;
        }
        sampled
    }

    fn read_blocks(&mut self, blocks: &[BlockId]) -> Result<Vec<BlockBytes>, BackendError> {
        let _no_grad = tch::no_grad_guard();
        blocks.iter().map(|&block| self.cache.read(block).map_err(step_error)).collect()
    }

    fn adapter_reader(&self) -> Option<Arc<dyn AdapterReader>> {
        let device = self.options.device;
        Some(Arc::new(TorchAdapterReader { config: self.config.clone(), dtype: self.dtype, device }))
    }

    fn load_adapter(&mut self, id: AdapterId, adapter: ReadAdapter) -> Result<(), AdapterError> {
        let weights = adapter.weights.downcast::<Adapter>().map_err(|_| {
            AdapterError::Invalid("the adapter was read for another backend; load it again".to_owned())
        })?;
        self.adapters.insert(id, *weights);
        Ok(())
    }

    fn unload_adapter(&mut self, id: AdapterId) {
        self.adapters.remove(&id);
    }
}

/// All blocks that some sequences of a batch hold, each once.
fn blocks_of(batch: &StepBatch, sequences: &[SequenceId]) -> Vec<i64> {
    let steps = batch.sequences.iter().filter(|step| sequences.contains(&step.sequence));
    let blocks: BTreeSet<i64> =
        steps.flat_map(|step| &step.block_table).map(|&block| i64::from(block)).collect();
    blocks.into_iter().collect()
}
