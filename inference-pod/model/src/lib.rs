//! Model description.
