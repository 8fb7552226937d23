//! Which endpoints have seen the beginning of a prompt: a table of fixed size, the whole of it allocated at the start.
//!
//! A set-associative cache: a hash may stand in eight places, and the one that was used the longest ago makes room. So the
//! memory is exactly what was asked for, however many prompts there are, and no entry needs an allocation or a pointer.
//! Keeps no time and no text. Used by `prefix_aware`, from all threads.

use std::sync::{Mutex, PoisonError};

/// Endpoints that an entry names, the newest first; 0 stands for none.
pub type Holders = [u32; HOLDERS];

/// Endpoints in one entry.
const HOLDERS: usize = 5;
/// Entries among which a hash's place is.
const WAYS: usize = 8;
/// Words of an entry: hash (two), time of use, holders.
const WORDS: usize = 3 + HOLDERS;
/// Bytes of the places of one hash.
const SET_BYTES: usize = WAYS * WORDS * size_of::<u32>();
/// Parts that are locked apart from one another.
const SHARDS: usize = 64;

/// Hashes of blocks and the endpoints that have seen them.
#[derive(Debug)]
pub struct PrefixIndex {
    shards: Box<[Mutex<Shard>]>,
    sets: u64,
}

#[derive(Debug)]
struct Shard {
    /// Arrays of numbers, so that the system hands out zeroed pages and only those that are used take memory.
    sets: Box<[[u32; WAYS * WORDS]]>,
    clock: u32,
}

impl PrefixIndex {
    /// A table of at most so many bytes; below 16 KiB it has no place for anything.
    pub fn new(bytes: usize) -> Self {
        let each = bytes / SHARDS / SET_BYTES;
        let shard = || Mutex::new(Shard { sets: vec![[0; WAYS * WORDS]; each].into_boxed_slice(), clock: 0 });
        let shards: Box<[_]> = (0..SHARDS).map(|_| shard()).collect();
        Self { shards, sets: each as u64 }
    }

    /// Bytes of the table, for good.
    pub fn bytes(&self) -> usize {
        let bytes = |shard: &Mutex<Shard>| {
            let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            size_of_val(&*shard.sets)
        };
        self.shards.iter().map(bytes).sum()
    }

    /// Who has seen the block with this hash. Does not count as a use.
    pub fn holders(&self, hash: u64) -> Option<Holders> {
        self.with_set(hash, |set, _| {
            let entry = set.chunks_exact(WORDS).find(|entry| is(entry, hash))?;
            entry[3..].first_chunk().copied()
        })
    }

    /// Notes that an endpoint (not 0) sees the block with this hash now.
    pub fn record(&self, hash: u64, endpoint: u32) {
        self.with_set(hash, |set, clock| {
            let known = set.chunks_exact(WORDS).position(|entry| is(entry, hash));
            let place = known.or_else(|| {
                // Empty places have been used at no time, and the clock never stands still: the difference wraps.
                let age = |entry: &[u32]| if entry[3] == 0 { u32::MAX } else { clock.wrapping_sub(entry[2]) };
                let entries = set.chunks_exact(WORDS).enumerate();
                entries.max_by_key(|(_, entry)| age(entry)).map(|(place, _)| place)
            })?;
            let entry = set.get_mut(place * WORDS..(place + 1) * WORDS)?;
            if known.is_none() {
                entry.fill(0);
                (entry[0], entry[1]) = halves(hash);
            }
            entry[2] = clock;
            let holders = &mut entry[3..];
            let last = holders.iter().position(|holder| *holder == endpoint).unwrap_or(HOLDERS - 1);
            holders[..=last].rotate_right(1);
            holders[0] = endpoint;
            Some(())
        });
    }

    fn with_set<T>(&self, hash: u64, act: impl FnOnce(&mut [u32], u32) -> Option<T>) -> Option<T> {
        // The low bits choose the part, the others the place in it: the high half of a product is spread like they are.
        let shard = self.shards.get(usize::try_from(hash).ok()? % SHARDS)?;
        let place = ((u128::from(hash) * u128::from(self.sets)) >> 64) as usize;
        let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
        shard.clock = shard.clock.wrapping_add(1);
        let clock = shard.clock;
        act(shard.sets.get_mut(place)?, clock)
    }
}

fn halves(hash: u64) -> (u32, u32) {
    ((hash >> 32) as u32, hash as u32)
}

/// Whether an entry is taken, and by this hash.
fn is(entry: &[u32], hash: u64) -> bool {
    (entry[0], entry[1]) == halves(hash) && entry[3] != 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_newest_endpoints_of_a_block_are_known() {
        let index = PrefixIndex::new(1 << 20);
        assert_eq!(index.holders(7), None);
        for endpoint in [1, 2, 3, 1] {
            index.record(7, endpoint);
        }
        assert_eq!(index.holders(7), Some([1, 3, 2, 0, 0]));
        for endpoint in [4, 5, 6] {
            index.record(7, endpoint);
        }
        assert_eq!(index.holders(7), Some([6, 5, 4, 1, 3]), "the one that was longest ago is forgotten");
        assert_eq!(index.holders(8), None);
    }

    #[test]
    fn the_block_that_was_used_the_longest_ago_makes_room() {
        // One set in each part; hashes that are equal but for multiples of the parts' number share it.
        let index = PrefixIndex::new(SHARDS * SET_BYTES);
        let hash = |number: u64| number * SHARDS as u64;
        for number in 1..=8 {
            index.record(hash(number), 1);
        }
        index.record(hash(1), 1);
        index.record(hash(9), 1);
        let known: Vec<u64> = (1..=9).filter(|number| index.holders(hash(*number)).is_some()).collect();
        assert_eq!(known, [1, 3, 4, 5, 6, 7, 8, 9]);
    }

    #[test]
    fn a_table_without_room_knows_nothing_and_breaks_nothing() {
        for bytes in [0, 1, SHARDS * SET_BYTES - 1] {
            let index = PrefixIndex::new(bytes);
            index.record(1, 1);
            assert_eq!((index.holders(1), index.bytes()), (None, 0));
        }
    }

    #[test]
    fn a_table_is_used_evenly() {
        let index = PrefixIndex::new(1 << 20);
        let places = (1 << 20) / (WORDS * 4);
        let hash = |number: u64| xxhash_rust::xxh3::xxh3_64(&number.to_le_bytes());
        for number in 0..places as u64 / 2 {
            index.record(hash(number), 1);
        }
        let kept = (0..places as u64 / 2).filter(|number| index.holders(hash(*number)).is_some()).count();
        // Half full: a set of eight meets more than eight with a probability of 2 %.
        assert!(kept * 100 > places / 2 * 98, "{kept} of {}", places / 2);
    }

    proptest! {
        #[test]
        fn memory_is_bounded_exactly_whatever_is_recorded(
            bytes in 0_usize..400_000,
            records in prop::collection::vec((any::<u64>(), 1_u32..9), 0..2_000),
        ) {
            let index = PrefixIndex::new(bytes);
            let before = index.bytes();
            prop_assert!(before <= bytes);
            prop_assert!(bytes - before < SHARDS * SET_BYTES);
            for (hash, endpoint) in &records {
                index.record(*hash, *endpoint);
                if before > 0 {
                    prop_assert_eq!(index.holders(*hash).expect("the newest is known")[0], *endpoint);
                }
            }
            prop_assert_eq!(index.bytes(), before);
            let mut distinct: Vec<u64> = records.iter().map(|record| record.0).collect();
            distinct.sort_unstable();
            distinct.dedup();
            let known = distinct.iter().filter(|hash| index.holders(**hash).is_some()).count();
            prop_assert!(known <= before / (WORDS * 4));
        }
    }
}
