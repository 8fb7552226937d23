//! The KV cache's blocks: which are free, and how many owners each of the others has.
//!
//! Owns the free list and the reference counts. Knows nothing of tokens or tensors. The scheduler is its only caller.
//! The free list is doubly linked through an array, so taking, returning and (for prefix sharing) pulling out a block from
//! the middle are all O(1) with no allocation.

use crate::backend::BlockId;

/// The end of the free list.
const NONE: u32 = u32::MAX;

/// A misuse of the pool: a bug in its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    /// The block is free already, reserved, or not in the pool.
    #[error("block {0} has no owner")]
    NotOwned(BlockId),
}

#[derive(Clone, Copy, Debug)]
struct Node {
    previous: u32,
    next: u32,
    owners: u32,
}

/// Fixed blocks with reference counts. Block 0 is reserved for padding and never handed out.
#[derive(Debug)]
pub struct BlockPool {
    nodes: Vec<Node>,
    first: u32,
    last: u32,
    free: u32,
}

impl BlockPool {
    /// A pool of `blocks` blocks, block 0 included.
    pub fn new(blocks: u32) -> Self {
        let nodes = vec![Node { previous: NONE, next: NONE, owners: 0 }; blocks as usize];
        let mut pool = Self { nodes, first: NONE, last: NONE, free: 0 };
        for block in 1..blocks {
            pool.push_last(block);
        }
        pool
    }

    /// Blocks that can be handed out in all.
    pub fn usable(&self) -> u32 {
        (self.nodes.len() as u32).saturating_sub(1)
    }

    /// Blocks without an owner.
    pub fn free(&self) -> u32 {
        self.free
    }

    /// Blocks with an owner.
    pub fn used(&self) -> u32 {
        self.usable() - self.free
    }

    /// Takes the block that has been free longest and gives it one owner.
    pub fn allocate(&mut self) -> Option<BlockId> {
        let block = self.first;
        if block == NONE {
            return None;
        }
        self.unlink(block);
        self.nodes[block as usize].owners = 1;
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

    /// Gives a block one more owner.
    ///
    /// # Errors
    /// [`PoolError::NotOwned`] if it has none.
    pub fn share(&mut self, block: BlockId) -> Result<(), PoolError> {
        let node = self.owned(block)?;
        node.owners += 1;
        Ok(())
    }

    /// Takes an owner from a block; the last one leaving makes it free.
    ///
    /// # Errors
    /// [`PoolError::NotOwned`] if it has none.
    pub fn release(&mut self, block: BlockId) -> Result<(), PoolError> {
        let node = self.owned(block)?;
        node.owners -= 1;
        if node.owners == 0 {
            self.push_last(block);
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
        self.nodes[block as usize] = Node { previous: self.last, next: NONE, owners: 0 };
        match self.last {
            NONE => self.first = block,
            last => self.nodes[last as usize].next = block,
        }
        self.last = block;
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
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Action {
        Allocate,
        Extend(u32),
        Share(usize),
        Release(usize),
        ReleaseForeign(u32),
    }

    fn actions() -> impl Strategy<Value = Vec<Action>> {
        let action = prop_oneof![
            3 => Just(Action::Allocate),
            2 => (0_u32..6).prop_map(Action::Extend),
            1 => any::<usize>().prop_map(Action::Share),
            4 => any::<usize>().prop_map(Action::Release),
            1 => (0_u32..40).prop_map(Action::ReleaseForeign),
        ];
        prop::collection::vec(action, 0..300)
    }

    proptest! {
        /// Against a model that counts owners: nothing leaks, nothing is freed twice, no block has two takers.
        #[test]
        fn agrees_with_a_plain_count_of_owners(blocks in 0_u32..24, actions in actions()) {
            let mut pool = BlockPool::new(blocks);
            let mut owners: HashMap<BlockId, u32> = HashMap::new();
            let nth = |owners: &HashMap<BlockId, u32>, index: usize| {
                let mut owned: Vec<BlockId> = owners.keys().copied().collect();
                owned.sort_unstable();
                (!owned.is_empty()).then(|| owned[index % owned.len()])
            };
            for action in actions {
                match action {
                    Action::Allocate => match pool.allocate() {
                        Some(block) => {
                            prop_assert!(block != 0 && block < blocks);
                            prop_assert_eq!(owners.insert(block, 1), None);
                        }
                        None => prop_assert_eq!(pool.free(), 0),
                    },
                    Action::Extend(count) => {
                        let (before, mut table) = (pool.free(), Vec::new());
                        let done = pool.extend(&mut table, count);
                        prop_assert_eq!(done, count <= before);
                        prop_assert_eq!(table.len() as u32, if done { count } else { 0 });
                        for block in table {
                            prop_assert_eq!(owners.insert(block, 1), None);
                        }
                    }
                    Action::Share(index) => if let Some(block) = nth(&owners, index) {
                        prop_assert_eq!(pool.share(block), Ok(()));
                        *owners.get_mut(&block).unwrap() += 1;
                    },
                    Action::Release(index) => if let Some(block) = nth(&owners, index) {
                        prop_assert_eq!(pool.release(block), Ok(()));
                        let left = owners.get_mut(&block).unwrap();
                        *left -= 1;
                        if *left == 0 {
                            owners.remove(&block);
                        }
                    },
                    Action::ReleaseForeign(block) => if !owners.contains_key(&block) {
                        prop_assert_eq!(pool.release(block), Err(PoolError::NotOwned(block)));
                        prop_assert_eq!(pool.share(block), Err(PoolError::NotOwned(block)));
                    },
                }
                prop_assert_eq!(pool.used(), owners.len() as u32);
                prop_assert_eq!(pool.free() + pool.used(), blocks.saturating_sub(1));
            }
            for (block, count) in owners {
                for _ in 0..count {
                    prop_assert_eq!(pool.release(block), Ok(()));
                }
            }
            prop_assert_eq!(pool.free(), blocks.saturating_sub(1));
        }
    }

    #[test]
    fn a_table_comes_back_from_its_end() {
        let mut pool = BlockPool::new(4);
        let mut table = Vec::new();
        assert!(pool.extend(&mut table, 3));
        assert_eq!(table, [1, 2, 3]);
        pool.release_table(&mut table).unwrap();
        assert!(table.is_empty());
        assert_eq!(
            [pool.allocate(), pool.allocate(), pool.allocate(), pool.allocate()],
            [Some(3), Some(2), Some(1), None]
        );
    }
}
