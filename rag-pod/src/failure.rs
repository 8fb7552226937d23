//! Why the program failed, and whether it may help to start it again.

/// Why the program failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// A setting or a question is wrong: the next attempt would end alike.
    #[error("{0}")]
    Wrong(String),
    /// Something could not be reached, or broke.
    #[error("{0}")]
    Again(String),
}

impl Failure {
    /// The exit code of [`Failure::Wrong`]; a Job does not start the pod again after it. The same as of a wrong flag.
    pub const WRONG: u8 = 2;
    /// The exit code of [`Failure::Again`].
    pub const AGAIN: u8 = 1;

    /// A setting or a question is wrong.
    pub fn wrong(message: impl Into<String>) -> Self {
        Self::Wrong(message.into())
    }

    /// Something could not be reached, or broke.
    pub fn again(message: impl Into<String>) -> Self {
        Self::Again(message.into())
    }

    /// What the process ends with.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Wrong(_) => Self::WRONG,
            Self::Again(_) => Self::AGAIN,
        }
    }
}
