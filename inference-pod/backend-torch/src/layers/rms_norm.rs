//! Root-mean-square normalisation.

use tch::{TchError, Tensor};

use crate::error::LoadError;
use crate::kernels::Kernels;
use crate::weights::Weights;

/// `x / sqrt(mean(x^2) + epsilon) * weight`, over the last dimension.
pub(crate) struct RmsNorm {
    /// `[width]`
    pub(crate) weight: Tensor,
    pub(crate) epsilon: f64,
    kernels: Kernels,
}

impl RmsNorm {
    /// Loads a norm; `name` is that of the checkpoint, less `.weight`.
    pub(crate) fn load(weights: &mut Weights<'_>, name: &str, epsilon: f64) -> Result<Self, LoadError> {
        Ok(Self { weight: weights.load(&format!("{name}.weight"))?, epsilon, kernels: weights.kernels() })
    }

    /// `[…, width]` to the same.
    pub(crate) fn forward(&self, input: &Tensor) -> Result<Tensor, TchError> {
        self.kernels.rms_norm(input, &self.weight, self.epsilon)
    }
}
