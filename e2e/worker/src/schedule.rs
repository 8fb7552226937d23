//! When requests are sent: a Poisson process, as many clients that know nothing of each other make one. Pure.

use std::time::Duration;

use rand::{Rng, RngExt};

/// The times of a load's requests since its start, one after another.
#[derive(Debug)]
pub struct Arrivals<R> {
    per_second: f64,
    lasting: Duration,
    at: f64,
    rng: R,
}

impl<R: Rng> Arrivals<R> {
    /// So many a second on average, for so long.
    pub fn new(per_second: f64, lasting: Duration, rng: R) -> Self {
        Self { per_second, lasting, at: 0.0, rng }
    }
}

impl<R: Rng> Iterator for Arrivals<R> {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        // From (0, 1], whose logarithm is finite.
        let dice = 1.0 - self.rng.random::<f64>();
        self.at -= dice.ln() / self.per_second;
        let at = Duration::try_from_secs_f64(self.at).ok()?;
        (at < self.lasting).then_some(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    #[test]
    fn there_are_as_many_as_the_rate_says_and_they_never_go_back() {
        let times: Vec<Duration> =
            Arrivals::new(200.0, Duration::from_secs(50), StdRng::seed_from_u64(5)).collect();
        // Poisson: sigma is 100.
        assert!(times.len().abs_diff(10_000) < 500, "{}", times.len());
        assert!(times.is_sorted());
        assert!(times.iter().all(|at| *at < Duration::from_secs(50)));
    }
}
