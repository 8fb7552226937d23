//! A decoder of the Llama family (Llama, Mistral, Qwen): embedding, layers, norm, output.

use std::path::Path;

use fairlead_model::tensors::{EMBEDDING, OUTPUT};
use fairlead_model::{LoadQuantization, ModelConfig, RunDtype, WeightsSummary};
use tch::{Device, Kind, TchError, Tensor};

use crate::attention::{Attention, HeadShape, PagedAttention, SelfAttention, TokenPlaces};
use crate::device::{ComputeDevice, torch_kind};
use crate::error::LoadError;
use crate::kv_cache::KvCache;
use crate::layers::{Linear, Mlp, RmsNorm};
use crate::lora::StepAdapters;
use crate::rope::Rope;
use crate::step::StepLayout;
use crate::weights::{Progress, Weights};

/// A loaded model.
pub(crate) struct DecoderModel {
    /// `[vocabulary, hidden]`
    embedding: Tensor,
    layers: Vec<Layer>,
    norm: RmsNorm,
    output: Linear,
    rope: Rope,
    attention: Attention,
    kind: Kind,
    device: Device,
}

struct Layer {
    attention_norm: RmsNorm,
    attention: SelfAttention,
    mlp_norm: RmsNorm,
    mlp: Mlp,
}

impl DecoderModel {
    /// Loads the weights in `folder`; also tells what they amount to, and the bytes they take in memory.
    pub(crate) fn load(
        folder: &Path,
        config: &ModelConfig,
        dtype: RunDtype,
        quantization: LoadQuantization,
        device: ComputeDevice,
        block_tokens: u32,
        progress: Progress<'_>,
    ) -> Result<(Self, WeightsSummary, u64), LoadError> {
        let mut weights = Weights::open(folder, config, dtype, quantization, device, progress)?;
        let (kind, device) = (torch_kind(dtype), device.torch());
        let embedding = weights.load(EMBEDDING)?;
        let layers = (0..config.num_hidden_layers)
            .map(|layer| Layer::load(&mut weights, layer, config))
            .collect::<Result<_, _>>()?;
        let norm = RmsNorm::load(&mut weights, "model.norm", config.rms_norm_eps)?;
        let output = if config.tie_word_embeddings {
            Linear::shared(&embedding, weights.kernels())
        } else {
            let name = OUTPUT.trim_end_matches(".weight").to_owned();
            Linear::load(&mut weights, &[name], false)?
        };
        let model = Self {
            embedding,
            layers,
            norm,
            output,
            rope: Rope::new(config, device).map_err(LoadError::torch("making the rotary frequencies"))?,
            attention: Attention::new(
                weights.kernels(),
                HeadShape::of(config),
                block_tokens,
                config.sliding_window.as_ref().map(|window| window.tokens),
            ),
            kind,
            device,
        };
        Ok((model, weights.summary().clone(), weights.finish()))
    }

    /// Runs all tokens of a step through all layers and stores their keys and values. `[tokens, hidden]`, before the last
    /// norm: only the rows that [`DecoderModel::logits`] is asked for need it.
    pub(crate) fn forward(
        &self,
        layout: &StepLayout,
        adapters: &StepAdapters<'_>,
        cache: &mut KvCache,
    ) -> Result<Tensor, TchError> {
        let on_device = |numbers: &[i64]| Tensor::f_from_slice(numbers)?.f_to_device(self.device);
        let tokens = on_device(&layout.tokens)?;
        let places = TokenPlaces {
            angles: self.rope.angles(&on_device(&layout.positions)?, self.kind)?,
            slots: on_device(&layout.slots)?,
        };
        let plan = self.attention.plan(layout, self.kind, self.device)?;

        let mut hidden = self.embedding.f_index_select(0, &tokens)?;
        for ((index, layer), cache) in self.layers.iter().enumerate().zip(cache.layers_mut()) {
            let adapters = adapters.layer(index);
            let normed = layer.attention_norm.forward(&hidden)?;
            let attended =
                layer.attention.forward(&normed, &places, adapters, cache, &self.attention, &plan)?;
            let _ = hidden.f_add_(&attended)?;
            let normed = layer.mlp_norm.forward(&hidden)?;
            let _ = hidden.f_add_(&layer.mlp.forward(&normed, adapters)?)?;
        }
        Ok(hidden)
    }

    /// Logits of some rows of what [`DecoderModel::forward`] gave: `[rows, vocabulary]` in f32, on the CPU.
    pub(crate) fn logits(&self, hidden: &Tensor, rows: &[i64]) -> Result<Tensor, TchError> {
        let rows = Tensor::f_from_slice(rows)?.f_to_device(self.device)?;
        let normed = self.norm.forward(&hidden.f_index_select(0, &rows)?)?;
        self.output.forward(&normed)?.f_to_kind(Kind::Float)?.f_to_device(Device::Cpu)
    }
}

impl Layer {
    fn load(weights: &mut Weights<'_>, layer: u32, config: &ModelConfig) -> Result<Self, LoadError> {
        let name = format!("model.layers.{layer}");
        let kind = config.attention_kind(layer);
        let norm = |weights: &mut Weights<'_>, part: &str| {
            RmsNorm::load(weights, &format!("{name}.{part}"), config.rms_norm_eps)
        };
        Ok(Self {
            attention_norm: norm(weights, "input_layernorm")?,
            attention: SelfAttention::load(weights, &format!("{name}.self_attn"), config, kind)?,
            mlp_norm: norm(weights, "post_attention_layernorm")?,
            mlp: Mlp::load(weights, &format!("{name}.mlp"), config.mlp_bias)?,
        })
    }
}
