//! Why a model cannot be served, each with the remedy, and the condition reason it maps to.
//!
//! Made by this crate and by `fairlead-fetch`; the operator turns [`Reason`] into a condition, a pod writes it to its
//! termination message as `<Reason>: <message>`.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The condition reason of a failure. The names are those of `fairlead_crds::condition::stalled`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Reason {
    /// A setting contradicts the model or itself.
    InvalidSpec,
    /// The model's files are absent at the place that `model.uri` names, or may not be read.
    ModelNotFound,
    /// The files are there but cut short, corrupt or contradictory.
    ModelInvalid,
    /// No engine of ours runs this model.
    UnsupportedArchitecture,
    /// Weights and one sequence do not fit the memory a replica has.
    DoesNotFit,
    /// Something else keeps the pod from starting; trying again may help.
    PodFailed,
}

impl Reason {
    /// The reason as it stands in a condition or a termination message.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidSpec => "InvalidSpec",
            Self::ModelNotFound => "ModelNotFound",
            Self::ModelInvalid => "ModelInvalid",
            Self::UnsupportedArchitecture => "UnsupportedArchitecture",
            Self::DoesNotFit => "DoesNotFit",
            Self::PodFailed => "PodFailed",
        }
    }

    /// Reads a reason back from a termination message's first word (`<Reason>: <message>`).
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [
            Self::InvalidSpec,
            Self::ModelNotFound,
            Self::ModelInvalid,
            Self::UnsupportedArchitecture,
            Self::DoesNotFit,
            Self::PodFailed,
        ]
        .into_iter()
        .find(|reason| reason.as_str() == text)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a model cannot be served. Messages name the file, the field or the tensor, and the remedy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ModelError {
    /// A file is corrupt, cut short or contradicts another.
    #[error("{file}: {problem}")]
    Invalid {
        /// Which file, as a path in the model's folder.
        file: String,
        /// What is wrong and what to do.
        problem: String,
    },
    /// The model needs something that our engine does not have.
    #[error("{file}: {problem}")]
    Unsupported {
        /// Which file says so.
        file: String,
        /// What is not supported and what is.
        problem: String,
    },
    /// A setting contradicts the model or itself.
    #[error("{field}: {problem}")]
    InvalidSetting {
        /// The setting, as in the ModelDeployment's spec.
        field: &'static str,
        /// What is wrong and what to do.
        problem: String,
    },
    /// The memory is too small; the text is the plan's explanation.
    #[error("{0}")]
    DoesNotFit(String),
}

impl ModelError {
    /// The condition reason of this failure.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Invalid { .. } => Reason::ModelInvalid,
            Self::Unsupported { .. } => Reason::UnsupportedArchitecture,
            Self::InvalidSetting { .. } => Reason::InvalidSpec,
            Self::DoesNotFit(_) => Reason::DoesNotFit,
        }
    }

    /// A file is corrupt or contradictory.
    pub fn invalid(file: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Invalid { file: file.into(), problem: problem.into() }
    }

    /// The model needs something that our engine does not have.
    pub fn unsupported(file: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Unsupported { file: file.into(), problem: problem.into() }
    }
}

/// Shortens text that came from outside, so that a message stays readable and small.
#[must_use]
pub(crate) fn clip(text: &str) -> String {
    const LONGEST: usize = 80;
    let printable = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut clipped: String = printable.take(LONGEST).collect();
    if text.chars().nth(LONGEST).is_some() {
        clipped.push('…');
    }
    clipped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_read_back_from_its_name() {
        for reason in [Reason::ModelNotFound, Reason::DoesNotFit, Reason::PodFailed, Reason::InvalidSpec] {
            assert_eq!(Reason::parse(reason.as_str()), Some(reason));
        }
        assert_eq!(Reason::parse("OOMKilled"), None);
    }

    #[test]
    fn clipping_cuts_long_text_and_control_characters() {
        assert_eq!(clip("a\nb"), "a b");
        assert_eq!(clip(&"x".repeat(200)).chars().count(), 81);
    }
}
