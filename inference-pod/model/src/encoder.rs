//! Encoders of the BERT family: models that read a text at once and make a vector or a score of it, and write nothing.
//!
//! They have a type of their own: no KV cache, no rotary positions, no sampling. [`EncoderConfig`] is what the operator
//! plans with and the backend builds its layers from; [`pipeline`] is what sentence-transformers adds around the model.

mod config;
pub mod pipeline;
mod plan;
mod tensors;

pub use config::{
    Activation, EncoderArchitecture, EncoderConfig, EncoderFamily, EncoderFiles, ScoreActivation,
};
pub use pipeline::{Pipeline, Pooling};
pub use plan::{EncoderPlanInputs, plan_encoder};
pub use tensors::EncoderNames;
