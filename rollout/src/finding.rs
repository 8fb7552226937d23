//! A judgement as people read it: in the route's status, in its history and in events.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::gate::{Bound, Judgement, Metric, Verdict};

/// Which requests were judged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Window {
    /// Those of the whole step.
    #[default]
    Step,
    /// The latest of them.
    Recent,
}

/// What was found of one gate at the last look. Numbers are decimals in strings; what is not known or has no bound is absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Finding {
    /// What is measured, as in the spec.
    pub metric: String,
    /// Of an Evaluation: its name and score.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub of: Option<String>,
    /// Which quantile, of latencies and lengths.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quantile: Option<String>,
    /// Which bound of the gate: `max`, `min`, `maxRegression` or `minImprovement`.
    pub bound: String,
    /// The bound.
    pub limit: String,
    /// The canary's value: a share, seconds or tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub canary: Option<String>,
    /// Stable's value, where the bound compares with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stable: Option<String>,
    /// Lower end of the interval in which what the bound speaks of lies: the value, the regression or the improvement.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub low: Option<String>,
    /// Its upper end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub high: Option<String>,
    /// What follows.
    pub verdict: Verdict,
    /// Values of the canary that were counted.
    pub requests: u64,
    /// Values of stable, where compared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stable_requests: Option<u64>,
    /// Whether they are those of the whole step or the latest of them.
    pub window: Window,
    /// Since when the latest of them began, where those were judged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// All of it in words.
    pub message: String,
}

impl From<&Judgement> for Finding {
    fn from(judgement: &Judgement) -> Self {
        let Judgement { gate, interval, verdict, since, values, canary, stable, note: _ } = judgement;
        let bound = match gate.bound {
            Bound::Max(_) => "max",
            Bound::Min(_) => "min",
            Bound::MaxRegression(_) => "maxRegression",
            Bound::MinImprovement(_) => "minImprovement",
        };
        Self {
            metric: format!("{:?}", gate.metric),
            of: gate.of.clone(),
            quantile: gate.metric.has_quantile().then(|| decimal(gate.quantile)).flatten(),
            bound: bound.to_owned(),
            limit: decimal(gate.bound.limit()).unwrap_or_default(),
            canary: values.0.and_then(decimal),
            stable: values.1.and_then(decimal),
            low: decimal(interval.low),
            high: decimal(interval.high),
            verdict: *verdict,
            requests: *canary,
            stable_requests: *stable,
            window: if since.is_some() { Window::Recent } else { Window::Step },
            since: *since,
            message: words(judgement),
        }
    }
}

/// What a judgement says, in one sentence.
pub fn words(judgement: &Judgement) -> String {
    let Judgement { gate, interval, verdict, since, values, canary, stable, note } = judgement;
    let mut name = format!("{:?}", gate.metric);
    if let Some(of) = &gate.of {
        name = format!("{name} {of}");
    }
    if gate.metric.has_quantile() {
        name = format!("{name} p{}", decimal(gate.quantile * 100.0).unwrap_or_default());
    }
    if let Some(note) = note {
        return format!("{name}: {note}");
    }
    let things = if gate.metric == Metric::Evaluation { "questions" } else { "requests" };
    let counted = match stable {
        Some(stable) => format!("{canary} {things}, stable {stable}"),
        None => format!("{canary} {things}"),
    };
    if *verdict == Verdict::TooFewRequests {
        let streamed = matches!(gate.metric, Metric::TimeToFirstToken | Metric::InterTokenLatency);
        let only = if streamed { "; only streamed answers count" } else { "" };
        return format!("{name}: {counted}, too few to judge{only}");
    }
    let unit =
        |value: Option<f64>| value.map_or_else(|| "unknown".to_owned(), |value| in_unit(gate.metric, value));
    let mut text = format!("{name} is {}", unit(values.0));
    if gate.bound.compares() {
        text += &format!(", stable's {}", unit(values.1));
    }
    let relative = gate.bound.compares() && gate.metric.has_quantile();
    let number = |value: f64| if relative { percent(value) } else { in_unit(gate.metric, value) };
    let limit = number(gate.bound.limit());
    text += &match gate.bound {
        Bound::Max(_) => format!(" (at most {limit}"),
        Bound::Min(_) => format!(" (at least {limit}"),
        Bound::MaxRegression(_) => format!(" (at most {limit} worse"),
        Bound::MinImprovement(_) => format!(" (at least {limit} better"),
    };
    if interval.low < interval.high {
        let what = match gate.bound {
            Bound::Max(_) | Bound::Min(_) => "it is",
            Bound::MaxRegression(_) => "worse by",
            Bound::MinImprovement(_) => "better by",
        };
        text += &match (interval.low.is_finite(), interval.high.is_finite()) {
            (true, true) => format!("; {what} {} to {}", number(interval.low), number(interval.high)),
            (true, false) => format!("; {what} {} or more", number(interval.low)),
            (false, true) => format!("; {what} {} or less", number(interval.high)),
            (false, false) => String::new(),
        };
    }
    let when = since.map(|since| format!(" since {since}")).unwrap_or_default();
    if *canary > 0 {
        text += &format!("; {counted}{when}");
    }
    text + ")"
}

fn in_unit(metric: Metric, value: f64) -> String {
    if value.is_infinite() {
        return "without an answer".to_owned();
    }
    match metric {
        Metric::ErrorRate => percent(value),
        Metric::TimeToFirstToken | Metric::InterTokenLatency | Metric::EndToEndLatency => {
            format!("{} s", decimal(value).unwrap_or_default())
        }
        Metric::TokensPerAnswer => format!("{} tokens", decimal(value).unwrap_or_default()),
        Metric::Prometheus | Metric::Evaluation => decimal(value).unwrap_or_default(),
    }
}

fn percent(part: f64) -> String {
    format!("{} %", decimal(part * 100.0).unwrap_or_else(|| "unknown".to_owned()))
}

/// Three significant digits at least, and at most six behind the point. `None` for what is no finite number.
pub fn decimal(value: f64) -> Option<String> {
    if !value.is_finite() {
        return None;
    }
    // A finite f64's logarithm is within 400.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let digits = if value == 0.0 { 0 } else { (2.0 - value.abs().log10().floor()).clamp(0.0, 6.0) as usize };
    let text = format!("{value:.digits$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    Some(if text == "-0" { "0".to_owned() } else { text.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::{External, Gate};
    use crate::{Counts, Interval};

    #[test]
    fn decimals_are_short_and_no_digit_is_made_up() {
        let texts: Vec<_> = [0.0, -0.0, 1.0, 0.012_345, 123.456, 98_765.4, 1e-9, -0.5, 0.999_999]
            .map(|it| decimal(it).unwrap())
            .into();
        assert_eq!(texts, ["0", "0", "1", "0.0123", "123", "98765", "0", "-0.5", "1"]);
        assert_eq!((decimal(f64::INFINITY), decimal(f64::NAN)), (None, None));
    }

    #[test]
    fn a_finding_says_what_was_found_in_words_and_numbers() {
        let mut slow = Counts { requests: 400, ..Counts::default() };
        (0..400).for_each(|_| slow.time_to_first_token.add(0.6));
        let mut fast = Counts { requests: 900, ..Counts::default() };
        (0..900).for_each(|_| fast.time_to_first_token.add(0.4));
        let gate = Gate {
            metric: Metric::TimeToFirstToken,
            quantile: 0.95,
            bound: Bound::MaxRegression(0.2),
            of: None,
        };
        let found = Finding::from(&gate.judge(&slow, &fast, 50, 0.01));
        assert_eq!((found.verdict, found.requests, found.stable_requests), (Verdict::Fail, 400, Some(900)));
        assert_eq!((found.bound.as_str(), found.limit.as_str()), ("maxRegression", "0.2"));
        assert!(
            found.message.starts_with("TimeToFirstToken p95 is 0.594 s, stable's 0.403 s"),
            "{}",
            found.message
        );
        assert!(found.message.contains("(at most 20 % worse; worse by 4"), "{}", found.message);
        assert!(found.message.ends_with("400 requests, stable 900)"), "{}", found.message);
        let few = words(&gate.judge(&Counts::default(), &fast, 50, 0.01));
        assert_eq!(
            few,
            "TimeToFirstToken p95: 0 requests, stable 900, too few to judge; only streamed answers count"
        );
    }

    #[test]
    fn what_others_found_is_told_alike() {
        let gate = Gate { metric: Metric::Prometheus, quantile: 0.5, bound: Bound::Max(3.0), of: None };
        let found = External { verdict: Verdict::Fail, canary: Some(4.5), ..External::default() };
        assert_eq!(words(&gate.external(&found)), "Prometheus is 4.5 (at most 3)");
        let found = External { note: Some("the query gave nothing".into()), ..found };
        assert_eq!(words(&gate.external(&found)), "Prometheus: the query gave nothing");
        let hung = Judgement {
            gate: Gate { metric: Metric::EndToEndLatency, ..gate },
            interval: Interval { low: 5.0, high: f64::INFINITY },
            verdict: Verdict::Fail,
            since: Timestamp::from_second(1_800_000_000).ok(),
            values: (Some(f64::INFINITY), None),
            canary: 60,
            stable: None,
            note: None,
        };
        assert_eq!(
            words(&hung),
            "EndToEndLatency p50 is without an answer (at most 3 s; it is 5 s or more; 60 requests since 2027-01-15T08:00:00Z)"
        );
        // Nothing that JSON could not hold.
        let text = serde_json::to_string(&Finding::from(&hung)).unwrap();
        assert!(text.contains("\"window\":\"Recent\",\"since\":\"2027-01-15T08:00:00Z\""), "{text}");
        assert!(!text.contains("null") && !text.contains("inf"), "{text}");
    }
}
