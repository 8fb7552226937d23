//! What settings may be, wherever they come from: the ranges of the ModelDeployment's schema, and what a schema cannot say.

use std::ops::RangeInclusive;

use fairlead_inference_config::{InferenceConfig, SpeculationConfig};

use super::ConfigError;
use super::fields::with_flag;

/// Sizes of a KV block.
const BLOCK_TOKENS: [u32; 3] = fairlead_model::plan::BLOCK_SIZES;
/// More tokens than any model reads.
const TOKENS: RangeInclusive<u32> = 1..=16_777_216;

/// Refuses settings out of their range.
///
/// # Errors
/// [`ConfigError`] naming the field, the flag, the value and what it must be.
pub(super) fn check(config: &InferenceConfig) -> Result<(), ConfigError> {
    let InferenceConfig { engine, speculation, server, .. } = config;
    for (field, value, range) in [
        ("engine.maxModelLen", engine.max_model_len, TOKENS),
        ("engine.maxSequences", engine.max_sequences, 1..=65_536),
        ("engine.maxBatchedTokens", engine.max_batched_tokens, TOKENS),
        ("engine.threads", engine.threads, 1..=1024),
        ("speculation.tokens", speculation.as_ref().map(SpeculationConfig::tokens), 1..=32),
        ("server.maxQueuedRequests", Some(server.max_queued_requests), 1..=1_000_000),
    ] {
        if let Some(value) = value.filter(|value| !range.contains(value)) {
            return Err(wrong(field, value, format!("{} to {}", range.start(), range.end())));
        }
    }
    if let Some(tokens) = engine.block_tokens.filter(|tokens| !BLOCK_TOKENS.contains(tokens)) {
        return Err(wrong("engine.blockTokens", tokens, "16, 32 or 64"));
    }
    if let Some(share) = engine.gpu_memory_utilization.filter(|share| !(*share > 0.0 && *share <= 1.0)) {
        return Err(wrong("engine.gpuMemoryUtilization", share, "above 0 and at most 1"));
    }
    if let Some(&SpeculationConfig::NGram { longest, shortest, .. }) = speculation.as_ref()
        && !(1..=longest).contains(&shortest)
    {
        return Err(wrong("speculation.shortest", shortest, format!("1 to speculation.longest, {longest}")));
    }
    for (field, address) in
        [("server.listen", Some(&server.listen)), ("server.adminListen", server.admin_listen.as_ref())]
    {
        if let Some(address) = address.filter(|address| !is_address(address)) {
            return Err(wrong(field, address, "HOST:PORT, such as 127.0.0.1:8000"));
        }
    }
    Ok(())
}

fn wrong(field: &str, value: impl std::fmt::Display, wanted: impl std::fmt::Display) -> ConfigError {
    ConfigError(format!("{} is {value}; it must be {wanted}", with_flag(field)))
}

/// Whether a text has the form of an address; whether there is such a host shows when it is listened on.
fn is_address(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
}
