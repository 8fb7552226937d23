//! The layers that look at one token at a time; attention, which does not, has its own folder.

mod layer_norm;
mod linear;
mod mlp;
mod rms_norm;

pub(crate) use layer_norm::LayerNorm;
pub(crate) use linear::Linear;
pub(crate) use mlp::Mlp;
pub(crate) use rms_norm::RmsNorm;
