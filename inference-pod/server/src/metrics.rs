//! The pod's metrics, under the names vLLM gave them, so that dashboards, endpoint pickers and autoscalers know them.
//!
//! Owns the registry. Engine and request handlers write to it through [`Metrics`]; `/metrics` reads it. Labels are
//! closed: the model's name, which is configuration, and enums.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use fairlead_engine::backend::KvCapacity;
use fairlead_engine::engine::{Load, Observer, StepReport};
use fairlead_engine::tiers::TierCounters;
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::tier_metrics::TierMetrics;

/// The format that [`Metrics::encode`] writes.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// How a request ended, as `vllm:request_success_total` counts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finished {
    /// At a stop token or string.
    Stop,
    /// At its length.
    Length,
    /// The client went away.
    Abort,
    /// It failed.
    Error,
}

impl Finished {
    const ALL: [Self; 4] = [Self::Stop, Self::Length, Self::Abort, Self::Error];

    fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Abort => "abort",
            Self::Error => "error",
        }
    }
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct FinishedLabels {
    finished_reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct PhaseLabels {
    phase: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct CacheLabels {
    block_size: u32,
    num_gpu_blocks: u32,
}

type FloatGauge = Gauge<f64, AtomicU64>;

/// All metrics of the process; cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    running: Gauge,
    waiting: Gauge,
    kv_usage: FloatGauge,
    preemptions: Counter,
    prompt_tokens: Counter,
    generation_tokens: Counter,
    finished: Family<FinishedLabels, Counter>,
    time_to_first_token: Histogram,
    inter_token_latency: Histogram,
    end_to_end: Histogram,
    tokenize_time: Histogram,
    request_prompt_tokens: Histogram,
    request_generation_tokens: Histogram,
    iteration_tokens: Histogram,
    cache_config: Family<CacheLabels, Gauge>,
    step_seconds: Histogram,
    startup_phase: Family<PhaseLabels, FloatGauge>,
    tiers: Arc<TierCounters>,
}

const TIME_TO_FIRST_TOKEN: [f64; 22] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
    80.0, 160.0, 640.0, 2560.0,
];
const INTER_TOKEN: [f64; 19] = [
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
];
const REQUEST_SECONDS: [f64; 21] = [
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0,
    960.0, 1920.0, 7680.0,
];
const STEP_SECONDS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];
const ITERATION_TOKENS: [f64; 12] =
    [1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0];
const REQUEST_TOKENS: [f64; 17] = [
    1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10_000.0, 20_000.0,
    50_000.0, 100_000.0, 200_000.0,
];

impl Metrics {
    /// Metrics of the model that is served as `model_name`.
    pub fn new(model_name: &str) -> Self {
        let mut registry = Registry::default();
        let labelled = registry.sub_registry_with_label(("model_name".into(), model_name.to_owned().into()));
        let metrics = Self {
            registry: Arc::default(),
            running: Gauge::default(),
            waiting: Gauge::default(),
            kv_usage: FloatGauge::default(),
            preemptions: Counter::default(),
            prompt_tokens: Counter::default(),
            generation_tokens: Counter::default(),
            finished: Family::default(),
            time_to_first_token: Histogram::new(TIME_TO_FIRST_TOKEN),
            inter_token_latency: Histogram::new(INTER_TOKEN),
            end_to_end: Histogram::new(REQUEST_SECONDS),
            tokenize_time: Histogram::new(REQUEST_SECONDS),
            request_prompt_tokens: Histogram::new(REQUEST_TOKENS),
            request_generation_tokens: Histogram::new(REQUEST_TOKENS),
            iteration_tokens: Histogram::new(ITERATION_TOKENS),
            cache_config: Family::default(),
            step_seconds: Histogram::new(STEP_SECONDS),
            startup_phase: Family::default(),
            tiers: Arc::default(),
        };
        let m = &metrics;
        labelled.register("vllm:num_requests_running", "Requests that run", m.running.clone());
        labelled.register("vllm:num_requests_waiting", "Requests that wait", m.waiting.clone());
        labelled.register(
            "vllm:kv_cache_usage_perc",
            "Share of the KV cache's blocks in use, 0 to 1",
            m.kv_usage.clone(),
        );
        labelled.register(
            "vllm:num_preemptions",
            "Requests that lost their KV cache to others and started over",
            m.preemptions.clone(),
        );
        labelled.register("vllm:prompt_tokens", "Tokens of prompts read", m.prompt_tokens.clone());
        labelled.register("vllm:generation_tokens", "Tokens generated", m.generation_tokens.clone());
        labelled.register("vllm:request_success", "Requests by how they ended", m.finished.clone());
        labelled.register(
            "vllm:time_to_first_token_seconds",
            "From a request's arrival to its first token",
            m.time_to_first_token.clone(),
        );
        labelled.register(
            "vllm:inter_token_latency_seconds",
            "Between two tokens of a request",
            m.inter_token_latency.clone(),
        );
        labelled.register(
            "vllm:e2e_request_latency_seconds",
            "From a request's arrival to its end",
            m.end_to_end.clone(),
        );
        labelled.register(
            "fairlead_tokenize_seconds",
            "From a request's arrival to its place in the engine's queue",
            m.tokenize_time.clone(),
        );
        labelled.register(
            "vllm:request_prompt_tokens",
            "Tokens of a prompt",
            m.request_prompt_tokens.clone(),
        );
        labelled.register(
            "vllm:request_generation_tokens",
            "Tokens generated for a request",
            m.request_generation_tokens.clone(),
        );
        labelled.register("vllm:iteration_tokens_total", "Tokens in a step", m.iteration_tokens.clone());
        labelled.register("vllm:cache_config_info", "Size of the KV cache", m.cache_config.clone());
        labelled.register("fairlead_step_seconds", "Time of a step in the backend", m.step_seconds.clone());
        labelled.register(
            "fairlead_startup_phase_seconds",
            "Time that a phase of the start-up has taken",
            m.startup_phase.clone(),
        );
        labelled.register_collector(Box::new(TierMetrics(Arc::clone(&m.tiers))));
        // Counters that have not counted yet are shown as 0, so that rates and alerts work from the first scrape.
        for reason in Finished::ALL {
            drop(metrics.finished.get_or_create(&FinishedLabels { finished_reason: reason.as_str() }));
        }
        Self { registry: Arc::new(registry), ..metrics }
    }

    /// The metrics as text.
    ///
    /// # Errors
    /// Only if writing to a string fails.
    pub fn encode(&self) -> Result<String, std::fmt::Error> {
        let mut buffer = String::new();
        text::encode(&mut buffer, &self.registry)?;
        Ok(buffer)
    }

    /// The KV cache has been sized.
    pub fn set_cache(&self, capacity: KvCapacity) {
        let labels = CacheLabels { block_size: capacity.block_tokens, num_gpu_blocks: capacity.blocks };
        self.cache_config.get_or_create(&labels).set(1);
    }

    /// A phase of the start-up has ended.
    pub fn phase(&self, phase: &'static str, took: Duration) {
        self.startup_phase.get_or_create(&PhaseLabels { phase }).set(took.as_secs_f64());
    }

    /// A request is tokenized and queued.
    pub fn queued(&self, since_arrival: Duration) {
        self.tokenize_time.observe(since_arrival.as_secs_f64());
    }

    /// A prompt is read, and the first token is there.
    pub fn first_token(&self, prompt_tokens: u64, since_arrival: Duration) {
        self.prompt_tokens.inc_by(prompt_tokens);
        self.generation_tokens.inc();
        self.time_to_first_token.observe(since_arrival.as_secs_f64());
    }

    /// A further token is there.
    pub fn next_token(&self, since_last: Duration) {
        self.generation_tokens.inc();
        self.inter_token_latency.observe(since_last.as_secs_f64());
    }

    /// A prompt is read for its log-probabilities only.
    pub fn prompt_scored(&self, prompt_tokens: u64) {
        self.prompt_tokens.inc_by(prompt_tokens);
    }

    /// A request has ended.
    pub fn finished(&self, how: Finished, prompt_tokens: u64, generated: u64, since_arrival: Duration) {
        self.finished.get_or_create(&FinishedLabels { finished_reason: how.as_str() }).inc();
        self.request_prompt_tokens.observe(prompt_tokens as f64);
        self.request_generation_tokens.observe(generated as f64);
        self.end_to_end.observe(since_arrival.as_secs_f64());
    }
}

impl Observer for Metrics {
    fn load(&self, load: Load) {
        self.running.set(i64::try_from(load.running).unwrap_or(i64::MAX));
        self.waiting.set(i64::try_from(load.waiting).unwrap_or(i64::MAX));
        self.kv_usage.set(f64::from(load.used_blocks) / f64::from(load.usable_blocks.max(1)));
    }

    fn step(&self, report: StepReport) {
        self.preemptions.inc_by(report.preempted as u64);
        self.iteration_tokens.observe(report.tokens as f64);
        self.step_seconds.observe(report.elapsed.as_secs_f64());
    }

    fn tier_counters(&self) -> Arc<TierCounters> {
        Arc::clone(&self.tiers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Others read these names: gateways, endpoint pickers, autoscalers, dashboards. Changing one breaks them.
    #[test]
    fn the_names_are_vllms() {
        let metrics = Metrics::new("m");
        metrics.set_cache(KvCapacity { blocks: 10, block_tokens: 16, block_bytes: 1 });
        metrics.phase("Loading", Duration::from_secs(2));
        metrics.first_token(5, Duration::from_millis(3));
        metrics.load(Load { running: 1, waiting: 2, used_blocks: 1, usable_blocks: 4 });
        let text = metrics.encode().unwrap();
        for line in [
            "vllm:num_requests_running{model_name=\"m\"} 1",
            "vllm:num_requests_waiting{model_name=\"m\"} 2",
            "vllm:kv_cache_usage_perc{model_name=\"m\"} 0.25",
            "vllm:num_preemptions_total{model_name=\"m\"} 0",
            "vllm:prompt_tokens_total{model_name=\"m\"} 5",
            "vllm:generation_tokens_total{model_name=\"m\"} 1",
            "vllm:request_success_total{finished_reason=\"stop\",model_name=\"m\"} 0",
            "vllm:request_success_total{finished_reason=\"length\",model_name=\"m\"} 0",
            "vllm:request_success_total{finished_reason=\"abort\",model_name=\"m\"} 0",
            "vllm:time_to_first_token_seconds_count{model_name=\"m\"} 1",
            "vllm:time_to_first_token_seconds_bucket{le=\"0.005\",model_name=\"m\"} 1",
            "vllm:inter_token_latency_seconds_count{model_name=\"m\"} 0",
            "vllm:e2e_request_latency_seconds_count{model_name=\"m\"} 0",
            "vllm:request_prompt_tokens_count{model_name=\"m\"} 0",
            "vllm:request_generation_tokens_count{model_name=\"m\"} 0",
            "vllm:iteration_tokens_total_count{model_name=\"m\"} 0",
            "vllm:cache_config_info{block_size=\"16\",num_gpu_blocks=\"10\",model_name=\"m\"} 1",
            "fairlead_startup_phase_seconds{phase=\"Loading\",model_name=\"m\"} 2.0",
        ] {
            let sorted = |line: &str| {
                let mut parts: Vec<String> = line.split(['{', '}', ',', ' ']).map(str::to_owned).collect();
                parts.sort();
                parts
            };
            assert!(text.lines().any(|found| sorted(found) == sorted(line)), "{line} is not in\n{text}");
        }
    }
}
