//! How often and how patiently a failed request is tried again.

use std::time::Duration;

use crate::error::FetchError;

/// Exponential back-off with jitter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Attempts in a row that may fail; for a download, those that brought no new byte.
    pub attempts: u32,
    /// Longest wait before the second attempt; it doubles from there.
    pub first_delay: Duration,
    /// Longest wait between two attempts.
    pub longest_delay: Duration,
}

impl Default for RetryPolicy {
    /// Ten attempts, waiting from half a second up to half a minute: about three minutes in all.
    fn default() -> Self {
        Self { attempts: 10, first_delay: Duration::from_millis(500), longest_delay: Duration::from_secs(30) }
    }
}

/// A hub that asks for a longer wait than this is not waited for.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(300);

impl RetryPolicy {
    /// One attempt, for callers with a back-off of their own.
    #[must_use]
    pub fn once() -> Self {
        Self { attempts: 1, ..Self::default() }
    }

    /// How long to wait after the `failures`-th failure in a row, or `None` to give up. `random` is from 0 to 1.
    #[must_use]
    pub fn delay(&self, error: &FetchError, failures: u32, random: f64) -> Option<Duration> {
        let FetchError::Transient { retry_after, .. } = error else { return None };
        if failures >= self.attempts {
            return None;
        }
        let doubled = self.first_delay.saturating_mul(1 << failures.saturating_sub(1).min(16));
        let jittered = doubled.min(self.longest_delay).mul_f64(0.5 + 0.5 * random.clamp(0.0, 1.0));
        match retry_after {
            Some(asked) if *asked > LONGEST_RETRY_AFTER => None,
            Some(asked) => Some(jittered.max(*asked)),
            None => Some(jittered),
        }
    }

    /// Waits before the next attempt, or gives `error` back when there is none.
    pub(crate) async fn pause(&self, error: FetchError, failures: u32) -> Result<(), FetchError> {
        match self.delay(&error, failures, rand::random()) {
            None => Err(error),
            Some(delay) => {
                let delay_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
                tracing::warn!(%error, failures, delay_ms, "trying again");
                tokio::time::sleep(delay).await;
                Ok(())
            }
        }
    }

    /// Runs `attempt` until it succeeds, fails for good, or has failed too often.
    pub(crate) async fn run<T, F>(&self, mut attempt: impl FnMut() -> F) -> Result<T, FetchError>
    where
        F: Future<Output = Result<T, FetchError>>,
    {
        let mut failures = 0;
        loop {
            match attempt().await {
                Ok(value) => return Ok(value),
                Err(error) => {
                    failures += 1;
                    self.pause(error, failures).await?;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_longest_and_end() {
        let policy = RetryPolicy {
            attempts: 4,
            first_delay: Duration::from_secs(1),
            longest_delay: Duration::from_secs(3),
        };
        let error = FetchError::transient("x");
        let delays: Vec<_> = (1..=4).map(|failures| policy.delay(&error, failures, 1.0)).collect();
        let seconds = |s| Some(Duration::from_secs(s));
        assert_eq!(delays, [seconds(1), seconds(2), seconds(3), None]);
        assert_eq!(policy.delay(&error, 1, 0.0), Some(Duration::from_millis(500)));
        assert_eq!(policy.delay(&FetchError::NotFound(String::new()), 1, 1.0), None);
    }

    #[test]
    fn a_hubs_wish_is_heeded_within_reason() {
        let asked = |seconds| FetchError::Transient {
            message: String::new(),
            retry_after: Some(Duration::from_secs(seconds)),
        };
        assert_eq!(RetryPolicy::default().delay(&asked(7), 1, 1.0), Some(Duration::from_secs(7)));
        assert_eq!(RetryPolicy::default().delay(&asked(3600), 1, 1.0), None);
    }
}
