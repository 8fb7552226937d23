//! Ending without cutting an answer: no new requests, all old ones to their end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::watch;

/// Counts requests in flight and knows whether new ones are taken.
pub struct Drain {
    leaving: AtomicBool,
    draining: AtomicBool,
    in_flight: watch::Sender<usize>,
}

/// A request that is being answered; dropped when its last byte is sent or its client has gone.
pub struct InFlight(Arc<Drain>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.send_modify(|count| *count = count.saturating_sub(1));
    }
}

impl Drain {
    /// Takes requests.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            leaving: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            in_flight: watch::Sender::new(0),
        })
    }

    /// Takes a request in; `None` once draining has begun.
    pub fn enter(self: &Arc<Self>) -> Option<InFlight> {
        // Counted first: a request is either seen by `idle` or sees `draining`.
        self.in_flight.send_modify(|count| *count += 1);
        let guard = InFlight(Arc::clone(self));
        (!self.is_draining()).then_some(guard)
    }

    /// Says from now on that requests should go elsewhere; those that come all the same are taken.
    pub fn announce(&self) {
        self.leaving.store(true, Ordering::SeqCst);
    }

    /// Whether requests should go elsewhere.
    pub fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::SeqCst)
    }

    /// Takes no new requests from now on.
    pub fn begin(&self) {
        self.announce();
        self.draining.store(true, Ordering::SeqCst);
    }

    /// Whether draining has begun.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    /// Requests being answered.
    pub fn in_flight(&self) -> usize {
        *self.in_flight.borrow()
    }

    /// Waits until no request is being answered.
    pub async fn idle(&self) {
        // The sender lives in `self`, so waiting cannot fail.
        let _ = self.in_flight.subscribe().wait_for(|count| *count == 0).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn old_requests_end_and_new_ones_are_refused() {
        let drain = Drain::new();
        let old = drain.enter().expect("not draining yet");
        drain.begin();
        assert!(drain.enter().is_none());
        assert_eq!(drain.in_flight(), 1);
        let waiting = tokio::spawn({
            let drain = Arc::clone(&drain);
            async move { drain.idle().await }
        });
        drop(old);
        waiting.await.unwrap();
    }
}
