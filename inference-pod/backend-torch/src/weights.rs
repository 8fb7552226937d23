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
use fairlead_model::plan::weight_bytes;
use fairlead_model::{
    Checkpoint, LoadQuantization, ModelConfig, ModelError, Quantization, RunDtype, SafetensorsHeader,
    SafetensorsIndex, StoredDtype, WeightForm, WeightsSummary,
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
    quantization: Option<Quantization>,
    /// How the layers' projections are to lie in memory, and whether they are packed in the checkpoint.
    projections: BTreeMap<String, (WeightForm, bool)>,
    kind: Kind,
    device: Device,
    loaded_bytes: u64,
    kept_bytes: u64,
    unpacked: u32,
    progress: Progress<'a>,
}

impl<'a> Weights<'a> {
    /// Maps the files and checks that every tensor of the model is there, in its shape, that no file is cut short, and
    /// that there is memory for it.
    pub(crate) fn open(
        folder: &Path,
        config: &ModelConfig,
        dtype: RunDtype,
        quantization: LoadQuantization,
        device: ComputeDevice,
        progress: Progress<'a>,
    ) -> Result<Self, LoadError> {
        let check = |checkpoint: &Checkpoint| checkpoint.check(config);
        let memory =
            |summary: &WeightsSummary| weight_bytes(config, summary, device.kind(), dtype, quantization);
        let mut weights = Self::open_with(folder, check, memory, dtype, device, progress)?;
        let packed = |name: &str| config.quantization.as_ref().is_some_and(|how| how.covers(name));
        weights.quantization.clone_from(&config.quantization);
        weights.projections = (0..config.num_hidden_layers)
            .flat_map(|layer| config.projections(layer))
            .map(|projection| {
                let form = config.weight_form(&projection, device.kind(), dtype, quantization);
                let packed = packed(&projection.name);
                (projection.name, (form, packed))
            })
            .collect();
        Ok(weights)
    }

    /// The same for any model whose tensors `check` knows, all of them in full.
    pub(crate) fn open_checked(
        folder: &Path,
        check: impl FnOnce(&Checkpoint) -> Result<WeightsSummary, ModelError>,
        dtype: RunDtype,
        device: ComputeDevice,
        progress: Progress<'a>,
    ) -> Result<Self, LoadError> {
        let memory = |summary: &WeightsSummary| summary.parameters.saturating_mul(dtype.bytes());
        Self::open_with(folder, check, memory, dtype, device, progress)
    }

    fn open_with(
        folder: &Path,
        check: impl FnOnce(&Checkpoint) -> Result<WeightsSummary, ModelError>,
        memory: impl FnOnce(&WeightsSummary) -> u64,
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
        let needed = memory(&summary);
        device.require_memory(needed, "loading weights")?;
        let (kind, device) = (torch_kind(dtype), device.torch());
        Ok(Self {
            files,
            checkpoint,
            summary,
            quantization: None,
            projections: BTreeMap::new(),
            kind,
            device,
            loaded_bytes: 0,
            kept_bytes: 0,
            unpacked: 0,
            progress,
        })
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

    /// Number type that weights run in.
    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    /// Where weights go.
    pub(crate) fn device(&self) -> Device {
        self.device
    }

    /// How the checkpoint's projections are packed.
    pub(crate) fn quantization(&self) -> Option<&Quantization> {
        self.quantization.as_ref()
    }

    /// Whether a projection is packed in the checkpoint. Anything but a layer's projection is not.
    pub(crate) fn is_packed(&self, name: &str) -> bool {
        self.projections.get(name).is_some_and(|(_, packed)| *packed)
    }

    /// How a projection is to lie in memory.
    pub(crate) fn form(&self, name: &str) -> WeightForm {
        self.projections.get(name).map_or(WeightForm::Dense, |(form, _)| *form)
    }

    /// Whether the checkpoint holds a tensor.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.checkpoint.get(name).is_some()
    }

    /// Counts tensors that stay in memory.
    pub(crate) fn count_kept<'t>(&mut self, tensors: impl IntoIterator<Item = &'t Tensor>) {
        let bytes = |tensor: &Tensor| tensor.numel() as u64 * tensor.kind().elt_size_in_bytes() as u64;
        self.kept_bytes += tensors.into_iter().map(bytes).sum::<u64>();
    }

    /// Counts a packed projection that had to be unpacked.
    pub(crate) fn count_unpacked(&mut self) {
        self.unpacked += 1;
    }

    /// Bytes of all weights that stay in memory. Warns of those that take more than the checkpoint promises.
    pub(crate) fn finish(&self) -> u64 {
        if self.unpacked > 0 {
            tracing::warn!(
                projections = self.unpacked,
                "libtorch has no quantised product for the groups or the number type of these projections; they run with full \
                 weights and save no memory"
            );
        }
        self.kept_bytes
    }

    /// One tensor.
    pub(crate) fn load(&mut self, name: &str) -> Result<Tensor, LoadError> {
        self.load_stacked(&[name])
    }

    /// Several tensors that differ in their first dimension only, as one: `[sum of the first dimensions, …]`.
    pub(crate) fn load_stacked<S: AsRef<str>>(&mut self, names: &[S]) -> Result<Tensor, LoadError> {
        let tensor = self.load_stacked_as(names, self.kind, self.device)?;
        self.count_kept([&tensor]);
        Ok(tensor)
    }

    /// The same in f32 on the CPU, to be made into something else.
    pub(crate) fn load_stacked_f32<S: AsRef<str>>(&mut self, names: &[S]) -> Result<Tensor, LoadError> {
        self.load_stacked_as(names, Kind::Float, Device::Cpu)
    }

    /// The same in another number type or on another device, to be made into something else.
    pub(crate) fn load_stacked_as<S: AsRef<str>>(
        &mut self,
        names: &[S],
        kind: Kind,
        device: Device,
    ) -> Result<Tensor, LoadError> {
        let parts: Vec<MappedTensor<'_>> =
            names.iter().map(|name| self.mapped(name.as_ref())).collect::<Result<_, _>>()?;
        let torch = LoadError::torch("loading weights");
        let first = parts.first().map(MappedTensor::shape).unwrap_or_default();
        let mut shape = first.to_vec();
        if let Some(rows) = shape.first_mut() {
            *rows = parts.iter().filter_map(|part| part.shape().first()).sum();
        }
        let stacked = Tensor::f_empty(&shape, (kind, device)).map_err(&torch)?;
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
            // The bits are the same, and only bits are asked of them.
            StoredDtype::I32 | StoredDtype::U32 => Kind::Int,
            other => {
                let problem = format!(
                    "tensor {name} is stored as {other}; supported are BF16, F16, F32, F64, I32 and U32"
                );
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
