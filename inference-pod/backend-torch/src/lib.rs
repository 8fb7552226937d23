//! libtorch backend.
