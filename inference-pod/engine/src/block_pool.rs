//! The KV cache's blocks: which are free, how many owners each of the others has, and what full ones are known to hold.
//!
//! Owns the free list, the reference counts and the map from names ([`BlockHash`]) to blocks. Knows nothing of tokens or
//! tensors. The scheduler is its only caller.
//!
//! A block that nobody owns any more keeps its content and its name until it is handed out again, so the free list is the
//! prefix cache and its order is what goes first: blocks without a name, then the one that was released longest ago. The list
//! is doubly linked through an array: taking, returning and pulling a hit out of its middle are O(1) with no allocation.
//! Two blocks with the same content are not merged, so that a block table never changes but at its end.

use std::collections::HashMap;
use std::time::Duration;

use crate::backend::BlockId;
use crate::prefix_hash::BlockHash;

/// The end of the free list.
const NONE: u32 = u32::MAX;

/// Most ages kept for whoever asks for them; more are not recorded.
const MOST_AGES: usize = 1024;

/// A misuse of the pool: a bug in its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    /// The block is free already, reserved, or not in the pool.
    #[error("block {0} has no owner")]
    NotOwned(BlockId),
}

/// What became of a named block that was handed out for something else; times are those of [`BlockPool::set_time`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Eviction {
    /// Since it had been given its content.
    pub lifetime: Duration,
    /// Since its last owner had left.
    pub idle: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Node {
    previous: u32,
    next: u32,
    owners: u32,
    /// Present while the block can be found by it.
    name: Option<BlockHash>,
    allocated: Duration,
    released: Duration,
}

const EMPTY: Node = Node {
    previous: NONE,
    next: NONE,
    owners: 0,
    name: None,
    allocated: Duration::ZERO,
    released: Duration::ZERO,
};

/// Fixed blocks with reference counts and names. Block 0 is reserved for padding and never handed out.
#[derive(Debug)]
pub struct BlockPool {
    nodes: Vec<Node>,
    named: HashMap<BlockHash, BlockId>,
    first: u32,
    last: u32,
    free: u32,
    now: Duration,
    evictions: Vec<Eviction>,
    reuse_gaps: Vec<Duration>,
}

impl BlockPool {
    /// A pool of `blocks` blocks, block 0 included.
    pub fn new(blocks: u32) -> Self {
        let mut pool = Self {
            nodes: vec![EMPTY; blocks as usize],
            named: HashMap::new(),
            first: NONE,
            last: NONE,
            free: 0,
            now: Duration::ZERO,
            evictions: Vec::new(),
            reuse_gaps: Vec::new(),
        };
        for block in 1..blocks {
            pool.push_last(block);
        }
        pool
    }

    /// Blocks that can be handed out in all.
    pub fn usable(&self) -> u32 {
        (self.nodes.len() as u32).saturating_sub(1)
    }

    /// Blocks without an owner, those with a name included.
    pub fn free(&self) -> u32 {
        self.free
    }

    /// Blocks with an owner.
    pub fn used(&self) -> u32 {
        self.usable() - self.free
    }

    /// Blocks that can be found by their names.
    pub fn named(&self) -> usize {
        self.named.len()
    }

    /// Tells the time, counted from any fixed moment; only ages depend on it.
    pub fn set_time(&mut self, now: Duration) {
        self.now = now;
    }

    /// Evictions and the times that hits had been idle, since this was last asked for.
    pub fn take_ages(&mut self) -> (Vec<Eviction>, Vec<Duration>) {
        (std::mem::take(&mut self.evictions), std::mem::take(&mut self.reuse_gaps))
    }

    /// Takes the first block of the free list, whose content and name are gone with that, and gives it one owner.
    pub fn allocate(&mut self) -> Option<BlockId> {
        let block = self.first;
        if block == NONE {
            return None;
        }
        self.unlink(block);
        let now = self.now;
        let node = &mut self.nodes[block as usize];
        if let Some(name) = node.name.take() {
            self.named.remove(&name);
            let idle = now.saturating_sub(node.released);
            if self.evictions.len() < MOST_AGES {
                self.evictions.push(Eviction { lifetime: now.saturating_sub(node.allocated), idle });
            }
        }
        node.owners = 1;
        node.allocated = now;
        Some(block)
    }

    /// Appends `count` blocks to `table`, or none at all where there are too few. Says whether it did.
    pub fn extend(&mut self, table: &mut Vec<BlockId>, count: u32) -> bool {
        if count > self.free {
            return false;
        }
        table.extend((0..count).map_while(|_| self.allocate()));
        true
    }

    /// The block of that name, owned or free.
    pub fn find(&self, name: &BlockHash) -> Option<BlockId> {
        self.named.get(name).copied()
    }

    /// Whether nobody owns the block.
    pub fn is_free(&self, block: BlockId) -> bool {
        self.nodes.get(block as usize).is_some_and(|node| node.owners == 0)
    }

    /// Whether writing into the block would change what others read: it has more than one owner, or a name.
    pub fn is_shared(&self, block: BlockId) -> bool {
        self.nodes.get(block as usize).is_some_and(|node| node.owners > 1 || node.name.is_some())
    }

    /// Gives a named block one more owner; takes it out of the free list where it has none yet.
    ///
    /// # Errors
    /// [`PoolError::NotOwned`] if it has neither a name nor an owner: its content is nobody's.
    pub fn reuse(&mut self, block: BlockId) -> Result<(), PoolError> {
        let now = self.now;
        let node = self.nodes.get_mut(block as usize).filter(|node| node.owners > 0 || node.name.is_some());
        let node = node.ok_or(PoolError::NotOwned(block))?;
        node.owners += 1;
        if node.owners == 1 {
            let gap = now.saturating_sub(node.released);
            self.unlink(block);
            if self.reuse_gaps.len() < MOST_AGES {
                self.reuse_gaps.push(gap);
            }
        }
        Ok(())
    }

    /// Gives a block one more owner.
    ///
    /// # Errors
    /// [`PoolError::NotOwned`] if it has none.
    pub fn share(&mut self, block: BlockId) -> Result<(), PoolError> {
        let node = self.owned(block)?;
        node.owners += 1;
        Ok(())
    }

    /// Names an owned block, whose content is complete. Where another one has the name already it keeps it, unless that
    /// one is free: the newer one will be there longer. Says whether the block has the name now.
    ///
    /// # Errors
    /// [`PoolError::NotOwned`] if the block has no owner.
    pub fn register(&mut self, block: BlockId, name: BlockHash) -> Result<bool, PoolError> {
        self.owned(block)?;
        match self.find(&name) {
            Some(holder) if holder == block => return Ok(true),
            Some(holder) if !self.is_free(holder) => return Ok(false),
            Some(holder) => drop(self.forget(holder)),
            None => {}
        }
        self.forget(block);
        self.nodes[block as usize].name = Some(name);
        self.named.insert(name, block);
        Ok(true)
    }

    /// Takes a block's name away, so that nobody is given its content any more. Returns the name, if it had one.
    pub fn forget(&mut self, block: BlockId) -> Option<BlockHash> {
        let node = self.nodes.get_mut(block as usize)?;
        let (name, is_free) = (node.name.take()?, node.owners == 0);
        self.named.remove(&name);
        if is_free {
            self.unlink(block);
            self.push_first(block);
        }
        Some(name)
    }

    /// Takes an owner from a block; the last one leaving makes it free.
    ///
    /// # Errors
    /// [`PoolError::NotOwned`] if it has none.
    pub fn release(&mut self, block: BlockId) -> Result<(), PoolError> {
        let now = self.now;
        let node = self.owned(block)?;
        node.owners -= 1;
        if node.owners == 0 {
            node.released = now;
            // What cannot be found again is the first to go.
            if node.name.is_some() { self.push_last(block) } else { self.push_first(block) }
        }
        Ok(())
    }

    /// Releases a whole table from its end, so that a prefix outlives its continuation, and empties it.
    ///
    /// # Errors
    /// [`PoolError::NotOwned`] if a block of it has no owner; the table is empty even then.
    pub fn release_table(&mut self, table: &mut Vec<BlockId>) -> Result<(), PoolError> {
        let mut result = Ok(());
        while let Some(block) = table.pop() {
            result = result.and(self.release(block));
        }
        result
    }

    fn owned(&mut self, block: BlockId) -> Result<&mut Node, PoolError> {
        self.nodes.get_mut(block as usize).filter(|node| node.owners > 0).ok_or(PoolError::NotOwned(block))
    }

    fn push_last(&mut self, block: BlockId) {
        let before = self.last;
        let node = &mut self.nodes[block as usize];
        (node.previous, node.next) = (before, NONE);
        match before {
            NONE => self.first = block,
            before => self.nodes[before as usize].next = block,
        }
        self.last = block;
        self.free += 1;
    }

    fn push_first(&mut self, block: BlockId) {
        let after = self.first;
        let node = &mut self.nodes[block as usize];
        (node.previous, node.next) = (NONE, after);
        match after {
            NONE => self.last = block,
            after => self.nodes[after as usize].previous = block,
        }
        self.first = block;
        self.free += 1;
    }

    fn unlink(&mut self, block: BlockId) {
        let Node { previous, next, .. } = self.nodes[block as usize];
        match previous {
            NONE => self.first = next,
            before => self.nodes[before as usize].next = next,
        }
        match next {
            NONE => self.last = previous,
            after => self.nodes[after as usize].previous = previous,
        }
        self.free -= 1;
    }
}

#[cfg(test)]
#[path = "block_pool_tests.rs"]
mod tests;
