//! A block as a file: a header of fixed size, then the block's bytes.
//!
//! ```text
//! offset  bytes
//!      0      8  magic "FLKVBLK\n"
//!      8      4  version of this layout, 1
//!     12      4  zero
//!     16     32  fingerprint: which model, number type and program wrote it
//!     48     32  hash of the block, whole
//!     80      8  length of the block's bytes
//!     88     32  BLAKE3 of the 88 bytes above and of the block's bytes
//!    120         the block's bytes
//! ```
//!
//! Numbers are little-endian. A file counts only if all of this is as expected and nothing follows; every other file is a
//! miss. It is written beside its place and then renamed, so its name never stands for half of it. It is not synced: after
//! a power cut a file may be empty or hold anything, which the checksum finds, and a lost block is only a miss.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use super::BlockHash;
use crate::backend::BlockBytes;

const MAGIC: [u8; 8] = *b"FLKVBLK\n";
const VERSION: u32 = 1;
const BEFORE_CHECKSUM: usize = 88;

/// Bytes before the block's own.
pub const HEADER_BYTES: usize = 120;

/// Why a file is no block.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The system says so: it is not there, or cannot be read.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// Its contents are not what was written.
    #[error("{0}")]
    Corrupt(&'static str),
}

fn header(fingerprint: &[u8; 32], block: &BlockHash, length: u64) -> [u8; BEFORE_CHECKSUM] {
    let mut header = [0; BEFORE_CHECKSUM];
    let parts: [&[u8]; 6] =
        [&MAGIC, &VERSION.to_le_bytes(), &[0; 4], fingerprint, &block.0, &length.to_le_bytes()];
    let mut rest = &mut header[..];
    for part in parts {
        let (target, after) = rest.split_at_mut(part.len());
        target.copy_from_slice(part);
        rest = after;
    }
    header
}

fn checksum(header: &[u8; BEFORE_CHECKSUM], bytes: &[u8]) -> blake3::Hash {
    blake3::Hasher::new().update(header).update(bytes).finalize()
}

/// Writes a block to `path` by way of `temporary`, which must be in the same file system.
///
/// # Errors
/// What the system says; `temporary` may be left behind then.
pub fn write(
    path: &Path,
    temporary: &Path,
    fingerprint: &[u8; 32],
    block: &BlockHash,
    bytes: &[u8],
) -> std::io::Result<()> {
    let header = header(fingerprint, block, bytes.len() as u64);
    let mut file = File::create(temporary)?;
    file.write_all(&header)?;
    file.write_all(checksum(&header, bytes).as_bytes())?;
    file.write_all(bytes)?;
    drop(file);
    std::fs::rename(temporary, path)
}

/// Reads a block of `length` bytes and notes on the file when that was.
///
/// # Errors
/// [`ReadError`]: it is a miss, whatever the reason.
pub fn read(
    path: &Path,
    fingerprint: &[u8; 32],
    block: &BlockHash,
    length: u64,
) -> Result<BlockBytes, ReadError> {
    let mut file = File::open(path)?;
    // Before any memory is taken for it.
    if file.metadata()?.len() != HEADER_BYTES as u64 + length {
        return Err(ReadError::Corrupt("it is too short or too long"));
    }
    let mut found = [0; BEFORE_CHECKSUM];
    let mut sum = [0; 32];
    read_whole(&mut file, &mut found)?;
    read_whole(&mut file, &mut sum)?;
    let expected = header(fingerprint, block, length);
    if found != expected {
        return Err(ReadError::Corrupt("its header is that of another block, model or version"));
    }
    let mut bytes: BlockBytes = std::iter::repeat_n(0, usize::try_from(length).unwrap_or(0)).collect();
    // Nobody else has it yet.
    if let Some(target) = Arc::get_mut(&mut bytes) {
        read_whole(&mut file, target)?;
    }
    if checksum(&expected, &bytes) != sum {
        return Err(ReadError::Corrupt("its checksum is wrong"));
    }
    // The order in which files go outlives a restart by their times. One that keeps its old time goes a little sooner.
    let _ = file.set_modified(SystemTime::now());
    Ok(bytes)
}

fn read_whole(file: &mut File, target: &mut [u8]) -> Result<(), ReadError> {
    file.read_exact(target).map_err(|error| match error.kind() {
        std::io::ErrorKind::UnexpectedEof => ReadError::Corrupt("it became shorter while it was read"),
        _ => ReadError::Io(error),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FINGERPRINT: [u8; 32] = [3; 32];
    const BLOCK: BlockHash = BlockHash([5; 32]);

    #[test]
    fn every_flipped_bit_and_every_cut_is_a_miss() {
        let dir = tempfile::tempdir().unwrap();
        let (path, temporary) = (dir.path().join("block"), dir.path().join("temporary"));
        let bytes: Vec<u8> = (0..40).collect();
        write(&path, &temporary, &FINGERPRINT, &BLOCK, &bytes).unwrap();
        assert!(!temporary.exists());
        assert_eq!(read(&path, &FINGERPRINT, &BLOCK, 40).unwrap()[..], bytes[..]);
        let good = std::fs::read(&path).unwrap();
        assert_eq!(good.len(), HEADER_BYTES + 40);
        let is_miss = |contents: &[u8]| {
            std::fs::write(&path, contents).unwrap();
            matches!(read(&path, &FINGERPRINT, &BLOCK, 40), Err(ReadError::Corrupt(_)))
        };
        for bit in 0..good.len() * 8 {
            let mut flipped = good.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(is_miss(&flipped), "bit {bit}");
        }
        for length in 0..good.len() {
            assert!(is_miss(&good[..length]), "{length} bytes");
        }
        assert!(is_miss(&[&good[..], &[0]].concat()), "longer");
        assert!(!is_miss(&good));
    }

    #[test]
    fn another_model_or_block_is_a_miss() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("block");
        write(&path, &dir.path().join("temporary"), &FINGERPRINT, &BLOCK, &[1; 8]).unwrap();
        assert!(read(&path, &FINGERPRINT, &BLOCK, 8).is_ok());
        assert!(read(&path, &[4; 32], &BLOCK, 8).is_err());
        assert!(read(&path, &FINGERPRINT, &BlockHash([6; 32]), 8).is_err());
        assert!(read(&path, &FINGERPRINT, &BLOCK, 7).is_err());
        let absent = read(&dir.path().join("absent"), &FINGERPRINT, &BLOCK, 8);
        assert!(matches!(absent, Err(ReadError::Io(error)) if error.kind() == std::io::ErrorKind::NotFound));
    }
}
