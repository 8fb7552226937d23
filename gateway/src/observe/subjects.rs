//! Which subjects of a sticky split have been seen. All requests of one subject go to one variant and are alike, so only the first
//! of each is counted: what is counted is then independent, which the intervals take for granted.
//!
//! A table of bits of fixed size: a subject that falls on another's bit is taken for seen and not counted, whatever it feels, which
//! costs requests and biases nothing. No subject is counted twice.

use std::collections::BTreeMap;

use fairlead_rollout::stretch::Live;

use super::epoch::STEP;

/// 2 million bits: of 100,000 subjects 2 % are not counted, of a million a third.
const BITS: usize = 1 << 21;

/// The subjects that were seen since the step began, and since each stretch began.
#[derive(Debug)]
pub struct Subjects {
    step: Seen,
    live: Live,
    /// By the interval that the stretch began with.
    stretches: BTreeMap<i64, Seen>,
}

impl Subjects {
    /// Nobody was seen before interval `window`.
    pub fn new(window: i64) -> Self {
        Self { step: Seen::default(), live: Live::new(window), stretches: BTreeMap::new() }
    }

    /// Whether there was none.
    pub fn is_empty(&self) -> bool {
        self.step.0.is_empty()
    }

    /// Notes a subject's request in an interval. The first stretch that it is the first of its subject in, and so in all later ones:
    /// [`STEP`] where it is the first of all. `None` where it is the first in none.
    pub fn note(&mut self, subject: u64, window: i64) -> Option<i64> {
        if self.live.advance(window) {
            let begun = self.live.begun();
            self.stretches.retain(|it, _| begun.contains(it));
            for it in begun {
                self.stretches.entry(*it).or_default();
            }
        }
        let mut first = None;
        for (begun, seen) in self.stretches.iter_mut().rev() {
            // Who was seen since then was seen since all earlier ones.
            if !seen.first(subject) {
                return first;
            }
            first = Some(*begun);
        }
        if self.step.first(subject) { Some(STEP) } else { first }
    }
}

/// A table of bits; takes its memory with the first subject.
#[derive(Debug, Default)]
struct Seen(Vec<u64>);

impl Seen {
    /// Whether this is the first time.
    fn first(&mut self, subject: u64) -> bool {
        if self.0.is_empty() {
            self.0.resize(BITS / 64, 0);
        }
        // Other bits of the subject than those that choose its part.
        let mixed = (subject ^ (subject >> 29)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let bit = usize::try_from(mixed >> (64 - BITS.trailing_zeros())).unwrap_or(0);
        let Some(word) = self.0.get_mut(bit / 64) else { return false };
        let mask = 1 << (bit % 64);
        let first = *word & mask == 0;
        *word |= mask;
        first
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    #[test]
    fn a_subject_counts_once_in_a_step_and_once_in_each_stretch() {
        let mut subjects = Subjects::new(9);
        assert_eq!(subjects.note(7, 10), Some(STEP));
        assert_eq!(subjects.note(7, 10), None);
        assert_eq!(subjects.note(7, 11), Some(11), "seen since interval 10 began, and not since 11");
        assert_eq!(subjects.note(7, 13), Some(12), "two intervals later two stretches have begun");
        assert_eq!(subjects.note(8, 13), Some(STEP), "another");
        assert_eq!(subjects.note(7, 13), None);
        assert_eq!(subjects.note(8, 5_000).map(|first| first > 13), Some(true));
        assert!(subjects.stretches.len() <= 12, "no more than the kept ones");
    }

    #[test]
    fn few_of_many_subjects_are_taken_for_others() {
        let mut rng = StdRng::seed_from_u64(5);
        let mut seen = Seen::default();
        let subjects: Vec<u64> = (0..100_000).map(|_| rng.random()).collect();
        let counted = subjects.iter().filter(|subject| seen.first(**subject)).count();
        assert!(counted > 97_000, "{counted}");
        assert!(subjects.iter().all(|subject| !seen.first(*subject)), "never twice");
        // Subjects that are numbers in a row are as good.
        let mut seen = Seen::default();
        assert!((0..100_000_u64).filter(|subject| seen.first(*subject)).count() > 95_000);
    }
}
