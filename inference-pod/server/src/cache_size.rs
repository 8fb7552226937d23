//! The size of the KV cache, once more: with what loading and warming up have shown in place of what the plan said.
//!
//! Before a weight is read the plan decides whether a model fits at all. What is left when the weights lie in memory and the
//! first steps have run may be less: others use the machine too, and a plan is arithmetic. Then the cache is made smaller, as
//! long as it still holds one sequence.

use fairlead_model::{DeviceKind, Plan, Reason, plan};

use crate::load::FatalError;

/// What loading and warming up have shown.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    /// Where the model runs.
    pub device: DeviceKind,
    /// Bytes of the weights, counted from the tensors.
    pub weight_bytes: u64,
    /// Bytes that the largest step took and libtorch keeps for the next; `None` on a CPU, where only a small step is run.
    pub activation_bytes: Option<u64>,
    /// Bytes that the cache and whatever is not there yet can take together; `None` where nobody tells.
    pub left_bytes: Option<u64>,
}

/// Bytes for the KV cache: those planned, or fewer if less is left. `block_bytes` are those of one block; `least` are those
/// of one sequence of full length with the padding block.
///
/// # Errors
/// [`FatalError`] with the numbers where what is left does not hold one sequence.
pub fn kv_cache_bytes(
    plan: &Plan,
    planned: u64,
    least: u64,
    block_bytes: u64,
    measured: &Measured,
) -> Result<u64, FatalError> {
    let Some(left) = measured.left_bytes else { return Ok(planned) };
    let reserve = still_to_come(plan, measured);
    let room = left.saturating_sub(reserve);
    tracing::info!(
        planned_weight_bytes = plan.weight_bytes,
        weight_bytes = measured.weight_bytes,
        planned_activation_bytes = plan.activation_reserve_bytes,
        activation_bytes = measured.activation_bytes,
        left_bytes = left,
        reserve_bytes = reserve,
        kv_cache_bytes = planned.min(room),
        "measured what the plan had reckoned with"
    );
    if room >= planned {
        return Ok(planned);
    }
    if room < least {
        return Err(FatalError {
            reason: Reason::DoesNotFit,
            message: format!(
                "does not fit: with {} bytes of weights loaded (planned {}) {left} bytes are left; {reserve} of them are for \
                 activations, and the KV cache of one sequence of {} tokens takes {least}; give the replica more memory, or \
                 lower engine.maxModelLen or engine.maxBatchedTokens",
                measured.weight_bytes, plan.weight_bytes, plan.max_model_len
            ),
        });
    }
    let smaller = room / block_bytes.max(1) * block_bytes;
    tracing::warn!(
        planned_bytes = planned,
        kv_cache_bytes = smaller,
        "less memory is left than planned: the KV cache is made smaller"
    );
    Ok(smaller)
}

/// Bytes that steps will take and have not yet. A GPU has run the largest step; a CPU has not, but libtorch itself is there.
fn still_to_come(plan: &Plan, measured: &Measured) -> u64 {
    match measured.activation_bytes {
        Some(_) => 0,
        None => plan.activation_reserve_bytes.saturating_sub(plan::runtime_bytes(measured.device)),
    }
}

#[cfg(test)]
mod tests {
    use fairlead_model::{LoadQuantization, ModelConfig, PlanInputs, RunDtype, WeightsSummary};

    use super::*;

    const MIB: u64 = 1 << 20;
    const BLOCK: u64 = 16 * 1024;

    fn a_plan() -> Plan {
        let config = ModelConfig::parse(
            br#"{"architectures":["LlamaForCausalLM"],"hidden_size":256,"intermediate_size":512,"num_hidden_layers":2,
            "num_attention_heads":4,"num_key_value_heads":2,"head_dim":64,"vocab_size":1000,"max_position_embeddings":256}"#,
        )
        .unwrap();
        plan(&PlanInputs {
            config: &config,
            weights: &WeightsSummary { parameters: 2_000_000, ..WeightsSummary::default() },
            device: DeviceKind::Cpu,
            dtype: Some(RunDtype::F16),
            quantization: LoadQuantization::None,
            max_model_len: None,
            block_tokens: 16,
            memory_budget_bytes: 512 * MIB,
            max_sequences: 4,
            max_batched_tokens: 64,
            draft: None,
        })
        .unwrap()
    }

    fn measured(left_bytes: Option<u64>, activation_bytes: Option<u64>) -> Measured {
        let device = if activation_bytes.is_some() { DeviceKind::Gpu } else { DeviceKind::Cpu };
        Measured { device, weight_bytes: 4_000_000, activation_bytes, left_bytes }
    }

    #[test]
    fn what_was_planned_is_taken_if_it_is_there_or_nobody_tells() {
        let plan = a_plan();
        let size = |measured| kv_cache_bytes(&plan, 64 * MIB, 17 * BLOCK, BLOCK, &measured).unwrap();
        assert_eq!(size(measured(None, None)), 64 * MIB);
        assert_eq!(size(measured(Some(512 * MIB), None)), 64 * MIB);
        // A GPU that has run its largest step needs nothing beside the cache.
        assert_eq!(size(measured(Some(64 * MIB), Some(MIB))), 64 * MIB);
    }

    #[test]
    fn a_cache_shrinks_by_whole_blocks_to_what_is_left() {
        let plan = a_plan();
        let to_come = plan.activation_reserve_bytes - plan::runtime_bytes(DeviceKind::Cpu);
        assert!(to_come > 0);
        let left = Some(32 * MIB + to_come + 5);
        let size = kv_cache_bytes(&plan, 64 * MIB, 17 * BLOCK, BLOCK, &measured(left, None)).unwrap();
        assert_eq!(size, 32 * MIB);
        let on_gpu = measured(Some(32 * MIB + 5), Some(MIB));
        assert_eq!(kv_cache_bytes(&plan, 64 * MIB, 17 * BLOCK, BLOCK, &on_gpu).unwrap(), 32 * MIB);
    }

    #[test]
    fn less_than_one_sequence_is_refused_with_the_numbers() {
        let plan = a_plan();
        let least = 17 * BLOCK;
        let enough = measured(Some(least), Some(MIB));
        assert_eq!(kv_cache_bytes(&plan, 64 * MIB, least, BLOCK, &enough).unwrap(), least);
        let short = measured(Some(least - 1), Some(MIB));
        let error = kv_cache_bytes(&plan, 64 * MIB, least, BLOCK, &short).unwrap_err();
        assert_eq!(error.reason, Reason::DoesNotFit);
        for number in ["4000000 bytes of weights", "278527 bytes are left", "256 tokens takes 278528"] {
            assert!(error.message.contains(number), "{number}: {}", error.message);
        }
    }
}
