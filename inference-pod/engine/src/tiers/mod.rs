//! KV tiers: where whole blocks of keys and values go that the cache itself gives up: main memory, then a folder.
//!
//! A block is named by the hash of all tokens up to its end ([`BlockHash`]), so what a name stands for never changes, and a
//! block that is lost, broken or late is a miss: its tokens are computed again. Nothing here can change an answer.
//!
//! - [`host`] keeps blocks in main memory, a bounded number of bytes.
//! - [`disk`] keeps them in a folder, a bounded number of bytes, each in a file with a checksum ([`block_file`]). It is
//!   worked by a thread of its own, `fairlead-kv-disk`, behind a bounded queue with two lanes ([`queue`]), and survives a
//!   restart.
//! - [`index`] decides what either gives up: the block used longest ago that no other block there continues, so that a
//!   prefix outlives its continuations.
//! - [`store`] is the front of both: blocks are looked up in it, asked for where they lie on disk, and handed to it once
//!   computed. It never waits for a disk.
//! - [`traffic`] goes between it and the scheduler, step by step.
//! - [`counters`] are the numbers for metrics.
//!
//! Called by [`crate::engine`] only. Must not know a tensor.

pub mod block_file;
mod complaint;
pub mod counters;
pub mod disk;
pub mod folder;
pub mod host;
pub mod index;
pub mod queue;
pub mod store;
pub mod traffic;

pub use counters::{Tier, TierCounters, TierSnapshot};
pub use store::{TierStore, Wake};
pub use traffic::Traffic;

use std::path::PathBuf;

use crate::prefix_hash::BlockHash;

/// Sizes of the tiers. Both absent: there are none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TierOptions {
    /// Bytes of main memory.
    pub host_bytes: Option<u64>,
    /// A folder.
    pub disk: Option<DiskOptions>,
    /// Bytes of main memory for blocks on their way: a quarter for those that wait to be written to disk, the rest for those
    /// that wait with their sequences to be admitted. A block or two are always let through.
    pub transit_bytes: u64,
}

/// The tier on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskOptions {
    /// Its folder; made where it is absent.
    pub path: PathBuf,
    /// Most bytes of files in it.
    pub bytes: u64,
    /// Stands for all that decides a block's bytes but its tokens: weights, number type, layout, the program's version. A
    /// block that was written under another one is never read.
    pub fingerprint: [u8; 32],
}

/// Why the tiers cannot be set up: a wrong setting.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TierError {
    /// A tier is too small for a single block.
    #[error("{field}: is {bytes} bytes, but one block takes {least}; give it at least that, or leave it out")]
    TooSmall {
        /// The setting.
        field: &'static str,
        /// What it says.
        bytes: u64,
        /// The least it can be.
        least: u64,
    },
    /// The folder cannot be made or written.
    #[error(
        "kvCache.disk.path: {path} cannot be used: {problem}; name a folder that this process may write, or leave it out"
    )]
    Folder {
        /// The folder.
        path: String,
        /// What the system says.
        problem: String,
    },
    /// The operating system gave no thread.
    #[error("the disk tier's thread could not be started: {0}")]
    Thread(String),
}
