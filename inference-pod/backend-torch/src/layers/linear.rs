//! A projection: one matrix product for all tokens of a step.

use tch::{TchError, Tensor};

use crate::error::LoadError;
use crate::kernels::Kernels;
use crate::weights::Weights;

/// `x W^T + b`.
pub(crate) struct Linear {
    /// `[out, in]`
    weight: Tensor,
    /// `[out]`
    bias: Option<Tensor>,
    kernels: Kernels,
}

impl Linear {
    /// Loads one projection, or several of the same input as one. `names` are those of the checkpoint, less `.weight`.
    pub(crate) fn load(weights: &mut Weights<'_>, names: &[String], bias: bool) -> Result<Self, LoadError> {
        let of = |part: &str| -> Vec<String> { names.iter().map(|name| format!("{name}.{part}")).collect() };
        let weight = weights.load_stacked(&of("weight"))?;
        let bias = bias.then(|| weights.load_stacked(&of("bias"))).transpose()?;
        Ok(Self { weight, bias, kernels: weights.kernels() })
    }

    /// A projection by a matrix that another layer has loaded (a tied output).
    pub(crate) fn shared(weight: &Tensor, kernels: Kernels) -> Self {
        Self { weight: weight.shallow_clone(), bias: None, kernels }
    }

    /// `[tokens, in]` to `[tokens, out]`.
    pub(crate) fn forward(&self, input: &Tensor) -> Result<Tensor, TchError> {
        self.kernels.linear(input, &self.weight, self.bias.as_ref())
    }
}
