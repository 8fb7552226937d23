//! A run's result: arithmetic over its items, and the form in which the runner tells it to the operator.

use std::collections::BTreeMap;

use fairlead_crds::evaluation::{ItemsAt, Latency, MOST_DIGITS, Score, ScoreResult, pattern};
use serde::{Deserialize, Serialize};

use crate::items::Item;

/// What a run leaves for the operator. As JSON it is shorter than the 4,096 bytes that a termination message may have; patterns take at
/// most 2,400 of these.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// Digest of the questions that were asked.
    pub questions: String,
    /// How many.
    pub asked: u32,
    /// One for each score that at least one question has a part in.
    pub scores: Vec<ScoreResult>,
    /// Quantiles of the time to the whole answer, where there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency: Option<Latency>,
    /// Where the items are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub items: Option<ItemsAt>,
    /// Revisions that answered, as the pods say, with the number of answers.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub revisions: BTreeMap<String, u32>,
    /// When asking began, in RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<String>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<String>,
}

/// Revisions that are told apart; more than two means that something goes on that no count explains.
const MOST_REVISIONS: usize = 4;

/// The scores of a run, those of `wanted` (all where it is empty) and `errors`, in this order.
pub fn summarize(items: &[Item], wanted: &[Score]) -> Summary {
    let mut order: Vec<Score> = if wanted.is_empty() { Score::ALL.to_vec() } else { wanted.to_vec() };
    if !order.contains(&Score::Errors) {
        order.push(Score::Errors);
    }
    let seconds = {
        let mut seconds: Vec<f64> = items.iter().filter_map(|item| item.seconds).collect();
        seconds.sort_by(f64::total_cmp);
        seconds
    };
    let mut revisions = BTreeMap::new();
    for revision in items.iter().filter_map(|item| item.revision.as_ref()) {
        if revisions.len() < MOST_REVISIONS || revisions.contains_key(revision) {
            *revisions.entry(revision.clone()).or_insert(0) += 1;
        }
    }
    let mut scores: Vec<ScoreResult> =
        order.into_iter().filter_map(|score| result(score, items, &seconds)).collect();
    let mut room = MOST_DIGITS;
    for score in &mut scores {
        // The first scores are those that were asked for.
        match room.checked_sub(score.pattern.as_ref().map_or(0, String::len)) {
            Some(left) => room = left,
            None => score.pattern = None,
        }
    }
    Summary {
        asked: count(items.len()),
        scores,
        latency: quantiles(&seconds),
        revisions,
        ..Summary::default()
    }
}

fn result(score: Score, items: &[Item], seconds: &[f64]) -> Option<ScoreResult> {
    let share = |of: &dyn Fn(&Item) -> Option<bool>| {
        let values: Vec<bool> = items.iter().filter_map(of).collect();
        let hits = values.iter().filter(|hit| **hit).count();
        (!values.is_empty()).then(|| ScoreResult {
            name: score,
            n: count(values.len()),
            hits: Some(count(hits)),
            mean: decimal(float(hits) / float(values.len())),
            variance: None,
            pattern: Some(pattern(&values)),
        })
    };
    let mean = |values: &[f64]| {
        let (mean, variance) = mean_and_variance(values)?;
        Some(ScoreResult {
            name: score,
            n: count(values.len()),
            hits: None,
            mean: decimal(mean),
            variance: variance.map(|variance| trimmed(format!("{variance:.9}"))),
            pattern: None,
        })
    };
    match score {
        Score::ExactMatch => share(&|item| item.grade.exact_match),
        Score::Contains => share(&|item| item.grade.contains),
        Score::F1 => mean(&items.iter().filter_map(|item| item.grade.f1).collect::<Vec<_>>()),
        Score::Refusal => share(&|item| item.grade.refusal),
        Score::FalseRefusal => share(&|item| item.grade.false_refusal),
        Score::Latency => mean(seconds),
        Score::Errors => share(&|item| Some(item.error.is_some())),
    }
}

/// The mean, and of more than one value the sample variance.
fn mean_and_variance(values: &[f64]) -> Option<(f64, Option<f64>)> {
    let n = float(values.len());
    if values.is_empty() {
        return None;
    }
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|value| (value - mean) * (value - mean)).sum();
    Some((mean, (values.len() > 1).then(|| squares / (n - 1.0))))
}

/// Quantiles by nearest rank, of values in order.
fn quantiles(seconds: &[f64]) -> Option<Latency> {
    let last = seconds.last()?;
    let rank = |percent: usize| {
        let rank = (seconds.len() * percent).div_ceil(100).max(1);
        decimal(*seconds.get(rank - 1).unwrap_or(last))
    };
    Some(Latency { p50: rank(50), p90: rank(90), p99: rank(99), max: decimal(*last) })
}

/// At most six digits after the point.
fn decimal(value: f64) -> String {
    trimmed(format!("{value:.6}"))
}

fn trimmed(text: String) -> String {
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// Counts here are far below 2^53.
#[allow(clippy::cast_precision_loss)]
fn float(count: usize) -> f64 {
    count as f64
}
