//! Llama-family models on libtorch, with keys and values in a paged cache.
//!
//! [`TorchBackend::load`] reads a model folder; the engine then calls [`fairlead_engine::backend::Backend::execute`] once for
//! each step. A step's tokens, of prompts and answers alike, go through the layers as one flat batch; only attention looks
//! at whose tokens they are. What `config.json` and the files' headers say is checked by `fairlead-model` before a weight
//! is read; `unsafe` is in `fairlead-torch-shim`; choosing tokens is `fairlead_engine::sampling`.
//!
//! One thread owns a backend and all its tensors. No function here panics on what a model or a batch holds: tch's fallible
//! methods (`f_*`) are used throughout, since the others panic on any error of libtorch.

mod attention;
mod backend;
mod device;
mod encoder;
mod error;
mod kernels;
mod kv_cache;
mod layers;
mod logits;
mod lora;
mod memory;
mod model;
mod quantized;
mod rope;
mod step;
mod weights;

pub use backend::{LoadOptions, TorchBackend};
pub use device::ComputeDevice;
pub use encoder::{EncoderLoadOptions, TorchEncoder};
pub use error::LoadError;
pub use fairlead_torch_shim::{DeviceRequest, GpuMemory};
