//! Which blocks a tier has, how many bytes they take, and which of them go first. Pure.
//!
//! A block can be used only together with all blocks before it, so the first to go is, of the blocks that no other one in
//! the tier continues, the one used longest ago. A plain LRU would drop the beginning of a long prompt first, and with it
//! the worth of all the rest.

use std::collections::{BTreeSet, HashMap};

use super::BlockHash;

struct Entry<V> {
    value: V,
    parent: Option<BlockHash>,
    bytes: u64,
    used: u64,
}

/// A bounded number of bytes of blocks with something about each.
pub struct Index<V> {
    entries: HashMap<BlockHash, Entry<V>>,
    /// How many entries name a block as the one before them; that block need not be here itself.
    children: HashMap<BlockHash, u32>,
    /// Entries that none here continues, the one used longest ago first.
    leaves: BTreeSet<(u64, BlockHash)>,
    clock: u64,
    bytes: u64,
    most_bytes: u64,
}

impl<V> Index<V> {
    /// An empty index for at most `most_bytes` bytes.
    #[must_use]
    pub fn new(most_bytes: u64) -> Self {
        Self {
            entries: HashMap::new(),
            children: HashMap::new(),
            leaves: BTreeSet::new(),
            clock: 0,
            bytes: 0,
            most_bytes,
        }
    }

    /// Bytes of all blocks.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Blocks.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether a block is here. Does not count as a use.
    #[must_use]
    pub fn contains(&self, block: &BlockHash) -> bool {
        self.entries.contains_key(block)
    }

    /// What is known of a block. Does not count as a use.
    #[must_use]
    pub fn get(&self, block: &BlockHash) -> Option<&V> {
        self.entries.get(block).map(|entry| &entry.value)
    }

    /// The block before this one, as it was told when this one came.
    #[must_use]
    pub fn parent(&self, block: &BlockHash) -> Option<BlockHash> {
        self.entries.get(block).and_then(|entry| entry.parent)
    }

    /// Puts a block in and returns what had to go for it, with its value. The new block is among them where everything else
    /// is a beginning that it continues, where it is larger than all the room there is, or where others would have to go for
    /// it although the block before it is not here, so that it may never be of use. One that is here already is used and
    /// otherwise left as it is.
    pub fn insert(
        &mut self,
        block: BlockHash,
        parent: Option<BlockHash>,
        bytes: u64,
        value: V,
    ) -> Vec<(BlockHash, V)> {
        if self.contains(&block) {
            self.touch([block]);
            return Vec::new();
        }
        let continues_nothing = parent.is_some_and(|parent| !self.contains(&parent));
        let must_evict = bytes > self.most_bytes.saturating_sub(self.bytes);
        if bytes > self.most_bytes || (must_evict && continues_nothing) {
            return vec![(block, value)];
        }
        self.clock += 1;
        self.entries.insert(block, Entry { value, parent, bytes, used: self.clock });
        self.bytes += bytes;
        if let Some(parent) = parent {
            *self.children.entry(parent).or_default() += 1;
            if let Some(entry) = self.entries.get(&parent) {
                self.leaves.remove(&(entry.used, parent));
            }
        }
        if !self.children.contains_key(&block) {
            self.leaves.insert((self.clock, block));
        }
        let mut gone = Vec::new();
        while self.bytes > self.most_bytes {
            let Some(&(_, oldest)) = self.leaves.first() else { break };
            gone.extend(self.remove(&oldest).map(|value| (oldest, value)));
        }
        gone
    }

    /// Marks blocks as used now, all at the same moment.
    pub fn touch(&mut self, blocks: impl IntoIterator<Item = BlockHash>) {
        self.clock += 1;
        for block in blocks {
            if let Some(entry) = self.entries.get_mut(&block) {
                if self.leaves.remove(&(entry.used, block)) {
                    self.leaves.insert((self.clock, block));
                }
                entry.used = self.clock;
            }
        }
    }

    /// Takes a block out.
    pub fn remove(&mut self, block: &BlockHash) -> Option<V> {
        let entry = self.entries.remove(block)?;
        self.bytes -= entry.bytes;
        self.leaves.remove(&(entry.used, *block));
        if let Some(parent) = entry.parent
            && let Some(count) = self.children.get_mut(&parent)
        {
            *count -= 1;
            if *count == 0 {
                self.children.remove(&parent);
                if let Some(before) = self.entries.get(&parent) {
                    self.leaves.insert((before.used, parent));
                }
            }
        }
        Some(entry.value)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hash(number: u8) -> BlockHash {
        BlockHash([number; 32])
    }

    fn names(gone: &[(BlockHash, ())]) -> Vec<u8> {
        gone.iter().map(|(block, ())| block.0[0]).collect()
    }

    #[test]
    fn what_was_used_longest_ago_goes_first() {
        let mut index = Index::new(30);
        for number in 1..=3 {
            assert!(index.insert(hash(number), None, 10, ()).is_empty());
        }
        index.touch([hash(1)]);
        assert_eq!(names(&index.insert(hash(4), None, 10, ())), [2]);
        assert_eq!(names(&index.insert(hash(5), None, 15, ())), [3, 1]);
        assert_eq!((index.bytes(), index.len()), (25, 2));
    }

    #[test]
    fn a_beginning_outlives_what_continues_it() {
        let mut index = Index::new(40);
        index.insert(hash(1), None, 10, ());
        index.insert(hash(2), Some(hash(1)), 10, ());
        index.insert(hash(3), Some(hash(2)), 10, ());
        index.insert(hash(9), None, 10, ());
        assert_eq!(names(&index.insert(hash(8), None, 10, ())), [3]);
        assert_eq!(names(&index.insert(hash(7), None, 10, ())), [2]);
        assert_eq!(names(&index.insert(hash(6), None, 10, ())), [1]);
        // A chain that is longer than all the room keeps its beginning.
        let mut index = Index::new(20);
        index.insert(hash(1), None, 10, ());
        index.insert(hash(2), Some(hash(1)), 10, ());
        assert_eq!(names(&index.insert(hash(3), Some(hash(2)), 10, ())), [3]);
        assert_eq!(
            names(&index.insert(hash(4), Some(hash(3)), 10, ())),
            [4],
            "what is before it is not here"
        );
        assert_eq!(names(&index.insert(hash(4), None, 21, ())), [4], "larger than everything");
    }

    #[derive(Clone, Debug)]
    enum Action {
        Insert(u8, Option<u8>, u64),
        Touch(Vec<u8>),
        Remove(u8),
    }

    fn actions() -> impl Strategy<Value = Vec<Action>> {
        let block = 0_u8..16;
        let action = prop_oneof![
            5 => (block.clone(), prop::option::of(block.clone()), 0_u64..30)
                .prop_map(|(block, parent, bytes)| Action::Insert(block, parent.filter(|it| *it < block), bytes)),
            2 => prop::collection::vec(block.clone(), 0..5).prop_map(Action::Touch),
            1 => block.prop_map(Action::Remove),
        ];
        prop::collection::vec(action, 0..200)
    }

    /// The rule itself, by looking at everything: newest last.
    #[derive(Default)]
    struct Plain {
        blocks: Vec<(u8, Option<u8>, u64, u64)>,
        clock: u64,
    }

    impl Plain {
        fn bytes(&self) -> u64 {
            self.blocks.iter().map(|(.., bytes, _)| bytes).sum()
        }

        fn oldest_leaf(&self) -> u8 {
            let is_leaf = |block: u8| !self.blocks.iter().any(|(_, parent, ..)| *parent == Some(block));
            let leaves = self.blocks.iter().filter(|(block, ..)| is_leaf(*block));
            leaves.map(|(block, .., used)| (*used, *block)).min().unwrap().1
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_plain_rule(most in 0_u64..120, actions in actions()) {
            let (mut index, mut plain) = (Index::new(most), Plain::default());
            for action in actions {
                plain.clock += 1;
                let now = plain.clock;
                match action {
                    Action::Insert(block, parent, bytes) => {
                        let gone = names(&index.insert(hash(block), parent.map(hash), bytes, ()));
                        let mut expected = Vec::new();
                        if let Some(known) = plain.blocks.iter_mut().find(|it| it.0 == block) {
                            known.3 = now;
                        } else if bytes > most
                            || (plain.bytes() + bytes > most
                                && parent.is_some_and(|parent| !plain.blocks.iter().any(|it| it.0 == parent)))
                        {
                            expected.push(block);
                        } else {
                            plain.blocks.push((block, parent, bytes, now));
                            while plain.bytes() > most {
                                let oldest = plain.oldest_leaf();
                                plain.blocks.retain(|it| it.0 != oldest);
                                expected.push(oldest);
                            }
                        }
                        prop_assert_eq!(gone, expected);
                    }
                    Action::Touch(blocks) => {
                        index.touch(blocks.iter().map(|block| hash(*block)));
                        for known in plain.blocks.iter_mut().filter(|it| blocks.contains(&it.0)) {
                            known.3 = now;
                        }
                    }
                    Action::Remove(block) => {
                        let was_there = plain.blocks.iter().any(|it| it.0 == block);
                        prop_assert_eq!(index.remove(&hash(block)).is_some(), was_there);
                        plain.blocks.retain(|it| it.0 != block);
                    }
                }
                prop_assert!(index.bytes() <= most);
                prop_assert_eq!(index.bytes(), plain.bytes());
                prop_assert_eq!(index.len(), plain.blocks.len());
                prop_assert!(plain.blocks.iter().all(|it| index.contains(&hash(it.0))));
            }
        }
    }
}
