//! How long to wait before an object whose reconcile failed is tried again: doubles with each failure, with jitter, so
//! that a thousand objects do not come back at once after an outage.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(300);

/// Failures in a row, by object. An entry lives until the object's next success.
#[derive(Debug, Default)]
pub struct Backoff {
    failures: Mutex<HashMap<String, u32>>,
}

impl Backoff {
    /// Notes a failure and says how long to wait.
    pub fn failed(&self, object: &str) -> Duration {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let count = failures.entry(object.to_owned()).or_default();
        *count = count.saturating_add(1);
        delay(*count, rand::random_range(0.8..1.2))
    }

    /// Forgets an object's failures.
    pub fn succeeded(&self, object: &str) {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).remove(object);
    }
}

fn delay(failures: u32, jitter: f64) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    (FIRST * 2_u32.pow(doublings)).min(LONGEST).mul_f64(jitter)
}

/// How long nobody is asked again for what has just failed, whatever wakes the controller.
const PAUSE: Duration = Duration::from_secs(3);

/// What has just failed, with what was said of it.
#[derive(Debug, Default)]
pub struct Pauses {
    until: Mutex<HashMap<String, (Instant, String)>>,
}

impl Pauses {
    /// Notes a failure.
    pub fn begin(&self, key: String, message: String, now: Instant) {
        let mut until = self.until.lock().unwrap_or_else(PoisonError::into_inner);
        until.retain(|_, (until, _)| *until > now);
        until.insert(key, (now + PAUSE, message));
    }

    /// What was said, while the pause lasts.
    pub fn message(&self, key: &str, now: Instant) -> Option<String> {
        let paused = self.until.lock().unwrap_or_else(PoisonError::into_inner);
        paused.get(key).filter(|(until, _)| *until > now).map(|(_, message)| message.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_repeats_what_was_said_and_ends() {
        let (pauses, now) = (Pauses::default(), Instant::now());
        pauses.begin("a".to_owned(), "no answer".to_owned(), now);
        assert_eq!(pauses.message("a", now).as_deref(), Some("no answer"));
        assert_eq!(pauses.message("b", now), None);
        assert_eq!(pauses.message("a", now + PAUSE), None);
    }

    #[test]
    fn delays_double_up_to_a_limit() {
        let seconds: Vec<u64> =
            [1, 2, 3, 4, 9, 10, 40, u32::MAX].map(|failures| delay(failures, 1.0).as_secs()).into();
        assert_eq!(seconds, [1, 2, 4, 8, 256, 300, 300, 300]);
    }

    #[test]
    fn a_success_starts_over() {
        let backoff = Backoff::default();
        for _ in 0..5 {
            backoff.failed("a");
        }
        assert!(backoff.failed("a") > Duration::from_secs(20));
        backoff.succeeded("a");
        assert!(backoff.failed("a") < Duration::from_secs(2));
    }
}
