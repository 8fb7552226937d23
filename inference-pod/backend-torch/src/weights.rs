//! The weights of a model folder: which files, which bytes, and tensors made from them in the number type and on the device
//! they run in.
//!
//! Files are mapped, and each weight is written once, into its final place: a fused projection is one tensor from the
//! start, so that loading never holds two copies of more than what libtorch buffers for one tensor.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use fairlead_model::config::CONFIG_FILE;
use fairlead_model::index::{INDEX_FILE, SINGLE_FILE};
use fairlead_model::{
    Checkpoint, ModelConfig, ModelError, RunDtype, SafetensorsHeader, SafetensorsIndex, StoredDtype,
    WeightsSummary,
};
use fairlead_torch_shim::{MappedTensor, WeightFile};
use tch::{Device, Kind, Tensor};

use crate::device::{ComputeDevice, torch_kind};
use crate::error::LoadError;
use crate::kernels::Kernels;

/// Called while weights load, with bytes read so far and bytes in all.
pub(crate) type Progress<'a> = &'a mut dyn FnMut(u64, u64);

/// Reads a model folder's config.json.
pub(crate) fn read_config(folder: &Path) -> Result<ModelConfig, LoadError> {
    let path = folder.join(CONFIG_FILE);
    let bytes = read_optional(&path)?.ok_or(LoadError::NotFound { path })?;
    Ok(ModelConfig::parse(&bytes)?)
}

/// The mapped weights files of a model folder, checked against its configuration.
pub(crate) struct Weights<'a> {
    files: BTreeMap<String, (WeightFile, u64)>,
    checkpoint: Checkpoint,
    summary: WeightsSummary,
    kind: Kind,
    device: Device,
    loaded_bytes: u64,
    progress: Progress<'a>,
}

impl<'a> Weights<'a> {
    /// Maps the files and checks that every tensor of the model is there, in its shape, that no file is cut short, and
    /// that there is memory for it.
    pub(crate) fn open(
        folder: &Path,
        config: &ModelConfig,
        dtype: RunDtype,
        device: ComputeDevice,
        progress: Progress<'a>,
    ) -> Result<Self, LoadError> {
        Self::open_checked(folder, |checkpoint| checkpoint.check(config), dtype, device, progress)
    }

    /// The same for any model whose tensors `check` knows.
    pub(crate) fn open_checked(
        folder: &Path,
        check: impl FnOnce(&Checkpoint) -> Result<WeightsSummary, ModelError>,
        dtype: RunDtype,
        device: ComputeDevice,
        progress: Progress<'a>,
    ) -> Result<Self, LoadError> {
        let index = read_optional(&folder.join(INDEX_FILE))?
            .map(|bytes| SafetensorsIndex::parse(&bytes))
            .transpose()?;
        // A folder with both is taken as transformers takes it: the single file wins.
        let index = index.filter(|_| !folder.join(SINGLE_FILE).is_file());
        let names: Vec<&str> = index.as_ref().map_or_else(|| vec![SINGLE_FILE], SafetensorsIndex::shards);
        let mut files = BTreeMap::new();
        let mut headers = Vec::new();
        for name in names {
            let file = WeightFile::open(&folder.join(name)).map_err(LoadError::weights)?;
            let header = SafetensorsHeader::parse(name, file.bytes())?;
            header.check_length(name, file.bytes().len() as u64)?;
            files.insert(name.to_owned(), (file, header.data_start));
            headers.push((name.to_owned(), header));
        }
        let checkpoint = Checkpoint::new(headers, index.as_ref())?;
        let summary = check(&checkpoint)?;
        let needed = summary.parameters.saturating_mul(dtype.bytes());
        device.require_memory(needed, "loading weights")?;
        let (kind, device) = (torch_kind(dtype), device.torch());
        Ok(Self { files, checkpoint, summary, kind, device, loaded_bytes: 0, progress })
    }

    /// What layers of these weights compute with.
    pub(crate) fn kernels(&self) -> Kernels {
        Kernels::choose(self.device, self.kind)
    }

    /// The tensors' names and places.
    pub(crate) fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// What the weights amount to.
    pub(crate) fn summary(&self) -> &WeightsSummary {
        &self.summary
    }

    /// One tensor.
    pub(crate) fn load(&mut self, name: &str) -> Result<Tensor, LoadError> {
        self.load_stacked(&[name])
    }

    /// Several tensors that differ in their first dimension only, as one: `[sum of the first dimensions, …]`.
    pub(crate) fn load_stacked<S: AsRef<str>>(&mut self, names: &[S]) -> Result<Tensor, LoadError> {
        let parts: Vec<MappedTensor<'_>> =
            names.iter().map(|name| self.mapped(name.as_ref())).collect::<Result<_, _>>()?;
        let torch = LoadError::torch("loading weights");
        let first = parts.first().map(MappedTensor::shape).unwrap_or_default();
        let mut shape = first.to_vec();
        if let Some(rows) = shape.first_mut() {
            *rows = parts.iter().filter_map(|part| part.shape().first()).sum();
        }
        let stacked = Tensor::f_empty(&shape, (self.kind, self.device)).map_err(&torch)?;
        let mut row = 0;
        for part in &parts {
            let rows = part.shape().first().copied().unwrap_or(0);
            let mut target = stacked.f_narrow(0, row, rows).map_err(&torch)?;
            part.copy_into(&mut target).map_err(LoadError::weights)?;
            row += rows;
        }
        drop(parts);
        let bytes =
            names.iter().filter_map(|name| self.checkpoint.get(name.as_ref())).map(|(_, info)| info.bytes());
        self.loaded_bytes += bytes.sum::<u64>();
        (self.progress)(self.loaded_bytes, self.summary.stored_bytes.values().sum());
        Ok(stacked)
    }

    fn mapped(&self, name: &str) -> Result<MappedTensor<'_>, LoadError> {
        let missing = || ModelError::invalid("weights", format!("tensor {name} is missing"));
        let (file_name, info) = self.checkpoint.get(name).ok_or_else(missing)?;
        let (file, data_start) = self.files.get(file_name).ok_or_else(missing)?;
        let kind = match info.dtype {
            StoredDtype::BF16 => Kind::BFloat16,
            StoredDtype::F16 => Kind::Half,
            StoredDtype::F32 => Kind::Float,
            StoredDtype::F64 => Kind::Double,
            other => {
                let problem =
                    format!("tensor {name} is stored as {other}; supported are BF16, F16, F32 and F64");
                return Err(ModelError::unsupported(file_name, problem).into());
            }
        };
        let shape: Vec<i64> =
            info.shape.iter().map(|size| i64::try_from(*size).unwrap_or(i64::MAX)).collect();
        file.tensor(data_start.saturating_add(info.begin), data_start.saturating_add(info.end), &shape, kind)
            .map_err(LoadError::weights)
    }
}

fn read_optional(path: &PathBuf) -> Result<Option<Vec<u8>>, LoadError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(LoadError::Io { path: path.clone(), source }),
    }
}
