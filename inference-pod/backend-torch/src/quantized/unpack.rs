//! Small numbers out of the 32-bit numbers they are packed in.

use fairlead_model::PackedLayout;
use tch::{Kind, TchError, Tensor};

/// Place in a 32-bit number of each of eight outputs, as AWQ's `gemm` packs them: in the order 0, 2, 4, 6, 1, 3, 5, 7.
const AWQ_PLACES: [i64; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

/// `[rows, columns]` of 32-bit numbers to `[rows, columns * 32 / bits]`: numbers of a row in turn.
fn along_columns(packed: &Tensor, bits: i64) -> Result<Tensor, TchError> {
    let (rows, _) = packed.size2()?;
    digits(&packed.f_unsqueeze(2)?, bits, [1, 1, -1])?.f_view([rows, -1])
}

/// `[rows, columns]` of 32-bit numbers to `[rows * 32 / bits, columns]`: numbers of a column in turn.
fn along_rows(packed: &Tensor, bits: i64) -> Result<Tensor, TchError> {
    let (_, columns) = packed.size2()?;
    digits(&packed.f_unsqueeze(1)?, bits, [1, -1, 1])?.f_view([-1, columns])
}

/// All digits of `bits` bits, lowest first, along the dimension that `shape` names by -1.
fn digits(packed: &Tensor, bits: i64, shape: [i64; 3]) -> Result<Tensor, TchError> {
    let shifts = Tensor::f_arange_start_step(0, 32, bits, (Kind::Int, packed.device()))?.f_view(shape)?;
    packed.f_bitwise_right_shift(&shifts)?.f_bitwise_and((1_i64 << bits) - 1)
}

/// Weights as whole numbers, `[inputs, outputs]` of i32, from `qweight`.
pub(crate) fn weights(qweight: &Tensor, layout: PackedLayout, bits: i64) -> Result<Tensor, TchError> {
    match layout {
        PackedLayout::Gptq | PackedLayout::GptqV2 => along_rows(qweight, bits),
        PackedLayout::Awq => in_awq_order(qweight, bits),
    }
}

/// Zero points as whole numbers, `[groups, outputs]` of i32, from `qzeros`.
pub(crate) fn zero_points(qzeros: &Tensor, layout: PackedLayout, bits: i64) -> Result<Tensor, TchError> {
    match layout {
        // AutoGPTQ stores them less one, and one more is taken within the same bits: the largest is 0.
        PackedLayout::Gptq => {
            along_columns(qzeros, bits)?.f_add_scalar(1)?.f_bitwise_and((1_i64 << bits) - 1)
        }
        PackedLayout::GptqV2 => along_columns(qzeros, bits),
        PackedLayout::Awq => in_awq_order(qzeros, bits),
    }
}

fn in_awq_order(packed: &Tensor, bits: i64) -> Result<Tensor, TchError> {
    let (rows, _) = packed.size2()?;
    let places = Tensor::f_from_slice(&AWQ_PLACES)?.f_to_device(packed.device())?;
    digits(&packed.f_unsqueeze(2)?, bits, [1, 1, -1])?.f_index_select(2, &places)?.f_view([rows, -1])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows_of(tensor: &Tensor) -> Vec<Vec<i32>> {
        Vec::<Vec<i32>>::try_from(tensor.to_kind(Kind::Int)).unwrap()
    }

    /// Digits of four bits, lowest first, as one number.
    fn packed(digits: [u32; 8]) -> i32 {
        digits.iter().rev().fold(0_u32, |number, digit| number << 4 | digit) as i32
    }

    #[test]
    fn gptq_packs_inputs_in_turn() {
        let qweight =
            Tensor::from_slice(&[packed([0, 1, 2, 3, 4, 5, 6, 15]), packed([15, 14, 13, 12, 11, 10, 9, 8])])
                .view([1, 2]);
        let weights = rows_of(&weights(&qweight, PackedLayout::Gptq, 4).unwrap());
        let (first, second): (Vec<i32>, Vec<i32>) = weights.iter().map(|row| (row[0], row[1])).unzip();
        assert_eq!(first, [0, 1, 2, 3, 4, 5, 6, 15]);
        assert_eq!(second, [15, 14, 13, 12, 11, 10, 9, 8]);
    }

    #[test]
    fn gptq_zero_points_are_one_more_than_what_is_stored_and_those_of_its_second_version_are_not() {
        let qzeros = Tensor::from_slice(&[packed([0, 7, 14, 15, 1, 2, 3, 4])]).view([1, 1]);
        let zeros = |layout| rows_of(&zero_points(&qzeros, layout, 4).unwrap())[0].clone();
        assert_eq!(zeros(PackedLayout::Gptq), [1, 8, 15, 0, 2, 3, 4, 5]);
        assert_eq!(zeros(PackedLayout::GptqV2), [0, 7, 14, 15, 1, 2, 3, 4]);
    }

    #[test]
    fn eight_bits_go_four_to_a_number() {
        let qweight = Tensor::from_slice(&[i32::from_le_bytes([0, 127, 128, 255])]).view([1, 1]);
        let weights = rows_of(&weights(&qweight, PackedLayout::Gptq, 8).unwrap());
        assert_eq!(weights, [[0], [127], [128], [255]]);
        let stored = Tensor::from_slice(&[i32::from_le_bytes([127, 255, 0, 254])]).view([1, 1]);
        let zeros = rows_of(&zero_points(&stored, PackedLayout::Gptq, 8).unwrap());
        assert_eq!(zeros, [[128, 0, 1, 255]]);
    }

    #[test]
    fn awq_packs_outputs_in_its_own_order() {
        // Output 0 first, then 2, 4, 6, 1, 3, 5, 7.
        let qweight = Tensor::from_slice(&[packed([10, 12, 14, 9, 11, 13, 15, 8])]).view([1, 1]);
        let weights = rows_of(&weights(&qweight, PackedLayout::Awq, 4).unwrap());
        assert_eq!(weights, [[10, 11, 12, 13, 14, 15, 9, 8]]);
    }
}
