//! Traces: one span for each request, sent by OTLP over HTTP to where the standard environment says
//! (`OTEL_EXPORTER_OTLP_ENDPOINT` and its kin), named and filled by the GenAI semantic conventions.
//!
//! Never holds a prompt or an answer. Serving never waits for it: spans go into a bounded queue, and what finds no room there
//! is dropped. Without an endpoint there are no spans at all.

use std::time::{Duration, Instant, SystemTime};

use axum::http::HeaderMap;
use fairlead_openai::{ApiError, FinishReason, GenerationOptions};
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{Span as _, SpanKind, Status, Tracer, TracerProvider};
use opentelemetry::{Array, Context, KeyValue, StringValue, Value};
use opentelemetry_otlp::SpanExporter;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{
    SdkTracer, SdkTracerProvider, Span, SpanData, SpanExporter as _, SpanProcessor,
};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

/// Spans that may wait to be sent.
const QUEUE: usize = 2048;
/// Most spans sent at once.
const BATCH: usize = 512;
/// How long a span waits for others to be sent with.
const BATCH_TIME: Duration = Duration::from_secs(2);
/// How long the last spans may take when the process ends.
const FLUSH_TIME: Duration = Duration::from_secs(3);

/// Where spans are made; does nothing where traces are off.
#[derive(Default)]
pub struct Traces {
    on: Option<On>,
}

struct On {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
    flush: mpsc::Sender<oneshot::Sender<()>>,
}

impl Traces {
    /// Traces as the environment has them. Must be called within the runtime.
    pub fn from_env() -> Self {
        let is = |name: &str, wanted: &str| std::env::var(name).is_ok_and(|value| value == wanted);
        let endpoints = ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"];
        let has_endpoint = endpoints.iter().any(|name| std::env::var(name).is_ok_and(|url| !url.is_empty()));
        if !has_endpoint || is("OTEL_SDK_DISABLED", "true") || is("OTEL_TRACES_EXPORTER", "none") {
            return Self::default();
        }
        match SpanExporter::builder().with_http().build() {
            Ok(exporter) => Self::to(exporter),
            Err(error) => {
                tracing::warn!(%error, "OTEL_EXPORTER_OTLP_ENDPOINT: no traces are sent; correct the OTEL_ variables");
                Self::default()
            }
        }
    }

    fn to(mut exporter: SpanExporter) -> Self {
        let mut resource = Resource::builder();
        if std::env::var_os("OTEL_SERVICE_NAME").is_none() {
            resource = resource.with_service_name("fairlead-inference");
        }
        let resource = resource.build();
        exporter.set_resource(&resource);
        let (spans, received) = mpsc::channel(QUEUE);
        let (flush, flushes) = mpsc::channel(1);
        tokio::spawn(send(exporter, received, flushes));
        let provider =
            SdkTracerProvider::builder().with_resource(resource).with_span_processor(Queue(spans)).build();
        let tracer = provider.tracer("fairlead-inference");
        Self { on: Some(On { provider, tracer, flush }) }
    }

    /// Begins the span of a request that came in at `arrived`. Its parent is the one that the headers name (`traceparent`).
    pub fn begin(&self, operation: &'static str, request: &RequestFacts<'_>) -> RequestSpan {
        let Some(On { tracer, .. }) = &self.on else { return RequestSpan { span: None, finish: Vec::new() } };
        let parent =
            TraceContextPropagator::new().extract_with_context(&Context::new(), &Headers(request.headers));
        let now = SystemTime::now();
        let begun = now.checked_sub(request.arrived.elapsed()).unwrap_or(now);
        let builder = tracer
            .span_builder(format!("{operation} {}", request.model))
            .with_kind(SpanKind::Server)
            .with_start_time(begun)
            .with_attributes(request.attributes(operation));
        RequestSpan { span: Some(tracer.build_with_context(builder, &parent)), finish: Vec::new() }
    }

    /// Sends what is still queued, for some seconds at most.
    pub async fn shutdown(&self) {
        let Some(On { provider, flush, .. }) = &self.on else { return };
        let (done, wait) = oneshot::channel();
        let flushing = async {
            // Either end may be gone already; then nothing is left to send.
            let _ = flush.send(done).await;
            let _ = wait.await;
        };
        if timeout(FLUSH_TIME, flushing).await.is_err() {
            tracing::warn!("the last traces could not be sent in time");
        }
        if let Err(error) = provider.shutdown() {
            tracing::debug!(%error, "ending traces");
        }
    }
}

/// What is known of a request when it begins.
pub struct RequestFacts<'a> {
    /// Its headers.
    pub headers: &'a HeaderMap,
    /// When it came in.
    pub arrived: Instant,
    /// The model it names.
    pub model: &'a str,
    /// How it wants its answer.
    pub options: &'a GenerationOptions,
}

impl RequestFacts<'_> {
    fn attributes(&self, operation: &'static str) -> Vec<KeyValue> {
        let GenerationOptions { max_tokens, n, sampling, form, stream, .. } = self.options;
        let mut attributes = vec![
            KeyValue::new("gen_ai.operation.name", operation),
            KeyValue::new("gen_ai.provider.name", "fairlead"),
            KeyValue::new("gen_ai.request.model", self.model.to_owned()),
            KeyValue::new("gen_ai.response.model", self.model.to_owned()),
            KeyValue::new("gen_ai.output.type", if form.is_some() { "json" } else { "text" }),
            KeyValue::new("gen_ai.request.stream", *stream),
        ];
        if *n > 1 {
            attributes.push(KeyValue::new("gen_ai.request.choice.count", i64::from(*n)));
        }
        let whole = [
            ("gen_ai.request.max_tokens", max_tokens.map(i64::from)),
            ("gen_ai.request.top_k", sampling.top_k.map(i64::from)),
            ("gen_ai.request.seed", sampling.seed),
        ];
        let broken = [
            ("gen_ai.request.temperature", sampling.temperature),
            ("gen_ai.request.top_p", sampling.top_p),
            ("gen_ai.request.frequency_penalty", sampling.frequency_penalty),
            ("gen_ai.request.presence_penalty", sampling.presence_penalty),
        ];
        attributes.extend(whole.into_iter().filter_map(|(key, value)| Some(KeyValue::new(key, value?))));
        attributes.extend(
            broken.into_iter().filter_map(|(key, value)| Some(KeyValue::new(key, f64::from(value?)))),
        );
        attributes
    }
}

/// The span of a request; ends when it is dropped.
pub struct RequestSpan {
    span: Option<Span>,
    finish: Vec<FinishReason>,
}

impl RequestSpan {
    /// An answer has ended.
    pub fn finished(&mut self, reason: FinishReason) {
        self.finish.push(reason);
    }

    /// The request has failed.
    pub fn failed(&mut self, error: &ApiError) {
        if let Some(span) = &mut self.span {
            let kind = error.code.clone().unwrap_or_else(|| error.kind.clone());
            span.set_attribute(KeyValue::new("error.type", kind));
            span.set_attribute(KeyValue::new("http.response.status_code", i64::from(error.status)));
            // The message may quote what the client sent.
            span.set_status(Status::error(""));
        }
    }

    /// All answers have come to their end.
    pub fn done(&mut self, id: &str, input: u64, output: u64, to_first_token: Option<Duration>) {
        let Some(span) = &mut self.span else { return };
        let count = |tokens| i64::try_from(tokens).unwrap_or(i64::MAX);
        span.set_attribute(KeyValue::new("gen_ai.response.id", id.to_owned()));
        span.set_attribute(KeyValue::new("gen_ai.usage.input_tokens", count(input)));
        span.set_attribute(KeyValue::new("gen_ai.usage.output_tokens", count(output)));
        if let Some(time) = to_first_token {
            span.set_attribute(KeyValue::new("gen_ai.server.time_to_first_token", time.as_secs_f64()));
        }
    }
}

impl Drop for RequestSpan {
    fn drop(&mut self) {
        let Some(span) = &mut self.span else { return };
        let word = |reason: &FinishReason| match reason {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
            FinishReason::ToolCalls => "tool_calls",
            FinishReason::ContentFilter => "content_filter",
        };
        let words: Vec<StringValue> = self.finish.iter().map(|reason| word(reason).into()).collect();
        span.set_attribute(KeyValue::new(
            "gen_ai.response.finish_reasons",
            Value::Array(Array::String(words)),
        ));
        span.end();
    }
}

/// Headers as a propagator reads them.
struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(axum::http::HeaderName::as_str).collect()
    }
}

/// Ended spans on their way to [`send`].
#[derive(Debug)]
struct Queue(mpsc::Sender<SpanData>);

impl SpanProcessor for Queue {
    fn on_start(&self, _span: &mut Span, _context: &Context) {}

    fn on_end(&self, span: SpanData) {
        // A collector that is slow or gone costs traces, never requests.
        if span.span_context.is_sampled() && self.0.try_send(span).is_err() {
            tracing::debug!("a trace was dropped: the queue is full");
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _time: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// Sends spans in batches until nobody makes them any more.
async fn send(
    exporter: SpanExporter,
    mut spans: mpsc::Receiver<SpanData>,
    mut flushes: mpsc::Receiver<oneshot::Sender<()>>,
) {
    loop {
        let mut batch = Vec::new();
        let mut flushed = None;
        tokio::select! {
            first = spans.recv() => match first {
                Some(span) => batch.push(span),
                None => return,
            },
            Some(done) = flushes.recv() => flushed = Some(done),
        }
        if flushed.is_none() {
            let more = async {
                while batch.len() < BATCH {
                    let room = BATCH - batch.len();
                    if spans.recv_many(&mut batch, room).await == 0 {
                        return;
                    }
                }
            };
            tokio::select! {
                _ = timeout(BATCH_TIME, more) => {}
                Some(done) = flushes.recv() => flushed = Some(done),
            }
        }
        // What is queued by now, whatever ended the wait.
        while flushed.is_some() && batch.len() < QUEUE {
            match spans.try_recv() {
                Ok(span) => batch.push(span),
                Err(_) => break,
            }
        }
        if !batch.is_empty()
            && let Err(error) = exporter.export(batch).await
        {
            tracing::debug!(%error, "traces could not be sent");
        }
        if let Some(done) = flushed {
            // Whoever asked may have given up.
            let _ = done.send(());
        }
    }
}
