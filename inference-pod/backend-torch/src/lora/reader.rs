//! From an adapter's folder to tensors on the device. Runs on any thread, so that steps go on meanwhile.
//!
//! Files are read whole, not mapped: an adapter is small, its folder is not ours, and a mapped file that somebody cuts
//! takes the process with it.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

use fairlead_engine::backend::{AdapterError, AdapterInfo, AdapterReader, ReadAdapter};
use fairlead_model::lora::{ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE, LoraModule, MAX_ADAPTER_CONFIG_BYTES};
use fairlead_model::{
    LoraConfig, LoraTensors, ModelConfig, ModelError, RunDtype, SafetensorsHeader, StoredDtype, TensorInfo,
};
use sha2::{Digest, Sha256};
use tch::{Kind, TchError, Tensor};

use super::adapter::{Delta, DeltaPart};
use super::{Adapter, Fused};
use crate::device::{ComputeDevice, torch_kind};
use crate::error::LoadError;

/// Reads adapters for one model.
pub(crate) struct TorchAdapterReader {
    /// The model they are for.
    pub(crate) config: ModelConfig,
    /// Number type that it runs in.
    pub(crate) dtype: RunDtype,
    /// Where its tensors live.
    pub(crate) device: ComputeDevice,
}

impl AdapterReader for TorchAdapterReader {
    fn read(&self, folder: &Path) -> Result<ReadAdapter, AdapterError> {
        let _no_grad = tch::no_grad_guard();
        let settings = self.read_file(folder, ADAPTER_CONFIG_FILE, MAX_ADAPTER_CONFIG_BYTES as u64)?;
        let config = LoraConfig::parse(&settings).map_err(invalid)?;
        let bytes = self.read_file(folder, ADAPTER_WEIGHTS_FILE, u64::MAX)?;
        let header = SafetensorsHeader::parse(ADAPTER_WEIGHTS_FILE, &bytes).map_err(invalid)?;
        header.check_length(ADAPTER_WEIGHTS_FILE, bytes.len() as u64).map_err(invalid)?;
        let tensors = config.check(&header, &self.config).map_err(invalid)?;
        let needed = tensors.parameters.saturating_mul(self.dtype.bytes());
        self.require_memory(needed)?;
        let weights = Matrices { reader: self, data: &bytes[clamp(header.data_start, bytes.len())..] };
        let adapter = weights.adapter(&tensors)?;
        let mut hasher = Sha256::new();
        for part in [&settings, &bytes] {
            hasher.update((part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        Ok(ReadAdapter {
            info: AdapterInfo { rank: tensors.rank, bytes: needed },
            digest: hasher.finalize().into(),
            weights: Box::new(adapter),
        })
    }
}

impl TorchAdapterReader {
    fn require_memory(&self, bytes: u64) -> Result<(), AdapterError> {
        match self.device.available_memory() {
            Some(available) if available < bytes => Err(AdapterError::NoRoom(format!(
                "the adapter takes {bytes} bytes and {available} are left; unload another one, give the replica more memory, \
                 or lower engine.kvCacheBytes"
            ))),
            _ => Ok(()),
        }
    }

    /// A whole file of at most so many bytes.
    fn read_file(&self, folder: &Path, name: &str, most: u64) -> Result<Vec<u8>, AdapterError> {
        let path = folder.join(name);
        let failed = |error: std::io::Error| match error.kind() {
            ErrorKind::NotFound | ErrorKind::NotADirectory => AdapterError::NotFound(format!(
                "{}: is missing; an adapter's folder holds {ADAPTER_CONFIG_FILE} and {ADAPTER_WEIGHTS_FILE} as PEFT's \
                 save_pretrained writes them",
                path.display()
            )),
            _ => AdapterError::Invalid(format!("{}: cannot be read: {error}", path.display())),
        };
        let metadata = path.metadata().map_err(failed)?;
        if !metadata.is_file() {
            return Err(AdapterError::Invalid(format!("{}: is not a file", path.display())));
        }
        if metadata.len() > most {
            return Err(AdapterError::Invalid(format!(
                "{}: has {} bytes, at most {most} are read",
                path.display(),
                metadata.len()
            )));
        }
        self.require_memory(metadata.len())?;
        let mut bytes = Vec::new();
        File::open(&path)
            .and_then(|file| file.take(metadata.len().saturating_add(1)).read_to_end(&mut bytes))
            .map_err(failed)?;
        Ok(bytes)
    }
}

/// The bytes behind the header.
struct Matrices<'a> {
    reader: &'a TorchAdapterReader,
    data: &'a [u8],
}

impl Matrices<'_> {
    fn adapter(&self, tensors: &LoraTensors) -> Result<Adapter, AdapterError> {
        let mut rest = tensors.modules.as_slice();
        let layers = (0..self.reader.config.num_hidden_layers).map(|layer| {
            let (own, others) = rest.split_at(rest.partition_point(|module| module.layer <= layer));
            rest = others;
            let [qkv, output, gate_up, down] = Fused::ALL.map(|fused| self.delta(fused, own));
            Ok([qkv?, output?, gate_up?, down?])
        });
        layers.collect::<Result<_, _>>().map(Adapter::new)
    }

    /// What one layer's modules add to a fused projection.
    fn delta(&self, fused: Fused, modules: &[LoraModule]) -> Result<Option<Delta>, AdapterError> {
        let (mut downs, mut parts, mut column) = (Vec::new(), Vec::new(), 0);
        for &projection in fused.projections() {
            let width = i64::from(projection.sizes(&self.reader.config).0);
            if let Some(module) = modules.iter().find(|module| module.projection == projection) {
                downs.push(self.matrix(&module.a, 1.0)?);
                let up = self.matrix(&module.b, module.scale)?.f_transpose(0, 1).map_err(torch)?;
                parts.push(DeltaPart { rank: i64::from(module.rank), column, width, up });
            }
            column += width;
        }
        if parts.is_empty() {
            return Ok(None);
        }
        Ok(Some(Delta::new(Tensor::f_cat(&downs, 0).map_err(torch)?, parts)))
    }

    /// A matrix times `scale`, as it runs: multiplied in f32, then rounded once.
    fn matrix(&self, info: &TensorInfo, scale: f64) -> Result<Tensor, AdapterError> {
        let bytes = &self.data[clamp(info.begin, self.data.len())..clamp(info.end, self.data.len())];
        let shape: Vec<i64> =
            info.shape.iter().map(|&size| i64::try_from(size).unwrap_or(i64::MAX)).collect();
        let kind = match info.dtype {
            StoredDtype::BF16 => Kind::BFloat16,
            StoredDtype::F16 => Kind::Half,
            StoredDtype::F64 => Kind::Double,
            _ => Kind::Float,
        };
        let make = || {
            let stored = Tensor::f_from_data_size(bytes, &shape, kind)?.f_to_kind(Kind::Float)?;
            let matrix = stored.f_mul_scalar(scale)?.f_to_kind(torch_kind(self.reader.dtype))?;
            let is_finite = matrix.f_isfinite()?.f_all()?.f_int64_value(&[])? != 0;
            Ok((matrix.f_to_device(self.reader.device.torch())?, is_finite))
        };
        match make().map_err(torch)? {
            (matrix, true) => Ok(matrix),
            (_, false) => Err(AdapterError::Invalid(format!(
                "{ADAPTER_WEIGHTS_FILE}: holds numbers that are not finite in {}; train or save the adapter again",
                self.reader.dtype
            ))),
        }
    }
}

fn clamp(offset: u64, length: usize) -> usize {
    usize::try_from(offset).map_or(length, |offset| offset.min(length))
}

fn invalid(error: ModelError) -> AdapterError {
    AdapterError::Invalid(error.to_string())
}

fn torch(error: TchError) -> AdapterError {
    match LoadError::torch("loading an adapter")(error) {
        error @ LoadError::OutOfMemory { .. } => AdapterError::NoRoom(error.to_string()),
        error => AdapterError::Invalid(error.to_string()),
    }
}
