//! The pool against a plain model of it, and the order in which blocks go.

use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Action {
    Allocate,
    Extend(u32),
    Share(usize),
    Release(usize),
    Register(usize, u8),
    Reuse(u8),
    Forget(usize),
    ReleaseForeign(u32),
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let action = prop_oneof![
        3 => Just(Action::Allocate),
        2 => (0_u32..6).prop_map(Action::Extend),
        1 => any::<usize>().prop_map(Action::Share),
        5 => any::<usize>().prop_map(Action::Release),
        4 => (any::<usize>(), 0_u8..12).prop_map(|(block, name)| Action::Register(block, name)),
        3 => (0_u8..12).prop_map(Action::Reuse),
        1 => any::<usize>().prop_map(Action::Forget),
        1 => (0_u32..40).prop_map(Action::ReleaseForeign),
    ];
    prop::collection::vec(action, 0..300)
}

fn name(number: u8) -> BlockHash {
    BlockHash([number; 32])
}

/// Owners of each block, names, and the free blocks in the order in which they must go.
#[derive(Debug, Default)]
struct Model {
    owners: HashMap<BlockId, u32>,
    names: HashMap<u8, BlockId>,
    free: Vec<BlockId>,
}

impl Model {
    fn nth(&self, index: usize) -> Option<BlockId> {
        let mut owned: Vec<BlockId> = self.owners.keys().copied().collect();
        owned.sort_unstable();
        (!owned.is_empty()).then(|| owned[index % owned.len()])
    }

    fn allocate(&mut self) -> Option<BlockId> {
        let block = (!self.free.is_empty()).then(|| self.free.remove(0))?;
        self.names.retain(|_, holder| *holder != block);
        self.owners.insert(block, 1);
        Some(block)
    }

    fn is_named(&self, block: BlockId) -> bool {
        self.names.values().any(|holder| *holder == block)
    }

    fn forget(&mut self, block: BlockId) {
        if self.is_named(block) {
            self.names.retain(|_, holder| *holder != block);
            if let Some(place) = self.free.iter().position(|free| *free == block) {
                self.free.remove(place);
                self.free.insert(0, block);
            }
        }
    }

    fn release(&mut self, block: BlockId) {
        let owners = self.owners.get_mut(&block).unwrap();
        *owners -= 1;
        if *owners == 0 {
            self.owners.remove(&block);
            let place = if self.is_named(block) { self.free.len() } else { 0 };
            self.free.insert(place, block);
        }
    }
}

proptest! {
    /// Nothing leaks, nothing is freed twice, no block has two takers, names lead to what they were given to, and blocks
    /// go in the order that they should.
    #[test]
    fn agrees_with_a_plain_model(blocks in 0_u32..24, actions in actions()) {
        let mut pool = BlockPool::new(blocks);
        let mut model = Model { free: (1..blocks).collect(), ..Model::default() };
        for action in actions {
            match action {
                Action::Allocate => prop_assert_eq!(pool.allocate(), model.allocate()),
                Action::Extend(count) => {
                    let mut table = Vec::new();
                    let can = count as usize <= model.free.len();
                    prop_assert_eq!(pool.extend(&mut table, count), can);
                    let expected: Vec<BlockId> = if can {
                        (0..count).map(|_| model.allocate().unwrap()).collect()
                    } else {
                        Vec::new()
                    };
                    prop_assert_eq!(table, expected);
                }
                Action::Share(index) => if let Some(block) = model.nth(index) {
                    prop_assert_eq!(pool.share(block), Ok(()));
                    *model.owners.get_mut(&block).unwrap() += 1;
                },
                Action::Release(index) => if let Some(block) = model.nth(index) {
                    prop_assert_eq!(pool.release(block), Ok(()));
                    model.release(block);
                },
                Action::Register(index, number) => if let Some(block) = model.nth(index) {
                    let holder = model.names.get(&number).copied();
                    let taken = holder.is_some_and(|holder| holder != block && model.owners.contains_key(&holder));
                    prop_assert_eq!(pool.register(block, name(number)), Ok(!taken));
                    if !taken && holder != Some(block) {
                        if let Some(holder) = holder {
                            model.forget(holder);
                        }
                        model.forget(block);
                        model.names.insert(number, block);
                    }
                },
                Action::Reuse(number) => {
                    prop_assert_eq!(pool.find(&name(number)), model.names.get(&number).copied());
                    if let Some(block) = pool.find(&name(number)) {
                        prop_assert_eq!(pool.reuse(block), Ok(()));
                        model.free.retain(|free| *free != block);
                        *model.owners.entry(block).or_default() += 1;
                    }
                }
                Action::Forget(index) => if let Some(block) = model.nth(index) {
                    pool.forget(block);
                    model.forget(block);
                },
                Action::ReleaseForeign(block) => if !model.owners.contains_key(&block) {
                    prop_assert_eq!(pool.release(block), Err(PoolError::NotOwned(block)));
                    prop_assert_eq!(pool.share(block), Err(PoolError::NotOwned(block)));
                    prop_assert_eq!(pool.register(block, name(0)), Err(PoolError::NotOwned(block)));
                    if !model.is_named(block) {
                        prop_assert_eq!(pool.reuse(block), Err(PoolError::NotOwned(block)));
                    }
                },
            }
            prop_assert_eq!(pool.used(), model.owners.len() as u32);
            prop_assert_eq!(pool.named(), model.names.len());
            prop_assert_eq!(pool.free() + pool.used(), blocks.saturating_sub(1));
            for block in 1..blocks {
                let owners = model.owners.get(&block).copied().unwrap_or(0);
                prop_assert_eq!(pool.is_free(block), owners == 0);
                prop_assert_eq!(pool.is_shared(block), owners > 1 || model.is_named(block));
            }
        }
        let owned: Vec<(BlockId, u32)> = model.owners.iter().map(|(block, count)| (*block, *count)).collect();
        for (block, count) in owned {
            for _ in 0..count {
                prop_assert_eq!(pool.release(block), Ok(()));
            }
        }
        let mut all = Vec::new();
        prop_assert!(pool.extend(&mut all, blocks.saturating_sub(1)));
        prop_assert_eq!(all.iter().collect::<HashSet<_>>().len() as u32, blocks.saturating_sub(1));
        prop_assert_eq!(pool.named(), 0);
    }
}

#[test]
fn a_table_comes_back_from_its_end_and_a_hit_is_spared() {
    let mut pool = BlockPool::new(5);
    let mut table = Vec::new();
    assert!(pool.extend(&mut table, 4));
    assert_eq!(table, [1, 2, 3, 4]);
    // The last one is not full.
    for block in 1..4 {
        assert_eq!(pool.register(block, name(block as u8)), Ok(true));
    }
    pool.release_table(&mut table).unwrap();
    assert!(table.is_empty());
    // Out of the middle of the list.
    assert_eq!(pool.find(&name(2)), Some(2));
    pool.reuse(2).unwrap();
    let order: Vec<_> = std::iter::from_fn(|| pool.allocate()).collect();
    assert_eq!(order, [4, 3, 1], "what has no name first, then tails before beginnings");
    assert_eq!(pool.named(), 1);
}

#[test]
fn of_two_with_the_same_content_the_used_one_has_the_name() {
    let mut pool = BlockPool::new(4);
    let mut table = Vec::new();
    pool.extend(&mut table, 3);
    assert_eq!(pool.register(1, name(9)), Ok(true));
    assert_eq!(pool.register(2, name(9)), Ok(false), "the first one is in use");
    pool.release(1).unwrap();
    assert_eq!(pool.register(2, name(9)), Ok(true));
    assert_eq!((pool.find(&name(9)), pool.named()), (Some(2), 1));
    pool.release(3).unwrap();
    assert_eq!(pool.allocate(), Some(3));
    assert_eq!(pool.allocate(), Some(1), "it holds nothing any more");
}

#[test]
fn ages_are_told_once() {
    let mut pool = BlockPool::new(2);
    let second = Duration::from_secs(1);
    let block = pool.allocate().unwrap();
    pool.register(block, name(1)).unwrap();
    pool.set_time(second * 3);
    pool.release(block).unwrap();
    pool.set_time(second * 5);
    pool.reuse(block).unwrap();
    pool.release(block).unwrap();
    pool.set_time(second * 9);
    pool.allocate().unwrap();
    let eviction = Eviction { lifetime: second * 9, idle: second * 4 };
    assert_eq!(pool.take_ages(), (vec![eviction], vec![second * 2]));
    assert_eq!(pool.take_ages(), (vec![], vec![]));
}
