//! FFI edge.
