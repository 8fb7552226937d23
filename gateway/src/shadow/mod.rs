//! Mirrored requests (`spec.shadow`): another backend is asked the same, and its answer is compared and thrown away.
//!
//! The live request does two things for it: it draws whether it is mirrored, and it hands on references to the bytes that it
//! passes to the client anyway ([`live`]). All else is the mirrored leg's own task ([`leg`]): it has its own places, timeouts and
//! connections, is dropped when there is no place, and is in no count of the route's. Texts live as long as the comparison
//! ([`compare`]) and are never logged or kept.

pub mod compare;
pub mod leg;
pub mod live;
pub mod metrics;
pub mod rule;
