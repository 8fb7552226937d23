//! Counts of requests that are counted in the same stretches, with the ages of those that have not ended.

use std::collections::BTreeMap;
use std::time::Duration;

use fairlead_rollout::{Counts, Histogram};

use super::{Ended, Fact};

/// The resolution of the ages of requests that have not ended.
pub const TICK: Duration = Duration::from_millis(100);

/// What was counted of some requests.
#[derive(Clone, Debug, Default)]
pub struct Cell {
    counts: Counts,
    /// How many streamed requests that began in each tick have no token yet.
    waiting: BTreeMap<u64, u64>,
    /// How many requests that began in each tick have not ended.
    running: BTreeMap<u64, u64>,
}

impl Cell {
    /// A request begins.
    pub fn begin(&mut self, tick: u64, streamed: bool) {
        *self.running.entry(tick).or_default() += 1;
        if streamed {
            *self.waiting.entry(tick).or_default() += 1;
        }
    }

    /// Something of a request that began in `tick` is known.
    pub fn add(&mut self, tick: u64, fact: Fact) {
        let counts = &mut self.counts;
        match fact {
            Fact::FirstToken(seconds) => {
                less(&mut self.waiting, tick);
                counts.time_to_first_token.add(seconds);
            }
            Fact::BetweenTokens(seconds) => counts.inter_token_latency.add(seconds),
            Fact::End { end, seconds, waiting } => {
                less(&mut self.running, tick);
                if waiting {
                    less(&mut self.waiting, tick);
                }
                let first_token = &mut counts.time_to_first_token;
                match end {
                    Ended::Answered(tokens) => {
                        counts.requests += 1;
                        counts.end_to_end_latency.add(seconds);
                        // An answer without any token: its end is the first that the client sees.
                        if waiting {
                            first_token.add(seconds);
                        }
                        if let Some(tokens) = tokens {
                            counts.tokens_per_answer.add(tokens);
                        }
                    }
                    Ended::Failed { between_unknown } => {
                        counts.requests += 1;
                        counts.errors += 1;
                        counts.end_to_end_latency.add(f64::INFINITY);
                        if waiting {
                            first_token.add(f64::INFINITY);
                        }
                        if between_unknown {
                            counts.inter_token_latency.add(f64::INFINITY);
                        }
                    }
                    Ended::Left => {
                        counts.unfinished.add(seconds);
                        if waiting {
                            counts.unanswered.add(seconds);
                        }
                    }
                    Ended::Void => {}
                }
            }
        }
    }

    /// Adds what another has counted.
    pub fn merge(&mut self, other: Self) {
        let Self { counts, waiting, running } = other;
        self.counts.merge(&counts);
        for (mine, theirs) in [(&mut self.waiting, waiting), (&mut self.running, running)] {
            theirs.into_iter().for_each(|(tick, count)| *mine.entry(tick).or_default() += count);
        }
    }

    /// The counts, with the ages of what has not ended.
    pub fn told(&self, now: u64) -> Counts {
        let mut counts = self.counts.clone();
        add_ages(&mut counts.unanswered, &self.waiting, now);
        add_ages(&mut counts.unfinished, &self.running, now);
        counts
    }
}

fn add_ages(to: &mut Histogram, begun: &BTreeMap<u64, u64>, now: u64) {
    for (tick, count) in begun {
        // Rather too young: from the end of the tick in which they began.
        let age = TICK.mul_f64(ticks(now.saturating_sub(tick.saturating_add(1))));
        to.add_many(age.as_secs_f64(), *count);
    }
}

/// A hundred years have 3·10¹⁰ ticks.
fn ticks(ticks: u64) -> f64 {
    u32::try_from(ticks).map_or(f64::from(u32::MAX), f64::from)
}

fn less(of: &mut BTreeMap<u64, u64>, tick: u64) {
    if let Some(count) = of.get_mut(&tick) {
        *count -= 1;
        if *count == 0 {
            of.remove(&tick);
        }
    }
}
