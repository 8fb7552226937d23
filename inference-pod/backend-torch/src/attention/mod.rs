//! Attention over a paged cache.
//!
//! [`PagedAttention`] is the seam: [`libtorch::LibtorchAttention`] does it with libtorch's own operators on any device, and is
//! what faster implementations are checked against.

mod libtorch;
mod paged;
mod self_attention;

pub(crate) use libtorch::LibtorchAttention;
pub(crate) use paged::{HeadShape, PagedAttention};
pub(crate) use self_attention::{SelfAttention, TokenPlaces};
