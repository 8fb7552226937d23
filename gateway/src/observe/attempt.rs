//! One request as its variants experience it, from the first attempt at each to the end. Travels in the request's record
//! (`exchange`), which is told what happens by `forward` and `relay`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;

use super::RouteObserver;
use super::epoch::{Ended, Epoch, Fact, Place};
use super::tokens::Tokens;
use super::variant::{End, InFlight, Variant, VariantMetrics};
use crate::metrics::Outcome;

/// The time between tokens is known after so many of them, so that a stream that is slow is seen before it ends.
const ENOUGH_TOKENS: u64 = 65;

/// What is observed of one request.
#[derive(Debug, Default)]
pub struct Observed {
    /// The epoch in force when the request was decided on; what comes after is none of its business.
    epoch: Option<Option<Arc<Epoch>>>,
    current: Option<Attempt>,
}

/// The part of a request that one variant has.
#[derive(Debug)]
struct Attempt {
    variant: Arc<Variant>,
    _in_flight: InFlight,
    counted: Option<(Arc<Epoch>, Place)>,
    streamed: bool,
    began: Instant,
    /// Something went wrong that was the variant's fault.
    faulty: bool,
    /// A pod had no room, or was on its way in or out.
    busy: bool,
    tokens: Tokens,
    first: Option<Instant>,
    last: Option<Instant>,
    between_told: bool,
}

impl Observed {
    /// An attempt at a backend begins. One more at the same backend goes on with what that one has; another backend's ends.
    ///
    /// `counted`: whether the route's own split decided, so that the request is one of those that a canary is judged by. `subject`: who
    /// it is of, where the split is sticky.
    pub fn attempt(
        &mut self,
        metrics: &VariantMetrics,
        route: &RouteObserver,
        backend: &str,
        (streamed, counted, subject): (bool, bool, Option<u64>),
        now: Instant,
    ) {
        if self.current.as_ref().is_some_and(|it| it.variant.backend() == backend) {
            return;
        }
        // Whoever is left for another has failed the request, be it because it had no room.
        self.end(metrics, End::Failed, now);
        let Some(variant) = route.variant(backend) else { return };
        let epoch = self.epoch.get_or_insert_with(|| route.epoch().filter(|_| counted).cloned());
        let counted = epoch.as_ref().and_then(|epoch| {
            let place = epoch.begin(backend, subject, streamed, (now, Timestamp::now()))?;
            Some((Arc::clone(epoch), place))
        });
        self.current = Some(Attempt {
            variant: Arc::clone(variant),
            _in_flight: variant.begin(metrics),
            counted,
            streamed,
            began: now,
            faulty: false,
            busy: false,
            tokens: Tokens::default(),
            first: None,
            last: None,
            between_told: false,
        });
    }

    /// The attempt failed by the variant's fault: no connection, a connection that broke, no answer in time.
    pub fn fault(&mut self) {
        if let Some(attempt) = &mut self.current {
            attempt.faulty = true;
        }
    }

    /// The pod had no room, or was on its way in or out (429, 503). No fault as long as another pod of the variant takes the request.
    pub fn busy(&mut self) {
        if let Some(attempt) = &mut self.current {
            attempt.busy = true;
        }
    }

    /// Whole events of a stream are passed on to the client.
    pub fn events(&mut self, metrics: &VariantMetrics, events: &[u8]) {
        let Some(attempt) = &mut self.current else { return };
        if attempt.tokens.read_events(events) == 0 {
            return;
        }
        let now = Instant::now();
        attempt.last = Some(now);
        if attempt.first.is_none() {
            attempt.first = Some(now);
            let after = now.saturating_duration_since(attempt.began);
            attempt.variant.first_token(metrics, after);
            attempt.add(Fact::FirstToken(after.as_secs_f64()));
        }
        if attempt.tokens.pieces >= ENOUGH_TOKENS {
            attempt.tell_between(metrics);
        }
    }

    /// The answer has come whole.
    pub fn whole(&mut self, body: &[u8]) {
        if let Some(attempt) = &mut self.current {
            attempt.tokens.read_whole(body);
        }
    }

    /// The request has ended.
    pub fn ended(&mut self, metrics: &VariantMetrics, outcome: Outcome, now: Instant) {
        let end = match outcome {
            Outcome::Ok => End::Answered,
            // A pod that had no room until the end; the gateway's own refusals come before any attempt.
            Outcome::Overloaded | Outcome::UpstreamError | Outcome::UpstreamTimeout | Outcome::Broken => {
                End::Failed
            }
            // What remains of a request whose attempts were all in vain is theirs.
            Outcome::NoEndpoint | Outcome::UnknownModel if self.was_in_vain() => End::Failed,
            Outcome::Refused | Outcome::NoEndpoint | Outcome::UnknownModel => End::Refused,
            Outcome::ClientGone => End::Left,
        };
        self.end(metrics, end, now);
    }

    fn was_in_vain(&self) -> bool {
        self.current.as_ref().is_some_and(|attempt| attempt.faulty || attempt.busy)
    }

    fn end(&mut self, metrics: &VariantMetrics, end: End, now: Instant) {
        let Some(mut attempt) = self.current.take() else { return };
        let end = match end {
            End::Answered | End::Left if attempt.faulty || attempt.tokens.error => End::Failed,
            end => end,
        };
        let after = now.saturating_duration_since(attempt.began);
        if end == End::Answered {
            attempt.tell_between(metrics);
        }
        let tokens = attempt.tokens.count();
        attempt.variant.ended(metrics, end, after, tokens);
        attempt.add_end(end, after, tokens);
    }
}

impl Attempt {
    fn add(&self, fact: Fact) {
        if let Some((epoch, place)) = &self.counted {
            epoch.add(place, fact);
        }
    }

    /// Tells the time between tokens, once.
    fn tell_between(&mut self, metrics: &VariantMetrics) {
        let (Some(first), Some(last)) = (self.first, self.last) else { return };
        if self.between_told || self.tokens.pieces < 2 {
            return;
        }
        self.between_told = true;
        // Far below 2^53.
        #[allow(clippy::cast_precision_loss)]
        let gaps = (self.tokens.pieces - 1) as f64;
        let seconds = last.saturating_duration_since(first).as_secs_f64() / gaps;
        self.variant.between_tokens(metrics, seconds);
        self.add(Fact::BetweenTokens(seconds));
    }

    fn add_end(&self, end: End, after: Duration, tokens: Option<u64>) {
        #[allow(clippy::cast_precision_loss)]
        let tokens = tokens.map(|tokens| tokens as f64);
        let waiting = self.streamed && self.first.is_none();
        let end = match end {
            End::Answered => Ended::Answered(tokens),
            End::Failed => Ended::Failed { between_unknown: self.first.is_some() && !self.between_told },
            End::Refused => Ended::Void,
            End::Left => Ended::Left,
        };
        self.add(Fact::End { end, seconds: after.as_secs_f64(), waiting });
    }
}
