//! Attention over a paged cache.
//!
//! [`PagedAttention`] is the seam: [`libtorch::LibtorchAttention`] does it with libtorch's own operators on any device, and is
//! what faster implementations are checked against; [`in_place::Attention`] is what a model uses.

mod in_place;
mod libtorch;
mod paged;
mod self_attention;

pub(crate) use in_place::Attention;
pub(crate) use paged::{HeadShape, PagedAttention};
pub(crate) use self_attention::{SelfAttention, TokenPlaces};
