//! Bringing libtorch up: which device it computes on, with how many threads.
//!
//! [`start_device`] must run before anything else asks libtorch about CUDA: a question asked before libtorch_cuda is loaded
//! is answered "no" for the rest of the process, or fails.

use std::sync::Mutex;

use tch::{Cuda, Device};

use crate::dynamic_library::{libtorch_folder, load_globally};

/// Where tensors are wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceRequest {
    /// The first GPU where one can be used, otherwise the CPU.
    #[default]
    Auto,
    /// The CPU; CUDA is not even looked for.
    Cpu,
    /// The first GPU, or an error.
    Cuda,
}

/// Why a GPU cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// The CUDA half of libtorch is not installed, or something it needs is not.
    #[error(
        "device: cuda was asked for, but libtorch's CUDA library cannot be loaded ({0}); use the CUDA image, or set the \
         device to cpu or auto"
    )]
    CudaLibrary(String),
    /// libtorch can use CUDA, but there is no GPU or no driver.
    #[error(
        "device: cuda was asked for, but no GPU is visible; give the pod a GPU (a driver and nvidia.com/gpu in its \
         resources), or set the device to cpu or auto"
    )]
    NoGpu,
}

/// Chooses the device and sets libtorch's threads for the calling thread and those it starts.
///
/// `threads` is the number of intra-op threads on the CPU; `None` leaves libtorch's choice, one for each core.
///
/// # Errors
/// [`DeviceError`] if a GPU was asked for by name and cannot be used.
pub fn start_device(request: DeviceRequest, threads: Option<u32>) -> Result<Device, DeviceError> {
    let device = match request {
        DeviceRequest::Cpu => Device::Cpu,
        DeviceRequest::Cuda => gpu()?,
        DeviceRequest::Auto => gpu().unwrap_or(Device::Cpu),
    };
    if let Some(threads) = threads {
        tch::set_num_threads(i32::try_from(threads.max(1)).unwrap_or(i32::MAX));
    }
    Ok(device)
}

/// The first GPU. Loads libtorch_cuda once; its outcome is kept, since libtorch does not forget either.
fn gpu() -> Result<Device, DeviceError> {
    static LOADED: Mutex<Option<Result<(), String>>> = Mutex::new(None);
    let mut loaded = LOADED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    loaded
        .get_or_insert_with(|| {
            let folder = libtorch_folder().ok_or("the folder of libtorch_cpu is unknown")?;
            load_globally(&folder.join("libtorch_cuda.so"))
        })
        .clone()
        .map_err(DeviceError::CudaLibrary)?;
    if Cuda::is_available() { Ok(Device::Cuda(0)) } else { Err(DeviceError::NoGpu) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_always_starts_and_takes_its_threads() {
        assert_eq!(start_device(DeviceRequest::Cpu, Some(1)), Ok(Device::Cpu));
        assert_eq!(tch::get_num_threads(), 1);
    }

    #[test]
    fn auto_falls_back_to_the_cpu_where_cuda_says_why_it_cannot() {
        match start_device(DeviceRequest::Cuda, None) {
            Ok(device) => assert_eq!(start_device(DeviceRequest::Auto, None), Ok(device)),
            Err(error) => {
                assert!(error.to_string().contains("set the device to cpu or auto"), "{error}");
                assert_eq!(start_device(DeviceRequest::Auto, None), Ok(Device::Cpu));
            }
        }
        // Asking twice is safe and CPU tensors still work.
        let sum = tch::Tensor::from_slice(&[2.0_f32, 1.0]).sum(tch::Kind::Double);
        assert_eq!(f64::try_from(sum).unwrap(), 3.0);
    }
}
