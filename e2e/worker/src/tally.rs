//! What became of a load's requests: every one is counted once, as answered or as failed. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// One request that is over.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// When it was sent, in Unix seconds.
    pub at: i64,
    /// Who sent it, of the load's users.
    pub user: u32,
    /// The backend that the gateway says it went to.
    pub backend: Option<String>,
    /// The revision that answered, where it is told.
    pub revision: Option<String>,
    /// How long to the first token of a stream, or to the answer.
    pub first_token: Duration,
    /// How long to the end.
    pub total: Duration,
    /// Why it failed, from a small set of words; `None` when it was answered whole.
    pub failure: Option<String>,
}

/// What became of all.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Requests that were sent.
    pub sent: u64,
    /// Those that were answered whole.
    pub answered: u64,
    /// The others, by why.
    pub failed: BTreeMap<String, u64>,
    /// Requests whose time came while as many ran as may; not sent, and a reason to doubt the rest.
    pub unsent: u64,
    /// By how much requests were sent too late, 99th percentile, in milliseconds: more than a few say that the load's own
    /// machine was too slow.
    pub late_ms: f64,
    /// By backend; `""` for answers that name none.
    pub backends: BTreeMap<String, OfBackend>,
    /// Answers, by the revision that gave them; those that name none are left out.
    pub revisions: BTreeMap<String, u64>,
    /// By second, in order.
    pub seconds: Vec<Second>,
    /// Of users' requests in the order in which they were sent: how often one went to another backend than the one before, by
    /// `from>to`.
    pub switches: BTreeMap<String, u64>,
}

/// One backend's part.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OfBackend {
    /// Requests that went there.
    pub requests: u64,
    /// Those that failed.
    pub failed: u64,
    /// Milliseconds to the first token, of those that were answered.
    pub first_token_ms: Quantiles,
    /// Milliseconds to the end, of those that were answered.
    pub total_ms: Quantiles,
}

/// Of measured values.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Quantiles {
    /// The median.
    pub p50: f64,
    /// The 90th percentile.
    pub p90: f64,
    /// The 99th percentile.
    pub p99: f64,
    /// The largest.
    pub max: f64,
}

/// One second.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Second {
    /// Which, in Unix seconds.
    pub at: i64,
    /// Requests sent in it, by backend.
    pub backends: BTreeMap<String, u64>,
    /// Requests sent in it that failed.
    pub failed: u64,
}

impl Report {
    /// Sums up. `outcomes` in the order in which the requests were sent.
    pub fn new(outcomes: &[Outcome], unsent: u64, mut late: Vec<Duration>) -> Self {
        let mut report = Self { unsent, late_ms: Quantiles::of(&mut late).p99, ..Self::default() };
        let mut times: BTreeMap<&str, (Vec<Duration>, Vec<Duration>)> = BTreeMap::new();
        let mut last: BTreeMap<u32, &str> = BTreeMap::new();
        let mut seconds: BTreeMap<i64, Second> = BTreeMap::new();
        for outcome in outcomes {
            let name = outcome.backend.as_deref().unwrap_or_default();
            report.sent += 1;
            let backend = report.backends.entry(name.to_owned()).or_default();
            backend.requests += 1;
            let second = seconds.entry(outcome.at).or_default();
            *second.backends.entry(name.to_owned()).or_default() += 1;
            match &outcome.failure {
                Some(reason) => {
                    *report.failed.entry(reason.clone()).or_default() += 1;
                    backend.failed += 1;
                    second.failed += 1;
                }
                None => {
                    report.answered += 1;
                    if let Some(revision) = &outcome.revision {
                        *report.revisions.entry(revision.clone()).or_default() += 1;
                    }
                    let (first, total) = times.entry(name).or_default();
                    first.push(outcome.first_token);
                    total.push(outcome.total);
                }
            }
            if !name.is_empty()
                && let Some(before) = last.insert(outcome.user, name)
                && before != name
            {
                *report.switches.entry(format!("{before}>{name}")).or_default() += 1;
            }
        }
        for (name, (mut first, mut total)) in times {
            if let Some(backend) = report.backends.get_mut(name) {
                backend.first_token_ms = Quantiles::of(&mut first);
                backend.total_ms = Quantiles::of(&mut total);
            }
        }
        report.seconds = seconds.into_iter().map(|(at, second)| Second { at, ..second }).collect();
        report
    }
}

impl Report {
    /// How many requests of the seconds from `from` up to `to` went to each backend.
    pub fn split(&self, from: i64, to: i64) -> BTreeMap<&str, u64> {
        let mut split = BTreeMap::new();
        for second in self.seconds.iter().filter(|second| (from..to).contains(&second.at)) {
            for (backend, requests) in &second.backends {
                *split.entry(backend.as_str()).or_default() += requests;
            }
        }
        split
    }
}

impl Quantiles {
    /// In milliseconds; zeros of nothing.
    pub fn of(times: &mut [Duration]) -> Self {
        times.sort_unstable();
        let Some(last) = times.len().checked_sub(1) else { return Self::default() };
        let at = |hundredths: usize| times[(last * hundredths).div_ceil(100)].as_secs_f64() * 1e3;
        Self { p50: at(50), p90: at(90), p99: at(99), max: at(100) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn outcome(at: i64, user: u32, backend: &str, failure: Option<&str>) -> Outcome {
        Outcome {
            at,
            user,
            backend: (!backend.is_empty()).then(|| backend.to_owned()),
            revision: None,
            first_token: Duration::from_millis(10),
            total: Duration::from_millis(20),
            failure: failure.map(str::to_owned),
        }
    }

    #[test]
    fn users_who_come_to_a_canary_and_back_are_seen() {
        let all = [("v1", 1), ("v1", 2), ("v2", 1), ("v2", 1), ("v1", 1), ("v1", 2)];
        let outcomes: Vec<_> = all.iter().map(|(backend, user)| outcome(0, *user, backend, None)).collect();
        let switches = Report::new(&outcomes, 0, Vec::new()).switches;
        assert_eq!(switches, BTreeMap::from([("v1>v2".to_owned(), 1), ("v2>v1".to_owned(), 1)]));
    }

    #[test]
    fn quantiles_are_of_the_values_that_were_there() {
        let mut times: Vec<Duration> = (1..=100).rev().map(Duration::from_millis).collect();
        let of = Quantiles::of(&mut times);
        assert_eq!((of.p50, of.p90, of.p99, of.max), (51.0, 91.0, 100.0, 100.0));
    }

    proptest! {
        #[test]
        fn every_request_is_counted_once(
            all in prop::collection::vec((0..4_i64, 0..3_u32, prop::sample::select(vec!["", "a", "b"]), any::<bool>()), 0..50)
        ) {
            let outcomes: Vec<_> =
                all.iter().map(|(at, user, backend, ok)| outcome(*at, *user, backend, (!ok).then_some("x"))).collect();
            let report = Report::new(&outcomes, 0, Vec::new());
            let count = all.len() as u64;
            prop_assert_eq!(report.sent, count);
            prop_assert_eq!(report.answered + report.failed.values().sum::<u64>(), count);
            prop_assert_eq!(report.backends.values().map(|b| b.requests).sum::<u64>(), count);
            prop_assert_eq!(report.seconds.iter().flat_map(|s| s.backends.values()).sum::<u64>(), count);
        }
    }
}
