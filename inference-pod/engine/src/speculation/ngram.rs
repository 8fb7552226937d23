//! Prompt lookup: what followed the last tokens when they were seen before, in prompt or answer.
//!
//! For each sequence an index is kept that grows with it, so that a step costs the same however long the sequence is. It is
//! that of LZ77: where each run of `shortest` tokens was seen last, and, for each place, where it was seen before that.

use std::collections::HashMap;
use std::num::NonZeroUsize;

use lru::LruCache;

use super::{Acceptance, most_sequences};
use crate::backend::SequenceId;
use crate::proposer::Proposer;

/// Earlier places that are compared; the last ones first.
const PLACES: usize = 16;
/// No place.
const NOWHERE: u32 = u32::MAX;

/// How far back and ahead to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NGramSettings {
    /// Most tokens guessed at once.
    pub tokens: usize,
    /// Longest run of last tokens that is compared.
    pub longest: usize,
    /// Shortest run of last tokens that counts as seen before; at least 1, and no more than `longest`.
    pub shortest: usize,
}

/// Guesses for many sequences.
#[derive(Debug)]
pub struct NGramProposer {
    settings: NGramSettings,
    /// The sequences that were asked about last; one that ended is pushed out by others.
    sequences: LruCache<SequenceId, Index>,
}

impl NGramProposer {
    /// For up to `sequences` sequences at the same time. Settings that make no sense are moved to the nearest that do.
    #[must_use]
    pub fn new(settings: NGramSettings, sequences: usize) -> Self {
        let shortest = settings.shortest.max(1);
        let settings = NGramSettings { shortest, longest: settings.longest.max(shortest), ..settings };
        let sequences = NonZeroUsize::new(sequences).unwrap_or(NonZeroUsize::MIN);
        Self { settings, sequences: LruCache::new(sequences) }
    }

    /// Guesses at what follows `tokens`, the whole sequence so far; `most` at most. Of the places where the last tokens were
    /// seen before, the one with the longest common past is taken, and of those the last one.
    pub fn guess(&mut self, sequence: SequenceId, tokens: &[u32], most: usize) -> Vec<u32> {
        let settings = self.settings;
        let index = self.sequences.get_or_insert_mut(sequence, Index::default);
        index.take_in(tokens, settings.shortest);
        if !index.acceptance.is_worth_it(tokens.len()) {
            return Vec::new();
        }
        let guess = match index.best_place(tokens, settings) {
            Some(place) => tokens[place..].iter().copied().take(settings.tokens.min(most)).collect(),
            None => Vec::new(),
        };
        index.guess.clone_from(&guess);
        guess
    }
}

impl Proposer for NGramProposer {
    fn propose(&mut self, sequence: SequenceId, tokens: &[u32], most: usize) -> Vec<u32> {
        self.guess(sequence, tokens, most)
    }

    fn most_sequences(&self) -> usize {
        most_sequences(self.settings.tokens)
    }
}

/// Where one sequence has its runs of tokens.
#[derive(Debug, Default)]
struct Index {
    /// The place behind a run's last occurrence, by the run's hash.
    last: HashMap<u64, u32>,
    /// For the place behind each run, that behind the same hash's previous one.
    previous: Vec<u32>,
    /// What was guessed last, for the place where the index ends.
    guess: Vec<u32>,
    acceptance: Acceptance,
}

impl Index {
    /// Adds the tokens that are new, and sees how the last guess has fared.
    fn take_in(&mut self, tokens: &[u32], shortest: usize) {
        if tokens.len() < self.previous.len() {
            *self = Self::default();
        }
        let known = self.previous.len();
        let guess = std::mem::take(&mut self.guess);
        if !guess.is_empty() && tokens.len() > known {
            let right =
                guess.iter().zip(&tokens[known..]).take_while(|(guess, token)| guess == token).count();
            self.acceptance.record(guess.len(), right, tokens.len());
        }
        self.previous.reserve(tokens.len() - known);
        // A run is entered once something follows it: what has no future is no place to look for one.
        for place in known..tokens.len() {
            let before = match place.checked_sub(shortest) {
                Some(first) => self.last.insert(hash(&tokens[first..place]), place as u32).unwrap_or(NOWHERE),
                None => NOWHERE,
            };
            self.previous.push(before);
        }
    }

    fn best_place(&self, tokens: &[u32], settings: NGramSettings) -> Option<usize> {
        let run = &tokens[tokens.len().checked_sub(settings.shortest)?..];
        let mut place = self.last.get(&hash(run)).copied().unwrap_or(NOWHERE);
        let mut best: Option<(usize, usize)> = None;
        for _ in 0..PLACES {
            if place == NOWHERE {
                break;
            }
            let here = place as usize;
            let common = tokens[..here]
                .iter()
                .rev()
                .zip(tokens.iter().rev())
                .take(settings.longest)
                .take_while(|(then, now)| then == now)
                .count();
            // Runs of one hash need not be the same.
            if common >= settings.shortest && best.is_none_or(|(longest, _)| common > longest) {
                best = Some((common, here));
            }
            if common == settings.longest {
                break;
            }
            place = self.previous.get(here).copied().unwrap_or(NOWHERE);
        }
        best.map(|(_, place)| place)
    }
}

/// FNV-1a over whole tokens, mixed at the end: runs are short, and a collision costs a comparison.
fn hash(run: &[u32]) -> u64 {
    let hash = run.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, &token| {
        (hash ^ u64::from(token)).wrapping_mul(0x0100_0000_01b3)
    });
    hash ^ (hash >> 29)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SETTINGS: NGramSettings = NGramSettings { tokens: 3, longest: 4, shortest: 2 };

    /// The same by looking everywhere.
    fn slow_guess(tokens: &[u32], settings: NGramSettings, most: usize) -> Vec<u32> {
        let common = |place: usize| {
            let pairs = tokens[..place].iter().rev().zip(tokens.iter().rev());
            pairs.take(settings.longest).take_while(|(then, now)| then == now).count()
        };
        let places =
            (settings.shortest..tokens.len()).rev().filter(|&place| common(place) >= settings.shortest);
        let mut best: Option<usize> = None;
        for place in places.take(PLACES) {
            if best.is_none_or(|best| common(place) > common(best)) {
                best = Some(place);
            }
        }
        best.map_or_else(Vec::new, |place| {
            tokens[place..].iter().copied().take(settings.tokens.min(most)).collect()
        })
    }

    #[test]
    fn the_longest_common_past_wins_and_then_the_last() {
        let mut proposer = NGramProposer::new(SETTINGS, 4);
        assert!(proposer.guess(1, &[1, 2], 9).is_empty());
        assert_eq!(proposer.guess(2, &[9, 1, 2, 5, 6, 7, 1, 2, 8, 8, 9, 1, 2], 9), [5, 6, 7]);
        assert_eq!(proposer.guess(3, &[3, 1, 2, 5, 6, 7, 1, 2, 8, 8, 4, 1, 2], 9), [8, 8, 4]);
        assert_eq!(proposer.guess(4, &[3, 1, 2, 5, 6, 7, 1, 2, 8, 8, 4, 1, 2], 1), [8]);
        assert_eq!(proposer.guess(5, &[7, 7, 7], 9), [7]);
        assert!(proposer.guess(6, &[], 9).is_empty());
    }

    #[test]
    fn sequences_that_are_not_asked_about_are_forgotten() {
        let mut proposer = NGramProposer::new(SETTINGS, 2);
        for sequence in 0..100 {
            assert_eq!(proposer.guess(sequence, &[1, 2, 3, 1, 2], 9), [3, 1, 2]);
        }
        assert_eq!(proposer.sequences.len(), 2);
        // Whatever is asked after it was forgotten, or is another sequence altogether, is answered as if new.
        assert_eq!(proposer.guess(0, &[4, 5, 6, 4, 5], 9), [6, 4, 5]);
        assert!(proposer.guess(0, &[4, 5], 9).is_empty());
    }

    #[test]
    fn guesses_that_are_always_wrong_stop() {
        let mut proposer = NGramProposer::new(SETTINGS, 1);
        let mut tokens = vec![1, 2, 0];
        let mut guesses = 0;
        for next in 100..1000 {
            tokens.extend([1, 2]);
            guesses += usize::from(!proposer.guess(1, &tokens, 9).is_empty());
            tokens.push(next);
        }
        // 11 guesses of 3 tokens, then 64 tokens, 22 rounds of this loop, without.
        assert!((200..400).contains(&guesses), "{guesses}");
    }

    proptest! {
        #[test]
        fn a_growing_index_finds_what_a_search_finds(
            tokens in prop::collection::vec(0..4_u32, 1..200),
            steps in prop::collection::vec(1..9_usize, 1..60),
            (longest, shortest) in (1..5_usize, 1..4_usize),
            most in 1..5_usize,
        ) {
            let settings = NGramSettings { tokens: 4, longest: longest.max(shortest), shortest };
            let mut proposer = NGramProposer::new(settings, 1);
            let mut length = 0;
            for step in steps {
                length = (length + step).min(tokens.len());
                let worth = {
                    let guess = proposer.guess(1, &tokens[..length], most);
                    let index = proposer.sequences.peek(&1).unwrap();
                    if index.acceptance.is_worth_it(length) {
                        prop_assert_eq!(guess, slow_guess(&tokens[..length], settings, most));
                        true
                    } else {
                        guess.is_empty()
                    }
                };
                prop_assert!(worth);
            }
        }
    }
}
