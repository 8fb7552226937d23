//! The gated feed-forward part of a layer.

use tch::{TchError, Tensor};

use super::Linear;
use crate::error::LoadError;
use crate::kernels::Kernels;
use crate::lora::{Fused, LayerAdapters};
use crate::weights::Weights;

/// `down(silu(gate(x)) * up(x))`, gate and up being one projection.
pub(crate) struct Mlp {
    gate_up: Linear,
    down: Linear,
    kernels: Kernels,
}

impl Mlp {
    /// Loads the three projections below `name`.
    pub(crate) fn load(weights: &mut Weights<'_>, name: &str, bias: bool) -> Result<Self, LoadError> {
        let gate_up = [format!("{name}.gate_proj"), format!("{name}.up_proj")];
        Ok(Self {
            gate_up: Linear::load(weights, &gate_up, bias)?,
            down: Linear::load(weights, &[format!("{name}.down_proj")], bias)?,
            kernels: weights.kernels(),
        })
    }

    /// `[tokens, hidden]` to the same.
    pub(crate) fn forward(&self, input: &Tensor, adapters: LayerAdapters<'_>) -> Result<Tensor, TchError> {
        let gate_up = self.gate_up.forward(input)?;
        adapters.add(Fused::GateUp, input, &gate_up)?;
        let gate = self.kernels.silu_gate(&gate_up)?;
        let output = self.down.forward(&gate)?;
        adapters.add(Fused::Down, &gate, &output)?;
        Ok(output)
    }
}
