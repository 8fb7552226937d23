//! Test hub.
