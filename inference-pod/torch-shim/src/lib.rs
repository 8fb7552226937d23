//! The edge between Rust and libtorch: what tch has no safe form of. The only crate that may say `unsafe`.
//!
//! [`weight_file`] reads tensors out of memory-mapped files, [`cpu`] has kernels for what libtorch does slowly, [`device`] brings
//! libtorch up on a CPU or a GPU, [`gpu_memory`](mod@gpu_memory) asks how much memory the GPU has, and [`heap`] gives
//! freed memory back. All are safe to call.
//! Nothing about models or scheduling belongs here. Called by `fairlead-backend-torch`.

pub mod cpu;
pub mod device;
mod dynamic_library;
pub mod gpu_memory;
pub mod heap;
pub mod weight_file;

pub use device::{DeviceError, DeviceRequest, start_device};
pub use gpu_memory::{GpuMemory, gpu_memory};
pub use weight_file::{MappedTensor, WeightFile, WeightFileError};
