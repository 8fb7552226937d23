//! Which subjects of a sticky split have been seen. All requests of one subject go to one variant and are alike, so only the first
//! of each is counted: what is counted is then independent, which the intervals take for granted.
//!
//! A table of bits of fixed size: a subject that falls on another's bit is taken for seen and not counted, whatever it feels, which
//! costs requests and biases nothing. No subject is counted twice.

/// 2 million bits: of 100,000 subjects 2 % are not counted, of a million a third.
const BITS: usize = 1 << 21;

/// The subjects that were seen since the step began, and since each of the last two intervals began.
#[derive(Debug, Default)]
pub struct Subjects {
    step: Seen,
    windows: Vec<(i64, Seen)>,
}

/// What is counted of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Judged {
    /// In the counts of the step.
    pub step: bool,
    /// In the counts that begin with the last interval.
    pub last: bool,
    /// In the counts that begin with this interval.
    pub this: bool,
}

impl Judged {
    /// A request that is independent of others.
    pub const ALL: Self = Self { step: true, last: true, this: true };
}

impl Subjects {
    /// Whether there was none.
    pub fn is_empty(&self) -> bool {
        self.step.0.is_empty()
    }

    /// Notes a subject's request in an interval, and says where it is the first.
    pub fn note(&mut self, subject: u64, window: i64) -> Judged {
        self.windows.retain(|(begun, _)| *begun == window || *begun == window.saturating_sub(1));
        let mut first_since = |begun: i64| {
            if let Some((_, seen)) = self.windows.iter_mut().find(|(it, _)| *it == begun) {
                return seen.first(subject);
            }
            let mut seen = Seen::default();
            let first = seen.first(subject);
            self.windows.push((begun, seen));
            first
        };
        let (last, this) = (first_since(window.saturating_sub(1)), first_since(window));
        Judged { step: self.step.first(subject), last, this }
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
        let mut subjects = Subjects::default();
        assert_eq!(subjects.note(7, 10), Judged::ALL);
        assert_eq!(subjects.note(7, 10), Judged::default());
        let next = Judged { this: true, ..Judged::default() };
        assert_eq!(subjects.note(7, 11), next, "seen since interval 10 began, and not since 11");
        assert_eq!(subjects.note(7, 12), next);
        assert_eq!(subjects.note(7, 20), Judged { step: false, ..Judged::ALL });
        assert!(subjects.windows.len() <= 3, "no more than the live ones");
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
