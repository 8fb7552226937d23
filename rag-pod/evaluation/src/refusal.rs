//! Whether an answer says that it is none.

use std::collections::BTreeSet;

use fairlead_crds::evaluation::Ignored;

use crate::contains::occurs;
use crate::words::words;

/// Phrases that make an answer a refusal, unless others are given.
pub const PHRASES: [&str; 27] = [
    "does not contain the answer",
    "do not contain the answer",
    "doesn't contain the answer",
    "don't contain the answer",
    "does not contain enough information",
    "do not contain enough information",
    "not enough information",
    "no information about",
    "is not mentioned",
    "does not mention",
    "do not mention",
    "does not say",
    "do not say",
    "does not provide",
    "do not provide",
    "I do not know",
    "I don't know",
    "cannot answer",
    "can't answer",
    "cannot be answered",
    "unable to answer",
    "cannot help with",
    "can't help with",
    "unable to help",
    "cannot assist",
    "can't assist",
    "unable to assist",
];

/// Phrases, ready to be looked for.
#[derive(Clone, Debug)]
pub struct Phrases(Vec<Vec<String>>);

impl Phrases {
    /// These phrases; [`PHRASES`] where there are none.
    pub fn new<S: AsRef<str>>(phrases: &[S]) -> Self {
        let given: Vec<Vec<String>> = phrases.iter().map(|phrase| plain(phrase.as_ref())).collect();
        if given.is_empty() {
            Self(PHRASES.iter().map(|phrase| plain(phrase)).collect())
        } else {
            Self(given)
        }
    }

    /// Whether one of them occurs in an answer, whatever its case and punctuation.
    pub fn refused(&self, answer: &str) -> bool {
        let answer = plain(answer);
        self.0.iter().any(|phrase| occurs(&answer, phrase))
    }
}

fn plain(text: &str) -> Vec<String> {
    words(text, &BTreeSet::from([Ignored::Case, Ignored::Punctuation]))
}
