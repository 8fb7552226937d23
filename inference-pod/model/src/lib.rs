//! What a model is and what it needs, as pure data: config.json, safetensors headers, the tensors an architecture wants,
//! LoRA adapters, and the memory plan.
//!
//! It owns every check that can be made before a weight is read, and the arithmetic behind `status.plan`. It reads no file
//! and opens no connection: `fairlead-fetch` brings the bytes. The operator calls [`plan()`] before it makes a pod, the
//! inference server before it loads, and the libtorch backend builds its layers from [`ModelConfig`].
//!
//! Everything that is parsed here comes from the outside, so the parsers take hostile bytes: sizes are bounded, sums are
//! checked, and nothing panics.

pub mod architecture;
pub mod config;
pub mod dtype;
pub mod encoder;
pub mod error;
mod fields;
pub mod generation;
pub mod index;
pub mod lora;
pub mod plan;
pub mod quantization;
pub mod rope;
pub mod safetensors_header;
pub mod shape;
pub mod sliding_window;
pub mod tensors;

pub use architecture::Architecture;
pub use config::ModelConfig;
pub use dtype::{DeviceKind, RunDtype, StoredDtype};
pub use encoder::{EncoderConfig, EncoderFiles};
pub use error::{ModelError, Reason};
pub use generation::GenerationDefaults;
pub use index::SafetensorsIndex;
pub use lora::{LoraConfig, LoraTensors};
pub use plan::{DraftInputs, Plan, PlanInputs, plan};
pub use quantization::{LoadQuantization, PackedLayout, Quantization, WeightForm};
pub use rope::{Rope, RopeScaling};
pub use safetensors_header::{SafetensorsHeader, TensorInfo};
pub use shape::{ModelShape, Purpose};
pub use sliding_window::{AttentionKind, SlidingWindow};
pub use tensors::{Checkpoint, Projection, TensorKind, TensorSpec, WeightsSummary};
