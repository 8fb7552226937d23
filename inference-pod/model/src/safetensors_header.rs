//! The header of a safetensors file: which tensors it holds, and where.
//!
//! A file is 8 bytes of little-endian header length, the header as JSON, and the tensors' bytes with no gap. The header
//! alone tells how long the file must be, so a cut download is found without reading a weight. Callers read
//! [`PREFIX_BYTES`], ask [`SafetensorsHeader::json_bytes`] how much follows, read that, and parse.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::dtype::StoredDtype;
use crate::error::{ModelError, clip};

/// Bytes of the length field in front of the header.
pub const PREFIX_BYTES: u64 = 8;

/// Longest header that is read, in bytes. The largest models have shards with headers below 1 MiB.
pub const MAX_HEADER_BYTES: u64 = 16 << 20;

const MAX_RANK: usize = 8;

/// A tensor in a safetensors file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Number type.
    pub dtype: StoredDtype,
    /// Sizes of the dimensions, outermost first.
    pub shape: Vec<u64>,
    /// First byte, counted from the end of the header.
    pub begin: u64,
    /// One past the last byte.
    pub end: u64,
}

impl TensorInfo {
    /// Numbers in the tensor.
    #[must_use]
    pub fn elements(&self) -> u64 {
        self.shape.iter().product()
    }

    /// Bytes in the file.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.end - self.begin
    }
}

/// Tensors of one safetensors file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SafetensorsHeader {
    /// Tensors by name.
    pub tensors: BTreeMap<String, TensorInfo>,
    /// First byte of the tensors in the file.
    pub data_start: u64,
    /// Bytes of all tensors together.
    pub data_bytes: u64,
}

impl SafetensorsHeader {
    /// How many bytes of JSON follow the first [`PREFIX_BYTES`] of a file.
    ///
    /// # Errors
    /// [`ModelError::Invalid`] when the file is shorter than that, or its header impossibly long.
    pub fn json_bytes(file: &str, prefix: &[u8]) -> Result<u64, ModelError> {
        let Some(prefix) = prefix.first_chunk::<8>() else {
            let problem = format!(
                "is cut short: {} bytes are no safetensors file; fetch or upload it again",
                prefix.len()
            );
            return Err(ModelError::invalid(file, problem));
        };
        let length = u64::from_le_bytes(*prefix);
        if !(2..=MAX_HEADER_BYTES).contains(&length) {
            let problem = if prefix == b"version " {
                "is a Git LFS pointer, not the weights themselves; run `git lfs pull` where the model was copied from"
                    .to_owned()
            } else {
                format!(
                    "is not a safetensors file: its header would be {length} bytes long, from 2 to {MAX_HEADER_BYTES} are \
                     possible"
                )
            };
            return Err(ModelError::invalid(file, problem));
        }
        Ok(length)
    }

    /// Reads a header: `bytes` are the file's first bytes, at least prefix and header.
    ///
    /// # Errors
    /// [`ModelError::Invalid`] for a header that is cut short, is not JSON, names a tensor twice, or whose sizes and offsets
    /// disagree; [`ModelError::Unsupported`] for a number type this version does not know.
    pub fn parse(file: &str, bytes: &[u8]) -> Result<Self, ModelError> {
        let length = Self::json_bytes(file, bytes)?;
        let data_start = PREFIX_BYTES + length;
        let json = usize::try_from(data_start).ok().and_then(|end| bytes.get(8..end)).ok_or_else(|| {
            ModelError::invalid(
                file,
                format!(
                    "is cut short: {} bytes, its header alone ends at {data_start}; fetch it again",
                    bytes.len()
                ),
            )
        })?;
        let entries: Entries<'_> = serde_json::from_slice(json)
            .map_err(|error| ModelError::invalid(file, format!("has a broken header: {error}")))?;

        let mut tensors = BTreeMap::new();
        for (name, entry) in entries.0 {
            if name == "__metadata__" {
                continue;
            }
            let tensor = tensor(file, &name, entry)?;
            if tensors.insert(name.clone(), tensor).is_some() {
                let problem = format!("has a broken header: tensor {} is named twice", clip(&name));
                return Err(ModelError::invalid(file, problem));
            }
        }
        let data_bytes = check_layout(file, &tensors)?;
        Ok(Self { tensors, data_start, data_bytes })
    }

    /// Bytes that the whole file must have.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        self.data_start.saturating_add(self.data_bytes)
    }

    /// Checks the length of the file against its header.
    ///
    /// # Errors
    /// [`ModelError::Invalid`] that tells a cut file from one with something behind it.
    pub fn check_length(&self, file: &str, actual: u64) -> Result<(), ModelError> {
        let expected = self.file_bytes();
        match actual.cmp(&expected) {
            std::cmp::Ordering::Equal => Ok(()),
            std::cmp::Ordering::Less => Err(ModelError::invalid(
                file,
                format!(
                    "is truncated: {actual} bytes, its header describes {expected}; upload or fetch the file again, whole"
                ),
            )),
            std::cmp::Ordering::Greater => Err(ModelError::invalid(
                file,
                format!(
                    "has {} bytes behind its last tensor; it is corrupt, upload or fetch it again",
                    actual - expected
                ),
            )),
        }
    }
}

/// One tensor's entry as it stands in the JSON.
#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

fn tensor(file: &str, name: &str, entry: &RawValue) -> Result<TensorInfo, ModelError> {
    let invalid = |problem: String| {
        ModelError::invalid(file, format!("has a broken header: tensor {} {problem}", clip(name)))
    };
    let entry: Entry =
        serde_json::from_str(entry.get()).map_err(|error| invalid(format!("is malformed: {error}")))?;
    let dtype = StoredDtype::parse(&entry.dtype).ok_or_else(|| {
        let problem = format!("tensor {} has the unknown number type {}", clip(name), clip(&entry.dtype));
        ModelError::unsupported(file, problem)
    })?;
    if entry.shape.len() > MAX_RANK {
        return Err(invalid(format!(
            "has {} dimensions, at most {MAX_RANK} are possible",
            entry.shape.len()
        )));
    }
    let (begin, end) = entry.data_offsets;
    let bits = entry
        .shape
        .iter()
        .try_fold(dtype.bits(), |bits, size| bits.checked_mul(*size))
        .filter(|bits| bits % 8 == 0)
        .ok_or_else(|| invalid(format!("has the impossible shape {:?}", entry.shape)))?;
    if end.checked_sub(begin) != Some(bits / 8) {
        let shape = &entry.shape;
        return Err(invalid(format!(
            "{shape:?} of {dtype} needs {} bytes, its offsets are {begin} to {end}",
            bits / 8
        )));
    }
    Ok(TensorInfo { dtype, shape: entry.shape, begin, end })
}

/// Tensors must follow each other from byte 0 with neither gap nor overlap. Returns the bytes of all.
fn check_layout(file: &str, tensors: &BTreeMap<String, TensorInfo>) -> Result<u64, ModelError> {
    let mut order: Vec<(&String, &TensorInfo)> = tensors.iter().collect();
    order.sort_by_key(|(_, tensor)| (tensor.begin, tensor.end));
    let mut position = 0;
    for (name, tensor) in order {
        if tensor.begin != position {
            let kind = if tensor.begin < position {
                "overlaps the tensor before it"
            } else {
                "leaves a gap before it"
            };
            return Err(ModelError::invalid(
                file,
                format!(
                    "has a broken header: tensor {} {kind} (starts at byte {}, expected {position})",
                    clip(name),
                    tensor.begin
                ),
            ));
        }
        position = tensor.end;
    }
    Ok(position)
}

/// The header's members in file order, duplicates kept so that they can be refused.
struct Entries<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Entries<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EntriesVisitor;
        impl<'de> Visitor<'de> for EntriesVisitor {
            type Value = Vec<(String, &'de RawValue)>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry::<String, &'de RawValue>()? {
                    entries.push(entry);
                }
                Ok(entries)
            }
        }
        deserializer.deserialize_map(EntriesVisitor).map(Entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(json: &str) -> Vec<u8> {
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(json.as_bytes());
        bytes
    }

    fn problem(json: &str) -> String {
        SafetensorsHeader::parse("m.safetensors", &file(json)).expect_err("must be refused").to_string()
    }

    #[test]
    fn reads_tensors_and_knows_the_files_length() {
        let json = r#"{"__metadata__":{"format":"pt"},"b":{"dtype":"BF16","shape":[2,3],"data_offsets":[4,16]},"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}"#;
        let header = SafetensorsHeader::parse("m.safetensors", &file(json)).expect("is well formed");
        assert_eq!(header.tensors.keys().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(header.tensors["b"].elements(), 6);
        assert_eq!(header.tensors["a"].elements(), 1);
        assert_eq!(header.file_bytes(), 8 + json.len() as u64 + 16);
        assert!(header.check_length("m", header.file_bytes()).is_ok());
        let short = header.check_length("m", header.file_bytes() - 1).expect_err("is short");
        assert!(short.to_string().contains("truncated"), "{short}");
        assert!(header.check_length("m", header.file_bytes() + 1).is_err());
    }

    #[test]
    fn refuses_what_contradicts_itself() {
        assert!(
            problem(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#).contains("needs 8 bytes")
        );
        assert!(problem(r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#).contains("gap"));
        assert!(
            problem(r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[8,4]}}"#)
                .contains("offsets are 8 to 4")
        );
        assert!(
            problem(
                r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#
            )
            .contains("overlaps")
        );
        assert!(
            problem(
                r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#
            )
            .contains("named twice")
        );
        assert!(problem(r#"{"a":{"dtype":"X9","shape":[1],"data_offsets":[0,4]}}"#).contains("X9"));
        assert!(
            problem(
                r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296,4294967296],"data_offsets":[0,4]}}"#
            )
            .contains("impossible shape")
        );
        assert!(problem("[]").contains("broken header"));
        assert!(problem(r#"{"a":7}"#).contains("malformed"));
    }

    #[test]
    fn refuses_short_files_pointers_and_giant_headers() {
        let parse =
            |bytes: &[u8]| SafetensorsHeader::parse("m", bytes).expect_err("must be refused").to_string();
        assert!(parse(b"abc").contains("cut short"));
        assert!(parse(&u64::MAX.to_le_bytes()).contains("not a safetensors file"));
        assert!(parse(b"version https://git-lfs.github.com/spec/v1\n").contains("git lfs pull"));
        assert!(parse(&[9, 0, 0, 0, 0, 0, 0, 0, b'{']).contains("cut short"));
    }
}
