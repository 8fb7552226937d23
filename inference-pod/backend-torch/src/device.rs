//! The device a process computes on: started once, before anything else of libtorch is used.

use fairlead_model::{DeviceKind, RunDtype};
use fairlead_torch_shim::{DeviceRequest, GpuMemory, gpu_memory, start_device};
use tch::{Device, Kind};

use crate::error::LoadError;
use crate::memory;

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

    /// Bytes of memory that weights and cache could still take: on a CPU what the system has or the container's limit leaves,
    /// whichever is less; on a GPU what is free of its own. `None` where nobody tells.
    #[must_use]
    pub fn available_memory(self) -> Option<u64> {
        match self.kind() {
            DeviceKind::Cpu => memory::available(),
            DeviceKind::Gpu => self.gpu_memory().map(|memory| memory.free),
        }
    }

    /// The GPU's memory; `None` on a CPU, and where the CUDA runtime does not tell.
    #[must_use]
    pub fn gpu_memory(self) -> Option<GpuMemory> {
        if self.0.is_cuda() { gpu_memory() } else { None }
    }

    /// Refuses to begin what would get the process killed; `doing` completes "while …".
    pub(crate) fn require_memory(self, needed: u64, doing: &'static str) -> Result<(), LoadError> {
        match self.available_memory() {
            Some(available) if available < needed => Err(LoadError::OutOfMemory {
                doing,
                message: format!("it takes {needed} bytes and {available} are left"),
            }),
            _ => Ok(()),
        }
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
