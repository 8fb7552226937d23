//! A run's result for people.

use std::fmt::Write as _;

use fairlead_crds::evaluation::{Latency, ScoreResult};
use fairlead_evaluation::Summary;

/// A line for each score, and one for the latency's quantiles.
pub fn table(summary: &Summary) -> String {
    let mut text = String::new();
    // Writing to a String does not fail.
    let _ = writeln!(text, "{:<14}{:>9}{:>8}{:>8}{:>12}", "SCORE", "MEAN", "HITS", "N", "STD.DEV");
    for score in &summary.scores {
        let ScoreResult { name, n, hits, mean, variance, pattern: _ } = score;
        let hits = hits.map_or_else(|| "-".to_owned(), |hits| hits.to_string());
        let deviation = variance
            .as_ref()
            .and_then(|variance| variance.parse::<f64>().ok())
            .map_or_else(|| "-".to_owned(), |variance| format!("{:.3}", variance.sqrt()));
        let mean = mean.parse::<f64>().map_or_else(|_| mean.clone(), |mean| format!("{mean:.3}"));
        let _ = writeln!(text, "{:<14}{mean:>9}{hits:>8}{n:>8}{deviation:>12}", name.name());
    }
    if let Some(Latency { p50, p90, p99, max }) = &summary.latency {
        let _ = writeln!(text, "seconds to the whole answer: p50 {p50}, p90 {p90}, p99 {p99}, max {max}");
    }
    text
}
