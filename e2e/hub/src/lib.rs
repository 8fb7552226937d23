//! A small Hugging Face hub for tests: real HTTP, a folder of models behind it, and faults on demand.
//!
//! It owns the server's side of the protocol that `fairlead-fetch` and `huggingface_hub` speak: revisions that resolve to
//! commits, file lists, ranges, entity tags, redirects to another host, bearer tokens. It keeps a log of what it served, so
//! that a test can say how many bytes an inspection took. It must not be used to serve people: nothing is authenticated but
//! by one shared token, and anyone may ask for faults.
//!
//! Used in process by the tests of `fairlead-fetch`, as the binary `fairlead-test-hub` by the quickstart and the end-to-end
//! tests.

pub mod faults;
mod file_answer;
pub mod log;
pub mod repository;
pub mod serve;

pub use faults::{Fault, FaultKind, Faults};
pub use log::{RequestLog, RequestRecord};
pub use serve::{HubOptions, TestHub};
