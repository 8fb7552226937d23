//! Whether an expected answer occurs in an answer, word by word: `7` does not occur in `17`.

/// `answer` and `expected` as [`crate::words()`].
pub fn contains(answer: &[String], expected: &[Vec<String>]) -> bool {
    expected.iter().any(|one| occurs(answer, one))
}

/// Whether `part`'s words stand in `text` one after another.
pub(crate) fn occurs(text: &[String], part: &[String]) -> bool {
    !part.is_empty() && text.windows(part.len()).any(|window| window == part)
}
