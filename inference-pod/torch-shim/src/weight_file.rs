//! Weights straight from a memory-mapped file: the kernel reads ahead, and a conversion writes each number once.
//!
//! A tensor over mapped memory must not outlive the map, but a `tch::Tensor` can be cloned out of any borrow. So none is
//! handed out: [`MappedTensor`] borrows the map and only copies into tensors that own their memory.

use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::{Advice, Mmap};
use tch::{Device, Kind, TchError, Tensor};

/// Why weights could not be read.
#[derive(Debug, thiserror::Error)]
pub enum WeightFileError {
    /// The file cannot be opened or mapped.
    #[error("{}: cannot be read: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A tensor lies outside the file, or its bytes do not match its shape.
    #[error("{}: bytes {begin}..{end} hold no {kind:?} tensor of shape {shape:?} (the file has {length} bytes)", path.display())]
    OutOfBounds {
        /// The file.
        path: PathBuf,
        /// First byte of the tensor.
        begin: u64,
        /// One past its last byte.
        end: u64,
        /// Its number type.
        kind: Kind,
        /// Its shape.
        shape: Vec<i64>,
        /// Bytes of the file.
        length: u64,
    },
    /// libtorch failed.
    #[error(transparent)]
    Torch(#[from] TchError),
}

/// A weights file, mapped read-only.
#[derive(Debug)]
pub struct WeightFile {
    path: PathBuf,
    map: Mmap,
}

impl WeightFile {
    /// Maps a file. The file must not be changed or cut while it is mapped; a model's files are not once they are fetched.
    ///
    /// # Errors
    /// [`WeightFileError::Io`] if it cannot be opened or mapped.
    pub fn open(path: &Path) -> Result<Self, WeightFileError> {
        let io = |source| WeightFileError::Io { path: path.to_path_buf(), source };
        let file = File::open(path).map_err(io)?;
        // SAFETY: the map is read-only and private to this struct. A change of the file by another process while it is
        // mapped could be seen as changed bytes, which are only ever read as numbers, never as references or lengths
        // that are trusted unchecked.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        // A hint for reading ahead; a kernel that does not take it is no worse off.
        let _ = map.advise(Advice::Sequential);
        Ok(Self { path: path.to_path_buf(), map })
    }

    /// The bytes of the file.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// The tensor in bytes `begin..end` of the file, in row-major order.
    ///
    /// # Errors
    /// [`WeightFileError::OutOfBounds`] if the file does not hold these bytes or the shape needs another number of them.
    pub fn tensor(
        &self,
        begin: u64,
        end: u64,
        shape: &[i64],
        kind: Kind,
    ) -> Result<MappedTensor<'_>, WeightFileError> {
        let bytes = usize::try_from(begin)
            .ok()
            .zip(usize::try_from(end).ok())
            .and_then(|(begin, end)| self.map.get(begin..end))
            .filter(|bytes| byte_length(shape, kind) == Some(bytes.len()));
        match bytes {
            Some(bytes) => Ok(MappedTensor { bytes, shape: shape.to_vec(), kind }),
            None => Err(WeightFileError::OutOfBounds {
                path: self.path.clone(),
                begin,
                end,
                kind,
                shape: shape.to_vec(),
                length: self.map.len() as u64,
            }),
        }
    }
}

/// A tensor in a mapped file: checked bounds, borrowed bytes.
#[derive(Debug)]
pub struct MappedTensor<'a> {
    bytes: &'a [u8],
    shape: Vec<i64>,
    kind: Kind,
}

impl MappedTensor<'_> {
    /// Sizes of the dimensions.
    #[must_use]
    pub fn shape(&self) -> &[i64] {
        &self.shape
    }

    /// Copies the numbers into `target`, converted to its number type and on its device. `target` has the same shape; it
    /// may be a view of a part of a larger tensor.
    ///
    /// # Errors
    /// What libtorch says, above all for want of memory.
    pub fn copy_into(&self, target: &mut Tensor) -> Result<(), WeightFileError> {
        if target.size() != self.shape {
            let problem = format!("a tensor of shape {:?} into one of {:?}", self.shape, target.size());
            return Err(TchError::Shape(problem).into());
        }
        let alignment = self.kind.elt_size_in_bytes();
        if self.bytes.is_empty() {
            return Ok(());
        }
        if !self.bytes.as_ptr().addr().is_multiple_of(alignment) {
            // A header of odd length. libtorch's loops assume aligned numbers, so these go through a copy.
            let aligned = Tensor::f_from_data_size(self.bytes, &self.shape, self.kind)?;
            return Ok(target.f_copy_(&aligned)?);
        }
        let strides = row_major_strides(&self.shape);
        // SAFETY: the pointer is aligned for `kind`, and `bytes` holds exactly the product of `shape` elements of it, as
        // WeightFile::tensor checked; strides are those of row-major order, so no element lies outside. The tensor is
        // only read from, never handed out, and dropped before `self`'s borrow of the map ends.
        let view = unsafe {
            Tensor::f_from_blob(self.bytes.as_ptr(), &self.shape, &strides, self.kind, Device::Cpu)
        }?;
        Ok(target.f_copy_(&view)?)
    }
}

/// Bytes of a tensor; `None` if a size is negative or the product overflows.
fn byte_length(shape: &[i64], kind: Kind) -> Option<usize> {
    shape
        .iter()
        .try_fold(kind.elt_size_in_bytes(), |bytes, &size| bytes.checked_mul(usize::try_from(size).ok()?))
}

fn row_major_strides(shape: &[i64]) -> Vec<i64> {
    let mut strides = vec![1; shape.len()];
    for dimension in (1..shape.len()).rev() {
        strides[dimension - 1] = strides[dimension] * shape[dimension];
    }
    strides
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn file_of(prefix: usize, numbers: &[f32]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&vec![0; prefix]).unwrap();
        for number in numbers {
            file.write_all(&number.to_le_bytes()).unwrap();
        }
        file.flush().unwrap();
        file
    }

    /// Reads 2x3 numbers that begin after `prefix` bytes, into the middle rows of a larger tensor of another type.
    fn read_at(prefix: usize) -> Vec<f64> {
        let file = file_of(prefix, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.5]);
        let weights = WeightFile::open(file.path()).unwrap();
        let begin = prefix as u64;
        let tensor = weights.tensor(begin, begin + 24, &[2, 3], Kind::Float).unwrap();
        let target = Tensor::zeros([4, 3], (Kind::BFloat16, Device::Cpu));
        tensor.copy_into(&mut target.narrow(0, 1, 2)).unwrap();
        Vec::try_from(target.to_kind(Kind::Double).reshape([-1])).unwrap()
    }

    #[test]
    fn copies_and_converts_into_a_part_of_a_tensor() {
        let expected = [0.0, 0.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.5, 0.0, 0.0, 0.0];
        assert_eq!(read_at(8), expected);
        assert_eq!(read_at(5), expected, "bytes that are not aligned");
    }

    #[test]
    fn refuses_what_the_file_does_not_hold() {
        let file = file_of(0, &[1.0, 2.0]);
        let weights = WeightFile::open(file.path()).unwrap();
        for (begin, end, shape) in [
            (0, 12, [3]),
            (0, 8, [1]),
            (8, 4, [1]),
            (0, 8, [-2]),
            (u64::MAX - 3, u64::MAX, [1]),
            (0, 8, [i64::MAX]),
        ] {
            let error = weights.tensor(begin, end, &shape, Kind::Float).expect_err("must be refused");
            assert!(matches!(error, WeightFileError::OutOfBounds { .. }), "{error}");
        }
        let tensor = weights.tensor(0, 8, &[2], Kind::Float).unwrap();
        assert!(tensor.copy_into(&mut Tensor::zeros([3], (Kind::Float, Device::Cpu))).is_err());
        assert!(
            WeightFile::open(Path::new("/nonexistent")).unwrap_err().to_string().contains("/nonexistent")
        );
    }
}
