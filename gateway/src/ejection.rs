//! Passive ejection: an endpoint that fails is left alone for a while, longer each time.
//!
//! Pure: the clock is handed in. `endpoint` keeps one [`Ejection`] per endpoint; `select` asks it, and uses an ejected
//! endpoint all the same when nothing else is left, so the last one is never lost.

use std::time::{Duration, Instant};

/// How an endpoint failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// No connection could be opened: nothing listens there. One is enough to eject.
    Connect,
    /// It took the request and broke it off, or said that it cannot serve now. Several in a row eject.
    Broken,
}

/// When to eject and for how long.
#[derive(Clone, Copy, Debug)]
pub struct EjectionRules {
    /// Broken requests in a row that eject.
    pub threshold: u32,
    /// Length of the first ejection; each that follows without a success between is twice as long.
    pub base: Duration,
    /// Longest ejection.
    pub max: Duration,
}

impl Default for EjectionRules {
    fn default() -> Self {
        Self { threshold: 3, base: Duration::from_secs(1), max: Duration::from_secs(30) }
    }
}

/// One endpoint's record.
#[derive(Debug, Default)]
pub struct Ejection {
    broken_in_a_row: u32,
    ejections: u32,
    until: Option<Instant>,
}

impl Ejection {
    /// Whether the endpoint should be left alone at `now`.
    pub fn is_ejected(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }

    /// Leaves it alone until then at least; no failure of its.
    pub fn leave_alone_until(&mut self, until: Instant) {
        self.until = Some(self.until.map_or(until, |known| known.max(until)));
    }

    /// Notes a success: the slate is clean.
    pub fn record_success(&mut self) {
        *self = Self::default();
    }

    /// Notes a failure and says whether it ejected the endpoint just now.
    ///
    /// Failures during an ejection are the same event seen again (every request that was running on a pod that died),
    /// so they do not lengthen it.
    pub fn record_failure(&mut self, failure: Failure, now: Instant, rules: &EjectionRules) -> bool {
        if self.is_ejected(now) {
            return false;
        }
        self.broken_in_a_row = self.broken_in_a_row.saturating_add(1);
        if failure == Failure::Broken && self.broken_in_a_row < rules.threshold && self.ejections == 0 {
            return false;
        }
        let length = rules.base.saturating_mul(1 << self.ejections.min(16)).min(rules.max);
        self.ejections = self.ejections.saturating_add(1);
        self.until = Some(now + length);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: EjectionRules =
        EjectionRules { threshold: 3, base: Duration::from_secs(1), max: Duration::from_secs(5) };

    #[test]
    fn one_refused_connection_ejects_for_the_base_time() {
        let now = Instant::now();
        let mut ejection = Ejection::default();
        assert!(ejection.record_failure(Failure::Connect, now, &RULES));
        assert!(ejection.is_ejected(now + Duration::from_millis(999)));
        assert!(!ejection.is_ejected(now + Duration::from_secs(1)));
    }

    #[test]
    fn broken_requests_eject_only_in_a_row() {
        let now = Instant::now();
        let mut ejection = Ejection::default();
        assert!(!ejection.record_failure(Failure::Broken, now, &RULES));
        assert!(!ejection.record_failure(Failure::Broken, now, &RULES));
        ejection.record_success();
        assert!(!ejection.record_failure(Failure::Broken, now, &RULES));
        assert!(!ejection.record_failure(Failure::Broken, now, &RULES));
        assert!(ejection.record_failure(Failure::Broken, now, &RULES));
        assert!(ejection.is_ejected(now));
    }

    #[test]
    fn ejections_double_up_to_the_longest_and_a_success_forgives() {
        let mut now = Instant::now();
        let mut ejection = Ejection::default();
        for seconds in [1, 2, 4, 5, 5] {
            assert!(ejection.record_failure(Failure::Connect, now, &RULES));
            let length = Duration::from_secs(seconds);
            assert!(ejection.is_ejected(now + length - Duration::from_millis(1)), "{seconds}");
            now += length;
            assert!(!ejection.is_ejected(now), "{seconds}");
        }
        ejection.record_success();
        assert!(ejection.record_failure(Failure::Connect, now, &RULES));
        assert!(!ejection.is_ejected(now + Duration::from_secs(1)));
    }

    #[test]
    fn who_asks_to_be_left_alone_is() {
        let now = Instant::now();
        let mut ejection = Ejection::default();
        ejection.leave_alone_until(now + Duration::from_secs(9));
        ejection.leave_alone_until(now + Duration::from_secs(3));
        assert!(ejection.is_ejected(now + Duration::from_secs(8)));
        assert!(!ejection.is_ejected(now + Duration::from_secs(9)));
    }

    #[test]
    fn one_dead_pod_seen_by_many_requests_is_one_ejection() {
        let now = Instant::now();
        let mut ejection = Ejection::default();
        assert!(ejection.record_failure(Failure::Connect, now, &RULES));
        for _ in 0..50 {
            assert!(!ejection.record_failure(Failure::Connect, now, &RULES));
        }
        assert!(!ejection.is_ejected(now + Duration::from_secs(1)));
    }
}
