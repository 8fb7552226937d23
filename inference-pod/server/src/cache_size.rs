//! The size of the KV cache: first as settings and plan have it, then with what loading and warming up have shown in place of
//! what the plan said.
//!
//! Before a weight is read the plan decides whether a model fits at all. What is left when the weights lie in memory and the
//! first steps have run may be less: others use the machine too, and a plan is arithmetic. Then the cache is made smaller, as
//! long as it still holds one sequence.

use fairlead_inference_config::EngineConfig;
use fairlead_model::{DeviceKind, Plan, Reason, plan};

use crate::load::FatalError;

/// Largest KV cache on a CPU where the configuration leaves it open: memory there is shared with everyone else.
const DEFAULT_CPU_KV_BYTES: u64 = 4 << 30;

/// The cache before anything is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Planned {
    /// Bytes of the cache, a draft model's part too.
    pub bytes: u64,
    /// Bytes of one sequence of full length, padding block included.
    pub least_bytes: u64,
    /// Bytes of one block, all layers together, a draft model's too.
    pub block_bytes: u64,
    /// What decided.
    pub because: Because,
}

/// Why the cache is as large as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Because {
    /// `engine.kvCacheBytes` says so.
    Set,
    /// It is what the plan leaves.
    Planned,
    /// More is never used: prefixes are not shared, and this holds every sequence at full length.
    NotShared,
    /// On a CPU nobody said how much: as much as every sequence at full length takes, and at most 4 GiB.
    CpuDefault,
}

impl Because {
    fn in_words(self) -> &'static str {
        match self {
            Self::Set => "as engine.kvCacheBytes says",
            Self::Planned => "all that weights and activations leave",
            Self::NotShared => {
                "as much as maxSequences sequences of maxModelLen tokens take, since prefixes are not shared"
            }
            Self::CpuDefault => {
                "the default on a CPU: what maxSequences sequences of maxModelLen tokens take, at most 4 GiB; \
                 engine.kvCacheBytes (--kv-cache-bytes) sets another size"
            }
        }
    }
}

/// The cache as settings and plan have it.
///
/// # Errors
/// [`FatalError`] where the size that was set does not hold one sequence.
pub fn planned(
    settings: &EngineConfig,
    plan: &Plan,
    device: DeviceKind,
    max_sequences: u32,
    prefix_sharing: bool,
) -> Result<Planned, FatalError> {
    let block_bytes = plan.kv_bytes_per_token.saturating_mul(u64::from(plan.block_tokens));
    let blocks_of_one = u64::from(plan.max_model_len.div_ceil(plan.block_tokens));
    // One block is for padding.
    let of_sequences =
        |count: u64| blocks_of_one.saturating_mul(count).saturating_add(1).saturating_mul(block_bytes);
    let (least_bytes, of_all) = (of_sequences(1), of_sequences(u64::from(max_sequences)));
    let (wanted, because) = match settings.kv_cache_bytes {
        Some(bytes) => (bytes, Because::Set),
        None if device == DeviceKind::Gpu => (plan.kv_cache_bytes, Because::Planned),
        None => {
            let usual = of_all.min(DEFAULT_CPU_KV_BYTES).max(least_bytes);
            if usual < plan.kv_cache_bytes {
                (usual, Because::CpuDefault)
            } else {
                (plan.kv_cache_bytes, Because::Planned)
            }
        }
    };
    if wanted < least_bytes {
        return Err(FatalError {
            reason: Reason::DoesNotFit,
            message: format!(
                "engine.kvCacheBytes: {wanted} bytes do not hold one sequence of {} tokens, which takes {least_bytes}; raise it, or \
                 lower engine.maxModelLen",
                plan.max_model_len
            ),
        });
    }
    // Shared prefixes stay for those who come later, so more than all sequences take at once is of use. Others are forgotten.
    let (bytes, because) =
        if !prefix_sharing && of_all < wanted { (of_all, Because::NotShared) } else { (wanted, because) };
    Ok(Planned { bytes, least_bytes, block_bytes, because })
}

impl Planned {
    /// Tokens that `bytes` hold.
    pub fn tokens(&self, bytes: u64, block_tokens: u32) -> u64 {
        (bytes / self.block_bytes.max(1)).saturating_sub(1).saturating_mul(u64::from(block_tokens))
    }

    /// Tells the log what the cache will hold and why, and warns where it is less than was asked for.
    pub fn log(&self, settings: &EngineConfig, plan: &Plan, max_sequences: u32, max_batched_tokens: u32) {
        let tokens = self.tokens(self.bytes, plan.block_tokens);
        tracing::info!(
            weight_bytes = plan.weight_bytes,
            activation_bytes = plan.activation_reserve_bytes,
            kv_cache_bytes = self.bytes,
            kv_cache_blocks = self.bytes / self.block_bytes.max(1),
            kv_cache_tokens = tokens,
            dtype = %plan.dtype,
            max_model_len = plan.max_model_len,
            max_sequences,
            max_batched_tokens,
            "the KV cache is to hold {tokens} tokens: {}",
            self.because.in_words()
        );
        if let (Some(asked), Because::NotShared) = (settings.kv_cache_bytes, self.because) {
            tracing::warn!(
                asked_bytes = asked,
                kv_cache_bytes = self.bytes,
                "engine.kvCacheBytes (--kv-cache-bytes) is more than can be used without kvCache.prefixSharing; the rest is left free"
            );
        }
    }
}

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
    /// Bytes of a draft model's spare blocks, which are made with the cache and come on top of it.
    pub draft_spare_bytes: u64,
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
        room_bytes = room,
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
                 activations and a draft model, and the KV cache of one sequence of {} tokens takes {least}; give the replica more memory, or \
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

/// Bytes that will be taken beside the cache and have not been yet. A GPU has run the largest step, so only a draft model's spare
/// blocks are missing. A CPU has not, but libtorch itself is there; the plan's reserve holds the spare blocks already.
fn still_to_come(plan: &Plan, measured: &Measured) -> u64 {
    match measured.activation_bytes {
        Some(_) => measured.draft_spare_bytes,
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
        Measured { device, weight_bytes: 4_000_000, activation_bytes, left_bytes, draft_spare_bytes: 0 }
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
    fn a_draft_models_spare_blocks_are_kept_free_once() {
        let plan = a_plan();
        let size = |measured| kv_cache_bytes(&plan, 64 * MIB, 17 * BLOCK, BLOCK, &measured).unwrap();
        let spare = |measured| Measured { draft_spare_bytes: MIB, ..measured };
        // Nothing on a GPU has taken them before the cache is made.
        assert_eq!(size(spare(measured(Some(64 * MIB), Some(MIB)))), 63 * MIB);
        assert_eq!(size(spare(measured(Some(65 * MIB), Some(MIB)))), 64 * MIB);
        // On a CPU the plan's reserve holds them.
        let to_come = plan.activation_reserve_bytes - plan::runtime_bytes(DeviceKind::Cpu);
        assert_eq!(size(spare(measured(Some(32 * MIB + to_come), None))), 32 * MIB);
    }

    #[test]
    fn with_shared_prefixes_the_cache_is_as_large_as_it_was_set_or_planned() {
        let plan = a_plan();
        // 4 sequences of 256 tokens and the padding block.
        let of_all = (4 * 16 + 1) * BLOCK;
        let set = |kv_cache_bytes| EngineConfig { kv_cache_bytes, ..EngineConfig::default() };
        let size = |bytes, device, shares| {
            let it = planned(&set(bytes), &plan, device, 4, shares).unwrap();
            (it.bytes, it.because)
        };
        let (cpu, gpu) = (DeviceKind::Cpu, DeviceKind::Gpu);
        assert_eq!(size(Some(64 * MIB), cpu, true), (64 * MIB, Because::Set));
        assert_eq!(size(None, gpu, true), (plan.kv_cache_bytes, Because::Planned));
        for (bytes, device) in [(Some(64 * MIB), cpu), (Some(64 * MIB), gpu), (None, gpu)] {
            assert_eq!(size(bytes, device, false), (of_all, Because::NotShared));
        }
        assert_eq!(size(Some(of_all), cpu, false), (of_all, Because::Set));
        for shares in [true, false] {
            assert_eq!(size(None, cpu, shares), (of_all, Because::CpuDefault));
        }
        let it = planned(&set(None), &plan, cpu, 4, true).unwrap();
        assert_eq!((it.least_bytes, it.tokens(it.bytes, 16)), (17 * BLOCK, 1024));
        let error = planned(&set(Some(17 * BLOCK - 1)), &plan, cpu, 4, true).unwrap_err();
        assert!(error.message.contains("engine.kvCacheBytes: 278527 bytes"), "{}", error.message);
    }

    #[test]
    fn a_cpu_without_a_setting_takes_four_gib_at_most() {
        let plan = Plan { kv_cache_bytes: 100 << 30, max_model_len: 1 << 20, ..a_plan() };
        let sized = |max_sequences, kv_bytes_per_token| {
            let plan = Plan { kv_bytes_per_token, ..plan.clone() };
            planned(&EngineConfig::default(), &plan, DeviceKind::Cpu, max_sequences, true).unwrap()
        };
        assert_eq!(sized(32, 1024).bytes, 4 << 30);
        // But one sequence always.
        let long = sized(1, 8192);
        assert_eq!((long.bytes, long.because), (long.least_bytes, Because::CpuDefault));
        assert!(long.bytes > 8 << 30);
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
