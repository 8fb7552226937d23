//! Kernels for the CPU: what a decode needs and libtorch does slowly.
//!
//! A decode step is many small operators, and products with a few rows. libtorch's products are made for many rows, its
//! attention for contiguous keys and values, and each call costs some microseconds. These kernels take whole tensors, check them,
//! and do one layer's work in a handful of calls, on libtorch's own threads. Tensors are f32 or bf16, sums are f32. Called by
//! `fairlead-backend-torch`, which has a path through libtorch's operators for everything here, and tests one against the other.

// Loops over tiles go by index: that is how their registers are thought of, and how compilers unroll them.
#![allow(clippy::needless_range_loop)]

mod attention;
mod dot;
mod lanes;
mod linear;
mod number;
mod pointwise;
mod threads;
mod view;

use tch::TchError;

pub use attention::{PagedQueries, Visible, paged_attention};
pub use linear::linear;
pub use pointwise::{HeadNorms, Rotation, rms_norm, rotate_and_store, silu_gate};

/// Whether the processor can run these kernels: on x86-64 it needs AVX2 and FMA.
#[must_use]
pub fn supported() -> bool {
    lanes::supported()
}

/// Whether libtorch multiplies bf16 fast on this processor: it has code for AVX-512 and what builds on it, none for less.
#[must_use]
pub fn libtorch_has_bf16_products() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw");
    #[cfg(not(target_arch = "x86_64"))]
    return true;
}

fn require_support() -> Result<(), TchError> {
    if supported() {
        return Ok(());
    }
    Err(TchError::Torch("the processor has no AVX2, which this kernel needs".to_owned()))
}
