//! The engine as pure logic: sequences, the scheduler, the block pool and sampling, with no tensor in it.
//!
//! [`backend::Backend`] is what runs a step; `fairlead-backend-torch` implements it on libtorch.

pub mod backend;
pub mod block_pool;
pub mod sampling;
