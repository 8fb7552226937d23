//! The device a process computes on: started once, before anything else of libtorch is used.

use fairlead_model::{DeviceKind, RunDtype};
use fairlead_torch_shim::{DeviceRequest, start_device};
use tch::{Device, Kind};

use crate::error::LoadError;

/// A started device. Copies are the same device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ComputeDevice(Device);

impl ComputeDevice {
    /// Starts libtorch on a device. Call it on the thread that will load and run the model: the number of CPU threads is a
    /// property of the thread that asks for work.
    ///
    /// # Errors
    /// [`LoadError::Device`] if a GPU was asked for by name and cannot be used.
    pub fn start(request: DeviceRequest, threads: Option<u32>) -> Result<Self, LoadError> {
        Ok(Self(start_device(request, threads)?))
    }

    /// Whether this is a CPU or a GPU.
    #[must_use]
    pub fn kind(self) -> DeviceKind {
        if self.0.is_cuda() { DeviceKind::Gpu } else { DeviceKind::Cpu }
    }

    pub(crate) fn torch(self) -> Device {
        self.0
    }
}

/// libtorch's name of a number type.
pub(crate) fn torch_kind(dtype: RunDtype) -> Kind {
    match dtype {
        RunDtype::Bf16 => Kind::BFloat16,
        RunDtype::F16 => Kind::Half,
        RunDtype::F32 => Kind::Float,
    }
}
