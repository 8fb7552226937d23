//! Streams that go on at another pod when theirs dies: no token twice, none missing.
//!
//! [`tap`] takes the pod's notes out of the stream and remembers the tokens; [`kept`] holds what another pod must be asked
//! with, and asks it. `relay` drives both. Pods that write no notes (other engines, providers) are passed through, and what
//! cannot be continued ends as it always did: with an error event.

pub mod kept;
pub mod tap;
