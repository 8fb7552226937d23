//! Layer norm, as encoders have it: mean and variance out, a scale and a shift in.

use tch::{TchError, Tensor};

use crate::error::LoadError;
use crate::weights::Weights;

/// `(x - mean) / sqrt(variance + eps) * weight + bias`, over the last dimension.
pub(crate) struct LayerNorm {
    /// `[hidden]`
    weight: Tensor,
    /// `[hidden]`
    bias: Tensor,
    eps: f64,
}

impl LayerNorm {
    /// Loads a norm; `name` is that of the checkpoint, less `.weight`.
    pub(crate) fn load(weights: &mut Weights<'_>, name: &str, eps: f64) -> Result<Self, LoadError> {
        let weight = weights.load(&format!("{name}.weight"))?;
        let bias = weights.load(&format!("{name}.bias"))?;
        Ok(Self { weight, bias, eps })
    }

    /// `[tokens, hidden]` to the same.
    pub(crate) fn forward(&self, input: &Tensor) -> Result<Tensor, TchError> {
        input.f_layer_norm(self.weight.size(), Some(&self.weight), Some(&self.bias), self.eps, true)
    }
}
