//! Why a model could not be brought, and whether trying again can help.

use std::io;
use std::path::Path;
use std::time::Duration;

use fairlead_model::{ModelError, Reason};

/// Why a model could not be brought. Messages name the file or field and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The URI cannot be read, or cannot be used here.
    #[error("model.uri: {0}")]
    InvalidUri(String),
    /// A setting other than the URI cannot be used.
    #[error("{0}")]
    InvalidSetting(String),
    /// The repository, revision, folder or a needed file is not there.
    #[error("{0}")]
    NotFound(String),
    /// The hub wants a token, or another one.
    #[error("{0}")]
    Unauthorized(String),
    /// The files are there but cannot be served.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The files have another digest than the one asked for.
    #[error(
        "model.digest: the files have {actual}, but {expected} was asked for: correct the digest, or the URI's revision"
    )]
    DigestMismatch {
        /// What was asked for.
        expected: String,
        /// What the files have.
        actual: String,
    },
    /// The network or the hub failed; trying again later may help.
    #[error("{message}")]
    Transient {
        /// What failed.
        message: String,
        /// How long the hub asks to wait.
        retry_after: Option<Duration>,
    },
    /// The local disk failed.
    #[error("{0}")]
    Disk(String),
}

impl FetchError {
    /// The condition reason of this failure.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::InvalidUri(_) | Self::InvalidSetting(_) => Reason::InvalidSpec,
            Self::NotFound(_) | Self::Unauthorized(_) => Reason::ModelNotFound,
            Self::Model(error) => error.reason(),
            Self::DigestMismatch { .. } => Reason::ModelInvalid,
            Self::Transient { .. } | Self::Disk(_) => Reason::PodFailed,
        }
    }

    /// Whether trying again, with nothing changed, may help.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Transient { .. })
    }

    /// A failure of the network or the hub.
    pub(crate) fn transient(message: impl Into<String>) -> Self {
        Self::Transient { message: message.into(), retry_after: None }
    }

    /// A failure of the local disk while `doing` something with `path`, told so that a person knows what to change.
    pub(crate) fn disk(doing: &str, path: &Path, error: &io::Error) -> Self {
        let remedy = match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                "; the volume is full: give it more space, or remove other files"
            }
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                "; the folder must be writable by the user that runs this process"
            }
            io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => {
                "; a file is where a folder is needed: remove it, or choose another folder"
            }
            _ => "",
        };
        Self::Disk(format!("cannot {doing} {}: {error}{remedy}", path.display()))
    }
}
