//! Inference server.
