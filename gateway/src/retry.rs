//! The retry budget: retries are a share of the requests, so that an outage is not made worse by repeating it.
//!
//! Pure: the clock is handed in. One budget serves the whole gateway, but for routes with one of their own.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// In hundredths of a retry, so that a request can earn a part of one.
const RETRY: u64 = 100;
/// What each request earns.
const PER_REQUEST: u64 = 20;
/// What each second earns, so that a gateway with little traffic can retry too.
const PER_SECOND: u64 = 10 * RETRY;
/// Most that can be saved: a pod that dies with this many requests on it loses none.
const CAPACITY: u64 = 2_000 * RETRY;

/// A bucket of retries.
#[derive(Debug)]
pub struct RetryBudget {
    bucket: Mutex<Bucket>,
    per_request: u64,
    per_second: u64,
    capacity: u64,
}

#[derive(Debug)]
struct Bucket {
    level: u64,
    filled: Instant,
}

impl RetryBudget {
    /// A full bucket, of which each request earns a fifth.
    pub fn new(now: Instant) -> Self {
        Self::full(PER_REQUEST, PER_SECOND, CAPACITY, now)
    }

    /// A full bucket, of which each request earns so many hundredths. None at all for 0.
    pub fn of_percent(percent: u32, now: Instant) -> Self {
        match percent {
            0 => Self::full(0, 0, 0, now),
            _ => Self::full(percent.into(), PER_SECOND, CAPACITY, now),
        }
    }

    /// So many hundredths of the requests and no more, in the long run: nothing comes with time.
    pub fn share_only(percent: u32, now: Instant) -> Self {
        Self::full(percent.into(), 0, 10 * RETRY, now)
    }

    fn full(per_request: u64, per_second: u64, capacity: u64, now: Instant) -> Self {
        let bucket = Mutex::new(Bucket { level: capacity, filled: now });
        Self { bucket, per_request, per_second, capacity }
    }

    /// Notes a new request.
    pub fn earn(&self) {
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        bucket.level = (bucket.level + self.per_request).min(self.capacity);
    }

    /// Takes one retry out; false when the budget is spent.
    pub fn spend(&self, now: Instant) -> bool {
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        let elapsed = now.saturating_duration_since(bucket.filled);
        let millis = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
        let earned = millis.saturating_mul(self.per_second) / 1000;
        if earned > 0 {
            bucket.level = bucket.level.saturating_add(earned).min(self.capacity);
            bucket.filled = now;
        }
        let enough = bucket.level >= RETRY;
        if enough {
            bucket.level -= RETRY;
        }
        enough
    }
}

/// How long to wait before asking an endpoint again that this request has failed on. Another endpoint is asked at once.
pub fn pause(attempt: u32) -> Duration {
    Duration::from_millis(100).saturating_mul(1 << attempt.saturating_sub(1).min(4))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_budget_covers_a_dying_pod_and_then_only_a_share_of_the_requests() {
        let now = Instant::now();
        let budget = RetryBudget::new(now);
        assert_eq!((0..5_000).filter(|_| budget.spend(now)).count(), 2_000);
        for _ in 0..100 {
            budget.earn();
        }
        assert_eq!((0..5_000).filter(|_| budget.spend(now)).count(), 20);
    }

    #[test]
    fn time_refills_it_up_to_the_brim() {
        let now = Instant::now();
        let budget = RetryBudget::new(now);
        while budget.spend(now) {}
        assert_eq!((0..100).filter(|_| budget.spend(now + Duration::from_secs(1))).count(), 10);
        let much_later = now + Duration::from_secs(1_000_000);
        assert_eq!((0..5_000).filter(|_| budget.spend(much_later)).count(), 2_000);
    }

    #[test]
    fn a_share_is_a_share() {
        let now = Instant::now();
        let budget = RetryBudget::share_only(5, now);
        assert_eq!((0..100).filter(|_| budget.spend(now)).count(), 10, "what was saved");
        for _ in 0..100 {
            budget.earn();
        }
        assert_eq!((0..100).filter(|_| budget.spend(now + Duration::from_secs(60))).count(), 5);
        let none = RetryBudget::of_percent(0, now);
        none.earn();
        assert!(!none.spend(now + Duration::from_secs(60)));
        assert!(RetryBudget::of_percent(1, now).spend(now));
    }

    #[test]
    fn pauses_grow_and_stay_short() {
        assert_eq!(pause(1), Duration::from_millis(100));
        assert_eq!(pause(2), Duration::from_millis(200));
        assert!(pause(50) <= Duration::from_secs(2));
    }
}
