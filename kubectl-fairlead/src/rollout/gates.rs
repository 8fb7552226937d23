//! What a gate says, for people: its value, its interval, its limit, its verdict and how many requests are missing. Pure.

use serde::Serialize;

use crate::render::units::{latency, percent, short};
use crate::render::{Paint, Table, wrap};
use crate::route::{Finding, Rollout, Route};

/// Where `spec.canary.analysis.minRequests` is left out.
const MIN_REQUESTS: u64 = 50;
/// An estimate of more requests than this says no more than that it will take long.
const MANY: f64 = 1e6;

/// A gate. Numbers are in the metric's unit: shares of one, seconds, tokens; a regression of a latency is a share of stable's value.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GateReport {
    /// What is measured, and of which quantile or Evaluation.
    pub gate: String,
    /// The metric alone.
    pub metric: String,
    /// `max`, `min`, `maxRegression`, `minImprovement`.
    pub bound: String,
    /// The bound.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<f64>,
    /// The canary's value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub canary: Option<f64>,
    /// Stable's value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stable: Option<f64>,
    /// Lower end of the interval of what the bound speaks of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub low: Option<f64>,
    /// Its upper end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub high: Option<f64>,
    /// `Pass`, `Fail`, `Undecided`, `TooFewRequests`, `NotMeasured`.
    pub verdict: String,
    /// Requests of the canary that were counted.
    pub requests: u64,
    /// Requests of stable that were counted, where compared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stable_requests: Option<u64>,
    /// Whether only the latest requests were judged.
    pub recent: bool,
    /// Since when those began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// Requests of the canary, and of stable where compared, that are missing until it is judged at all.
    #[serde(skip_serializing_if = "is_zero")]
    pub missing: u64,
    /// About so many more requests of the canary would decide, if what was seen goes on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to_decide: Option<u64>,
    /// All of it in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

// The signature is serde's.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl GateReport {
    /// Every gate of a rollout.
    pub fn all(route: &Route, rollout: &Rollout) -> Vec<Self> {
        let analysis = route.spec.canary.as_ref().and_then(|canary| canary.analysis.as_ref());
        let min_requests = analysis.and_then(|analysis| analysis.min_requests).unwrap_or(MIN_REQUESTS);
        rollout.analysis.iter().map(|finding| Self::of(finding, min_requests)).collect()
    }

    fn of(finding: &Finding, min_requests: u64) -> Self {
        let Finding {
            metric,
            of,
            quantile,
            bound,
            limit,
            canary,
            stable,
            low,
            high,
            verdict,
            requests,
            stable_requests,
            window,
            since,
            message,
        } = finding;
        let mut gate = metric.clone();
        if let Some(of) = of {
            gate = format!("{gate} {of}");
        }
        if let Some(quantile) = quantile {
            gate = format!("{gate} p{}", short(quantile * 100.0));
        }
        let counted = std::iter::once(*requests).chain(*stable_requests).min().unwrap_or(0);
        let missing = if verdict == "TooFewRequests" { min_requests.saturating_sub(counted) } else { 0 };
        let mut report = Self {
            gate,
            metric: metric.clone(),
            bound: bound.clone(),
            limit: *limit,
            canary: *canary,
            stable: *stable,
            low: *low,
            high: *high,
            verdict: verdict.clone(),
            requests: *requests,
            stable_requests: *stable_requests,
            recent: window == "Recent",
            since: since.clone(),
            missing,
            to_decide: None,
            message: message.clone().filter(|message| !message.is_empty()),
        };
        report.to_decide = report.estimate();
        report
    }

    /// Which requests, where not those of the whole step.
    fn which(&self) -> String {
        match &self.since {
            _ if !self.recent => String::new(),
            None => " (latest)".to_owned(),
            // The time of the day in UTC; a date has no room in a table.
            Some(since) => {
                let time = since.split_once('T').map_or(since.as_str(), |(_, time)| time);
                format!(" (since {})", time.trim_end_matches('Z'))
            }
        }
    }

    fn compares(&self) -> bool {
        matches!(self.bound.as_str(), "maxRegression" | "minImprovement")
    }

    /// What the interval is of: the value, or by how much it is worse (or better) than stable's.
    fn point(&self) -> Option<f64> {
        if !self.compares() {
            return self.canary;
        }
        let (canary, stable) = (self.canary?, self.stable?);
        let worse = match self.metric.as_str() {
            "ErrorRate" => canary - stable,
            // A score is better when it is larger.
            "Evaluation" => stable - canary,
            _ if stable > 0.0 => canary / stable - 1.0,
            _ => return None,
        };
        Some(if self.bound == "minImprovement" { -worse } else { worse })
    }

    /// How many more requests would decide: intervals shrink about as the square root of the requests grows.
    fn estimate(&self) -> Option<u64> {
        if self.verdict != "Undecided" || self.requests == 0 {
            return None;
        }
        let (point, limit) = (self.point()?, self.limit?);
        let reach = if point <= limit { self.high? - point } else { point - self.low? };
        let distance = (limit - point).abs();
        // Counts of requests, far below 2^53.
        #[allow(clippy::cast_precision_loss)]
        let more = self.requests as f64 * ((reach / distance).powi(2) - 1.0);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let more = (more.is_finite() && (1.0..MANY).contains(&more)).then_some(more as u64)?;
        Some(two_digits(more))
    }

    /// A value in the metric's unit.
    fn value(&self, value: f64) -> String {
        match self.metric.as_str() {
            "ErrorRate" => percent(value),
            "TimeToFirstToken" | "InterTokenLatency" | "EndToEndLatency" => latency(value),
            _ => short(value),
        }
    }

    /// A bound, or an end of the interval, in its unit.
    fn relative(&self, value: f64) -> String {
        match (self.compares(), self.metric.as_str()) {
            (false, _) => self.value(value),
            (true, "Evaluation") => short(value),
            (true, _) => percent(value),
        }
    }

    fn interval(&self) -> String {
        match (self.low, self.high) {
            (None, None) => String::new(),
            (low, high) => {
                let end = |end: Option<f64>, open| end.map_or(open, |end| self.relative(end));
                format!("{} .. {}", end(low, "?".to_owned()), end(high, "?".to_owned()))
            }
        }
    }

    fn limit(&self) -> String {
        let Some(limit) = self.limit else { return String::new() };
        let limit = self.relative(limit);
        match self.bound.as_str() {
            "max" => format!("<= {limit}"),
            "min" => format!(">= {limit}"),
            "maxRegression" => format!("worse by <= {limit}"),
            "minImprovement" => format!("better by >= {limit}"),
            other => format!("{other} {limit}"),
        }
    }

    fn missing(&self) -> String {
        match (self.missing, self.to_decide, self.verdict.as_str()) {
            (0, Some(more), _) => format!("about {more}"),
            (0, None, "Undecided") => "many".to_owned(),
            (0, None, _) => String::new(),
            (missing, ..) => missing.to_string(),
        }
    }
}

/// Two digits are all that an estimate is worth.
fn two_digits(number: u64) -> u64 {
    let scale = 10_u64.pow(number.checked_ilog10().unwrap_or(0).saturating_sub(1));
    number.div_ceil(scale) * scale
}

/// The gates: a table where there is room, otherwise some lines for each.
pub fn text(gates: &[GateReport], width: usize, paint: Paint) -> String {
    let table = table(gates, paint);
    if table.width() <= width { table.render(width) } else { blocks(gates, width, paint) }
}

fn table(gates: &[GateReport], paint: Paint) -> Table {
    let mut table =
        Table::new(&["GATE", "CANARY", "STABLE", "INTERVAL", "LIMIT", "VERDICT", "REQUESTS", "MISSING"])
            .right(6)
            .right(7);
    for gate in gates {
        let value = |value: Option<f64>| value.map(|value| gate.value(value)).unwrap_or_default();
        let recent = gate.which();
        table.row([
            format!("{}{recent}", gate.gate),
            value(gate.canary),
            value(gate.stable),
            gate.interval(),
            gate.limit(),
            paint.verdict(&gate.verdict),
            gate.requests.to_string(),
            gate.missing(),
        ]);
    }
    table
}

fn blocks(gates: &[GateReport], width: usize, paint: Paint) -> String {
    let block = |gate: &GateReport| {
        let recent = gate.which();
        let value =
            |name: &str, value: Option<f64>| value.map(|value| format!("{name} {}", gate.value(value)));
        let missing = match (gate.missing, gate.to_decide) {
            (0, Some(more)) => Some(format!("about {more} more would decide")),
            (0, None) => None,
            (missing, _) => Some(format!("{missing} are missing")),
        };
        let parts = [
            value("canary", gate.canary),
            value("stable", gate.stable),
            gate.low.or(gate.high).map(|_| format!("interval {}", gate.interval())),
            Some(format!("limit {}", gate.limit())),
            Some(format!("{} requests", gate.requests)),
            missing,
        ];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        let details = wrap(&parts.join("; "), width.saturating_sub(2));
        let head = format!("{}{recent}: {}\n", gate.gate, paint.verdict(&gate.verdict));
        details.into_iter().fold(head, |text, row| text + "  " + &row + "\n")
    };
    gates.iter().map(block).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn gate(finding: Value) -> GateReport {
        GateReport::of(&serde_json::from_value(finding).unwrap(), 50)
    }

    #[test]
    fn missing_requests_are_counted_where_there_are_too_few() {
        let few = json!({"metric": "ErrorRate", "bound": "max", "limit": "0.02", "verdict": "TooFewRequests", "requests": 38});
        assert_eq!(gate(few.clone()).missing, 12);
        let mut compared = few;
        compared["stableRequests"] = json!(20);
        assert_eq!(gate(compared).missing, 30, "of whichever has fewer");
    }

    #[test]
    fn what_would_decide_is_estimated() {
        let undecided = |low: &str, canary: &str, high: &str| {
            gate(
                json!({"metric": "ErrorRate", "bound": "max", "limit": "0.02", "low": low, "canary": canary, "high": high,
                "verdict": "Undecided", "requests": 400}),
            )
        };
        // It reaches twice as far as the limit is away: four times the requests.
        assert_eq!(undecided("0", "0.01", "0.03").to_decide, Some(1200));
        assert_eq!(undecided("0.01", "0.03", "0.05").to_decide, Some(1200), "to fail as well as to pass");
        let on_the_limit = undecided("0.01", "0.02", "0.03");
        assert_eq!((on_the_limit.to_decide, on_the_limit.missing()), (None, "many".to_owned()));
        let regression = gate(
            json!({"metric": "TimeToFirstToken", "bound": "maxRegression", "limit": "0.2", "low": "-0.1",
            "canary": "1.1", "stable": "1", "high": "0.4", "verdict": "Undecided", "requests": 100}),
        );
        assert_eq!(regression.to_decide, Some(800));
    }

    #[test]
    fn numbers_have_the_units_of_what_they_are() {
        let latency = gate(
            json!({"metric": "TimeToFirstToken", "quantile": "0.95", "bound": "maxRegression", "limit": "0.2",
            "low": "-0.03", "high": "0.4", "canary": "1.24", "stable": "1.1", "verdict": "Undecided"}),
        );
        assert_eq!(latency.gate, "TimeToFirstToken p95");
        assert_eq!(
            (latency.interval(), latency.limit()),
            ("-3 % .. 40 %".to_owned(), "worse by <= 20 %".to_owned())
        );
        let score = gate(
            json!({"metric": "Evaluation", "of": "facts exactMatch", "bound": "min", "limit": "0.85", "canary": "0.9"}),
        );
        assert_eq!(
            (score.gate.as_str(), score.limit()),
            ("Evaluation facts exactMatch", ">= 0.85".to_owned())
        );
        let open = gate(
            json!({"metric": "EndToEndLatency", "bound": "max", "limit": "2", "low": "0.5", "verdict": "Undecided"}),
        );
        assert_eq!((open.interval(), open.limit()), ("500ms .. ?".to_owned(), "<= 2.00s".to_owned()));
    }
}
