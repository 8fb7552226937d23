//! Encoders of the BERT family: a batch of texts in, a vector or a score for each out.
//!
//! The texts of a batch lie one after the other in one flat tensor, longest last, without padding: projections and norms see
//! tokens only. Attention, which looks at texts, takes those of one length together. A text's numbers therefore do not
//! depend on how long the others in its batch are, and none is computed for nothing.

mod batch;
mod embeddings;
mod layer;
mod output;

use std::path::Path;
use std::time::Instant;

use fairlead_engine::backend::BackendError;
use fairlead_engine::encoder::{Encoder, EncoderInput};
use fairlead_model::encoder::{EncoderConfig, EncoderNames};
use fairlead_model::{DeviceKind, RunDtype, WeightsSummary};
use tch::{Device, TchError, Tensor};

use crate::device::{ComputeDevice, torch_kind};
use crate::error::{LoadError, step_error};
use crate::weights::Weights;
use batch::Batch;
use embeddings::Embeddings;
use layer::EncoderLayer;
use output::Output;

/// Tokens of the warm-up's batch on a CPU: enough to start the threads and touch every weight.
const CPU_WARM_UP_TOKENS: u32 = 16;

/// How an encoder is loaded and run.
#[derive(Clone, Copy, Debug)]
pub struct EncoderLoadOptions {
    /// Where tensors live.
    pub device: ComputeDevice,
    /// Number type of weights and activations; `None` is f32 on a CPU and bf16 on a GPU.
    pub dtype: Option<RunDtype>,
    /// Longest input in tokens; what [`TorchEncoder::warm_up`] runs on a GPU.
    pub max_input_tokens: u32,
    /// Most tokens in a batch.
    pub max_batched_tokens: u32,
}

/// A model that turns texts into numbers. One thread owns it.
pub struct TorchEncoder {
    embeddings: Embeddings,
    layers: Vec<EncoderLayer>,
    output: Output,
    config: EncoderConfig,
    weights: WeightsSummary,
    options: EncoderLoadOptions,
    device: Device,
}

impl TorchEncoder {
    /// Loads the weights in `folder` (Hugging Face layout). `progress` is called with the bytes of weights read so far and in
    /// all.
    ///
    /// # Errors
    /// [`LoadError`], whose `reason()` is the condition reason.
    pub fn load(
        folder: &Path,
        config: &EncoderConfig,
        options: &EncoderLoadOptions,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self, LoadError> {
        let started = Instant::now();
        let _no_grad = tch::no_grad_guard();
        let dtype = options.dtype.unwrap_or_else(|| options.device.kind().auto_dtype());
        let check = |checkpoint: &_| config.check(checkpoint);
        let mut weights = Weights::open_checked(folder, check, dtype, options.device, progress)?;
        let names = EncoderNames::of(config, weights.checkpoint());
        let embeddings = Embeddings::load(&mut weights, &names, config)?;
        let layers = (0..config.num_hidden_layers)
            .map(|layer| EncoderLayer::load(&mut weights, &names, layer, config))
            .collect::<Result<_, _>>()?;
        let output = Output::load(&mut weights, &names, config)?;
        let summary = weights.summary().clone();
        tracing::info!(
            parameters = summary.parameters,
            %dtype,
            kind = ?torch_kind(dtype),
            device = ?options.device.kind(),
            threads = tch::get_num_threads(),
            seconds = started.elapsed().as_secs_f64(),
            "encoder loaded"
        );
        Ok(Self {
            embeddings,
            layers,
            output,
            config: config.clone(),
            weights: summary,
            options: *options,
            device: options.device.torch(),
        })
    }

    /// What the weights amount to.
    #[must_use]
    pub fn weights(&self) -> &WeightsSummary {
        &self.weights
    }

    /// Runs one batch, so that the first request does not pay for starting threads and reading weights in; on a GPU the
    /// largest, so that one too big for its memory fails here.
    ///
    /// # Errors
    /// [`LoadError::OutOfMemory`] if the batch does not fit, [`LoadError::Torch`] if it cannot be run.
    pub fn warm_up(&mut self) -> Result<(), LoadError> {
        let doing = "warming up";
        let longest = self.options.max_input_tokens.max(1);
        let (inputs, tokens) = match self.options.device.kind() {
            DeviceKind::Cpu => (1, longest.min(CPU_WARM_UP_TOKENS)),
            DeviceKind::Gpu => ((self.options.max_batched_tokens / longest).max(1), longest),
        };
        let input = EncoderInput { tokens: vec![0; tokens as usize], token_types: Vec::new() };
        let batch: Vec<&EncoderInput> = std::iter::repeat_n(&input, inputs as usize).collect();
        match self.encode(&batch) {
            Ok(_) | Err(BackendError::NonFinite(_)) => Ok(()),
            Err(BackendError::OutOfMemory(message)) => Err(LoadError::OutOfMemory { doing, message }),
            Err(BackendError::Fatal(message)) => Err(LoadError::Torch { doing, message }),
        }
    }

    /// `[inputs, numbers]` in f32 on the CPU, in the batch's own order.
    fn forward(&self, batch: &Batch) -> Result<Tensor, TchError> {
        let mut hidden = self.embeddings.forward(batch, self.device)?;
        for layer in &self.layers {
            hidden = layer.forward(&hidden, batch)?;
        }
        self.output.forward(&hidden, batch, self.device)?.f_to_device(Device::Cpu)
    }
}

impl Encoder for TorchEncoder {
    fn encode(&mut self, inputs: &[&EncoderInput]) -> Result<Vec<Vec<f32>>, BackendError> {
        if inputs.is_empty() {
            return Ok(Vec::new());
        }
        let _no_grad = tch::no_grad_guard();
        let batch = Batch::new(inputs, &self.config).map_err(|problem| {
            BackendError::Fatal(format!("the queue made an impossible batch: {problem}"))
        })?;
        let numbers = self.forward(&batch).and_then(|rows| Vec::<f32>::try_from(&rows.f_reshape([-1])?));
        let numbers = numbers.map_err(step_error)?;
        let width = numbers.len() / inputs.len();
        let mut encoded = vec![Vec::new(); inputs.len()];
        for (row, &input) in numbers.chunks_exact(width.max(1)).zip(&batch.order) {
            if let Some(place) = encoded.get_mut(input) {
                *place = row.to_vec();
            }
        }
        Ok(encoded)
    }
}
