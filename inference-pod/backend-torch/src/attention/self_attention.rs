//! The attention part of a layer: projections and rotary embedding around [`PagedAttention`].

use fairlead_model::ModelConfig;
use tch::{TchError, Tensor};

use super::{HeadShape, PagedAttention};
use crate::error::LoadError;
use crate::kv_cache::LayerCache;
use crate::layers::Linear;
use crate::rope::RotaryAngles;
use crate::weights::Weights;

/// Projections of queries, keys and values (one matrix) and of the output.
pub(crate) struct SelfAttention {
    qkv: Linear,
    output: Linear,
    shape: HeadShape,
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
    /// Loads the projections below `name`.
    pub(crate) fn load(
        weights: &mut Weights<'_>,
        name: &str,
        config: &ModelConfig,
    ) -> Result<Self, LoadError> {
        let qkv = ["q_proj", "k_proj", "v_proj"].map(|part| format!("{name}.{part}"));
        Ok(Self {
            qkv: Linear::load(weights, &qkv, config.attention_bias)?,
            output: Linear::load(weights, &[format!("{name}.o_proj")], config.attention_bias)?,
            shape: HeadShape::of(config),
        })
    }

    /// `[tokens, hidden]` to the same; stores the tokens' keys and values in `slots` of `cache`.
    pub(crate) fn forward<A: PagedAttention>(
        &self,
        input: &Tensor,
        angles: &RotaryAngles,
        slots: &Tensor,
        cache: &mut LayerCache,
        attention: &A,
        plan: &A::Plan,
    ) -> Result<Tensor, TchError> {
        let HeadShape { heads, kv_heads, head_dim } = self.shape;
        let qkv = self.qkv.forward(input)?.f_view([-1, heads + 2 * kv_heads, head_dim])?;
        // Queries and keys turn alike, so they turn together.
        let rotated = angles.rotate(&qkv.f_narrow(1, 0, heads + kv_heads)?)?;
        let queries = rotated.f_narrow(1, 0, heads)?;
        let keys = rotated.f_narrow(1, heads, kv_heads)?;
        let values = qkv.f_narrow(1, heads + kv_heads, kv_heads)?;
        cache.write(slots, &keys, &values)?;
        let attended = attention.attend(plan, cache, &queries, &keys, &values)?;
        self.output.forward(&attended)
    }
}
