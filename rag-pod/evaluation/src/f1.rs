//! How many words an answer has in common with what was expected: the harmonic mean of precision and recall, as in SQuAD.

use std::collections::BTreeMap;

/// The best over the expected ones, 0 to 1. `answer` and `expected` as [`crate::words()`].
pub fn f1(answer: &[String], expected: &[Vec<String>]) -> f64 {
    expected.iter().map(|one| of_one(answer, one)).fold(0.0, f64::max)
}

fn of_one(answer: &[String], expected: &[String]) -> f64 {
    let mut left: BTreeMap<&str, usize> = BTreeMap::new();
    for word in expected {
        *left.entry(word).or_default() += 1;
    }
    let mut common = 0_usize;
    for word in answer {
        if let Some(count) = left.get_mut(word.as_str()).filter(|count| **count > 0) {
            *count -= 1;
            common += 1;
        }
    }
    if common == 0 {
        return 0.0;
    }
    // 2pr / (p + r), with p = common / answer and r = common / expected.
    2.0 * float(common) / float(answer.len() + expected.len())
}

/// Numbers of words are far below 2^53.
#[allow(clippy::cast_precision_loss)]
fn float(count: usize) -> f64 {
    count as f64
}
