//! What the engine does: its load, its steps, its KV cache.

use fairlead_engine::backend::KvCapacity;
use fairlead_engine::engine::{Load, StepReport};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::{FloatGauge, buckets};

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct CacheLabels {
    block_size: u32,
    num_gpu_blocks: u32,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct PlaceLabels {
    position: u32,
}

/// Places among a sequence's guesses that are told apart; the last one stands for those after it too.
const PLACES: u32 = 16;

#[derive(Clone)]
pub struct EngineMetrics {
    running: Gauge,
    waiting: Gauge,
    kv_usage: FloatGauge,
    preemptions: Counter,
    prefix_queries: Counter,
    prefix_hits: Counter,
    drafts: Counter,
    draft_tokens: Counter,
    accepted_tokens: Counter,
    accepted_at: Family<PlaceLabels, Counter>,
    iteration_tokens: Histogram,
    step_seconds: Histogram,
    block_lifetime: Histogram,
    block_idle: Histogram,
    block_reuse_gap: Histogram,
    cache_config: Family<CacheLabels, Gauge>,
}

impl EngineMetrics {
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            running: Gauge::default(),
            waiting: Gauge::default(),
            kv_usage: FloatGauge::default(),
            preemptions: Counter::default(),
            prefix_queries: Counter::default(),
            prefix_hits: Counter::default(),
            drafts: Counter::default(),
            draft_tokens: Counter::default(),
            accepted_tokens: Counter::default(),
            accepted_at: Family::default(),
            iteration_tokens: Histogram::new(buckets::ITERATION_TOKENS),
            step_seconds: Histogram::new(buckets::STEP_SECONDS),
            block_lifetime: Histogram::new(buckets::BLOCK_SECONDS),
            block_idle: Histogram::new(buckets::BLOCK_SECONDS),
            block_reuse_gap: Histogram::new(buckets::BLOCK_SECONDS),
            cache_config: Family::default(),
        };
        let m = metrics.clone();
        registry.register("vllm:num_requests_running", "Requests that run", m.running);
        registry.register("vllm:num_requests_waiting", "Requests that wait", m.waiting);
        registry.register(
            "vllm:kv_cache_usage_perc",
            "Share of the KV cache's blocks in use, 0 to 1",
            m.kv_usage,
        );
        registry.register(
            "vllm:num_preemptions",
            "Requests that lost their KV cache to others and started over",
            m.preemptions,
        );
        registry.register(
            "vllm:prefix_cache_queries",
            "Tokens of prompts that were looked up among cached prefixes",
            m.prefix_queries,
        );
        registry.register(
            "vllm:prefix_cache_hits",
            "Tokens of prompts that were found among cached prefixes",
            m.prefix_hits,
        );
        registry.register(
            "vllm:spec_decode_num_drafts",
            "Times that a request's guessed tokens were checked",
            m.drafts,
        );
        registry.register("vllm:spec_decode_num_draft_tokens", "Tokens guessed ahead", m.draft_tokens);
        registry.register(
            "vllm:spec_decode_num_accepted_tokens",
            "Tokens guessed ahead that were right",
            m.accepted_tokens,
        );
        registry.register(
            "vllm:spec_decode_num_accepted_tokens_per_pos",
            "Tokens guessed ahead that were right, by their place among those guessed at once",
            m.accepted_at,
        );
        registry.register("vllm:iteration_tokens_total", "Tokens in a step", m.iteration_tokens);
        registry.register("vllm:cache_config_info", "Size of the KV cache", m.cache_config);
        registry.register(
            "vllm:kv_block_lifetime_seconds",
            "Time from a cached block's content to its loss to others",
            m.block_lifetime,
        );
        registry.register(
            "vllm:kv_block_idle_before_evict_seconds",
            "Time that nobody had used a cached block when it was lost to others",
            m.block_idle,
        );
        registry.register(
            "vllm:kv_block_reuse_gap_seconds",
            "Time that nobody had used a cached block when it was found again",
            m.block_reuse_gap,
        );
        registry.register("fairlead_step_seconds", "Time of a step in the backend", m.step_seconds);
        metrics
    }

    pub fn load(&self, load: Load) {
        self.running.set(i64::try_from(load.running).unwrap_or(i64::MAX));
        self.waiting.set(i64::try_from(load.waiting).unwrap_or(i64::MAX));
        self.kv_usage.set(f64::from(load.used_blocks) / f64::from(load.usable_blocks.max(1)));
    }

    /// While a step runs its thread reports nothing: those who have come meanwhile wait too.
    pub fn waiting_at_least(&self, queued: usize) {
        let queued = i64::try_from(queued).unwrap_or(i64::MAX);
        if self.waiting.get() < queued {
            self.waiting.set(queued);
        }
    }

    pub fn step(&self, report: StepReport) {
        self.preemptions.inc_by(report.counts.preemptions);
        self.prefix_cache(report.counts.prefix_queries, report.counts.prefix_hits);
        self.drafts.inc_by(report.counts.drafts);
        self.draft_tokens.inc_by(report.counts.draft_tokens);
        self.accepted_tokens.inc_by(report.counts.accepted_tokens);
        for (place, &accepted) in (0_u32..).zip(&report.counts.accepted_at) {
            let labels = PlaceLabels { position: place.min(PLACES - 1) };
            self.accepted_at.get_or_create(&labels).inc_by(accepted);
        }
        for eviction in &report.counts.evictions {
            self.block_lifetime.observe(eviction.lifetime.as_secs_f64());
            self.block_idle.observe(eviction.idle.as_secs_f64());
        }
        for gap in &report.counts.reuse_gaps {
            self.block_reuse_gap.observe(gap.as_secs_f64());
        }
        self.iteration_tokens.observe(report.tokens as f64);
        self.step_seconds.observe(report.elapsed.as_secs_f64());
    }

    pub fn prefix_cache(&self, looked_up: u64, found: u64) {
        self.prefix_queries.inc_by(looked_up);
        self.prefix_hits.inc_by(found);
    }

    pub fn set_cache(&self, capacity: KvCapacity) {
        let labels = CacheLabels { block_size: capacity.block_tokens, num_gpu_blocks: capacity.blocks };
        self.cache_config.get_or_create(&labels).set(1);
    }
}
