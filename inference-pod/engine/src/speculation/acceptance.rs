//! Whether guesses for one sequence have been right often enough to go on with them.

/// Guesses after which a sequence is judged.
const JUDGED: u32 = 32;
/// One in so many must have been right.
const ONE_IN: u32 = 8;
/// Tokens without guesses after a bad judgement; then it is given another chance, for texts change.
const REST: usize = 64;

/// How the guesses for one sequence have fared.
///
/// After every 32 guesses they are judged: if fewer than one in 8 was right, none are made for the next 64 tokens. Otherwise
/// half of what is known is forgotten, so that the recent counts more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Acceptance {
    guessed: u32,
    right: u32,
    /// Length of the sequence from which on guesses are made again.
    rests_until: usize,
}

impl Acceptance {
    /// Takes in how many of `guessed` tokens were right; `length` are the sequence's tokens by now.
    pub fn record(&mut self, guessed: usize, right: usize, length: usize) {
        self.guessed = self.guessed.saturating_add(u32::try_from(guessed).unwrap_or(u32::MAX));
        self.right = self.right.saturating_add(u32::try_from(right).unwrap_or(u32::MAX));
        if self.guessed < JUDGED {
            return;
        }
        if self.right.saturating_mul(ONE_IN) < self.guessed {
            *self = Self { rests_until: length.saturating_add(REST), ..Self::default() };
        } else {
            self.guessed /= 2;
            self.right /= 2;
        }
    }

    /// No guesses for this sequence any more.
    pub fn give_up(&mut self) {
        self.rests_until = usize::MAX;
    }

    /// Whether to guess for a sequence of `length` tokens.
    #[must_use]
    pub fn is_worth_it(&self, length: usize) -> bool {
        length >= self.rests_until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn poor_guesses_rest_and_come_back() {
        let mut acceptance = Acceptance::default();
        for length in 0..8 {
            assert!(acceptance.is_worth_it(length));
            acceptance.record(4, 0, length);
        }
        assert!(!acceptance.is_worth_it(8) && !acceptance.is_worth_it(70) && acceptance.is_worth_it(71));
        for length in 71..1000 {
            acceptance.record(4, 1, length);
            assert!(acceptance.is_worth_it(length));
        }
        acceptance.give_up();
        assert!(!acceptance.is_worth_it(1 << 40));
    }
}
