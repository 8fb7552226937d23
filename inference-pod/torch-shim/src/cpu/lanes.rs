//! Eight f32 at a time: the one file of the kernels that knows a processor.
//!
//! On x86-64 these are AVX2 registers; elsewhere arrays, which compilers turn into whatever the processor has. Every function is
//! inlined into a kernel that is compiled for AVX2 (`target_feature`).

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::F32x8;
#[cfg(not(target_arch = "x86_64"))]
pub(crate) use portable::F32x8;

/// Numbers in a [`F32x8`].
pub(crate) const LANES: usize = 8;

/// Asks for the cache line at `address`, which need not be valid, into the second-level cache.
#[inline(always)]
pub(crate) fn prefetch<T>(address: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch reads nothing, whatever the address.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// The kernels need AVX2 and FMA on x86-64; whatever else there is needs nothing special.
pub(crate) fn supported() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    #[cfg(not(target_arch = "x86_64"))]
    return true;
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    /// Eight f32.
    #[derive(Clone, Copy)]
    pub(crate) struct F32x8(__m256);

    // SAFETY of every block here: the caller has found AVX2 and FMA (`supported`) before it runs any kernel, and pointers are
    // valid for eight numbers, which is what each function asks of its caller. No alignment is needed.
    #[allow(clippy::undocumented_unsafe_blocks, clippy::missing_safety_doc)]
    impl F32x8 {
        #[inline(always)]
        pub(crate) fn splat(value: f32) -> Self {
            Self(unsafe { _mm256_set1_ps(value) })
        }

        /// Reads eight f32.
        #[inline(always)]
        pub(crate) unsafe fn load(from: *const f32) -> Self {
            Self(unsafe { _mm256_loadu_ps(from) })
        }

        /// Writes eight f32.
        #[inline(always)]
        pub(crate) unsafe fn store(self, to: *mut f32) {
            unsafe { _mm256_storeu_ps(to, self.0) }
        }

        /// Reads eight bf16, given as their bits.
        #[inline(always)]
        pub(crate) unsafe fn load_bf16(from: *const u16) -> Self {
            unsafe {
                let bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
                Self(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits)))
            }
        }

        /// Reads sixteen bf16, given as their bits, and keeps those in even places: an f32 begins with its bf16.
        #[inline(always)]
        pub(crate) unsafe fn load_even_bf16(from: *const u16) -> Self {
            unsafe { Self(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_loadu_si256(from.cast())))) }
        }

        /// The same for those in odd places.
        #[inline(always)]
        pub(crate) unsafe fn load_odd_bf16(from: *const u16) -> Self {
            unsafe {
                let upper = _mm256_set1_epi32(0xffff_0000_u32.cast_signed());
                Self(_mm256_castsi256_ps(_mm256_and_si256(_mm256_loadu_si256(from.cast()), upper)))
            }
        }

        /// `self * factor + addend`
        #[inline(always)]
        pub(crate) fn mul_add(self, factor: Self, addend: Self) -> Self {
            Self(unsafe { _mm256_fmadd_ps(self.0, factor.0, addend.0) })
        }

        #[inline(always)]
        pub(crate) fn sum(self) -> f32 {
            unsafe {
                let halves = _mm_add_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
                let pairs = _mm_add_ps(halves, _mm_movehl_ps(halves, halves));
                _mm_cvtss_f32(_mm_add_ss(pairs, _mm_shuffle_ps::<1>(pairs, pairs)))
            }
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod portable {
    use super::LANES;

    /// Eight f32.
    #[derive(Clone, Copy)]
    pub(crate) struct F32x8([f32; LANES]);

    impl F32x8 {
        #[inline(always)]
        pub(crate) fn splat(value: f32) -> Self {
            Self([value; LANES])
        }

        /// Reads eight f32.
        #[inline(always)]
        pub(crate) unsafe fn load(from: *const f32) -> Self {
            // SAFETY: the caller passes a pointer that is valid for eight f32.
            Self(unsafe { from.cast::<[f32; LANES]>().read_unaligned() })
        }

        /// Writes eight f32.
        #[inline(always)]
        pub(crate) unsafe fn store(self, to: *mut f32) {
            // SAFETY: the caller passes a pointer that is valid for eight f32.
            unsafe { to.cast::<[f32; LANES]>().write_unaligned(self.0) }
        }

        /// Reads eight bf16, given as their bits.
        #[inline(always)]
        pub(crate) unsafe fn load_bf16(from: *const u16) -> Self {
            // SAFETY: the caller passes a pointer that is valid for eight u16.
            let bits = unsafe { from.cast::<[u16; LANES]>().read_unaligned() };
            Self(bits.map(|bits| f32::from_bits(u32::from(bits) << 16)))
        }

        /// Reads sixteen bf16, given as their bits, and keeps those in even places.
        #[inline(always)]
        pub(crate) unsafe fn load_even_bf16(from: *const u16) -> Self {
            // SAFETY: the caller passes a pointer that is valid for sixteen u16.
            let pairs = unsafe { from.cast::<[[u16; 2]; LANES]>().read_unaligned() };
            Self(pairs.map(|[even, _]| f32::from_bits(u32::from(even) << 16)))
        }

        /// The same for those in odd places.
        #[inline(always)]
        pub(crate) unsafe fn load_odd_bf16(from: *const u16) -> Self {
            // SAFETY: the caller passes a pointer that is valid for sixteen u16.
            let pairs = unsafe { from.cast::<[[u16; 2]; LANES]>().read_unaligned() };
            Self(pairs.map(|[_, odd]| f32::from_bits(u32::from(odd) << 16)))
        }

        /// `self * factor + addend`
        #[inline(always)]
        pub(crate) fn mul_add(self, factor: Self, addend: Self) -> Self {
            let mut result = addend.0;
            for lane in 0..LANES {
                result[lane] = self.0[lane].mul_add(factor.0[lane], result[lane]);
            }
            Self(result)
        }

        #[inline(always)]
        pub(crate) fn sum(self) -> f32 {
            self.0.iter().sum()
        }
    }
}
