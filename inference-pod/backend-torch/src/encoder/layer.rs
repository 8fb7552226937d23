//! One layer: attention over all tokens of a text, in both directions, and an MLP; each with its norm after it.

use fairlead_model::encoder::{Activation, EncoderConfig, EncoderNames};
use tch::{TchError, Tensor};

use crate::encoder::batch::{Batch, Group};
use crate::error::LoadError;
use crate::layers::{LayerNorm, Linear};
use crate::weights::Weights;

pub(super) struct EncoderLayer {
    query_key_value: Linear,
    attention_output: Linear,
    attention_norm: LayerNorm,
    mlp_input: Linear,
    mlp_output: Linear,
    mlp_norm: LayerNorm,
    activation: Activation,
    heads: i64,
    head_dim: i64,
}

impl EncoderLayer {
    pub(super) fn load(
        weights: &mut Weights<'_>,
        names: &EncoderNames,
        layer: u32,
        config: &EncoderConfig,
    ) -> Result<Self, LoadError> {
        let eps = config.layer_norm_eps;
        Ok(Self {
            query_key_value: Linear::load(weights, &names.query_key_value(layer), true)?,
            attention_output: Linear::load(weights, &[names.attention_output(layer)], true)?,
            attention_norm: LayerNorm::load(weights, &names.attention_norm(layer), eps)?,
            mlp_input: Linear::load(weights, &[names.mlp_input(layer)], true)?,
            mlp_output: Linear::load(weights, &[names.mlp_output(layer)], true)?,
            mlp_norm: LayerNorm::load(weights, &names.mlp_norm(layer), eps)?,
            activation: config.activation,
            heads: i64::from(config.num_attention_heads),
            head_dim: i64::from(config.head_dim()),
        })
    }

    /// `[tokens, hidden]` to the same.
    pub(super) fn forward(&self, hidden: &Tensor, batch: &Batch) -> Result<Tensor, TchError> {
        let projected = self.query_key_value.forward(hidden)?;
        let attended: Vec<Tensor> =
            batch.groups.iter().map(|group| self.attend(&projected, group)).collect::<Result<_, _>>()?;
        let attended = match attended.as_slice() {
            [all] => all.shallow_clone(),
            groups => Tensor::f_cat(groups, 0)?,
        };
        let mut attended = self.attention_output.forward(&attended)?;
        let hidden = self.attention_norm.forward(&attended.f_add_(hidden)?)?;
        let inner = self.activate(&self.mlp_input.forward(&hidden)?)?;
        let mut outer = self.mlp_output.forward(&inner)?;
        self.mlp_norm.forward(&outer.f_add_(&hidden)?)
    }

    /// Attention within each text of a group; `[the group's tokens, hidden]`.
    fn attend(&self, projected: &Tensor, group: &Group) -> Result<Tensor, TchError> {
        let tokens = group.inputs * group.length;
        let split = projected
            .f_narrow(0, group.first_row, tokens)?
            .f_view([group.inputs, group.length, 3, self.heads, self.head_dim])?
            .f_permute([2, 0, 3, 1, 4])?;
        let part = |index: i64| split.f_select(0, index);
        let (queries, keys, values) = (part(0)?, part(1)?, part(2)?);
        let attended = Tensor::f_scaled_dot_product_attention(
            &queries,
            &keys,
            &values,
            None::<&Tensor>,
            0.0,
            false,
            None,
            false,
        )?;
        attended.f_transpose(1, 2)?.f_reshape([tokens, self.heads * self.head_dim])
    }

    fn activate(&self, inner: &Tensor) -> Result<Tensor, TchError> {
        match self.activation {
            Activation::Gelu => inner.f_gelu("none"),
            Activation::GeluTanh => inner.f_gelu("tanh"),
            Activation::Relu => inner.f_relu(),
            Activation::Silu => inner.f_silu(),
        }
    }
}
