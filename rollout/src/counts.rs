//! What gateways count of one variant. They fill it, add theirs up, and hand it to the operator, which judges it.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::bernoulli::Tally;
use crate::gate::Metric;
use crate::histogram::Histogram;

/// What was counted of one variant in an epoch, of the requests that the route's own split decides on and that began in it.
///
/// A request that failed counts as infinite in the latencies: what never answers is not fast. One that is still waited for, or
/// that its client has given up, is kept with its age: it is known to have taken longer than that, and a gate counts it as infinite
/// as soon as it is older than the gate's limit. So a canary that hangs is seen while it hangs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Counts {
    /// Requests that ended, answered or failed by the variant's fault.
    pub requests: u64,
    /// Those of them that failed by the variant's fault.
    pub errors: u64,
    /// Seconds, of the requests that were streamed.
    pub time_to_first_token: Histogram,
    /// Seconds, of the requests that were streamed with two tokens or more.
    pub inter_token_latency: Histogram,
    /// Seconds.
    pub end_to_end_latency: Histogram,
    /// Tokens, of the requests that were answered.
    pub tokens_per_answer: Histogram,
    /// Ages in seconds of streamed requests without a first token: those that wait, and those whose client waits no more.
    pub unanswered: Histogram,
    /// Ages in seconds of requests without an end: those that run, and those whose client has left.
    pub unfinished: Histogram,
}

impl Counts {
    /// Adds what another gateway has counted.
    pub fn merge(&mut self, other: &Self) {
        let Self {
            requests,
            errors,
            time_to_first_token,
            inter_token_latency,
            end_to_end_latency,
            tokens_per_answer,
            unanswered,
            unfinished,
        } = other;
        self.requests = self.requests.saturating_add(*requests);
        self.errors = self.errors.saturating_add(*errors);
        self.time_to_first_token.merge(time_to_first_token);
        self.inter_token_latency.merge(inter_token_latency);
        self.end_to_end_latency.merge(end_to_end_latency);
        self.tokens_per_answer.merge(tokens_per_answer);
        self.unanswered.merge(unanswered);
        self.unfinished.merge(unfinished);
    }

    /// The values of a metric, with what is known to be above `beyond` already: those who wait for longer are at infinity. Empty for
    /// what is no histogram.
    pub fn values(&self, metric: Metric, beyond: Option<f64>) -> Cow<'_, Histogram> {
        let (values, pending) = match metric {
            Metric::ErrorRate | Metric::Prometheus | Metric::Evaluation => {
                return Cow::Owned(Histogram::default());
            }
            Metric::TimeToFirstToken => (&self.time_to_first_token, Some(&self.unanswered)),
            Metric::EndToEndLatency => (&self.end_to_end_latency, Some(&self.unfinished)),
            Metric::InterTokenLatency => (&self.inter_token_latency, None),
            Metric::TokensPerAnswer => (&self.tokens_per_answer, None),
        };
        let overdue = pending.zip(beyond).map_or(0, |(ages, beyond)| ages.at_least(beyond));
        if overdue == 0 {
            return Cow::Borrowed(values);
        }
        let mut all = values.clone();
        all.add_many(f64::INFINITY, overdue);
        Cow::Owned(all)
    }

    /// Errors, of the requests.
    pub fn failed(&self) -> Tally {
        // More errors than requests would be a gateway's mistake, and must not become a panic here.
        Tally { hits: self.errors.min(self.requests), of: self.requests }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_for_longer_than_the_limit_counts_as_infinite() {
        let mut counts = Counts::default();
        counts.time_to_first_token.add_many(0.2, 10);
        counts.unanswered.add_many(3.0, 4);
        counts.unanswered.add_many(0.5, 2);
        let count = |beyond| counts.values(Metric::TimeToFirstToken, beyond).count();
        assert_eq!([count(None), count(Some(10.0)), count(Some(1.0)), count(Some(0.1))], [10, 10, 14, 16]);
        assert_eq!(counts.values(Metric::EndToEndLatency, Some(0.0)).count(), 0);
    }

    #[test]
    fn adding_up_adds_everything_and_json_keeps_it() {
        let mut one = Counts { requests: 3, errors: 1, ..Counts::default() };
        for histogram in [
            &mut one.time_to_first_token,
            &mut one.inter_token_latency,
            &mut one.end_to_end_latency,
            &mut one.tokens_per_answer,
            &mut one.unanswered,
            &mut one.unfinished,
        ] {
            histogram.add(1.5);
        }
        let mut two = one.clone();
        two.merge(&one);
        assert_eq!((two.requests, two.errors), (6, 2));
        assert_eq!((two.unfinished.count(), two.tokens_per_answer.count()), (2, 2));
        let text = serde_json::to_string(&two).unwrap();
        assert_eq!(serde_json::from_str::<Counts>(&text).unwrap(), two);
    }
}
