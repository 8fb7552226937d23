//! The engine as pure logic: sequences, the scheduler, the block pool and sampling, with no tensor in it.
//!
//! [`backend::Backend`] is what runs a step; `fairlead-backend-torch` implements it on libtorch. [`engine::start`] puts
//! both on a thread of their own; what a caller sends is a [`sequence::GenerationRequest`], what it gets are
//! [`engine::Event`]s. [`encoder`] is the same for models that make vectors and scores.

pub mod backend;
pub mod block_pool;
pub mod encoder;
pub mod engine;
pub mod grammar;
pub mod prefix_hash;
pub mod proposer;
pub mod sampling;
pub mod scheduler;
pub mod sequence;
pub mod speculation;
mod step_clock;
pub mod stop;
pub mod tiers;
