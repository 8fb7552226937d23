//! What an Evaluation measures, and which differences it does not count.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Score {
    /// Share of the answers that are one of the expected ones, and nothing else.
    ExactMatch,
    /// Share of the answers that one of the expected ones occurs in, word by word.
    Contains,
    /// Words that an answer and the likest of the expected ones have in common: the harmonic mean of precision and recall, as in
    /// SQuAD.
    F1,
    /// Share of the questions that should be refused that were refused.
    Refusal,
    /// Share of the questions that should be answered that were refused. Lower is better.
    FalseRefusal,
    /// Seconds to the whole answer, of the questions that got one. Lower is better.
    Latency,
    /// Share of the questions that got no answer. Lower is better.
    Errors,
}

impl Score {
    /// All of them, in the order in which they are shown.
    pub const ALL: [Self; 7] = [
        Self::ExactMatch,
        Self::Contains,
        Self::F1,
        Self::Refusal,
        Self::FalseRefusal,
        Self::Latency,
        Self::Errors,
    ];

    /// As it is written in a spec.
    pub fn name(self) -> &'static str {
        match self {
            Self::ExactMatch => "exactMatch",
            Self::Contains => "contains",
            Self::F1 => "f1",
            Self::Refusal => "refusal",
            Self::FalseRefusal => "falseRefusal",
            Self::Latency => "latency",
            Self::Errors => "errors",
        }
    }

    /// Whether a higher value is a better one.
    pub fn higher_is_better(self) -> bool {
        match self {
            Self::ExactMatch | Self::Contains | Self::F1 | Self::Refusal => true,
            Self::FalseRefusal | Self::Latency | Self::Errors => false,
        }
    }
}

/// A difference between an answer and what was expected that does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Ignored {
    /// Upper and lower case.
    Case,
    /// Punctuation of any script, and ASCII symbols such as $ and +.
    Punctuation,
    /// The English articles a, an and the.
    Articles,
    /// References to passages such as `[1]`.
    Citations,
}
