//! Where a model's files come from: a hub over HTTP, or a folder (a mounted claim, an unpacked image, a disk).
//!
//! It owns all IO on model sources: inspection by a few range reads, resumable downloads, digests. What the bytes mean is
//! `fairlead-model`'s business. The operator calls [`inspect()`] on a hub, the pod's `inspect` and `serve` commands on
//! whatever they are given.
//!
//! Files in use, and in no other: see [`files`].

pub mod digest;
mod download;
pub mod error;
pub mod fetch;
pub mod files;
pub mod hub;
mod hub_answer;
pub mod inspect;
pub mod progress;
pub mod remote_model;
pub mod retry;
pub mod source_uri;
mod state;

pub use error::FetchError;
pub use fetch::{FetchOptions, FetchedModel, fetch, fetch_adapter};
pub use hub::Hub;
pub use inspect::{Inspection, inspect};
pub use progress::{Progress, ProgressFn};
pub use remote_model::{RemoteFile, RemoteModel};
pub use retry::RetryPolicy;
pub use source_uri::{Repository, SourceUri};
