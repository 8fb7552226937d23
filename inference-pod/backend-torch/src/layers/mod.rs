//! The layers that look at one token at a time; attention, which does not, has its own folder.

mod linear;
mod mlp;
mod rms_norm;

pub(crate) use linear::Linear;
pub(crate) use mlp::Mlp;
pub(crate) use rms_norm::RmsNorm;
