//! What is counted of mirrored requests, by route and shadow. These labels are names of operators' objects, so those of shadows that
//! are no more are taken out ([`ShadowMetrics::keep`], by `routing` with every new snapshot).

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// Which shadow.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, EncodeLabelSet)]
pub struct ShadowLabels {
    /// `namespace/name` of the route.
    pub route: String,
    /// The backend that is asked.
    pub backend: String,
}

/// What came of a mirrored request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum ShadowResult {
    /// The shadow answered, and so did the live one.
    Answered,
    /// The shadow did not answer, or not in time.
    Failed,
    /// It was not asked: it had as many requests as it takes.
    Dropped,
    /// The live one did not answer, so there is nothing to compare with.
    Incomparable,
}

impl ShadowResult {
    const ALL: [Self; 4] = [Self::Answered, Self::Failed, Self::Dropped, Self::Incomparable];
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabels {
    route: String,
    backend: String,
    result: ShadowResult,
}

/// The metrics of all shadows.
#[derive(Debug)]
pub struct ShadowMetrics {
    requests: Family<ResultLabels, Counter>,
    latencies: Family<ShadowLabels, Histogram>,
    lengths: Family<ShadowLabels, Histogram>,
    similarities: Family<ShadowLabels, Histogram>,
    known: Mutex<BTreeSet<ShadowLabels>>,
}

impl Default for ShadowMetrics {
    fn default() -> Self {
        Self {
            requests: Family::default(),
            latencies: Family::new_with_constructor(ratios),
            lengths: Family::new_with_constructor(ratios),
            similarities: Family::new_with_constructor(similarities),
            known: Mutex::default(),
        }
    }
}

impl ShadowMetrics {
    /// Gives them their names.
    pub fn register(&self, registry: &mut Registry) {
        let help = "Mirrored requests, by what came of them";
        registry.register("shadow_requests", help, self.requests.clone());
        let help = "How long a shadow took for its answer, divided by how long the live one took";
        registry.register("shadow_latency_ratio", help, self.latencies.clone());
        let help = "Length of a shadow's answer in characters, divided by the live one's";
        registry.register("shadow_length_ratio", help, self.lengths.clone());
        let help = "Cosine of the embeddings of a shadow's answer and the live one";
        registry.register("shadow_similarity", help, self.similarities.clone());
    }

    /// A request was mirrored, or would have been.
    pub fn counted(&self, of: &ShadowLabels, result: ShadowResult) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if !known.contains(of) {
            known.insert(of.clone());
        }
        // Under the lock, so that a shadow that is just being forgotten does not come back unknown.
        self.requests.get_or_create(&labels(of, result)).inc();
    }

    /// A shadow took so many times as long as the live one.
    pub fn latency(&self, of: &ShadowLabels, ratio: f64) {
        self.observe(&self.latencies, of, ratio);
    }

    /// A shadow's answer was so many times as long as the live one.
    pub fn length(&self, of: &ShadowLabels, ratio: f64) {
        self.observe(&self.lengths, of, ratio);
    }

    /// A shadow's answer meant this much the same.
    pub fn similarity(&self, of: &ShadowLabels, cosine: f64) {
        self.observe(&self.similarities, of, cosine);
    }

    /// These are the shadows from now on. A leg that is still under way for another one counts once more, until the next call.
    pub fn keep(&self, shadows: &BTreeSet<ShadowLabels>) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        for gone in known.difference(shadows) {
            for result in ShadowResult::ALL {
                self.requests.remove(&labels(gone, result));
            }
            for family in [&self.latencies, &self.lengths, &self.similarities] {
                family.remove(gone);
            }
        }
        known.retain(|label| shadows.contains(label));
    }

    /// What it measured of a shadow that `counted` has seen, and that was not forgotten meanwhile.
    fn observe(&self, family: &Family<ShadowLabels, Histogram>, of: &ShadowLabels, value: f64) {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.contains(of) {
            family.get_or_create(of).observe(value);
        }
    }
}

fn labels(of: &ShadowLabels, result: ShadowResult) -> ResultLabels {
    let ShadowLabels { route, backend } = of.clone();
    ResultLabels { route, backend, result }
}

fn ratios() -> Histogram {
    Histogram::new([0.1, 0.25, 0.5, 0.67, 0.8, 0.9, 0.95, 1.0, 1.05, 1.1, 1.25, 1.5, 2.0, 4.0, 10.0])
}

/// Of cosines: 1 is the same meaning.
fn similarities() -> Histogram {
    Histogram::new([-0.5, 0.0, 0.25, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.925, 0.95, 0.975, 0.99, 1.0])
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::encoding::text::encode;

    fn shadow(route: &str) -> ShadowLabels {
        ShadowLabels { route: route.to_owned(), backend: "v2".to_owned() }
    }

    #[test]
    fn shadows_that_are_no_more_are_taken_out() {
        let (metrics, mut registry) = (ShadowMetrics::default(), Registry::default());
        metrics.register(&mut registry);
        let text = || {
            let mut text = String::new();
            encode(&mut text, &registry).expect("text");
            text
        };
        for route in ["ns/stays", "ns/goes"] {
            metrics.counted(&shadow(route), ShadowResult::Answered);
            metrics.latency(&shadow(route), 1.2);
            metrics.length(&shadow(route), 0.9);
            metrics.similarity(&shadow(route), 0.99);
        }
        assert!(text().contains("ns/goes"));
        metrics.keep(&[shadow("ns/stays")].into());
        // From a leg that was under way.
        metrics.similarity(&shadow("ns/goes"), 0.5);
        assert!(!text().contains("ns/goes"), "{}", text());
        assert!(
            text().contains("shadow_requests_total{route=\"ns/stays\",backend=\"v2\",result=\"Answered\"} 1")
        );
        assert!(text().contains("shadow_similarity_count{route=\"ns/stays\",backend=\"v2\"} 1"));
    }
}
