//! Which code computes: libtorch's operators, or on a CPU our kernels where they are faster.
//!
//! Decided once, when a model is loaded; the layers ask here and need not know. Both give the same numbers but for rounding, and
//! the tests compare them.

use fairlead_torch_shim::cpu;
use tch::{Device, Kind, TchError, Tensor};

/// Rows up to which our product of f32 is the faster one: beyond, libtorch's general product has caught up.
const MOST_ROWS_F32: i64 = 64;
/// The same for bf16 where libtorch has fast products of bf16; where it has none, ours is faster for any number of rows.
const MOST_ROWS_BF16: i64 = 4;

/// What a model's layers compute with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kernels {
    /// libtorch's operators, on any device and for any number type.
    Libtorch,
    /// Ours, on a CPU, for f32 and bf16.
    Cpu {
        /// Rows up to which our product is used.
        most_rows: i64,
    },
}

impl Kernels {
    /// What is fastest for numbers of this type on this device.
    pub(crate) fn choose(device: Device, kind: Kind) -> Self {
        if device != Device::Cpu || !cpu::supported() {
            return Self::Libtorch;
        }
        match kind {
            Kind::Float => Self::Cpu { most_rows: MOST_ROWS_F32 },
            Kind::BFloat16 if cpu::libtorch_has_bf16_products() => Self::Cpu { most_rows: MOST_ROWS_BF16 },
            Kind::BFloat16 => Self::Cpu { most_rows: i64::MAX },
            _ => Self::Libtorch,
        }
    }

    /// `x W^T + b` for `[rows, in]` and `[out, in]`.
    pub(crate) fn linear(
        self,
        input: &Tensor,
        weight: &Tensor,
        bias: Option<&Tensor>,
    ) -> Result<Tensor, TchError> {
        match self {
            Self::Cpu { most_rows } if input.size2()?.0 <= most_rows => cpu::linear(input, weight, bias),
            _ => input.f_linear(weight, bias),
        }
    }

    /// The root-mean-square norm of the last dimension.
    pub(crate) fn rms_norm(self, input: &Tensor, weight: &Tensor, epsilon: f64) -> Result<Tensor, TchError> {
        match self {
            Self::Cpu { .. } if input.dim() == 2 => cpu::rms_norm(input, weight, epsilon),
            // libtorch takes the mean in f32 whatever the number type.
            _ => input.f_rms_norm(weight.size(), Some(weight), epsilon),
        }
    }

    /// `silu(gate) * up` for `[rows, 2 * width]`, gate first.
    pub(crate) fn silu_gate(self, gate_up: &Tensor) -> Result<Tensor, TchError> {
        match self {
            Self::Cpu { .. } => cpu::silu_gate(gate_up),
            Self::Libtorch => {
                let width = gate_up.size2()?.1 / 2;
                let mut gate = gate_up.f_narrow(-1, 0, width)?.f_silu()?;
                let _ = gate.f_mul_(&gate_up.f_narrow(-1, width, width)?)?;
                Ok(gate)
            }
        }
    }
}
