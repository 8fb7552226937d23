//! Looks whether providers can be connected to, so that a wrong address or certificate authority is found before somebody needs it, and
//! a trouble that nobody meets any more is seen to be over. A connection, and no request: nothing is sent, no key is shown. A bug
//! in it ends neither it nor the gateway.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::target::Target;
use crate::routing::Routing;

/// How often it is looked for providers that are due.
const TICK: Duration = Duration::from_secs(2);
/// Providers that are looked at at the same time.
const AT_ONCE: usize = 32;

/// Looks until told to stop, and ends for nothing else.
pub async fn follow(routing: Arc<Routing>, stop: CancellationToken) {
    let (routing, stop) = (&*routing, &stop);
    until_done(TICK, move || look_around(routing, stop)).await;
}

async fn look_around(routing: &Routing, stop: &CancellationToken) {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut looks = Looks::default();
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            Some(_) = looks.0.join_next() => continue,
            () = stop.cancelled() => return,
        }
        let targets = targets(routing);
        // Not always the same ones first: many that hang would keep the others from ever being looked at.
        let first = rand::random_range(0..targets.len().max(1));
        for target in targets.iter().cycle().skip(first).take(targets.len()) {
            if looks.0.len() >= AT_ONCE {
                break;
            }
            if target.health().look_now(Instant::now(), rand::random_range(0.9..=1.1)) {
                let target = Arc::clone(target);
                looks.begin(target.inputs().url.clone(), async move { target.look().await });
            }
        }
    }
}

/// Every provider that can be called.
fn targets(routing: &Routing) -> Vec<Arc<Target>> {
    let snapshot = routing.snapshot();
    let backends = snapshot.routes().into_iter().flat_map(|route| &route.backends);
    backends.filter_map(|backend| backend.provider.clone()).collect()
}

/// The looks under way. None waits for another, and a panic in one ends that one.
#[derive(Default)]
struct Looks(JoinSet<()>);

impl Looks {
    fn begin(&mut self, provider: String, look: impl Future<Output = ()> + Send + 'static) {
        self.0.spawn(async move {
            // What a look shares with others is behind locks that a panic does not leave half-made.
            if AssertUnwindSafe(look).catch_unwind().await.is_err() {
                tracing::error!(provider, "a look at a provider panicked; this is a bug");
            }
        });
    }
}

/// Does something until it ends without a panic, with this pause after each panic.
async fn until_done<F: Future<Output = ()>>(pause: Duration, what: impl Fn() -> F) {
    while AssertUnwindSafe(what()).catch_unwind().await.is_err() {
        tracing::error!("the task that looks at providers panicked and begins again; this is a bug");
        tokio::time::sleep(pause).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::sync::oneshot;

    use super::*;

    /// Far longer than anything here takes.
    const DEADLINE: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn a_look_that_panics_or_hangs_keeps_no_other_from_its_end() {
        let mut looks = Looks::default();
        looks.begin("https://panics/v1".to_owned(), async { panic!("on purpose") });
        looks.begin("https://hangs/v1".to_owned(), std::future::pending());
        let (done, is_done) = oneshot::channel();
        looks.begin("https://answers/v1".to_owned(), async { done.send(()).expect("somebody waits") });
        tokio::time::timeout(DEADLINE, is_done).await.expect("not kept waiting").expect("looked at");
        for _ in 0..2 {
            let ended = tokio::time::timeout(DEADLINE, looks.0.join_next()).await.expect("one has ended");
            ended.expect("there are three").expect("the panic is contained");
        }
        assert_eq!(looks.0.len(), 1);
    }

    #[tokio::test]
    async fn a_panic_does_not_end_it() {
        let times = AtomicU32::new(0);
        let what = || async { assert!(times.fetch_add(1, Ordering::Relaxed) > 1, "on purpose") };
        tokio::time::timeout(DEADLINE, until_done(Duration::ZERO, what)).await.expect("it ends");
        assert_eq!(times.load(Ordering::Relaxed), 3);
    }
}
