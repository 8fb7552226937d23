//! The number types that the kernels read and write; they compute in f32 whatever the type.

use tch::Kind;

use super::lanes::{F32x8, LANES};

/// What a tensor may hold: any bits of it are a value.
pub(crate) trait Element: Copy + Send + Sync + 'static {
    /// libtorch's name for it.
    const KIND: Kind;
}

impl Element for f32 {
    const KIND: Kind = Kind::Float;
}

impl Element for Bf16 {
    const KIND: Kind = Kind::BFloat16;
}

impl Element for i64 {
    const KIND: Kind = Kind::Int64;
}

/// A number type of weights, activations and cache.
pub(crate) trait Number: Element {
    /// Columns of a full tile of dot products, at most [`super::dot::TILE_COLUMNS`].
    const TILE_COLUMNS: usize;

    fn to_f32(self) -> f32;

    /// Rounds to the nearest, to even where two are as near; what is not a number stays so.
    fn from_f32(value: f32) -> Self;

    /// Reads eight.
    ///
    /// # Safety
    /// `from` is valid for reading eight of these.
    unsafe fn load(from: *const Self) -> F32x8;

    /// Reads sixteen and keeps eight: the first or the second half of the order that [`Number::arrange`] makes.
    ///
    /// # Safety
    /// `from` is valid for reading sixteen of these.
    unsafe fn load_half<const SECOND: bool>(from: *const Self) -> F32x8;

    /// Puts sixteen numbers that meet sixteen of these in a product into the order that [`Number::load_half`] has them in.
    fn arrange(numbers: &mut [f32; 16]);
}

impl Number for f32 {
    const TILE_COLUMNS: usize = 3;

    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }

    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        value
    }

    #[inline(always)]
    unsafe fn load(from: *const Self) -> F32x8 {
        // SAFETY: as the caller promises.
        unsafe { F32x8::load(from) }
    }

    #[inline(always)]
    unsafe fn load_half<const SECOND: bool>(from: *const Self) -> F32x8 {
        // SAFETY: as the caller promises.
        unsafe { F32x8::load(if SECOND { from.add(LANES) } else { from }) }
    }

    #[inline(always)]
    fn arrange(_: &mut [f32; 16]) {}
}

/// The upper half of an f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub(crate) struct Bf16(u16);

impl Number for Bf16 {
    // Converting takes registers, too.
    const TILE_COLUMNS: usize = 2;

    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.0) << 16)
    }

    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        let bits = value.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
        Self(if value.is_nan() { 0x7fc0 } else { rounded as u16 })
    }

    #[inline(always)]
    unsafe fn load(from: *const Self) -> F32x8 {
        // SAFETY: as the caller promises; this type is its u16.
        unsafe { F32x8::load_bf16(from.cast()) }
    }

    // Even and odd places are each one instruction apart from f32, consecutive ones are two.
    #[inline(always)]
    unsafe fn load_half<const SECOND: bool>(from: *const Self) -> F32x8 {
        // SAFETY: as the caller promises; this type is its u16.
        unsafe { if SECOND { F32x8::load_odd_bf16(from.cast()) } else { F32x8::load_even_bf16(from.cast()) } }
    }

    #[inline(always)]
    fn arrange(numbers: &mut [f32; 16]) {
        let before = *numbers;
        for pair in 0..LANES {
            numbers[pair] = before[2 * pair];
            numbers[LANES + pair] = before[2 * pair + 1];
        }
    }
}

#[cfg(test)]
mod tests {
    use tch::Tensor;

    use super::*;

    #[test]
    fn rounds_to_bf16_as_libtorch_does() {
        let numbers = [
            0.0,
            -0.0,
            1.0,
            1.003_906_3,
            1.011_718_8,
            -3.3,
            1e-40,
            3.4e38,
            f32::MAX,
            f32::INFINITY,
            f32::NEG_INFINITY,
        ];
        let torch = Tensor::from_slice(&numbers).to_kind(Kind::BFloat16).to_kind(Kind::Float);
        let torch: Vec<f32> = Vec::try_from(torch).unwrap();
        assert_eq!(numbers.map(|number| Bf16::from_f32(number).to_f32()).as_slice(), torch);
        assert!(Bf16::from_f32(f32::NAN).to_f32().is_nan());
        assert!(Bf16::from_f32(f32::from_bits(0xffff_ffff)).to_f32().is_nan());
    }
}
