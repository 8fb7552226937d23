//! Looks whether providers can be connected to, so that a wrong address or certificate authority is found before somebody needs it, and
//! a trouble that nobody meets any more is seen to be over. A connection, and no request: nothing is sent, no key is shown.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use tokio_util::sync::CancellationToken;

use super::target::Target;
use crate::routing::Routing;

/// How often it is looked for providers that are due.
const TICK: Duration = Duration::from_secs(2);
/// Providers that are looked at at the same time.
const AT_ONCE: usize = 8;

/// Looks until told to stop.
pub async fn follow(routing: Arc<Routing>, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = stop.cancelled() => return,
        }
        let due = due(&routing, Instant::now());
        let looks =
            futures::stream::iter(due).for_each_concurrent(AT_ONCE, async |target| target.look().await);
        tokio::select! {
            () = looks => {}
            () = stop.cancelled() => return,
        }
    }
}

/// The providers that are to be looked at now.
fn due(routing: &Routing, now: Instant) -> Vec<Arc<Target>> {
    let snapshot = routing.snapshot();
    let backends = snapshot.routes().into_iter().flat_map(|route| &route.backends);
    let targets = backends.filter_map(|backend| backend.provider.as_ref());
    targets.filter(|target| target.health().look_now(now)).cloned().collect()
}
