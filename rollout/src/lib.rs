//! How a canary is judged.
//!
//! Owns: histograms that gateways keep, and intervals that stay valid however often they are looked at. Must not: do IO, read
//! a clock, know Kubernetes. Called by the operator, which decides with it, and by the gateway, which counts with it.

pub mod bernoulli;
pub mod counts;
pub mod finding;
pub mod gate;
pub mod histogram;
pub mod machine;
pub mod paired;
pub mod plan;
pub mod quantile;
pub mod report;
pub mod sample;
pub mod stretch;

pub use bernoulli::{Tally, difference, proportion};
pub use counts::Counts;
pub use finding::Finding;
pub use gate::{Bound, External, Gate, Judgement, Metric, Verdict};
pub use histogram::Histogram;
pub use machine::{Decision, Observation, Phase, Reason, Request, State, decide, due};
pub use paired::{Pairs, paired_difference};
pub use plan::{OnUndecided, Plan, Step, window};
pub use quantile::{quantile, quantile_ratio};
pub use sample::{sampled_difference, sampled_proportion};

/// Where a measured value lies with all but a stated probability, whenever one looks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    /// Its lower end.
    pub low: f64,
    /// Its upper end.
    pub high: f64,
}

impl Interval {
    /// Whether `value` is inside, the ends included.
    pub fn contains(&self, value: f64) -> bool {
        (self.low..=self.high).contains(&value)
    }
}
