//! LoRA adapters as PEFT saves them: adapter_config.json and the header of adapter_model.safetensors, checked against the
//! model they are for.
//!
//! An adapter adds `scale * B(A x)` to what some projections `W x` of the base give. Everything that would change the
//! answer in another way (DoRA, trained biases, modules saved whole, …) is refused by name: an adapter is served as it was
//! trained, or not at all.

pub mod config;
pub mod modules;
pub mod tensors;

pub use config::LoraConfig;
pub use modules::Projection;
pub use tensors::{LoraModule, LoraTensors};

/// The file that says what an adapter is.
pub const ADAPTER_CONFIG_FILE: &str = "adapter_config.json";
/// The file that holds its matrices.
pub const ADAPTER_WEIGHTS_FILE: &str = "adapter_model.safetensors";

/// Largest rank that is taken, as in vLLM.
pub const MAX_RANK: u32 = 512;
/// Longest adapter_config.json that is read, in bytes.
pub const MAX_ADAPTER_CONFIG_BYTES: usize = 1 << 20;
