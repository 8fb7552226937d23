//! What a layer does to single numbers, each in one pass: normalisation, the gate of the feed-forward part, and rotary embedding
//! together with the write into the cache. As single operators of libtorch these would be some thirty calls a layer.

use tch::{TchError, Tensor};

use super::lanes::LANES;
use super::number::{Bf16, Element, Number};
use super::threads::share_out;
use super::view::{Target, View};

/// Numbers that are worth a thread's while.
const GRAIN_NUMBERS: usize = 8 << 10;

/// `x / sqrt(mean(x^2) + epsilon) * weight` over the rows of `input`, `[rows, width]`; `weight` is `[width]`.
///
/// # Errors
/// As for [`super::linear`].
pub fn rms_norm(input: &Tensor, weight: &Tensor, epsilon: f64) -> Result<Tensor, TchError> {
    fn norm<T: Number>(input: &Tensor, weight: &Tensor, epsilon: f32) -> Result<Tensor, TchError> {
        let x = View::<T, 2>::of(input, "the input")?;
        let w = View::<T, 1>::of(weight, "the norm's weight")?;
        let [rows, width] = x.shape;
        if w.shape[0] != width {
            let problem = format!("a norm of {} numbers for rows of {width}", w.shape[0]);
            return Err(TchError::Shape(problem));
        }
        let result = Tensor::f_empty([rows as i64, width as i64], (T::KIND, input.device()))?;
        let target = Target::<T, 2>::of(&result, "the result")?;
        share_out(rows, GRAIN_NUMBERS.div_ceil(width.max(1)), &|range| {
            for row in range {
                // SAFETY: each row is one thread's; the processor was asked.
                unsafe { norm_row(x.row(row), w.numbers, epsilon, target.slice(row * target.stride, width)) };
            }
        });
        Ok(result)
    }
    super::require_support()?;
    let epsilon = epsilon as f32;
    if input.f_kind()? == Bf16::KIND {
        norm::<Bf16>(input, weight, epsilon)
    } else {
        norm::<f32>(input, weight, epsilon)
    }
}

/// # Safety
/// The processor has what [`super::lanes::supported`] asks for.
#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
unsafe fn norm_row<T: Number>(x: &[T], weight: &[T], epsilon: f32, target: &mut [T]) {
    let scale = norm_scale(x, epsilon);
    for ((number, weight), target) in x.iter().zip(weight).zip(target) {
        *target = T::from_f32(number.to_f32() * scale * weight.to_f32());
    }
}

/// `1 / sqrt(mean(x^2) + epsilon)`
#[inline(always)]
fn norm_scale<T: Number>(x: &[T], epsilon: f32) -> f32 {
    // Sums in eight lanes, as one would be a chain of additions.
    let mut squares = [0.0_f32; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for (sum, number) in squares.iter_mut().zip(chunk) {
            *sum = number.to_f32().mul_add(number.to_f32(), *sum);
        }
    }
    let rest: f32 = rest.iter().map(|number| number.to_f32() * number.to_f32()).sum();
    ((squares.iter().sum::<f32>() + rest) / x.len() as f32 + epsilon).sqrt().recip()
}

/// `silu(gate) * up` for `gate_up`, `[rows, 2 * width]`, gate first: `[rows, width]`.
///
/// # Errors
/// As for [`super::linear`].
pub fn silu_gate(gate_up: &Tensor) -> Result<Tensor, TchError> {
    fn gate<T: Number>(gate_up: &Tensor) -> Result<Tensor, TchError> {
        let x = View::<T, 2>::of(gate_up, "gate and up")?;
        let (rows, width) = (x.shape[0], x.shape[1] / 2);
        let result = Tensor::f_empty([rows as i64, width as i64], (T::KIND, gate_up.device()))?;
        let target = Target::<T, 2>::of(&result, "the result")?;
        share_out(rows, GRAIN_NUMBERS.div_ceil(width.max(1)), &|range| {
            for row in range {
                let (gate, up) = x.row(row).split_at(width);
                // SAFETY: each row is one thread's; the processor was asked.
                unsafe { gate_row(gate, up, target.slice(row * target.stride, width)) };
            }
        });
        Ok(result)
    }
    super::require_support()?;
    if gate_up.f_kind()? == Bf16::KIND { gate::<Bf16>(gate_up) } else { gate::<f32>(gate_up) }
}

/// # Safety
/// The processor has what [`super::lanes::supported`] asks for.
#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
unsafe fn gate_row<T: Number>(gate: &[T], up: &[T], target: &mut [T]) {
    for ((gate, up), target) in gate.iter().zip(up).zip(target) {
        let gate = gate.to_f32();
        *target = T::from_f32(gate / (1.0 + exp(-gate)) * up.to_f32());
    }
}

/// What [`rotate_and_store`] works on.
#[derive(Clone, Copy, Debug)]
pub struct Rotation<'a> {
    /// `[tokens, heads + 2 * kv_heads, head_dim]`: queries, keys, values. Queries and keys are turned in place.
    pub qkv: &'a Tensor,
    /// Norms that queries and keys pass first.
    pub norms: Option<HeadNorms<'a>>,
    /// `[tokens, 1, head_dim]`: the cosines of all pairs, twice.
    pub cosine: &'a Tensor,
    /// `[tokens, 1, head_dim / 2]`
    pub sine: &'a Tensor,
    /// `[tokens]` of i64: where each token's keys and values go.
    pub slots: &'a Tensor,
    /// `[slots, kv_heads, head_dim]`
    pub keys: &'a Tensor,
    /// `[slots, kv_heads, head_dim]`
    pub values: &'a Tensor,
}

/// Root-mean-square norms of single heads.
#[derive(Clone, Copy, Debug)]
pub struct HeadNorms<'a> {
    /// `[head_dim]`
    pub queries: &'a Tensor,
    /// `[head_dim]`
    pub keys: &'a Tensor,
    /// Added to the mean of squares.
    pub epsilon: f64,
}

/// Turns queries and keys by their positions' angles, element `i` of a head paired with `i + head_dim / 2`, and stores keys and
/// values in the cache.
///
/// # Errors
/// As for [`super::linear`]; also if a slot is not in the cache.
pub fn rotate_and_store(rotation: &Rotation<'_>) -> Result<(), TchError> {
    super::require_support()?;
    if rotation.qkv.f_kind()? == Bf16::KIND { rotate::<Bf16>(rotation) } else { rotate::<f32>(rotation) }
}

fn rotate<T: Number>(rotation: &Rotation<'_>) -> Result<(), TchError> {
    let qkv = Target::<T, 3>::of(rotation.qkv, "queries, keys and values")?;
    let cosine = View::<T, 3>::of(rotation.cosine, "the cosines")?;
    let sine = View::<T, 3>::of(rotation.sine, "the sines")?;
    let keys = Target::<T, 3>::of(rotation.keys, "the cache's keys")?;
    let values = Target::<T, 3>::of(rotation.values, "the cache's values")?;
    let slots = View::<i64, 1>::of(rotation.slots, "the slots")?;
    let head_norm = |tensor| View::<T, 1>::of(tensor, "a norm of heads");
    let norms = match rotation.norms {
        Some(norms) => Some([head_norm(norms.queries)?, head_norm(norms.keys)?]),
        None => None,
    };
    let epsilon = rotation.norms.map_or(0.0, |norms| norms.epsilon as f32);
    let [tokens, all_heads, head_dim] = qkv.shape;
    let [cached, kv_heads, _] = keys.shape;
    let in_cache = |slot: &i64| usize::try_from(*slot).is_ok_and(|slot| slot < cached);
    let fits = all_heads > 2 * kv_heads
        && head_dim.is_multiple_of(2)
        && cosine.shape == [tokens, 1, head_dim]
        && sine.shape == [tokens, 1, head_dim / 2]
        && keys.shape == [cached, kv_heads, head_dim]
        && values.shape == keys.shape
        && norms.iter().flatten().all(|norm| norm.shape == [head_dim])
        && slots.shape == [tokens]
        && slots.numbers.iter().all(in_cache);
    if !fits {
        let problem = format!("{:?} with a cache of {:?} and {:?} slots", qkv.shape, keys.shape, slots.shape);
        return Err(TchError::Shape(problem));
    }
    let heads = all_heads - 2 * kv_heads;
    // By heads, not by tokens: padding tokens share a slot, and must not be written by two threads at once.
    let grain = GRAIN_NUMBERS.div_ceil((tokens * head_dim).max(1));
    share_out(heads + kv_heads, grain, &|range| {
        for head in range {
            let kv_head = head.checked_sub(heads);
            let norm = norms.as_ref().map(|[queries, keys]| if kv_head.is_none() { queries } else { keys });
            for (token, slot) in slots.numbers.iter().enumerate() {
                let begin = token * qkv.stride + head * head_dim;
                // SAFETY: this head's numbers are this thread's; the processor was asked.
                let turned = unsafe { qkv.slice(begin, head_dim) };
                if let Some(norm) = norm {
                    // SAFETY: the same.
                    unsafe { norm_in_place(turned, norm.numbers, epsilon) };
                }
                // SAFETY: the same.
                unsafe { turn(turned, cosine.row(token), sine.row(token)) };
                if let Some(kv_head) = kv_head {
                    let slot = *slot as usize;
                    let of_head = |stride: usize| slot * stride + kv_head * head_dim;
                    // SAFETY: the value head that belongs to this key head, and both their places in the cache, are this
                    // thread's too.
                    unsafe {
                        keys.slice(of_head(keys.stride), head_dim).copy_from_slice(turned);
                        let value = qkv.slice(begin + kv_heads * head_dim, head_dim);
                        values.slice(of_head(values.stride), head_dim).copy_from_slice(value);
                    }
                }
            }
        }
    });
    Ok(())
}

/// # Safety
/// The processor has what [`super::lanes::supported`] asks for.
#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
unsafe fn norm_in_place<T: Number>(x: &mut [T], weight: &[T], epsilon: f32) {
    let scale = norm_scale(x, epsilon);
    for (number, weight) in x.iter_mut().zip(weight) {
        *number = T::from_f32(number.to_f32() * scale * weight.to_f32());
    }
}

/// # Safety
/// The processor has what [`super::lanes::supported`] asks for.
#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
unsafe fn turn<T: Number>(head: &mut [T], cosine: &[T], sine: &[T]) {
    let (first, second) = head.split_at_mut(sine.len());
    for (((first, second), cosine), sine) in first.iter_mut().zip(second).zip(cosine).zip(sine) {
        let (x, y, cosine, sine) = (first.to_f32(), second.to_f32(), cosine.to_f32(), sine.to_f32());
        *first = T::from_f32(x * cosine - y * sine);
        *second = T::from_f32(y * cosine + x * sine);
    }
}

/// The exponential, to about two units in the last place; infinite and zero results become the largest and smallest that it
/// knows. Straight-line, so that a loop of it becomes vector instructions.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    /// Adding this leaves the nearest integer in the low bits.
    const ROUND: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Written so that what is not a number stays so.
    let x = if x < -87.0 { -87.0 } else { x };
    let x = if x > 88.0 { 88.0 } else { x };
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let whole = shifted - ROUND;
    let rest = whole.mul_add(-LN2_LOW, whole.mul_add(-LN2_HIGH, x));
    let series = rest
        .mul_add(1.0 / 720.0, 1.0 / 120.0)
        .mul_add(rest, 1.0 / 24.0)
        .mul_add(rest, 1.0 / 6.0)
        .mul_add(rest, 0.5)
        .mul_add(rest, 1.0)
        .mul_add(rest, 1.0);
    series * f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3f80_0000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_exact_to_a_millionth() {
        for step in -8_700..8_800_i16 {
            let x = f32::from(step) * 0.01;
            let wanted = f64::from(x).exp();
            let error = (f64::from(exp(x)) - wanted).abs() / wanted;
            assert!(error < 4e-7, "{x}: {error}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(-1e9) < 1e-37 && exp(1e9) > 1e38);
    }
}
