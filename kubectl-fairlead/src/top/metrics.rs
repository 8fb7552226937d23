//! A gateway's metrics, as far as `top` shows them: from the text to counters by route and backend. Pure.

use std::collections::BTreeMap;

/// A backend of a route (`namespace/name`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// `namespace/name`.
    pub route: String,
    /// Name of the backend.
    pub backend: String,
}

/// What one gateway has counted since it started.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Counters {
    /// By backend.
    pub variants: BTreeMap<Key, Variant>,
    /// Requests that it is answering.
    pub in_flight: f64,
}

/// What it has counted of one backend.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Variant {
    /// Answered.
    pub answered: f64,
    /// Failed by the backend's fault.
    pub failed: f64,
    /// Refused, or left by the client.
    pub other: f64,
    /// Time to first token, in seconds.
    pub first_token: Buckets,
    /// Time to the end of the answer, in seconds.
    pub duration: Buckets,
    /// Tokens of all answers.
    pub tokens: f64,
    /// Requests that it is answering now.
    pub in_flight: f64,
}

/// A histogram: cumulative counts by upper edge.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Buckets {
    counts: Vec<(f64, f64)>,
}

const PREFIX: &str = "fairlead_gateway_";

impl Counters {
    /// Reads the OpenMetrics text. Lines that are not known are passed over.
    pub fn parse(text: &str) -> Self {
        let mut counters = Self::default();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let Some((name, labels, value)) = sample(line) else { continue };
            let Some(name) = name.strip_prefix(PREFIX) else { continue };
            if name == "requests_in_flight" {
                counters.in_flight = value;
                continue;
            }
            let Some(name) = name.strip_prefix("variant_") else { continue };
            let label =
                |wanted: &str| labels.iter().find(|(key, _)| key == wanted).map(|(_, value)| value.as_str());
            let (Some(route), Some(backend)) = (label("route"), label("backend")) else { continue };
            let key = Key { route: route.to_owned(), backend: backend.to_owned() };
            let variant = counters.variants.entry(key).or_default();
            let edge = || match label("le") {
                Some("+Inf") => Some(f64::INFINITY),
                Some(edge) => edge.parse().ok(),
                None => None,
            };
            match name {
                "requests_total" => match label("result") {
                    Some("Answered") => variant.answered = value,
                    Some("Failed") => variant.failed = value,
                    _ => variant.other += value,
                },
                "time_to_first_token_seconds_bucket" => variant.first_token.put(edge(), value),
                "request_duration_seconds_bucket" => variant.duration.put(edge(), value),
                "answer_tokens_sum" => variant.tokens = value,
                "requests_in_flight" => variant.in_flight = value,
                _ => {}
            }
        }
        counters
    }
}

impl Variant {
    /// What was counted since `earlier`; everything where the gateway has begun anew since.
    pub fn since(&self, earlier: &Self) -> Self {
        let restarted =
            self.answered < earlier.answered || self.failed < earlier.failed || self.other < earlier.other;
        if restarted {
            return self.clone();
        }
        Self {
            answered: self.answered - earlier.answered,
            failed: self.failed - earlier.failed,
            other: self.other - earlier.other,
            first_token: self.first_token.since(&earlier.first_token),
            duration: self.duration.since(&earlier.duration),
            tokens: self.tokens - earlier.tokens,
            in_flight: self.in_flight,
        }
    }

    /// Adds what another gateway has counted.
    pub fn add(&mut self, other: &Self) {
        self.answered += other.answered;
        self.failed += other.failed;
        self.other += other.other;
        self.first_token.add(&other.first_token);
        self.duration.add(&other.duration);
        self.tokens += other.tokens;
        self.in_flight += other.in_flight;
    }
}

impl Buckets {
    fn put(&mut self, edge: Option<f64>, count: f64) {
        if let Some(edge) = edge {
            self.counts.push((edge, count));
        }
    }

    fn since(&self, earlier: &Self) -> Self {
        let before = |edge: f64| {
            earlier.counts.iter().find(|(known, _)| *known == edge).map_or(0.0, |(_, count)| *count)
        };
        Self {
            counts: self
                .counts
                .iter()
                .map(|&(edge, count)| (edge, (count - before(edge)).max(0.0)))
                .collect(),
        }
    }

    fn add(&mut self, other: &Self) {
        if self.counts.is_empty() {
            self.counts.clone_from(&other.counts);
            return;
        }
        for (edge, count) in &mut self.counts {
            *count += other.counts.iter().find(|(known, _)| known == edge).map_or(0.0, |(_, count)| *count);
        }
    }

    /// A quantile, read as Prometheus does: evenly spread within its bucket; `None` of nothing.
    pub fn quantile(&self, quantile: f64) -> Option<f64> {
        let total = self.counts.last().map(|(_, count)| *count).filter(|total| *total > 0.0)?;
        let rank = quantile * total;
        let mut below = (0.0, 0.0);
        for &(edge, count) in &self.counts {
            if count >= rank && count > below.1 {
                if edge.is_infinite() {
                    // Above the last edge nothing more is known.
                    return Some(below.0);
                }
                return Some(below.0 + (edge - below.0) * (rank - below.1) / (count - below.1));
            }
            below = (edge, count);
        }
        None
    }
}

type Labels = Vec<(String, String)>;

/// `name{label="value",…} number …`
fn sample(line: &str) -> Option<(&str, Labels, f64)> {
    let end = line.find(['{', ' '])?;
    let (name, rest) = line.split_at(end);
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(inside) => labels(inside)?,
        None => (Labels::new(), rest),
    };
    let value = rest.split_whitespace().next()?.parse().ok()?;
    Some((name, labels, value))
}

/// Up to the closing brace; values may hold braces and escaped quotes.
fn labels(text: &str) -> Option<(Labels, &str)> {
    let (mut labels, mut rest) = (Labels::new(), text);
    loop {
        rest = rest.trim_start_matches(',');
        if let Some(after) = rest.strip_prefix('}') {
            return Some((labels, after));
        }
        let (name, after) = rest.split_once("=\"")?;
        let (mut value, mut escaped, mut end) = (String::new(), false, None);
        for (at, letter) in after.char_indices() {
            match letter {
                _ if escaped => {
                    value.push(if letter == 'n' { '\n' } else { letter });
                    escaped = false;
                }
                '\\' => escaped = true,
                '"' => {
                    end = Some(at + 1);
                    break;
                }
                letter => value.push(letter),
            }
        }
        labels.push((name.to_owned(), value));
        rest = &after[end?..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"# TYPE fairlead_gateway_requests_in_flight gauge
fairlead_gateway_requests_in_flight 7
fairlead_gateway_variant_requests_total{route="shop/chat",backend="v1",result="Answered"} 90
fairlead_gateway_variant_requests_total{route="shop/chat",backend="v1",result="Failed"} 10
fairlead_gateway_variant_requests_total{route="shop/chat",backend="v1",result="Left"} 1
fairlead_gateway_variant_time_to_first_token_seconds_bucket{le="0.1",route="shop/chat",backend="v1"} 50
fairlead_gateway_variant_time_to_first_token_seconds_bucket{le="0.2",route="shop/chat",backend="v1"} 90
fairlead_gateway_variant_time_to_first_token_seconds_bucket{le="+Inf",route="shop/chat",backend="v1"} 100
fairlead_gateway_variant_answer_tokens_sum{route="shop/chat",backend="v1"} 1600.5
fairlead_gateway_variant_requests_in_flight{route="shop/chat",backend="v1"} 3
fairlead_gateway_other_total{route="a\"b}{,c",x="y"} 1 # {trace="z"} 1
nonsense
nonsense{a="
"#;

    fn key() -> Key {
        Key { route: "shop/chat".to_owned(), backend: "v1".to_owned() }
    }

    #[test]
    fn what_gateways_write_is_read() {
        let counters = Counters::parse(TEXT);
        assert_eq!(counters.in_flight, 7.0);
        let variant = &counters.variants[&key()];
        assert_eq!(
            (variant.answered, variant.failed, variant.other, variant.tokens),
            (90.0, 10.0, 1.0, 1600.5)
        );
        assert_eq!((variant.in_flight, variant.since(variant).in_flight), (3.0, 3.0), "those of now");
        assert_eq!(variant.first_token.quantile(0.5), Some(0.1));
        assert!((variant.first_token.quantile(0.7).unwrap() - 0.15).abs() < 1e-9);
        assert_eq!(
            variant.first_token.quantile(0.99),
            Some(0.2),
            "what is above the last edge is at least that"
        );
        assert_eq!(variant.duration.quantile(0.5), None);
        let (_, labels, value) = sample("a{route=\"a\\\"b}{,c\",x=\"y\"} 1 # x").unwrap();
        assert_eq!((labels[0].1.as_str(), labels[1].1.as_str(), value), ("a\"b}{,c", "y", 1.0));
    }

    #[test]
    fn a_window_is_a_difference_and_a_restart_begins_anew() {
        let late = Counters::parse(TEXT).variants[&key()].clone();
        let early = Variant { answered: 60.0, failed: 10.0, tokens: 600.5, ..Variant::default() };
        let window = late.since(&early);
        assert_eq!((window.answered, window.failed, window.tokens), (30.0, 0.0, 1000.0));
        let restarted = Variant { answered: 5.0, ..Variant::default() };
        assert_eq!(restarted.since(&early).answered, 5.0);
        let mut sum = window.clone();
        sum.add(&window);
        assert_eq!((sum.answered, sum.first_token.quantile(0.5)), (60.0, window.first_token.quantile(0.5)));
    }
}
