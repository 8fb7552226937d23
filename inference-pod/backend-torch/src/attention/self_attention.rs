//! The attention part of a layer: projections and rotary embedding around [`PagedAttention`].

use fairlead_model::{AttentionKind, ModelConfig};
use fairlead_torch_shim::cpu;
use tch::{TchError, Tensor};

use super::{HeadShape, PagedAttention};
use crate::error::LoadError;
use crate::kernels::Kernels;
use crate::kv_cache::LayerCache;
use crate::layers::{Linear, RmsNorm};
use crate::lora::{Fused, LayerAdapters};
use crate::rope::RotaryAngles;
use crate::weights::Weights;

/// Where each token of a step stands: in its sequence, and in the cache.
pub(crate) struct TokenPlaces {
    /// Angles of its position.
    pub(crate) angles: RotaryAngles,
    /// Slot of its keys and values, `[tokens]`.
    pub(crate) slots: Tensor,
}

/// Projections of queries, keys and values (one matrix) and of the output.
pub(crate) struct SelfAttention {
    qkv: Linear,
    output: Linear,
    /// Norms of the heads of queries and of keys, for models that have them.
    head_norms: Option<HeadNorms>,
    shape: HeadShape,
    kind: AttentionKind,
    kernels: Kernels,
}

/// Queries, keys and values of a step, each `[tokens, heads, head_dim]`.
type Projected = [Tensor; 3];

/// Norms over the width of one head.
struct HeadNorms {
    queries: RmsNorm,
    keys: RmsNorm,
}

impl HeadShape {
    /// The heads of a model.
    pub(crate) fn of(config: &ModelConfig) -> Self {
        Self {
            heads: i64::from(config.num_attention_heads),
            kv_heads: i64::from(config.num_key_value_heads),
            head_dim: i64::from(config.head_dim),
        }
    }
}

impl SelfAttention {
    /// Loads the projections below `name`; `kind` is what the layer attends to.
    pub(crate) fn load(
        weights: &mut Weights<'_>,
        name: &str,
        config: &ModelConfig,
        kind: AttentionKind,
    ) -> Result<Self, LoadError> {
        let qkv = ["q_proj", "k_proj", "v_proj"].map(|part| format!("{name}.{part}"));
        let norm = |weights: &mut Weights<'_>, part: &str| {
            RmsNorm::load(weights, &format!("{name}.{part}"), config.rms_norm_eps)
        };
        let head_norms = if config.qk_norm {
            Some(HeadNorms { queries: norm(weights, "q_norm")?, keys: norm(weights, "k_norm")? })
        } else {
            None
        };
        Ok(Self {
            qkv: Linear::load(weights, &qkv, config.qkv_bias)?,
            output: Linear::load(weights, &[format!("{name}.o_proj")], config.output_bias)?,
            head_norms,
            shape: HeadShape::of(config),
            kind,
            kernels: weights.kernels(),
        })
    }

    /// `[tokens, hidden]` to the same; stores the tokens' keys and values at their places in `cache`.
    pub(crate) fn forward<A: PagedAttention>(
        &self,
        input: &Tensor,
        places: &TokenPlaces,
        adapters: LayerAdapters<'_>,
        cache: &mut LayerCache,
        attention: &A,
        plan: &A::Plan,
    ) -> Result<Tensor, TchError> {
        let HeadShape { heads, kv_heads, head_dim } = self.shape;
        let qkv = self.qkv.forward(input)?;
        adapters.add(Fused::Qkv, input, &qkv)?;
        let qkv = qkv.f_view([-1, heads + 2 * kv_heads, head_dim])?;
        let [queries, keys, values] = match self.kernels {
            Kernels::Libtorch => self.turn_and_store(&qkv, places, cache)?,
            Kernels::Cpu { .. } => self.turn_and_store_in_place(qkv, places, cache)?,
        };
        let attended = attention.attend(plan, self.kind, cache, &queries, &keys, &values)?;
        let output = self.output.forward(&attended)?;
        adapters.add(Fused::Output, &attended, &output)?;
        Ok(output)
    }

    /// Turns queries and keys of `[tokens, heads + 2 * kv_heads, head_dim]` and stores keys and values.
    fn turn_and_store(
        &self,
        qkv: &Tensor,
        places: &TokenPlaces,
        cache: &mut LayerCache,
    ) -> Result<Projected, TchError> {
        let HeadShape { heads, kv_heads, .. } = self.shape;
        // Queries and keys turn alike, so they turn together.
        let turning = qkv.f_narrow(1, 0, heads + kv_heads)?;
        let rotated = match &self.head_norms {
            None => places.angles.rotate(&turning)?,
            Some(norms) => places.angles.rotate(&norms.forward(&turning, heads, kv_heads)?)?,
        };
        let queries = rotated.f_narrow(1, 0, heads)?;
        let keys = rotated.f_narrow(1, heads, kv_heads)?;
        let values = qkv.f_narrow(1, heads + kv_heads, kv_heads)?;
        cache.write(&places.slots, &keys, &values)?;
        Ok([queries, keys, values])
    }

    /// The same in one pass; `qkv` is nobody else's.
    fn turn_and_store_in_place(
        &self,
        qkv: Tensor,
        places: &TokenPlaces,
        cache: &mut LayerCache,
    ) -> Result<Projected, TchError> {
        let HeadShape { heads, kv_heads, .. } = self.shape;
        cpu::rotate_and_store(&cpu::Rotation {
            qkv: &qkv,
            norms: self.head_norms.as_ref().map(HeadNorms::weights),
            cosine: &places.angles.cosine,
            sine: &places.angles.sine,
            slots: &places.slots,
            keys: cache.keys(),
            values: cache.values(),
        })?;
        Ok([
            qkv.f_narrow(1, 0, heads)?,
            qkv.f_narrow(1, heads, kv_heads)?,
            qkv.f_narrow(1, heads + kv_heads, kv_heads)?,
        ])
    }
}

impl HeadNorms {
    fn weights(&self) -> cpu::HeadNorms<'_> {
        let Self { queries, keys } = self;
        cpu::HeadNorms { queries: &queries.weight, keys: &keys.weight, epsilon: queries.epsilon }
    }

    /// `[tokens, heads + kv_heads, head_dim]`, queries first, to the same.
    fn forward(&self, turning: &Tensor, heads: i64, kv_heads: i64) -> Result<Tensor, TchError> {
        let queries = self.queries.forward(&turning.f_narrow(1, 0, heads)?)?;
        let keys = self.keys.forward(&turning.f_narrow(1, heads, kv_heads)?)?;
        Tensor::f_cat(&[queries, keys], 1)
    }
}
