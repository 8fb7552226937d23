//! Rotary position embedding: each head is turned by angles that grow with the token's position.
//!
//! The frequencies come from `fairlead-model`. Angles are computed once for a step and used by every layer.

use fairlead_model::ModelConfig;
use tch::{Device, Kind, TchError, Tensor};

/// The frequencies of a model, on its device.
pub(crate) struct Rope {
    /// `[head_dim / 2]`, f32.
    frequencies: Tensor,
    /// What sines and cosines are multiplied by.
    attention_factor: f64,
}

/// Sines and cosines of one step's positions.
pub(crate) struct RotaryAngles {
    /// `[tokens, 1, head_dim]`: the cosines of all pairs, twice.
    pub(crate) cosine: Tensor,
    /// `[tokens, 1, head_dim / 2]`
    pub(crate) sine: Tensor,
    /// `[tokens, 1, head_dim / 2]`
    negative_sine: Tensor,
}

impl Rope {
    pub(crate) fn new(config: &ModelConfig, device: Device) -> Result<Self, TchError> {
        let frequencies = config.rope.inverse_frequencies(config.head_dim);
        Ok(Self {
            frequencies: Tensor::f_from_slice(&frequencies)?.f_to_device(device)?,
            attention_factor: config.rope.attention_factor(),
        })
    }

    /// Angles of `positions`, `[tokens]` of i64. Computed in f32 whatever `kind` is, as a position of some thousands times
    /// a frequency has no digits left in bf16.
    pub(crate) fn angles(&self, positions: &Tensor, kind: Kind) -> Result<RotaryAngles, TchError> {
        let angles = positions.f_to_kind(Kind::Float)?.f_outer(&self.frequencies)?.f_unsqueeze(1)?;
        let mut cosine = angles.f_cos()?;
        let mut sine = angles.f_sin()?;
        for table in [&mut cosine, &mut sine] {
            let _ = table.f_mul_scalar_(self.attention_factor)?;
        }
        Ok(RotaryAngles {
            cosine: Tensor::f_cat(&[&cosine, &cosine], -1)?.f_to_kind(kind)?,
            negative_sine: sine.f_neg()?.f_to_kind(kind)?,
            sine: sine.f_to_kind(kind)?,
        })
    }
}

impl RotaryAngles {
    /// Turns `heads`, `[tokens, any number of heads, head_dim]`; element `i` of a head is paired with `i + head_dim / 2`.
    pub(crate) fn rotate(&self, heads: &Tensor) -> Result<Tensor, TchError> {
        let half = self.sine.size().last().copied().unwrap_or_default();
        let rotated = heads.f_mul(&self.cosine)?;
        let first = heads.f_narrow(-1, 0, half)?;
        let second = heads.f_narrow(-1, half, half)?;
        let _ = rotated.f_narrow(-1, 0, half)?.f_addcmul_(&second, &self.negative_sine)?;
        let _ = rotated.f_narrow(-1, half, half)?.f_addcmul_(&first, &self.sine)?;
        Ok(rotated)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_each_pair_by_position_times_frequency() {
        let rope = Rope { frequencies: Tensor::from_slice(&[1.0_f32, 0.1]), attention_factor: 1.0 };
        let angles = rope.angles(&Tensor::from_slice(&[0_i64, 3]), Kind::Float).unwrap();
        // Two tokens, two heads: the unit vectors of pair 0 and of pair 1.
        let heads = Tensor::from_slice(&[1.0_f32, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0])
            .view([1, 2, 4])
            .repeat([2, 1, 1]);
        let rotated: Vec<f32> = Vec::try_from(angles.rotate(&heads).unwrap().view([-1])).unwrap();
        let expected = [
            [1.0, 0.0, 0.0, 0.0],
            [0.0, 1.0, 0.0, 0.0],
            [3.0_f32.cos(), 0.0, 3.0_f32.sin(), 0.0],
            [0.0, 0.3_f32.cos(), 0.0, 0.3_f32.sin()],
        ];
        for (got, wanted) in rotated.iter().zip(expected.as_flattened()) {
            assert!((got - wanted).abs() < 1e-6, "{rotated:?}");
        }
    }
}
