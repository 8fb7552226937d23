//! Whether an answer is an expected one and nothing else.

/// `answer` and `expected` as [`crate::words()`].
pub fn exact_match(answer: &[String], expected: &[Vec<String>]) -> bool {
    expected.iter().any(|one| one == answer)
}
