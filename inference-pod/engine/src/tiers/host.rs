//! The tier in main memory. Pure; only the engine's thread holds it, so it needs no lock.

use super::index::Index;
use super::{BlockHash, TierError};
use crate::backend::BlockBytes;

/// Blocks in main memory, a bounded number of bytes.
pub struct HostTier {
    blocks: Index<BlockBytes>,
}

impl HostTier {
    /// An empty tier of at most `bytes` bytes of blocks of `block_bytes` each.
    ///
    /// # Errors
    /// [`TierError::TooSmall`] if it does not hold a single one.
    pub fn new(bytes: u64, block_bytes: u64) -> Result<Self, TierError> {
        if bytes < block_bytes.max(1) {
            return Err(TierError::TooSmall { field: "kvCache.hostBytes", bytes, least: block_bytes.max(1) });
        }
        Ok(Self { blocks: Index::new(bytes) })
    }

    /// A block's bytes. Does not count as a use.
    #[must_use]
    pub fn get(&self, block: &BlockHash) -> Option<&BlockBytes> {
        self.blocks.get(block)
    }

    /// Whether a block is here.
    #[must_use]
    pub fn contains(&self, block: &BlockHash) -> bool {
        self.blocks.contains(block)
    }

    /// Puts a block in; returns how many others went for it, or nothing if it is the new one that found no room.
    pub fn put(&mut self, block: BlockHash, parent: Option<BlockHash>, bytes: BlockBytes) -> Option<usize> {
        let gone = self.blocks.insert(block, parent, bytes.len() as u64, bytes);
        (!gone.iter().any(|(name, _)| *name == block)).then_some(gone.len())
    }

    /// Takes a block out.
    pub fn remove(&mut self, block: &BlockHash) {
        self.blocks.remove(block);
    }

    /// Marks a run of blocks as used now.
    pub fn touch(&mut self, run: impl IntoIterator<Item = BlockHash>) {
        self.blocks.touch(run);
    }

    /// Bytes of all blocks.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.blocks.bytes()
    }

    /// Blocks.
    #[must_use]
    pub fn len(&self) -> usize {
        self.blocks.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_stay_within_the_bound_and_come_back_as_they_went() {
        let mut host = HostTier::new(25, 10).unwrap();
        for number in 1..=3_u8 {
            let gone = host.put(BlockHash([number; 32]), None, vec![number; 10].into());
            assert_eq!(gone, Some(usize::from(number == 3)));
            assert!(host.bytes() <= 25);
        }
        assert_eq!(host.get(&BlockHash([1; 32])), None);
        assert_eq!(host.get(&BlockHash([3; 32])).unwrap()[..], [3; 10]);
        assert_eq!((host.len(), host.bytes()), (2, 20));
        assert_eq!(host.put(BlockHash([4; 32]), None, vec![0; 26].into()), None);
    }

    #[test]
    fn a_size_that_holds_no_block_is_named_with_what_it_needs() {
        let error = HostTier::new(9, 10).err().unwrap().to_string();
        assert!(error.contains("kvCache.hostBytes") && error.contains("10"), "{error}");
        assert!(HostTier::new(0, 10).is_err());
    }
}
