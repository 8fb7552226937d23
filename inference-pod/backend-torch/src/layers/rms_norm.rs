//! Root-mean-square normalisation.

use tch::{TchError, Tensor};

use crate::error::LoadError;
use crate::weights::Weights;

/// `x / sqrt(mean(x^2) + epsilon) * weight`, over the last dimension.
pub(crate) struct RmsNorm {
    /// `[width]`
    weight: Tensor,
    epsilon: f64,
}

impl RmsNorm {
    /// Loads a norm; `name` is that of the checkpoint, less `.weight`.
    pub(crate) fn load(weights: &mut Weights<'_>, name: &str, epsilon: f64) -> Result<Self, LoadError> {
        Ok(Self { weight: weights.load(&format!("{name}.weight"))?, epsilon })
    }

    /// `[…, width]` to the same. libtorch takes the mean in f32 whatever the number type.
    pub(crate) fn forward(&self, input: &Tensor) -> Result<Tensor, TchError> {
        input.f_rms_norm(self.weight.size(), Some(&self.weight), self.epsilon)
    }
}
