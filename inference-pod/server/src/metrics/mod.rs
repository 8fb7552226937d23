//! The pod's metrics, under the names vLLM gave them, so that dashboards, endpoint pickers and autoscalers know them.
//!
//! Owns the registry. Engine and request handlers write to it through [`Metrics`]; `/metrics` reads it. Labels are
//! closed: names of the model and its adapters, which are configuration, and enums. What belongs to one part of the pod
//! has a file of its own here, which registers it.

mod buckets;
mod engine;
mod requests;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use fairlead_engine::backend::KvCapacity;
use fairlead_engine::engine::{Load, Observer, StepReport};
use fairlead_engine::tiers::TierCounters;
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use self::engine::EngineMetrics;
use self::requests::RequestMetrics;
pub use self::requests::{Finished, RequestReport};
use crate::tier_metrics::TierMetrics;

/// The format that [`Metrics::encode`] writes.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type FloatGauge = Gauge<f64, AtomicU64>;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct PhaseLabels {
    phase: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct LoraLabels {
    max_lora: u64,
    running_lora_adapters: String,
    waiting_lora_adapters: String,
}

/// All metrics of the process; cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    engine: EngineMetrics,
    requests: RequestMetrics,
    lora: Family<LoraLabels, FloatGauge>,
    startup_phase: Family<PhaseLabels, FloatGauge>,
    tiers: Arc<TierCounters>,
}

impl Metrics {
    /// Metrics of the model that is served as `model_name`.
    pub fn new(model_name: &str) -> Self {
        let mut registry = Registry::default();
        let labelled = registry.sub_registry_with_label(("model_name".into(), model_name.to_owned().into()));
        let engine = EngineMetrics::register(labelled);
        let requests = RequestMetrics::register(labelled);
        let lora: Family<LoraLabels, FloatGauge> = Family::default();
        labelled.register(
            "vllm:lora_requests_info",
            "Adapters that requests run and wait for; the value is when that was last so",
            lora.clone(),
        );
        let startup_phase: Family<PhaseLabels, FloatGauge> = Family::default();
        labelled.register(
            "fairlead_startup_phase_seconds",
            "Time that a phase of the start-up has taken",
            startup_phase.clone(),
        );
        let tiers: Arc<TierCounters> = Arc::default();
        labelled.register_collector(Box::new(TierMetrics(Arc::clone(&tiers))));
        Self { registry: Arc::new(registry), engine, requests, lora, startup_phase, tiers }
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
        self.engine.set_cache(capacity);
    }

    /// Tokens of prompts have been looked up among cached prefixes, and so many of them found.
    pub fn prefix_cache(&self, looked_up: u64, found: u64) {
        self.engine.prefix_cache(looked_up, found);
    }

    /// A request was answered with an error.
    pub fn error(&self, status: u16) {
        self.requests.error(status);
    }

    /// So many requests have not been admitted yet.
    pub fn waiting_at_least(&self, queued: usize) {
        self.engine.waiting_at_least(queued);
    }

    /// Adapters that requests run and wait for, each list with commas; `unix_seconds` is now.
    pub fn lora_requests(&self, max_lora: u64, running: &str, waiting: &str, unix_seconds: f64) {
        let labels = LoraLabels {
            max_lora,
            running_lora_adapters: running.to_owned(),
            waiting_lora_adapters: waiting.to_owned(),
        };
        // Only what holds now is shown: old sets of adapters would pile up.
        self.lora.clear();
        self.lora.get_or_create(&labels).set(unix_seconds);
    }

    /// A phase of the start-up has ended.
    pub fn phase(&self, phase: &'static str, took: Duration) {
        self.startup_phase.get_or_create(&PhaseLabels { phase }).set(took.as_secs_f64());
    }

    /// A request is tokenized and queued.
    pub fn queued(&self, since_arrival: Duration) {
        self.requests.queued(since_arrival);
    }

    /// A prompt is read, and the first token is there.
    pub fn first_token(&self, prompt_tokens: u64, since_arrival: Duration) {
        self.requests.prompt_read(prompt_tokens);
        self.requests.first_token(since_arrival);
    }

    /// A token is there.
    pub fn token(&self) {
        self.requests.token();
    }

    /// It followed another of the same answer.
    pub fn inter_token(&self, since_last: Duration) {
        self.requests.inter_token(since_last);
    }

    /// A prompt is read for its log-probabilities only.
    pub fn prompt_scored(&self, prompt_tokens: u64) {
        self.requests.prompt_read(prompt_tokens);
    }

    /// An answer has ended.
    pub fn answer_finished(&self, how: Finished, generated: u64) {
        self.requests.answer_finished(how, generated);
    }

    /// All answers to a request have ended.
    pub fn request_finished(&self, report: &RequestReport) {
        self.requests.request_finished(report);
    }
}

impl Observer for Metrics {
    fn load(&self, load: Load) {
        self.engine.load(load);
    }

    fn step(&self, report: StepReport) {
        self.engine.step(report);
    }

    fn tier_counters(&self) -> Arc<TierCounters> {
        Arc::clone(&self.tiers)
    }
}

#[cfg(test)]
mod tests {
    use fairlead_engine::block_pool::Eviction;
    use fairlead_engine::scheduler::StepCounts;

    use super::*;

    /// Others read this text: gateways, endpoint pickers, autoscalers, dashboards. Changing a name, a label or a bucket
    /// breaks them, so the whole of it is kept. `FAIRLEAD_WRITE_REFERENCE=1` writes it anew.
    #[test]
    fn the_text_is_the_golden_one() {
        let metrics = Metrics::new("m");
        metrics.set_cache(KvCapacity { blocks: 10, block_tokens: 16, block_bytes: 1 });
        metrics.phase("Loading", Duration::from_secs(2));
        metrics.lora_requests(4, "a", "", 1.5e9);
        metrics.lora_requests(4, "a,b", "c", 1.6e9);
        metrics.queued(Duration::from_millis(2));
        metrics.error(429);
        metrics.prefix_cache(48, 32);
        metrics.first_token(5, Duration::from_millis(3));
        metrics.token();
        metrics.token();
        metrics.inter_token(Duration::from_millis(40));
        metrics.answer_finished(Finished::Stop, 2);
        metrics.request_finished(&RequestReport {
            prompt_tokens: 5,
            answers: 1,
            max_tokens: 30,
            longest_answer: 2,
            end_to_end: Duration::from_millis(750),
            queue: Some(Duration::from_millis(250)),
            prefill: Some(Duration::from_millis(500)),
            decode: Some(Duration::ZERO),
            inference: Some(Duration::from_millis(500)),
        });
        metrics.load(Load { running: 1, waiting: 2, used_blocks: 1, usable_blocks: 4, named_blocks: 3 });
        metrics.step(StepReport {
            tokens: 9,
            sequences: 2,
            elapsed: Duration::from_millis(8),
            scheduling: Duration::from_micros(50),
            counts: StepCounts {
                preemptions: 1,
                drafts: 2,
                draft_tokens: 8,
                accepted_tokens: 3,
                // Only one place is used: the text's order of several is not fixed.
                accepted_at: vec![3],
                evictions: vec![Eviction { lifetime: Duration::from_secs(40), idle: Duration::from_secs(4) }],
                reuse_gaps: vec![Duration::from_millis(300), Duration::from_secs(7)],
                ..StepCounts::default()
            },
        });
        let text = metrics.encode().unwrap();
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/metrics.txt");
        if std::env::var_os("FAIRLEAD_WRITE_REFERENCE").is_some() {
            std::fs::write(path, &text).unwrap();
        }
        let golden = std::fs::read_to_string(path).unwrap();
        for (found, wanted) in in_order(&text).into_iter().zip(in_order(&golden)) {
            assert_eq!(found, wanted, "of {path}");
        }
        assert_eq!(in_order(&text), in_order(&golden));
    }

    /// The lines, those of one metric sorted: the order of its label sets is left to chance.
    fn in_order(text: &str) -> Vec<&str> {
        let lines: Vec<&str> = text.lines().collect();
        let of_one = lines.chunk_by(|a, b| a.starts_with('#') == b.starts_with('#'));
        of_one
            .flat_map(|lines| if lines[0].starts_with('#') { lines.to_vec() } else { sorted(lines) })
            .collect()
    }

    fn sorted<'a>(lines: &[&'a str]) -> Vec<&'a str> {
        let mut lines = lines.to_vec();
        lines.sort_unstable();
        lines
    }
}
