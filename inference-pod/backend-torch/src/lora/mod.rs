//! LoRA adapters: several resident at once, several in one step.
//!
//! The base model's projections stay what they are; what a sequence's adapter adds to their output is added to that
//! sequence's rows afterwards, by [`LayerAdapters::add`]. [`StepAdapters`] sorts out once for a step whose rows are whose
//! and serves every layer. Rows without an adapter cost nothing. What an adapter may hold is checked by
//! `fairlead_model::lora`.

mod adapter;
mod reader;
mod step_adapters;

pub(crate) use adapter::{Adapter, Fused};
pub(crate) use reader::TorchAdapterReader;
pub(crate) use step_adapters::{LayerAdapters, StepAdapters};
