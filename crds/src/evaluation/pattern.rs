//! Which questions of a score were hits, as text: so that two that were asked the same can be compared question by question.
//!
//! Four questions a hexadecimal digit, the first in its highest bit; what is left of the last digit is zeros. Pure; written by the
//! runner, read by whoever judges.

use super::ScoreResult;

/// Digits that the patterns of one result may have together, so that a result stays far below what a termination message may have: a score
/// of 9,600 questions, or five of 1,920 each.
pub const MOST_DIGITS: usize = 2400;

/// The pattern of these hits.
pub fn pattern(hits: &[bool]) -> String {
    let digit = |four: &[bool]| {
        let bits =
            (0..4).fold(0, |bits, place| 2 * bits + u32::from(four.get(place).copied().unwrap_or(false)));
        char::from_digit(bits, 16).unwrap_or('0')
    };
    hits.chunks(4).map(digit).collect()
}

/// In how many questions only the first was a hit, and in how many only the second. `None` where one has no pattern, or they are not of
/// the same number of questions, or a pattern is not that of its hits.
pub fn discordant(first: &ScoreResult, second: &ScoreResult) -> Option<(u64, u64)> {
    let (mine, theirs) = (digits(first)?, digits(second)?);
    if first.n != second.n {
        return None;
    }
    let count = |of: &dyn Fn(u32, u32) -> u32| {
        mine.iter().zip(&theirs).map(|(a, b)| u64::from(of(*a, *b).count_ones())).sum()
    };
    Some((count(&|a, b| a & !b), count(&|a, b| b & !a)))
}

fn digits(score: &ScoreResult) -> Option<Vec<u32>> {
    let digits: Vec<u32> =
        score.pattern.as_ref()?.chars().map(|digit| digit.to_digit(16)).collect::<Option<_>>()?;
    let hits: u32 = digits.iter().map(|digit| digit.count_ones()).sum();
    let fits = digits.len() == usize::try_from(score.n).ok()?.div_ceil(4) && Some(hits) == score.hits;
    fits.then_some(digits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluation::Score;

    fn score(hits: &[bool]) -> ScoreResult {
        let count = |of: usize| u32::try_from(of).unwrap();
        ScoreResult {
            name: Score::Contains,
            n: count(hits.len()),
            hits: Some(count(hits.iter().filter(|hit| **hit).count())),
            mean: "0".into(),
            variance: None,
            pattern: Some(pattern(hits)),
        }
    }

    #[test]
    fn what_only_one_answered_is_read_from_two_patterns() {
        let (yes, no) = (true, false);
        assert_eq!(pattern(&[yes, no, no, yes, yes]), "98");
        assert_eq!(pattern(&[]), "");
        let first = score(&[yes, yes, no, yes, yes, no]);
        let second = score(&[yes, no, yes, no, no, no]);
        assert_eq!(discordant(&first, &second), Some((3, 1)));
        assert_eq!(discordant(&second, &first), Some((1, 3)));
        assert_eq!(discordant(&first, &first), Some((0, 0)));
    }

    #[test]
    fn what_does_not_fit_together_is_not_compared() {
        let good = score(&[true; 6]);
        for spoilt in [
            ScoreResult { pattern: None, ..good.clone() },
            ScoreResult { pattern: Some("fg".into()), ..good.clone() },
            ScoreResult { pattern: Some("f8".into()), ..good.clone() },
            ScoreResult { pattern: Some("fc0".into()), ..good.clone() },
            ScoreResult { hits: Some(5), ..good.clone() },
            score(&[true; 7]),
        ] {
            assert_eq!(discordant(&good, &spoilt), None, "{spoilt:?}");
            assert_eq!(discordant(&spoilt, &good), None, "{spoilt:?}");
        }
    }
}
