//! How much memory the GPU has, asked of the CUDA runtime that libtorch has brought along: tch has no call for it.
//!
//! Called by `fairlead-backend-torch` after [`crate::start_device`] has chosen a GPU.

use std::ffi::{CStr, c_int};

/// Memory of the GPU that the calling thread computes on, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpuMemory {
    /// What nobody has taken yet, other processes included.
    pub free: u64,
    /// All there is.
    pub total: u64,
}

/// `cudaError_t cudaMemGetInfo(size_t *free, size_t *total)`
const MEM_GET_INFO: &CStr = c"cudaMemGetInfo";
type MemGetInfo = unsafe extern "C" fn(*mut usize, *mut usize) -> c_int;

/// Asks for the GPU's memory. `None` where no CUDA runtime is loaded, or it has no GPU.
#[must_use]
pub fn gpu_memory() -> Option<GpuMemory> {
    // SAFETY: the name is a C string; dlsym only looks it up among the libraries that are loaded already. libtorch_cuda is
    // loaded with its symbols visible to all, and so are the libraries it needs, the CUDA runtime among them.
    let symbol = unsafe { libc::dlsym(libc::RTLD_DEFAULT, MEM_GET_INFO.as_ptr()) };
    if symbol.is_null() {
        return None;
    }
    // SAFETY: the CUDA runtime's symbol of this name is a function with this signature, in every version of it. The library is
    // never unloaded, and a symbol that is not null has the size of a function pointer.
    let mem_get_info = unsafe { std::mem::transmute::<*mut libc::c_void, MemGetInfo>(symbol) };
    let (mut free, mut total) = (0_usize, 0_usize);
    // SAFETY: both pointers are valid for writing and live through the call, which writes one size_t to each.
    let error = unsafe { mem_get_info(&raw mut free, &raw mut total) };
    checked(error, free, total)
}

/// The answer, if it is one.
fn checked(error: c_int, free: usize, total: usize) -> Option<GpuMemory> {
    let (free, total) = (u64::try_from(free).ok()?, u64::try_from(total).ok()?);
    (error == 0 && total > 0 && free <= total).then_some(GpuMemory { free, total })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DeviceError, DeviceRequest, start_device};

    #[test]
    fn only_an_answer_that_can_be_true_is_one() {
        assert_eq!(checked(0, 7, 10), Some(GpuMemory { free: 7, total: 10 }));
        assert_eq!(checked(100, 7, 10), None, "no GPU");
        assert_eq!(checked(0, 0, 0), None);
        assert_eq!(checked(0, 11, 10), None);
    }

    #[test]
    fn asks_the_runtime_that_libtorch_has_loaded() {
        match start_device(DeviceRequest::Cuda, None) {
            Ok(_) => assert!(gpu_memory().is_some_and(|memory| memory.free <= memory.total)),
            // The runtime is there and says that there is no GPU.
            Err(DeviceError::NoGpu) => assert_eq!(gpu_memory(), None),
            Err(DeviceError::CudaLibrary(_)) => assert_eq!(gpu_memory(), None),
        }
    }
}
