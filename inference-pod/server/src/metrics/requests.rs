//! What requests come to: their times, their tokens, how they end.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::buckets;

/// How an answer ended, as `vllm:request_success_total` counts it.
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

/// What a request came to, once all its answers have ended. Times are absent where the request never came that far.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RequestReport {
    /// Tokens of the prompt.
    pub prompt_tokens: u64,
    /// Answers asked for.
    pub answers: u64,
    /// Most tokens asked for, for each answer.
    pub max_tokens: u64,
    /// Tokens of the longest answer.
    pub longest_answer: u64,
    /// From its arrival to its end.
    pub end_to_end: Duration,
    /// In the engine's queue.
    pub queue: Option<Duration>,
    /// From its admission to its first token.
    pub prefill: Option<Duration>,
    /// From its first token to its last.
    pub decode: Option<Duration>,
    /// From its admission to its last token.
    pub inference: Option<Duration>,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct FinishedLabels {
    finished_reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct StatusLabels {
    status: u32,
}

#[derive(Clone)]
pub struct RequestMetrics {
    errors: Family<StatusLabels, Counter>,
    prompt_tokens: Counter,
    generation_tokens: Counter,
    finished: Family<FinishedLabels, Counter>,
    time_to_first_token: Histogram,
    inter_token_latency: Histogram,
    end_to_end: Histogram,
    queue: Histogram,
    inference: Histogram,
    prefill: Histogram,
    decode: Histogram,
    tokenize: Histogram,
    request_prompt_tokens: Histogram,
    request_generation_tokens: Histogram,
    longest_answer: Histogram,
    answers: Histogram,
    max_tokens: Histogram,
}

impl RequestMetrics {
    pub fn register(registry: &mut Registry) -> Self {
        let seconds = || Histogram::new(buckets::REQUEST_SECONDS);
        let tokens = || Histogram::new(buckets::REQUEST_TOKENS);
        let metrics = Self {
            errors: Family::default(),
            prompt_tokens: Counter::default(),
            generation_tokens: Counter::default(),
            finished: Family::default(),
            time_to_first_token: Histogram::new(buckets::TIME_TO_FIRST_TOKEN),
            inter_token_latency: Histogram::new(buckets::INTER_TOKEN),
            end_to_end: seconds(),
            queue: seconds(),
            inference: seconds(),
            prefill: seconds(),
            decode: seconds(),
            tokenize: Histogram::new(buckets::STEP_SECONDS),
            request_prompt_tokens: tokens(),
            request_generation_tokens: tokens(),
            longest_answer: tokens(),
            answers: Histogram::new(buckets::CHOICES),
            max_tokens: tokens(),
        };
        let m = metrics.clone();
        registry.register("vllm:prompt_tokens", "Tokens of prompts read", m.prompt_tokens);
        registry.register("vllm:generation_tokens", "Tokens generated", m.generation_tokens);
        registry.register("fairlead_request_errors", "Requests answered with an error, by status", m.errors);
        registry.register("vllm:request_success", "Answers by how they ended", m.finished);
        for (name, help, histogram) in [
            (
                "vllm:time_to_first_token_seconds",
                "From a request's arrival to its first token",
                m.time_to_first_token,
            ),
            ("vllm:inter_token_latency_seconds", "Between two tokens of an answer", m.inter_token_latency),
            ("vllm:e2e_request_latency_seconds", "From a request's arrival to its end", m.end_to_end),
            ("vllm:request_queue_time_seconds", "Time of a request in the queue", m.queue),
            (
                "vllm:request_inference_time_seconds",
                "From a request's admission to its last token",
                m.inference,
            ),
            ("vllm:request_prefill_time_seconds", "From a request's admission to its first token", m.prefill),
            ("vllm:request_decode_time_seconds", "From a request's first token to its last", m.decode),
            (
                "fairlead_tokenize_seconds",
                "From a request's arrival to its place in the engine's queue",
                m.tokenize,
            ),
            ("vllm:request_prompt_tokens", "Tokens of a prompt", m.request_prompt_tokens),
            ("vllm:request_generation_tokens", "Tokens of an answer", m.request_generation_tokens),
            (
                "vllm:request_max_num_generation_tokens",
                "Tokens of a request's longest answer",
                m.longest_answer,
            ),
            ("vllm:request_params_n", "Answers that a request asked for", m.answers),
            ("vllm:request_params_max_tokens", "Most tokens that a request asked for", m.max_tokens),
        ] {
            registry.register(name, help, histogram);
        }
        // Counters that have not counted yet are shown as 0, so that rates and alerts work from the first scrape.
        for reason in Finished::ALL {
            drop(metrics.finished.get_or_create(&FinishedLabels { finished_reason: reason.as_str() }));
        }
        metrics
    }

    pub fn error(&self, status: u16) {
        self.errors.get_or_create(&StatusLabels { status: status.into() }).inc();
    }

    pub fn queued(&self, since_arrival: Duration) {
        self.tokenize.observe(since_arrival.as_secs_f64());
    }

    pub fn prompt_read(&self, prompt_tokens: u64) {
        self.prompt_tokens.inc_by(prompt_tokens);
    }

    pub fn first_token(&self, since_arrival: Duration) {
        self.time_to_first_token.observe(since_arrival.as_secs_f64());
    }

    pub fn token(&self) {
        self.generation_tokens.inc();
    }

    pub fn inter_token(&self, since_last: Duration) {
        self.inter_token_latency.observe(since_last.as_secs_f64());
    }

    pub fn answer_finished(&self, how: Finished, generated: u64) {
        self.finished.get_or_create(&FinishedLabels { finished_reason: how.as_str() }).inc();
        self.request_generation_tokens.observe(generated as f64);
    }

    pub fn request_finished(&self, report: &RequestReport) {
        self.request_prompt_tokens.observe(report.prompt_tokens as f64);
        self.answers.observe(report.answers as f64);
        self.max_tokens.observe(report.max_tokens as f64);
        self.longest_answer.observe(report.longest_answer as f64);
        self.end_to_end.observe(report.end_to_end.as_secs_f64());
        for (histogram, time) in [
            (&self.queue, report.queue),
            (&self.prefill, report.prefill),
            (&self.decode, report.decode),
            (&self.inference, report.inference),
        ] {
            if let Some(time) = time {
                histogram.observe(time.as_secs_f64());
            }
        }
    }
}
