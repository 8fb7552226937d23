//! A backend as a whole: how many requests it has at a time, and whether it is left alone after failures.
//!
//! Pure but for the waiting for a place: the clock is handed in. One [`Circuit`] for each backend of a route outlives the
//! snapshots that it appears in, as endpoints do. `forward` enters it and tells what came of it; `select` leaves out a backend
//! whose circuit is open.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use fairlead_crds::model_route::resilience::WhenFull;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A circuit that stays broken is tried more and more seldom, up to this many times `open_for` apart.
const LONGEST_OPEN: u32 = 8;

/// What `spec.circuitBreaker` says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Breaker {
    /// Most requests at a time.
    pub max_in_flight: Option<u32>,
    /// Most that wait for a place.
    pub max_pending: u32,
    /// Whether who finds no place goes to the other backends.
    pub diverts: bool,
    /// Failures in a row that open it.
    pub consecutive_failures: Option<u32>,
    /// How long it stays open.
    pub open_for: Duration,
}

impl Breaker {
    /// From the spec; what cannot be read is as if it was left out.
    pub fn of(spec: &fairlead_crds::model_route::resilience::CircuitBreaker) -> Self {
        let fairlead_crds::model_route::resilience::CircuitBreaker {
            max_in_flight,
            max_pending,
            when_full,
            consecutive_failures,
            open_for,
        } = spec;
        let open_for = open_for.as_deref().and_then(fairlead_crds::model_route::duration::parse);
        Self {
            max_in_flight: *max_in_flight,
            max_pending: max_pending.unwrap_or(0),
            diverts: *when_full == Some(WhenFull::Divert),
            consecutive_failures: *consecutive_failures,
            open_for: open_for.unwrap_or(Duration::from_secs(30)),
        }
    }
}

/// One backend's circuit.
#[derive(Debug, Default)]
pub struct Circuit {
    breaker: Breaker,
    places: Option<Arc<Semaphore>>,
    pending: AtomicU32,
    failing: Mutex<Failing>,
}

#[derive(Debug, Default)]
struct Failing {
    in_a_row: u32,
    openings: u32,
    until: Option<Instant>,
    probing: bool,
}

/// Why a request may not go to a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    /// It is left alone after failures.
    Open,
    /// It has as many requests as it takes.
    Full,
}

/// A request's place at a backend; given back when dropped.
#[derive(Debug)]
pub struct Pass {
    circuit: Arc<Circuit>,
    probe: bool,
    _place: Option<OwnedSemaphorePermit>,
}

impl Circuit {
    /// A circuit that is closed.
    pub fn new(breaker: Breaker) -> Self {
        let places = breaker.max_in_flight.map(|most| Arc::new(Semaphore::new(most as usize)));
        Self { breaker, places, ..Self::default() }
    }

    /// What it goes by.
    pub fn breaker(&self) -> &Breaker {
        &self.breaker
    }

    /// Whether the backend gets no request at `now`: it is open, or another request tries just now whether it is well again.
    pub fn is_open(&self, now: Instant) -> bool {
        if self.never_opens() {
            return false;
        }
        let failing = self.failing();
        failing.until.is_some_and(|until| now < until || failing.probing)
    }

    /// A place for a request; waits for one where the breaker lets it wait, at most until `deadline`.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn enter(self: &Arc<Self>, now: Instant, deadline: Instant) -> Result<Pass, Closed> {
        let place = self.place(deadline).await?;
        if self.never_opens() {
            return Ok(Pass { circuit: Arc::clone(self), probe: false, _place: place });
        }
        // Looked at last: who has waited may find it open by then.
        let mut failing = self.failing();
        let probe = match failing.until {
            Some(until) if now < until || failing.probing => return Err(Closed::Open),
            Some(_) => true,
            None => false,
        };
        failing.probing |= probe;
        drop(failing);
        Ok(Pass { circuit: Arc::clone(self), probe, _place: place })
    }

    async fn place(&self, deadline: Instant) -> Result<Option<OwnedSemaphorePermit>, Closed> {
        let Some(places) = &self.places else { return Ok(None) };
        if let Ok(place) = Arc::clone(places).try_acquire_owned() {
            return Ok(Some(place));
        }
        let _waits = Waits::begin(&self.pending, self.breaker.max_pending).ok_or(Closed::Full)?;
        let wait = tokio::time::timeout_at(deadline.into(), Arc::clone(places).acquire_owned());
        // In a box, because few routes have it and all requests would have room for it.
        match Box::pin(wait).await {
            Ok(Ok(place)) => Ok(Some(place)),
            Ok(Err(_)) | Err(_) => Err(Closed::Full),
        }
    }

    /// It answered.
    pub fn succeeded(&self) {
        if !self.never_opens() {
            *self.failing() = Failing::default();
        }
    }

    /// It failed; true when that opened it just now.
    pub fn failed(&self, now: Instant) -> bool {
        let Some(most) = self.breaker.consecutive_failures else { return false };
        let mut failing = self.failing();
        if failing.until.is_some_and(|until| now < until) {
            // Requests that were running when it opened.
            return false;
        }
        failing.in_a_row = failing.in_a_row.saturating_add(1);
        if failing.in_a_row < most && failing.until.is_none() {
            return false;
        }
        let times = 1_u32.checked_shl(failing.openings).map_or(LONGEST_OPEN, |times| times.min(LONGEST_OPEN));
        failing.openings = failing.openings.saturating_add(1);
        failing.until = Some(now + self.breaker.open_for.saturating_mul(times));
        failing.probing = false;
        true
    }

    /// Without a limit of failures there is nothing to keep count of, and no lock to take for it.
    fn never_opens(&self) -> bool {
        self.breaker.consecutive_failures.is_none()
    }

    fn failing(&self) -> MutexGuard<'_, Failing> {
        // Nothing panics while it holds the lock.
        self.failing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pass {
    /// The circuit that it is of.
    pub fn circuit(&self) -> &Arc<Circuit> {
        &self.circuit
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        if self.probe {
            // Without a verdict, as when the client went away, the next one tries.
            self.circuit.failing().probing = false;
        }
    }
}

/// One that waits for a place.
struct Waits<'a>(&'a AtomicU32);

impl<'a> Waits<'a> {
    fn begin(pending: &'a AtomicU32, most: u32) -> Option<Self> {
        let room = |count: u32| (count < most).then_some(count + 1);
        pending.fetch_update(Ordering::AcqRel, Ordering::Acquire, room).ok()?;
        Some(Self(pending))
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPEN_FOR: Duration = Duration::from_secs(10);

    fn circuit(max_in_flight: Option<u32>, max_pending: u32, failures: Option<u32>) -> Arc<Circuit> {
        Arc::new(Circuit::new(Breaker {
            max_in_flight,
            max_pending,
            diverts: false,
            consecutive_failures: failures,
            open_for: OPEN_FOR,
        }))
    }

    async fn enter(circuit: &Arc<Circuit>, now: Instant) -> Result<Pass, Closed> {
        circuit.enter(now, now).await
    }

    #[tokio::test]
    async fn failures_in_a_row_open_it_and_one_request_tries_whether_it_is_well_again() {
        let now = Instant::now();
        let circuit = circuit(None, 0, Some(3));
        assert!(!circuit.failed(now) && !circuit.failed(now));
        circuit.succeeded();
        assert!(!circuit.failed(now) && !circuit.failed(now) && circuit.failed(now));
        assert!(circuit.is_open(now) && !circuit.failed(now), "one event, seen by many requests");
        assert_eq!(enter(&circuit, now).await.unwrap_err(), Closed::Open);
        let later = now + OPEN_FOR;
        assert!(!circuit.is_open(later));
        let probe = enter(&circuit, later).await.unwrap();
        assert!(circuit.is_open(later));
        assert_eq!(enter(&circuit, later).await.unwrap_err(), Closed::Open, "one at a time");
        // The client went away: nothing is known.
        drop(probe);
        let probe = enter(&circuit, later).await.unwrap();
        assert!(circuit.failed(later), "one failure is enough now, and for twice as long");
        drop(probe);
        assert!(circuit.is_open(later + OPEN_FOR) && !circuit.is_open(later + 2 * OPEN_FOR));
        let _probe = enter(&circuit, later + 2 * OPEN_FOR).await.unwrap();
        circuit.succeeded();
        assert!(enter(&circuit, later + 2 * OPEN_FOR).await.is_ok() && !circuit.failed(later + 2 * OPEN_FOR));
    }

    #[tokio::test]
    async fn places_are_limited_and_given_back() {
        let circuit = circuit(Some(1), 1, None);
        let (now, later) = (Instant::now(), Instant::now() + Duration::from_secs(60));
        let first = enter(&circuit, now).await.unwrap();
        let waiting = tokio::spawn({
            let circuit = Arc::clone(&circuit);
            async move { circuit.enter(Instant::now(), later).await }
        });
        while circuit.pending.load(Ordering::Acquire) == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(circuit.enter(now, later).await.unwrap_err(), Closed::Full, "one may wait");
        drop(first);
        let second = waiting.await.unwrap().unwrap();
        assert_eq!(circuit.pending.load(Ordering::Acquire), 0);
        assert_eq!(enter(&circuit, now).await.unwrap_err(), Closed::Full, "it waited as long as it may");
        drop(second);
        assert!(enter(&circuit, now).await.is_ok());
    }

    #[tokio::test]
    async fn without_limits_nothing_is_limited() {
        let circuit = circuit(None, 0, None);
        let now = Instant::now();
        for _ in 0..100 {
            assert!(!circuit.failed(now));
        }
        let passes = [enter(&circuit, now).await, enter(&circuit, now).await];
        assert!(passes.iter().all(Result::is_ok));
    }
}
