//! Why a model did not load or a step did not run, in the terms of those who must act on it.

use std::path::PathBuf;

use fairlead_engine::backend::BackendError;
use fairlead_model::{ModelError, Reason};
use fairlead_torch_shim::{DeviceError, WeightFileError};
use tch::TchError;

/// Why a model could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The files contradict each other, are cut short, or hold a model that the engine does not run.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A file that every model has is not there.
    #[error("{}: is missing; a model folder holds config.json and model.safetensors (or its shards and their index)", path.display())]
    NotFound {
        /// The file.
        path: PathBuf,
    },
    /// A file cannot be read.
    #[error("{}: cannot be read: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A weights file cannot be read.
    #[error(transparent)]
    WeightFile(WeightFileError),
    /// The device that was asked for cannot be used.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Memory ran out.
    #[error(
        "memory ran out while {doing}: {message}; give the replica more memory, or lower kvCache.memory, maxModelLen or \
         the number type"
    )]
    OutOfMemory {
        /// What was being done.
        doing: &'static str,
        /// What libtorch said.
        message: String,
    },
    /// A setting makes no sense.
    #[error("{field}: {problem}")]
    Setting {
        /// The setting.
        field: &'static str,
        /// What is wrong and what to do.
        problem: String,
    },
    /// libtorch failed for another reason.
    #[error("libtorch failed while {doing}: {message}")]
    Torch {
        /// What was being done.
        doing: &'static str,
        /// What libtorch said.
        message: String,
    },
}

impl LoadError {
    /// The condition reason of this failure.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Model(error) => error.reason(),
            Self::NotFound { .. } => Reason::ModelNotFound,
            Self::WeightFile(WeightFileError::OutOfBounds { .. }) => Reason::ModelInvalid,
            Self::OutOfMemory { .. } => Reason::DoesNotFit,
            Self::Setting { .. } => Reason::InvalidSpec,
            Self::Io { .. } | Self::WeightFile(_) | Self::Device(_) | Self::Torch { .. } => Reason::PodFailed,
        }
    }

    /// Turns what libtorch said into an error; `doing` completes "while …".
    pub(crate) fn torch(doing: &'static str) -> impl Fn(TchError) -> Self {
        move |error| {
            let message = first_line(&error);
            if is_out_of_memory(&message) {
                Self::OutOfMemory { doing, message }
            } else {
                Self::Torch { doing, message }
            }
        }
    }

    /// Turns a failure of reading a weights file into an error.
    pub(crate) fn weights(error: WeightFileError) -> Self {
        match error {
            WeightFileError::Torch(error) => Self::torch("copying weights")(error),
            WeightFileError::Io { path, source } if source.kind() == std::io::ErrorKind::NotFound => {
                let _ = source;
                Self::NotFound { path }
            }
            other => Self::WeightFile(other),
        }
    }
}

/// Sorts a failed step: memory can be had by a smaller batch, the rest cannot be helped.
pub(crate) fn step_error(error: TchError) -> BackendError {
    let message = first_line(&error);
    if is_out_of_memory(&message) { BackendError::OutOfMemory(message) } else { BackendError::Fatal(message) }
}

/// libtorch puts a C++ stack below the message.
fn first_line(error: &TchError) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

/// libtorch has no error codes: these are the texts of its CPU and CUDA allocators.
fn is_out_of_memory(message: &str) -> bool {
    ["out of memory", "not enough memory", "can't allocate memory"].iter().any(|text| message.contains(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind, Tensor};

    #[test]
    fn an_allocation_that_fails_is_out_of_memory_and_nothing_else_is() {
        let too_much = Tensor::f_empty([1 << 46], (Kind::Float, Device::Cpu)).expect_err("256 TiB");
        assert!(matches!(step_error(too_much), BackendError::OutOfMemory(_)));
        let too_much = Tensor::f_empty([1 << 46], (Kind::Float, Device::Cpu)).expect_err("256 TiB");
        let error = LoadError::torch("making the KV cache")(too_much);
        assert_eq!(error.reason(), Reason::DoesNotFit, "{error}");

        let one = Tensor::zeros([2, 3], (Kind::Float, Device::Cpu));
        let mismatch = one.f_matmul(&one).expect_err("shapes do not fit");
        assert!(matches!(step_error(mismatch), BackendError::Fatal(message) if !message.contains('\n')));
    }
}
