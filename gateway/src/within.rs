//! A wait with an end.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::Poll;

use tokio::task::unconstrained;
use tokio::time::{Instant, Sleep, sleep_until};

/// The time has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Late;

/// As [`tokio::time::timeout_at`], and without a timer for what is here already, as most pieces of bodies are when they are asked for.
///
/// # Errors
/// When it is not here in time.
pub async fn within<F: Future + Unpin>(deadline: Instant, mut future: F) -> Result<F::Output, Late> {
    // In a box, so that who asks has no room for a timer that is seldom needed.
    let mut timer: Option<Pin<Box<Sleep>>> = None;
    poll_fn(|cx| {
        if let Poll::Ready(output) = Pin::new(&mut future).poll(cx) {
            return Poll::Ready(Ok(output));
        }
        let timer = timer.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        // Not as work of the task, which may have done enough for now by waiting in vain.
        pin!(unconstrained(timer.as_mut())).poll(cx).map(|()| Err(Late))
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn what_is_here_needs_no_time_and_what_never_comes_takes_no_more_than_it_has() {
        let begun = Instant::now();
        assert_eq!(within(begun, ready(7)).await, Ok(7), "it is not too late for what is here");
        let deadline = begun + Duration::from_millis(20);
        assert_eq!(within(deadline, pending::<()>()).await, Err(Late));
        assert!(Instant::now() >= deadline);
        let soon = Box::pin(tokio::time::sleep(Duration::from_millis(1)));
        assert_eq!(within(begun + Duration::from_secs(60), soon).await, Ok(()));
    }
}
