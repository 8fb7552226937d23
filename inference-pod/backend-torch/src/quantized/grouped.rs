//! Weights as small whole numbers with a scale and a zero point for each group of inputs.

use fairlead_model::{ModelError, Quantization};
use tch::{Device, Kind, TchError, Tensor};

use super::unpack;
use crate::error::LoadError;
use crate::weights::Weights;

/// Weight `[n, k]` stands for `(values[n, k] - zeros[g, n]) * scales[g, n]`, where `g` is the group of input `k`. On the CPU.
pub(crate) struct GroupedWeights {
    /// `[out, in]` of i32, from 0 to the largest number of so many bits.
    pub(crate) values: Tensor,
    /// `[groups, out]`, f32.
    pub(crate) scales: Tensor,
    /// `[groups, out]`, f32.
    pub(crate) zeros: Tensor,
    /// `[in]` of i64: the group of each input.
    pub(crate) group_of: Tensor,
}

impl GroupedWeights {
    /// Reads the packed tensors of one projection.
    pub(crate) fn load(
        weights: &mut Weights<'_>,
        name: &str,
        quantization: &Quantization,
    ) -> Result<Self, LoadError> {
        let torch = LoadError::torch("unpacking quantised weights");
        let of = |part: &str| format!("{name}.{part}");
        let mut integers = |part: &str| weights.load_stacked_as(&[of(part)], Kind::Int, Device::Cpu);
        let (qweight, qzeros) = (integers("qweight")?, integers("qzeros")?);
        let (layout, bits) = (quantization.layout, i64::from(quantization.bits));
        let values = unpack::weights(&qweight, layout, bits)
            .and_then(|values| values.f_transpose(0, 1)?.f_contiguous())
            .map_err(&torch)?;
        let zeros = unpack::zero_points(&qzeros, layout, bits)
            .and_then(|zeros| zeros.f_to_kind(Kind::Float))
            .map_err(&torch)?;
        let scales = weights.load_stacked_as(&[of("scales")], Kind::Float, Device::Cpu)?;
        let inputs = values.size2().map_err(&torch)?.1;
        let groups = scales.size2().map_err(&torch)?.0;
        let g_idx = of("g_idx");
        let group_of = if weights.has(&g_idx) {
            let group_of = weights.load_stacked_as(&[&g_idx], Kind::Int64, Device::Cpu)?;
            check_groups(&group_of, &g_idx, inputs, groups)?;
            group_of
        } else {
            let group = quantization.group(u32::try_from(inputs).unwrap_or(u32::MAX));
            in_turn(inputs, i64::from(group)).map_err(&torch)?
        };
        Ok(Self { values, scales, zeros, group_of })
    }

    /// Rounds full weights, `[out, in]` in f32, to four bits: each group's smallest and largest weight are the ends.
    pub(crate) fn round(full: &Tensor, group: i64) -> Result<Self, TchError> {
        const LARGEST: f64 = 15.0;
        let (out, inputs) = full.size2()?;
        let grouped = full.f_view([out, -1, group])?;
        // Zero must be a weight that can be had exactly.
        let lowest = grouped.f_amin(-1, true)?.f_clamp_max(0.0)?;
        let highest = grouped.f_amax(-1, true)?.f_clamp_min(0.0)?;
        let scales =
            highest.f_sub(&lowest)?.f_div_scalar(LARGEST)?.f_clamp_min(f64::from(f32::MIN_POSITIVE))?;
        let zeros = lowest.f_neg()?.f_div(&scales)?.f_round()?.f_clamp(0.0, LARGEST)?;
        let values = grouped.f_div(&scales)?.f_round()?.f_add(&zeros)?.f_clamp(0.0, LARGEST)?;
        let by_group = |tensor: Tensor| tensor.f_squeeze_dim(-1)?.f_transpose(0, 1)?.f_contiguous();
        Ok(Self {
            values: values.f_view([out, inputs])?.f_to_kind(Kind::Int)?,
            scales: by_group(scales)?,
            zeros: by_group(zeros)?,
            group_of: in_turn(inputs, group)?,
        })
    }

    /// Several projections of the same inputs as one; `None` if their inputs are not grouped alike.
    pub(crate) fn stack(parts: &[Self]) -> Result<Option<Self>, TchError> {
        let Some(first) = parts.first() else { return Ok(None) };
        for part in parts {
            if part.scales.size()[0] != first.scales.size()[0] || !part.group_of.f_equal(&first.group_of)? {
                return Ok(None);
            }
        }
        let all = |of: fn(&Self) -> &Tensor, dimension| {
            Tensor::f_cat(&parts.iter().map(of).collect::<Vec<_>>(), dimension)
        };
        Ok(Some(Self {
            values: all(|part| &part.values, 0)?,
            scales: all(|part| &part.scales, 1)?,
            zeros: all(|part| &part.zeros, 1)?,
            group_of: first.group_of.shallow_clone(),
        }))
    }

    /// The same memory once more.
    pub(crate) fn shallow_clone(&self) -> Self {
        Self {
            values: self.values.shallow_clone(),
            scales: self.scales.shallow_clone(),
            zeros: self.zeros.shallow_clone(),
            group_of: self.group_of.shallow_clone(),
        }
    }

    /// Full weights, `[out, in]` in f32.
    pub(crate) fn full(&self) -> Result<Tensor, TchError> {
        let of_input = |by_group: &Tensor| by_group.f_index_select(0, &self.group_of)?.f_transpose(0, 1);
        let values = self.values.f_to_kind(Kind::Float)?;
        values.f_sub(&of_input(&self.zeros)?)?.f_mul(&of_input(&self.scales)?)
    }

    /// Puts inputs of the same group side by side. The second is the order to put the inputs in, `[in]` of i64, if it is not
    /// the one they have; `None` for both if groups are not all of `group` inputs.
    pub(crate) fn side_by_side(self, group: i64) -> Result<Option<(Self, Option<Tensor>)>, TchError> {
        let inputs = self.group_of.size1()?;
        let expected = in_turn(inputs, group)?;
        if self.group_of.f_equal(&expected)? {
            return Ok(Some((self, None)));
        }
        let order = self.group_of.f_argsort_stable(true, 0, false)?;
        if !self.group_of.f_index_select(0, &order)?.f_equal(&expected)? {
            return Ok(None);
        }
        let values = self.values.f_index_select(1, &order)?;
        Ok(Some((Self { values, group_of: expected, ..self }, Some(order))))
    }
}

/// Groups of `group` inputs, one after the other.
fn in_turn(inputs: i64, group: i64) -> Result<Tensor, TchError> {
    Tensor::f_arange(inputs, (Kind::Int64, Device::Cpu))?.f_floor_divide_scalar(group.max(1))
}

/// An index outside would be libtorch's error in the middle of loading; a name helps more.
fn check_groups(group_of: &Tensor, name: &str, inputs: i64, groups: i64) -> Result<(), LoadError> {
    let numbers: Vec<i64> =
        Vec::try_from(group_of).map_err(LoadError::torch("reading the groups of inputs"))?;
    if numbers.len() as i64 == inputs && numbers.iter().all(|number| (0..groups).contains(number)) {
        return Ok(());
    }
    let problem = format!("tensor {name} must name one of {groups} groups for each of {inputs} inputs");
    Err(ModelError::invalid("weights", problem).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_keeps_zero_and_stays_within_half_a_step() {
        let full = Tensor::arange(128, (Kind::Float, Device::Cpu)).view([2, 64]).sin();
        let grouped = GroupedWeights::round(&full, 32).unwrap();
        assert_eq!((grouped.scales.size(), grouped.values.size()), (vec![2, 2], vec![2, 64]));
        let error = (grouped.full().unwrap() - &full).abs().max().double_value(&[]);
        let step = grouped.scales.max().double_value(&[]);
        assert!(error <= step * 0.51, "{error} of {step}");
        let nothing = GroupedWeights::round(&full.zeros_like(), 32).unwrap();
        assert_eq!(nothing.full().unwrap().abs().max().double_value(&[]), 0.0);
    }

    #[test]
    fn scattered_groups_come_side_by_side_and_uneven_ones_do_not() {
        let grouped = |groups: &[i64]| GroupedWeights {
            values: Tensor::from_slice(&[1, 2, 3, 4]).view([1, 4]),
            scales: Tensor::from_slice(&[1.0_f32, 10.0]).view([2, 1]),
            zeros: Tensor::from_slice(&[0.0_f32, 1.0]).view([2, 1]),
            group_of: Tensor::from_slice(groups),
        };
        let numbers =
            |tensor: &Tensor| Vec::<f64>::try_from(tensor.to_kind(Kind::Double).view([-1])).unwrap();
        let scattered = grouped(&[1, 0, 1, 0]);
        assert_eq!(numbers(&scattered.full().unwrap()), [0.0, 2.0, 20.0, 4.0]);
        let (sorted, order) = scattered.side_by_side(2).unwrap().unwrap();
        assert_eq!(numbers(&order.unwrap()), [1.0, 3.0, 0.0, 2.0]);
        assert_eq!(numbers(&sorted.full().unwrap()), [2.0, 4.0, 0.0, 20.0]);
        let (_, order) = grouped(&[0, 0, 1, 1]).side_by_side(2).unwrap().unwrap();
        assert!(order.is_none());
        assert!(grouped(&[1, 0, 1, 1]).side_by_side(2).unwrap().is_none());
    }
}
