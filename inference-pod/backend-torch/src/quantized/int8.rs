//! Products with weights of eight bits, one scale an output.

use tch::{Device, Kind, TchError, Tensor};

/// Weight `[n, k]` stands for `values[n, k] * scales[n]`.
pub(crate) struct Int8Weight {
    /// `[out, in]` of i8.
    values: Tensor,
    /// `[out]`, in the number type of the activations.
    scales: Tensor,
}

impl Int8Weight {
    /// Rounds full weights, `[out, in]` in f32: each output's largest weight is the end.
    pub(crate) fn round(full: &Tensor, kind: Kind, device: Device) -> Result<Self, TchError> {
        const LARGEST: f64 = 127.0;
        let scales = full.f_abs()?.f_amax(-1, true)?.f_div_scalar(LARGEST)?;
        // Scales are rounded first, so that weights are rounded to what they will be multiplied with.
        let scales = scales.f_clamp_min(f64::from(f32::MIN_POSITIVE))?.f_to_kind(kind)?;
        let steps = full.f_div(&scales.f_to_kind(Kind::Float)?)?;
        let values = steps.f_round()?.f_nan_to_num(0.0, LARGEST, -LARGEST)?.f_clamp(-LARGEST, LARGEST)?;
        Ok(Self {
            values: values.f_to_kind(Kind::Int8)?.f_to_device(device)?,
            scales: scales.f_squeeze_dim(-1)?.f_to_device(device)?,
        })
    }

    /// Tensors that stay in memory.
    pub(crate) fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        [&self.values, &self.scales].into_iter()
    }

    /// `[tokens, in]` to `[tokens, out]`. libtorch has the product for a CPU; on a GPU the weights are widened for each
    /// product, which saves memory and no time.
    pub(crate) fn forward(&self, input: &Tensor) -> Result<Tensor, TchError> {
        if input.device() == Device::Cpu {
            return input.f_contiguous()?.f_internal_weight_int8pack_mm(&self.values, &self.scales);
        }
        let widened = self.values.f_to_kind(input.kind())?;
        input.f_linear::<Tensor>(&widened, None)?.f_mul(&self.scales)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_product_is_near_that_of_the_full_weights() {
        let pseudo = |rows: i64, columns: i64| {
            (Tensor::arange(rows * columns, (Kind::Float, Device::Cpu)).view([rows, columns]) * 1.7).sin()
        };
        let (full, input) = (pseudo(50, 96), pseudo(3, 96));
        let weight = Int8Weight::round(&full, Kind::Float, Device::Cpu).unwrap();
        let exact = input.matmul(&full.transpose(0, 1));
        let product = weight.forward(&input).unwrap();
        let error = (product - &exact).abs().max().double_value(&[]);
        assert!(error < 0.01 * exact.abs().max().double_value(&[]), "{error}");
        let nothing = Int8Weight::round(&full.zeros_like(), Kind::Float, Device::Cpu).unwrap();
        assert_eq!(nothing.forward(&input).unwrap().abs().max().double_value(&[]), 0.0);
    }
}
