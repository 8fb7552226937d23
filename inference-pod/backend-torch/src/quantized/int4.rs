//! Products with weights of four bits in groups, and with those of eight as two of four.
//!
//! libtorch's product takes weights as `(q - 8) * scale + zero`. On a CPU activations may be f32, bf16 or f16 and are
//! multiplied in f32 with what a group's scale and zero make of each weight, so in f32 the answer is that of the full weights
//! but for the order of summation. On a GPU they must be bf16.

use fairlead_model::quantization::padded_rows;
use tch::{Device, Kind, TchError, Tensor};

use super::GroupedWeights;

/// Tiles of the inner dimension that CUDA's product reads at once.
const CUDA_INNER_TILES: i64 = 8;

/// A matrix of four bits a weight.
struct Half {
    /// Laid out as libtorch's product of the device wants it.
    packed: Tensor,
    /// `[groups, rows, 2]`: scale, and what is added.
    scales_and_zeros: Tensor,
}

/// Weights of four bits, or of eight in two halves whose products are summed.
pub(crate) struct Int4Weight {
    halves: Vec<Half>,
    /// Inputs of a group.
    group: i64,
    /// Rows without those that fill up.
    out: i64,
    /// `[in]` of i32: the order in which inputs come to the product; absent if it is their own.
    order: Option<Tensor>,
}

impl Int4Weight {
    /// Packs weights of `bits` bits for products in groups of `group` inputs, which divides their own groups' size. `None` if
    /// their groups are not all of a size.
    pub(crate) fn pack(
        weights: GroupedWeights,
        bits: u32,
        group: i64,
        kind: Kind,
        device: Device,
    ) -> Result<Option<Self>, TchError> {
        let (out, inputs) = weights.values.size2()?;
        let own = inputs / weights.scales.size()[0].max(1);
        if own < group || own % group != 0 {
            return Ok(None);
        }
        let Some((weights, order)) = weights.side_by_side(own)? else { return Ok(None) };
        // A large group is several small ones with the same scale.
        let repeats = own / group;
        let spread = |by_group: &Tensor| by_group.f_repeat_interleave_self_int(repeats, 0, None);
        let (scales, zeros) = (spread(&weights.scales)?, spread(&weights.zeros)?);
        let rows = i64::from(padded_rows(u32::try_from(out).unwrap_or(u32::MAX)));
        let half = |values: &Tensor, scales: &Tensor, added: &Tensor| -> Result<Half, TchError> {
            let filled = |tensor: &Tensor| tensor.f_constant_pad_nd([0, rows - out]);
            let scales_and_zeros = Tensor::f_stack(&[filled(scales)?, filled(added)?], -1)?;
            Ok(Half {
                packed: pack_values(&values.f_constant_pad_nd([0, 0, 0, rows - out])?, device)?,
                scales_and_zeros: scales_and_zeros.f_to_kind(kind)?.f_to_device(device)?,
            })
        };
        let halves = if bits == 4 {
            let added = zeros.f_neg()?.f_add_scalar(8)?.f_mul(&scales)?;
            vec![half(&weights.values, &scales, &added)?]
        } else {
            // q = 16 high + low, so (q - z) s = (high - 8) 16 s + (low - 8) s + (136 - z) s.
            let added = zeros.f_neg()?.f_add_scalar(136)?.f_mul(&scales)?;
            let high = weights.values.f_floor_divide_scalar(16)?;
            let low = weights.values.f_bitwise_and(15)?;
            vec![
                half(&high, &scales.f_mul_scalar(16)?, &scales.f_zeros_like()?)?,
                half(&low, &scales, &added)?,
            ]
        };
        let order = order.map(|order| order.f_to_kind(Kind::Int)?.f_to_device(device)).transpose()?;
        Ok(Some(Self { halves, group, out, order }))
    }

    /// Tensors that stay in memory.
    pub(crate) fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        self.halves.iter().flat_map(|half| [&half.packed, &half.scales_and_zeros]).chain(&self.order)
    }

    /// `[tokens, in]` to `[tokens, out]`.
    pub(crate) fn forward(&self, input: &Tensor) -> Result<Tensor, TchError> {
        let input = match &self.order {
            Some(order) => input.f_index_select(-1, order)?,
            None => input.f_contiguous()?,
        };
        let mut product: Option<Tensor> = None;
        for half in &self.halves {
            let part = half.forward(&input, self.group)?;
            match &mut product {
                Some(sum) => drop(sum.f_add_(&part)?),
                None => product = Some(part),
            }
        }
        let product = product.map_or_else(|| Tensor::f_cat::<Tensor>(&[], 0), Ok)?;
        if product.size2()?.1 == self.out {
            Ok(product)
        } else {
            product.f_narrow(1, 0, self.out)?.f_contiguous()
        }
    }
}

impl Half {
    fn forward(&self, input: &Tensor, group: i64) -> Result<Tensor, TchError> {
        if input.device() == Device::Cpu {
            input.f_internal_weight_int4pack_mm_for_cpu(&self.packed, group, &self.scales_and_zeros)
        } else {
            input.f_internal_weight_int4pack_mm(&self.packed, group, &self.scales_and_zeros)
        }
    }
}

/// Packs `[rows, in]` of i32 from 0 to 15.
fn pack_values(values: &Tensor, device: Device) -> Result<Tensor, TchError> {
    if device == Device::Cpu {
        return values.f_contiguous()?.f_internal_convert_weight_to_int4pack_for_cpu(CUDA_INNER_TILES);
    }
    // CUDA takes two to a byte, the even one above.
    let (rows, inputs) = values.size2()?;
    let pairs = values.f_view([rows, inputs / 2, 2])?;
    let bytes = pairs.f_select(2, 0)?.f_mul_scalar(16)?.f_add(&pairs.f_select(2, 1)?)?;
    bytes.f_to_kind(Kind::Uint8)?.f_to_device(device)?.f_internal_convert_weight_to_int4pack(CUDA_INNER_TILES)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whole numbers that look random, with scales, zero points and scattered groups.
    fn weights(out: i64, inputs: i64, group: i64, bits: u32) -> GroupedWeights {
        let most = (1_i64 << bits) - 1;
        let pseudo = |rows: i64, columns: i64, step: i64| {
            Tensor::arange(rows * columns, (Kind::Int64, Device::Cpu)).view([rows, columns]) * step
        };
        let groups = inputs / group;
        GroupedWeights {
            values: pseudo(out, inputs, 7919).remainder(most + 1).to_kind(Kind::Int),
            scales: pseudo(groups, out, 31).remainder(13).to_kind(Kind::Float) * 0.003 + 0.01,
            zeros: pseudo(groups, out, 17).remainder(most + 1).to_kind(Kind::Float),
            group_of: pseudo(1, inputs, 1).view([-1]).remainder(groups),
        }
    }

    #[test]
    fn the_product_is_that_of_the_full_weights() {
        let input = Tensor::arange(3 * 128, (Kind::Float, Device::Cpu)).view([3, 128]).sin();
        // Groups as large as libtorch takes them or larger, rows that fill up or do not.
        for (out, group, product_group, bits) in
            [(32, 32, 32, 4), (50, 64, 64, 4), (16, 128, 32, 4), (48, 64, 64, 8), (7, 128, 128, 8)]
        {
            let grouped = weights(out, 128, group, bits);
            let expected = input.matmul(&grouped.full().unwrap().transpose(0, 1));
            let packed = Int4Weight::pack(grouped, bits, product_group, Kind::Float, Device::Cpu).unwrap();
            let product = packed.unwrap().forward(&input).unwrap();
            assert_eq!(product.size(), [3, out]);
            let error = (product - &expected).abs().max().double_value(&[]);
            let scale = expected.abs().max().double_value(&[]);
            assert!(error < 2e-6 * scale.max(1.0), "{out} {group} {bits}: {error} of {scale}");
        }
    }
}
